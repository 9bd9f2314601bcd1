"""`broker run`."""

import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from broker.edge.cli.context import Context, write_context
from broker.errors import NotFound
from broker.sdk.run_key import KeptRun, RunKey, keep_run, read_kept_run
from broker.token.run_proof import check_run_proof, parse_run_proof
from broker.v1 import runs_pb2, tokens_pb2
from tests.edge.cli.conftest import DOMAIN, Program
from tests.edge.cli.served import Served

KEYS = ["id", "realm", "partner", "models", "state", "opened_at", "lease_ends_at", "user", "workload", "environment"]
KEYS += ["opened_by", "grants", "key_thumbprint", "approval"]
OPEN = ("run", "open", "--realm", "evaluation", "--partner", "acme", "--model", "mythos")


def one(state: "runs_pb2.RunState | None" = None, *, run: str = "run-12345678", partner: str = "acme") -> runs_pb2.Run:
    return runs_pb2.Run(
        id=run,
        realm="evaluation",
        partner=partner,
        models=["mythos", "fable"],
        state=runs_pb2.RUN_STATE_OPEN if state is None else state,
        opened_at=Timestamp(seconds=1_800_000_000),
        lease_ends_at=Timestamp(seconds=1_800_000_300),
    )


def test_an_opened_runs_id_is_printed_alone(broker: Program, served: Served) -> None:
    served.answers["OpenRun"] = runs_pb2.OpenRunResponse(run=one())
    result = broker(*OPEN, "--model", "fable", "--lease", "30m")
    assert (result.exit_code, result.stdout) == (0, "run-12345678\n")
    request = served.last.request
    assert (request.realm, request.partner, list(request.models)) == ("evaluation", "acme", ["mythos", "fable"])
    assert request.lease.seconds == 1800


def test_an_opened_run_as_json(broker: Program, served: Served) -> None:
    served.answers["OpenRun"] = runs_pb2.OpenRunResponse(run=one())
    answer = broker.json(*OPEN)
    assert list(answer) == [*KEYS, "request_id"]
    assert (answer["state"], answer["models"]) == ("open", ["mythos", "fable"])
    assert answer["lease_ends_at"] == "2027-01-15T08:05:00Z"
    assert not served.last.request.HasField("lease")


@pytest.mark.parametrize(("command", "method"), [("keep", "KeepRun"), ("close", "CloseRun")])
def test_the_runs_partner_is_looked_up(broker: Program, served: Served, command: str, method: str) -> None:
    served.answers["ListRuns"] = runs_pb2.ListRunsResponse(runs=[one(), one(run="other-123", partner="globex")])
    served.answers[method] = vars(runs_pb2)[f"{method}Response"](run=one(runs_pb2.RUN_STATE_CLOSED))
    result = broker("run", command, "other-123")
    assert result.exit_code == 0, result.output
    assert [call.principal for call in served.calls] == [f"{DOMAIN}/admin", f"{DOMAIN}/globex-ci"]
    assert served.last.request.run == "other-123"
    answer = broker.json("run", command, "other-123")
    assert list(answer) == [*KEYS, "request_id"]
    assert answer["state"] == "closed"


def test_a_run_that_nobody_knows_is_a_usage_error(broker: Program, served: Served) -> None:
    served.answers["ListRuns"] = runs_pb2.ListRunsResponse(runs=[one()])
    result = broker("run", "close", "unknown-1")
    assert result.exit_code == 2
    assert "--partner" in result.stderr


def test_a_named_identity_needs_no_look_up(broker: Program, served: Served) -> None:
    served.answers["KeepRun"] = NotFound("there is no such run")
    assert broker("run", "keep", "r", "--as", "acme-ci").exit_code == 1
    assert [call.method for call in served.calls] == ["KeepRun"]


def test_a_context_with_one_harness_needs_no_look_up(
    broker: Program, served: Served, context: Context, tmp_path: Path
) -> None:
    write_context(replace(context, harness={"globex": "globex-ci"}), tmp_path / "one.json")
    served.answers["KeepRun"] = runs_pb2.KeepRunResponse(run=one())
    result = broker("run", "keep", "run-12345678", "--context", str(tmp_path / "one.json"))
    assert result.stdout == "run run-12345678 is open until 2027-01-15T08:05:00Z\n"
    assert served.last.principal == f"{DOMAIN}/globex-ci"


def test_runs_are_listed(broker: Program, served: Served) -> None:
    served.answers["ListRuns"] = runs_pb2.ListRunsResponse(
        runs=[one(), one(runs_pb2.RUN_STATE_LAPSED, run="run-2"), one(runs_pb2.RUN_STATE_CLOSED, run="run-3")]
    )
    answer = broker.json("run", "list", "--limit", "7", "--partner", "globex")
    assert list(answer) == ["runs"]
    assert [list(run) for run in answer["runs"]] == [KEYS] * 3
    assert [run["state"] for run in answer["runs"]] == ["open", "lapsed", "closed"]
    assert (served.last.request.limit, served.last.request.partner) == (7, "globex")
    lines = broker("run", "list").stdout.splitlines()
    assert lines[0].split()[:3] == ["RUN", "REALM", "PARTNER"]
    assert "mythos fable" in lines[1]


def proof_of(served: Served, method: str, run: str | None, key: RunKey) -> None:
    """The last call proves the key, for itself."""
    [text] = [str(value) for name, value in served.last.metadata if name == "run-proof"]
    data = served.last.request.SerializeToString(deterministic=True)
    check_run_proof(parse_run_proof(text), key.jwk, method=method, run=run, request=data, now_s=time.time())


def test_a_run_is_opened_for_somebody_with_a_key_that_later_commands_prove(
    broker: Program, served: Served, tmp_path: Path
) -> None:
    file = tmp_path / "run.key"
    served.answers["OpenRun"] = runs_pb2.OpenRunResponse(run=one())
    result = broker(*OPEN, "--user", "alice", "--workload", "ci", "--key-file", str(file))
    assert (result.exit_code, result.stdout) == (0, "run-12345678\n")
    assert f"broker run keep run-12345678 --key-file {file}" in result.stderr
    request = served.last.request
    assert (request.user, request.workload) == ("alice", "ci")
    kept = read_kept_run(file)
    assert request.run_key == kept.key.public_text()
    assert (kept.run, stat.S_IMODE(file.stat().st_mode)) == ("run-12345678", 0o600)
    proof_of(served, "RunService/OpenRun", None, kept.key)
    # P12: the private key is nowhere but in the file.
    assert "PRIVATE" not in result.output

    for command, method in (("keep", "KeepRun"), ("close", "CloseRun")):
        served.answers[method] = vars(runs_pb2)[f"{method}Response"](run=one())
        assert broker("run", command, "run-12345678", "--key-file", str(file)).exit_code == 0
        proof_of(served, f"RunService/{method}", "run-12345678", kept.key)
        assert served.last.principal == f"{DOMAIN}/acme-ci"

    served.answers["Mint"] = tokens_pb2.MintResponse(token=tokens_pb2.MintedToken(token="a.b.c"))
    served.answers["MintBatch"] = tokens_pb2.MintBatchResponse()
    spec = ("--realm", "evaluation", "--partner", "acme", "--model", "mythos", "--run", "run-12345678")
    assert broker("token", "mint", *spec, "--key-file", str(file)).stdout == "a.b.c\n"
    proof_of(served, "TokenService/Mint", "run-12345678", kept.key)
    assert broker("token", "mint", *spec, "--key-file", str(file), "--count", "2").exit_code == 0
    proof_of(served, "TokenService/MintBatch", "run-12345678", kept.key)


def test_a_key_file_that_does_not_fit_is_refused_before_anything_is_sent(
    broker: Program, served: Served, tmp_path: Path
) -> None:
    file = tmp_path / "run.key"
    keep_run(KeptRun("run-87654321", RunKey.new(), "evaluation", "acme", ("mythos",)), file)
    there = broker(*OPEN, "--key-file", str(file))
    assert (there.exit_code, "is there already" in there.stderr) == (1, True)
    other = broker("run", "keep", "run-12345678", "--key-file", str(file))
    assert (other.exit_code, "is the key of run run-87654321" in other.stderr) == (2, True)
    file.chmod(0o640)
    readable = broker("run", "close", "run-87654321", "--key-file", str(file))
    assert (readable.exit_code, "chmod 600" in readable.stderr) == (1, True)
    missing = broker("run", "close", "run-87654321", "--key-file", str(tmp_path / "none"))
    assert missing.exit_code == 1
    unwritable = broker(*OPEN, "--key-file", str(tmp_path / "no" / "folder"))
    assert served.calls == [] or unwritable.exit_code == 1


def test_a_run_is_shown_with_what_it_was_opened_with(broker: Program, served: Served) -> None:
    run = one()
    run.user, run.environment, run.key_thumbprint = "alice", "acme-ci", "t" * 43
    run.grants["mythos"] = "acme-evals"
    served.answers["ShowRun"] = runs_pb2.ShowRunResponse(run=run)
    answer = broker.json("run", "show", "run-12345678")
    assert list(answer) == KEYS
    assert (answer["user"], answer["grants"]) == ("alice", {"mythos": "acme-evals"})
    assert served.last.principal == f"{DOMAIN}/admin"
    text = broker("run", "show", "run-12345678", "--partner", "acme").stdout
    assert "mythos by acme-evals" in text
    assert "approval" not in text
    assert served.last.principal == f"{DOMAIN}/acme-ci"
