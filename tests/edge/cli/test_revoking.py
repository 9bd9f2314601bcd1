"""`broker revoke`, `reinstate` and `revocations`."""

import io
import json
import sys

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.edge.cli.revoking import Watched, _live
from broker.errors import Forbidden, StoreFull
from broker.v1 import revocations_pb2 as pb
from broker.v1 import selector_pb2
from tests.edge.cli.conftest import Program
from tests.edge.cli.served import Hang, Served

REVOKE = ("revoke", "--partner", "acme", "--reason", "contract ended")
KEYS = ["selector", "index", "committed_at", "blocks", "bound_ms", "request_id", "complete"]
COMMITTED = pb.RevokeResponse(
    committed=pb.RevocationCommitted(
        index=42, committed_at=Timestamp(seconds=1_800_000_000), blocks=True, bound=Duration(seconds=5)
    )
)
PROGRESS = pb.RevokeResponse(progress=pb.RevocationProgress(listening=3, acknowledged=1, lapsed=1))
COMPLETE = pb.RevokeResponse(
    complete=pb.RevocationComplete(
        took=Duration(seconds=5, nanos=1_000_000),
        verifiers=[
            pb.VerifierOutcome(verifier="fast", realm="r", acknowledged=True, after=Duration(nanos=1_234_567)),
            pb.VerifierOutcome(verifier="gone", realm="r", acknowledged=False, after=Duration(seconds=5)),
            pb.VerifierOutcome(verifier="slow", realm="r", acknowledged=True, after=Duration(nanos=80_000_000)),
        ],
    )
)
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
    ]
    request = served.last.request
    assert (request.reason, request.wait, request.whole_realm) == ("contract ended", False, False)


def test_a_revocation_as_json(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED]
    answer = broker.json(*REVOKE)
    assert list(answer) == KEYS
    assert answer["selector"] == {"partner": "acme"}
    assert (answer["index"], answer["bound_ms"], answer["complete"]) == (42, 5000.0, False)


def test_waiting_ends_with_all_verifiers_slowest_first(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED, PROGRESS, COMPLETE]
    answer = broker.json(*REVOKE, "--wait")
    assert list(answer) == [*KEYS, "took_ms", "verifiers"]
    assert (answer["complete"], answer["took_ms"]) == (True, 5001.0)
    assert [one["verifier"] for one in answer["verifiers"]] == ["gone", "slow", "fast"]
    assert answer["verifiers"][2] == {"verifier": "fast", "realm": "r", "acknowledged": True, "after_ms": 1.235}
    assert served.last.request.wait is True
    lines = broker(*REVOKE, "--wait").stdout.splitlines()
    assert lines[2] == "complete after 5 s: no verifier accepts a matching token any more"
    assert lines[3].split() == ["VERIFIER", "REALM", "HOW", "AFTER"]
    assert [line.split()[0] for line in lines[4:]] == ["gone", "slow", "fast"]
    assert "lease ran out" in lines[4]


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


@pytest.mark.parametrize("end", [Hang(), StoreFull("full"), grpc.StatusCode.UNAVAILABLE, None])
def test_waiting_that_ends_early_fails_but_says_what_holds(broker: Program, served: Served, end: object) -> None:
    served.answers["Revoke"] = [COMMITTED, PROGRESS, *([] if end is None else [end])]
    result = broker(*REVOKE, "--wait", "--timeout", "1s", "-o", "json", "--request-id", "0123456789abcdef")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert (answer["index"], answer["complete"]) == (42, False)
    error = json.loads(result.stderr)["error"]
    assert error["message"].startswith("it is revoked, but 2 of 3 verifiers")
    assert "0123456789abcdef" in error["hint"]


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    watched = Watched()
    with _live(watched, show=True) as update:
        watched.take(PROGRESS)
        update()
    assert "2/3" in sys.stderr.getvalue()


@pytest.mark.parametrize(("stderr", "show"), [(io.StringIO(), True), (Terminal(), False)])
def test_progress_is_not_shown_elsewhere(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, show: bool) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    watched = Watched()
    with _live(watched, show=show) as update:
        watched.take(PROGRESS)
        update()
    assert stderr.getvalue() == ""


def test_a_dry_run_is_not_offered(broker: Program) -> None:
    assert broker(*REVOKE, "--dry-run").exit_code == 2
    assert "--dry-run" not in broker("revoke", "--help").stdout


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
