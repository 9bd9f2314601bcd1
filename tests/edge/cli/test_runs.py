"""`broker run`."""

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from broker.edge.cli.context import Context, write_context
from broker.errors import NotFound
from broker.v1 import runs_pb2
from tests.edge.cli.conftest import DOMAIN, Program
from tests.edge.cli.served import Served

KEYS = ["id", "realm", "partner", "models", "state", "opened_at", "lease_ends_at"]
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
