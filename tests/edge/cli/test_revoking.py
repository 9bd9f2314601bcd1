"""`broker revoke`, `reinstate` and `revocations`."""

import json
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.errors import Forbidden, NotFound, StoreFull
from broker.v1 import revocations_pb2 as pb
from broker.v1 import selector_pb2
from tests.edge.cli.conftest import Program
from tests.edge.cli.served import Hang, Served

REVOKE = ("revoke", "--partner", "acme", "--reason", "contract ended")
KEYS = [
    "selector",
    "index",
    "entries",
    "committed_at",
    "reason",
    "by",
    "blocks",
    "bound_ms",
    "awaits_completion",
    "complete",
    "progress",
]
COMPLETE_KEYS = ["took_ms", "in_force_at", "entry", "tokens", "uses_cut", "verifiers", "statements"]
COMMITTED = pb.RevokeResponse(
    committed=pb.RevocationCommitted(
        index=42,
        committed_at=Timestamp(seconds=1_800_000_000),
        blocks=True,
        bound=Duration(seconds=5),
        selector=selector_pb2.Selector(partner="acme"),
        reason="contract ended",
        by="spiffe://broker.test/admin",
        entries=1,
        awaits_completion=True,
    )
)
PROGRESS = pb.RevokeResponse(
    progress=pb.RevocationProgress(listening=3, acknowledged=1, lapsed=1, waiting=1, waiting_for=["slow"])
)
STATEMENTS = ["a.statement.of-one-realm", "a.statement.of-another"]
COMPLETE = pb.RevokeResponse(
    complete=pb.RevocationComplete(
        took=Duration(seconds=5, nanos=1_000_000),
        verifiers=[
            pb.VerifierOutcome(
                verifier="fast",
                realm="r",
                acknowledged=True,
                after=Duration(nanos=1_234_567),
                state="acknowledged",
                uses_cut=2,
            ),
            pb.VerifierOutcome(
                verifier="gone", realm="r", acknowledged=False, after=Duration(seconds=5), state="lapsed"
            ),
            pb.VerifierOutcome(
                verifier="slow", realm="r", acknowledged=True, after=Duration(nanos=80_000_000), state="acknowledged"
            ),
            pb.VerifierOutcome(verifier="off", realm="r", after=Duration(nanos=2_000_000), state="left"),
        ],
        statements=STATEMENTS,
        entry=43,
        in_force_at=Timestamp(seconds=1_800_000_005),
        tokens=3,
        uses_cut=2,
    )
)
NOBODY = pb.RevokeResponse(complete=pb.RevocationComplete(statements=STATEMENTS, entry=43, tokens=0))
SELECTOR = {
    "realm": "r",
    "partner": "acme",
    "user": "alice",
    "workload": "ci",
    "environment": "e",
    "model": "m@i",
    "run": "run-1",
    "test": "t",
    "token": "jti-1",
    "parent": "jti-0",
    "key": "k",
    "label": "a=b",
}


def test_a_revocation_is_told_once_it_is_committed(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED]
    result = broker(*REVOKE)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        "revoked partner=acme at index 42",
        "new mints are blocked until: broker reinstate --partner acme --reason ...",
        "no verifier accepts a matching token for longer than 5 s from then",
        "its completion: broker revoke show 42 --wait",
    ]
    request = served.last.request
    assert (request.reason, request.wait, request.whole_realm, request.dry_run) == (
        "contract ended",
        False,
        False,
        False,
    )


def test_a_revocation_as_json(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED]
    answer = broker.json(*REVOKE)
    assert list(answer) == [*KEYS, "request_id"]
    assert answer["selector"] == {"partner": "acme"}
    assert (answer["index"], answer["bound_ms"], answer["complete"]) == (42, 5000.0, False)
    assert (answer["entries"], answer["awaits_completion"], answer["progress"]) == (1, True, None)
    assert (answer["reason"], answer["by"]) == ("contract ended", "spiffe://broker.test/admin")


def test_a_broker_that_says_less_is_understood(broker: Program, served: Served) -> None:
    older = pb.RevocationCommitted(index=42, bound=Duration(seconds=5))
    done = pb.RevocationComplete(
        verifiers=[
            pb.VerifierOutcome(verifier="a", realm="r", acknowledged=True),
            pb.VerifierOutcome(verifier="b", realm="r", after=Duration(seconds=1)),
        ]
    )
    served.answers["Revoke"] = [pb.RevokeResponse(committed=older), pb.RevokeResponse(complete=done)]
    answer = broker.json(*REVOKE, "--wait")
    assert answer["selector"] == {"partner": "acme"}
    assert (answer["entries"], answer["tokens"], answer["in_force_at"]) == (1, None, None)
    assert [one["state"] for one in answer["verifiers"]] == ["lapsed", "acknowledged"]
    assert "too many to count" in broker(*REVOKE, "--wait").stdout


def test_waiting_ends_with_all_verifiers_slowest_first(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED, PROGRESS, COMPLETE]
    answer = broker.json(*REVOKE, "--wait")
    assert list(answer) == [*KEYS, *COMPLETE_KEYS, "request_id"]
    assert (answer["complete"], answer["took_ms"], answer["entry"]) == (True, 5001.0, 43)
    assert (answer["tokens"], answer["uses_cut"], answer["statements"]) == (3, 2, STATEMENTS)
    assert answer["in_force_at"] == "2027-01-15T08:00:05Z"
    assert [one["verifier"] for one in answer["verifiers"]] == ["gone", "slow", "off", "fast"]
    assert [one["state"] for one in answer["verifiers"]] == ["lapsed", "acknowledged", "left", "acknowledged"]
    assert answer["verifiers"][3] == {
        "verifier": "fast",
        "realm": "r",
        "state": "acknowledged",
        "acknowledged": True,
        "after_ms": 1.235,
        "uses_cut": 2,
    }
    assert answer["progress"]["waiting_for"] == ["slow"]
    assert served.last.request.wait is True


def test_waiting_ends_with_what_was_done_and_a_table(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED, PROGRESS, COMPLETE]
    result = broker(*REVOKE, "--wait")
    assert result.exit_code == 0
    assert result.stderr == "revoked at index 42; waiting until no verifier accepts a matching token\n"
    lines = result.stdout.splitlines()
    assert lines[:6] == [
        "revoked partner=acme at index 42",
        "new mints are blocked until: broker reinstate --partner acme --reason ...",
        "complete after 5 s: no verifier accepts a matching token any more (in force at 2027-01-15T08:00:05Z)",
        "slowest of 4: gone in r, lease ran out after 5 s",
        "it hit 3 live tokens, and cut 2 running uses",
        "the completion is ledger entry 43; keep it: broker revoke show 42 --export FILE",
    ]
    assert lines[7].split() == ["VERIFIER", "REALM", "HOW", "AFTER", "USES", "CUT"]
    assert [line.split()[0] for line in lines[8:]] == ["gone", "slow", "off", "fast"]
    assert "lease ran out" in lines[8]
    assert lines[11].split() == ["fast", "r", "acknowledged", "1.2", "ms", "2"]


def test_when_nobody_listened_it_is_complete_and_says_so(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED, NOBODY]
    result = broker(*REVOKE, "--wait")
    assert result.exit_code == 0
    assert "nobody listens" in result.stdout
    assert "VERIFIER" not in result.stdout
    assert broker.json(*REVOKE, "--wait")["verifiers"] == []


def test_names_from_afar_do_not_steer_the_terminal(broker: Program, served: Served) -> None:
    evil = "spiffe://a/\x1b[2J[red]x\nrevoked"
    done = pb.RevocationComplete(
        verifiers=[pb.VerifierOutcome(verifier=evil, realm=evil, state=evil)], statements=["x"]
    )
    waiting = pb.RevocationProgress(listening=1, waiting=1, waiting_for=[evil], waits_for=evil)
    for end in (pb.RevokeResponse(complete=done), grpc.StatusCode.UNAVAILABLE):
        served.answers["Revoke"] = [COMMITTED, pb.RevokeResponse(progress=waiting), end]
        result = broker(*REVOKE, "--wait")
        assert "\x1b" not in result.output
        assert "\\x1b[2J[red]x\\nrevoked" in result.output
    preview = pb.RevocationPreview(
        **{name: [evil] for name in ("partners", "users", "workloads", "runs", "verifiers", "silent", "realms")}
    )
    served.answers["Revoke"] = [pb.RevokeResponse(preview=preview)]
    result = broker("revoke", "--partner", "acme", "--dry-run")
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert result.output.count("\\x1b[2J[red]x\\nrevoked") == 7


def test_each_dimension_is_sent(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED]
    arguments = [text for name, value in SELECTOR.items() for text in (f"--{name}", value)]
    assert broker.json("revoke", *arguments, "--reason", "x")["selector"] == SELECTOR
    assert served.last.request.selector == selector_pb2.Selector(**SELECTOR)


@pytest.mark.parametrize("name", SELECTOR)
@pytest.mark.parametrize("command", ["revoke", "reinstate"])
def test_an_empty_dimension_does_not_make_the_selector_wider(
    broker: Program, served: Served, command: str, name: str
) -> None:
    """P7: `--partner "$UNSET"` must not revoke for everybody."""
    other = "model" if name != "model" else "user"
    for value in ("", " "):
        assert broker(command, f"--{other}", "x", f"--{name}", value, "--reason", "y").exit_code == 2
    assert served.calls == []


@pytest.mark.parametrize("command", ["revoke", "reinstate"])
def test_an_empty_selector_is_refused(broker: Program, served: Served, command: str) -> None:
    """P7."""
    code, error = broker.error(command, "--reason", "x")
    assert code == 2
    assert "everything" in error["message"]
    assert served.calls == []


def test_a_whole_realm_needs_a_yes(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED]
    arguments = ("revoke", "--realm", "research", "--reason", "incident 7")
    code, error = broker.error(*arguments)
    assert code == 2
    assert "--yes" in error["hint"]
    assert served.calls == []
    assert broker(*arguments, "--yes").exit_code == 0
    assert served.last.request.whole_realm is True


def test_a_realm_with_something_more_needs_no_yes(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED]
    assert broker("revoke", "--realm", "research", "--user", "alice", "--reason", "x").exit_code == 0
    assert served.last.request.whole_realm is False


@pytest.mark.parametrize("reason", [(), ("--reason", ""), ("--reason", "  ")])
def test_a_reason_is_needed(broker: Program, served: Served, reason: tuple[str, ...]) -> None:
    assert broker("revoke", "--partner", "acme", *reason).exit_code == 2
    assert served.calls == []


def test_a_refused_revocation_prints_no_result(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [Forbidden("only an admin may do this")]
    result = broker(*REVOKE)
    assert (result.exit_code, result.stdout) == (3, "")


def test_a_stream_that_commits_nothing_is_a_failure(broker: Program, served: Served) -> None:
    """P7: silence is not success."""
    served.answers["Revoke"] = []
    code, error = broker.error(*REVOKE, "--request-id", "0123456789abcdef")
    assert code == 1
    assert "0123456789abcdef" in error["hint"]


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (Hang(), "when the waiting ended after 1 s"),
        (StoreFull("full"), "when the broker ended the stream: full"),
        (grpc.StatusCode.UNAVAILABLE, "when the stream broke: no answer"),
        (None, "when the broker ended the stream"),
    ],
)
def test_waiting_that_ends_early_fails_but_says_what_holds_and_how_to_look_later(
    broker: Program, served: Served, end: object, why: str, tmp_path: Path
) -> None:
    served.answers["Revoke"] = [COMMITTED, PROGRESS, *([] if end is None else [end])]
    file = tmp_path / "never.jws"
    result = broker(*REVOKE, "--wait", "--timeout", "1s", "-o", "json", "--export", str(file))
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert (answer["index"], answer["complete"]) == (42, False)
    assert answer["progress"] == {
        "listening": 3,
        "acknowledged": 1,
        "lapsed": 1,
        "waiting": 1,
        "waiting_for": ["slow"],
        "waits_for": "",
    }
    error = json.loads(result.stderr)["error"]
    assert error["message"].startswith(
        "it is revoked at index 42, but 2 of 3 verifiers had stopped (waiting for slow) when"
    )
    assert why in error["message"]
    assert error["hint"].endswith("broker revoke show 42 --wait")
    assert not file.exists()


def test_a_stream_that_breaks_at_once_after_the_commit_says_the_index(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED, grpc.StatusCode.UNAVAILABLE]
    result = broker(*REVOKE, "--wait")
    assert result.exit_code == 1
    assert "it is revoked at index 42, but it is not known yet who has stopped" in result.stderr
    assert result.stderr.endswith("look later with: broker revoke show 42 --wait\n")
    assert len(result.stderr.splitlines()) == 2


def test_a_completion_that_is_refused_for_ever_says_what_the_broker_said(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED, NotFound("no completion is made", hint="revoke again")]
    code, error = (result := broker(*REVOKE, "--wait", "-o", "json")).exit_code, json.loads(result.stderr)["error"]
    assert (code, error["message"]) == (1, "no completion is made")


@pytest.mark.parametrize("limit", [("--deadline", "1s"), ("--wait", "--timeout", "1s", "--deadline", "1h")])
def test_a_commit_that_does_not_come_is_given_up_in_time(
    broker: Program, served: Served, limit: tuple[str, ...]
) -> None:
    served.answers["Revoke"] = [Hang()]
    code, error = broker.error(*REVOKE, *limit, "--request-id", "0123456789abcdef")
    assert (code, error["reason"]) == (1, "UNREACHABLE")
    assert "Deadline" in error["message"]
    assert "0123456789abcdef" in error["hint"]


def test_without_waiting_what_follows_the_commit_does_not_matter(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED, grpc.StatusCode.UNAVAILABLE]
    assert broker(*REVOKE).exit_code == 0


def test_an_event_of_a_newer_broker_is_passed_over(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [pb.RevokeResponse(), COMMITTED]
    assert broker(*REVOKE).exit_code == 0


def test_a_completion_is_exported_as_its_lines_and_nothing_else(
    broker: Program, served: Served, tmp_path: Path
) -> None:
    served.answers["Revoke"] = [COMMITTED, COMPLETE]
    file = tmp_path / "with space.jws"
    result = broker(*REVOKE, "--wait", "--export", str(file))
    assert result.exit_code == 0, result.stderr
    assert file.read_bytes() == b"a.statement.of-one-realm\na.statement.of-another\n"
    assert f"broker audit verify-completion '{file}' --trust trust.json" in result.stdout
    assert [path.name for path in tmp_path.glob("*.jws*")] == [file.name]
    assert not list(tmp_path.glob(".*.partial"))


def test_a_file_that_is_there_is_not_overwritten_and_nothing_is_revoked(
    broker: Program, served: Served, tmp_path: Path
) -> None:
    served.answers["Revoke"] = [COMMITTED, COMPLETE]
    file = tmp_path / "kept.jws"
    file.write_text("precious")
    code, error = broker.error(*REVOKE, "--wait", "--export", str(file))
    assert code == 2
    assert "--force" in error["hint"]
    assert served.calls == []
    assert file.read_text() == "precious"
    assert broker(*REVOKE, "--wait", "--export", str(file), "--force").exit_code == 0
    assert file.read_text() == "".join(f"{line}\n" for line in STATEMENTS)


PREVIEW = pb.RevokeResponse(
    preview=pb.RevocationPreview(
        selector=selector_pb2.Selector(partner="acme"),
        blocks=True,
        realms=["evaluation", "production"],
        tokens=7,
        partners=["acme"],
        users=["alice", "bob"],
        workloads=["nightly"],
        runs=["run-1"],
        uses=2,
        verifiers=[f"v{number}" for number in range(25)],
        silent=["v3"],
        bound=Duration(seconds=5),
    )
)
DRY_RUN = ("revoke", "--partner", "acme", "--dry-run")


def test_a_dry_run_says_what_it_would_hit_and_that_nothing_was_done(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [PREVIEW]
    result = broker(*DRY_RUN)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0] == "dry run: nothing was done. To revoke partner=acme now would"
    assert lines[1:6] == [
        "hit 7 live tokens, and cut 2 running uses",
        "of partners: acme",
        "of users: alice, bob",
        "of workloads: nightly",
        "of open runs: run-1",
    ]
    assert lines[6] == "block new mints of partner=acme until it is reinstated"
    assert lines[7].startswith("be waited for at 25 verifiers: v0, v1,")
    assert lines[7].endswith("v19 and 5 more")
    assert lines[8] == "(did not say how many uses match: v3)"
    assert lines[9] == "be in force in evaluation, production after 5 s at the latest"
    request = served.last.request
    assert (request.dry_run, request.wait, request.reason) == (True, False, "dry run")


def test_a_dry_run_as_json(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [PREVIEW]
    answer = broker.json(*DRY_RUN, "--reason", "because")
    assert answer == {
        "dry_run": True,
        "selector": {"partner": "acme"},
        "blocks": True,
        "bound_ms": 5000.0,
        "realms": ["evaluation", "production"],
        "tokens": 7,
        "partners": ["acme"],
        "users": ["alice", "bob"],
        "workloads": ["nightly"],
        "runs": ["run-1"],
        "uses": 2,
        "verifiers": [f"v{number}" for number in range(25)],
        "silent": ["v3"],
    }
    assert served.last.request.reason == "because"
    served.answers["Revoke"] = [pb.RevokeResponse(preview=pb.RevocationPreview())]
    assert broker.json(*DRY_RUN)["tokens"] is None
    assert "nobody listens" in broker(*DRY_RUN).stdout


def test_a_dry_run_of_a_whole_realm_needs_no_yes(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [PREVIEW]
    assert broker("revoke", "--realm", "research", "--dry-run").exit_code == 0
    assert (served.last.request.whole_realm, served.last.request.dry_run) == (True, True)


@pytest.mark.parametrize(
    ("answers", "code"), [([Forbidden("no")], 3), ([], 1), ([grpc.StatusCode.UNAVAILABLE], 1), ([COMMITTED], 1)]
)
def test_a_dry_run_that_shows_nothing_is_a_failure(
    broker: Program, served: Served, answers: list[object], code: int
) -> None:
    served.answers["Revoke"] = answers
    result = broker(*DRY_RUN)
    assert (result.exit_code, result.stdout) == (code, "")
    if COMMITTED in answers:
        assert "it is revoked at index 42" in result.stderr


def test_a_block_is_lifted(broker: Program, served: Served) -> None:
    served.answers["Reinstate"] = pb.ReinstateResponse(index=50, lifted=True)
    arguments = ("reinstate", "--partner", "acme", "--reason", "renewed")
    answer = broker.json(*arguments)
    assert list(answer) == ["selector", "index", "request_id"]
    assert (answer["selector"], answer["index"]) == ({"partner": "acme"}, 50)
    assert served.last.request.reason == "renewed"
    assert "dead ones stay dead" in broker(*arguments).stdout


def test_lifting_what_is_not_there_is_a_failure(broker: Program, served: Served) -> None:
    served.answers["Reinstate"] = pb.ReinstateResponse(lifted=False)
    code, error = broker.error("reinstate", "--partner", "acme", "--reason", "renewed")
    assert (code, error["reason"]) == (1, "NOT_FOUND")
    assert "broker revocations" in error["hint"]


def listed(*, more: bool) -> pb.ListRevocationsResponse:
    return pb.ListRevocationsResponse(
        revocations=[
            pb.Revocation(
                index=7,
                selector=selector_pb2.Selector(partner="acme", model="mythos"),
                reason="contract [ended]",
                by="spiffe://broker.test/admin",
                committed_at=Timestamp(seconds=1_800_000_000),
            )
        ],
        blocks=[pb.Block(selector=selector_pb2.Selector(partner="acme", model="mythos"), index=7)],
        more=more,
    )


def test_revocations_are_listed(broker: Program, served: Served) -> None:
    served.answers["ListRevocations"] = listed(more=False)
    answer = broker.json("revocations", "--after", "5", "--limit", "9")
    assert answer == {
        "revocations": [
            {
                "index": 7,
                "selector": {"partner": "acme", "model": "mythos"},
                "reason": "contract [ended]",
                "by": "spiffe://broker.test/admin",
                "committed_at": "2027-01-15T08:00:00Z",
            }
        ],
        "blocks": [{"selector": {"partner": "acme", "model": "mythos"}, "index": 7}],
        "more": False,
    }
    assert (served.last.request.after, served.last.request.limit) == (5, 9)
    text = broker("revocations").stdout
    assert "partner=acme model=mythos" in text
    assert "contract [ended]" in text
    assert "BLOCKED UNTIL REINSTATED" in text


def test_a_longer_list_says_how_to_go_on(broker: Program, served: Served) -> None:
    served.answers["ListRevocations"] = listed(more=True)
    assert broker("revocations").stderr == "there are more: broker revocations --after 7\n"


def test_an_empty_list_has_no_blocks(broker: Program, served: Served) -> None:
    served.answers["ListRevocations"] = pb.ListRevocationsResponse()
    assert "BLOCKED" not in broker("revocations").stdout
