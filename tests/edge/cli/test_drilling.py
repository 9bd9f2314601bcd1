"""`broker drill` and `broker drill history`."""

import json

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.errors import Forbidden, Invalid, NotFound, StoreFull
from broker.v1 import drills_pb2 as pb
from tests.edge.cli.conftest import Program
from tests.edge.cli.served import Hang, Served


def verifier(name: str, ms: int | None = None, outcome: str = "denied", verdict: str = "REVOKED") -> pb.DrilledVerifier:
    one = pb.DrilledVerifier(verifier=name, outcome=outcome, verdict=verdict)
    if ms is not None:
        one.time_to_deny.CopyFrom(Duration(nanos=ms * 1_000_000) if ms < 1000 else Duration(seconds=ms // 1000))
    return one


def result(*verifiers: pb.DrilledVerifier, realm: str = "evaluation", passed: bool = True) -> pb.DrillResult:
    return pb.DrillResult(
        index=90,
        realm=realm,
        canary="canary-1",
        at=Timestamp(seconds=1_800_000_000),
        by="spiffe://broker.test/admin",
        passed=passed,
        bound=Duration(seconds=5),
        verifiers=verifiers,
        revocation=89,
    )


def event(one: pb.DrillResult) -> pb.DrillResponse:
    return pb.DrillResponse(result=one)


BEGUN = pb.DrillResponse(begun=pb.DrillBegun(realm="evaluation", canary="canary-1", verifiers=2))
PASSED = result(verifier("slow", 80), verifier("fast", 2))
FAILED = result(
    verifier("mute", outcome="silent", verdict=""),
    verifier("late", 9000),
    verifier("fast", 2),
    realm="production",
    passed=False,
)


def test_a_drill_that_passed_is_0_and_names_each_verifier(broker: Program, served: Served) -> None:
    served.answers["Drill"] = [BEGUN, event(PASSED)]
    done = broker("drill")
    assert done.exit_code == 0
    assert done.stderr == "realm evaluation: canary canary-1 is shown to 2 verifiers\n"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("realm evaluation: passed; the canary canary-1 had to be dead everywhere within 5 s")
    assert [line.split()[0] for line in lines[1:]] == ["VERIFIER", "slow", "fast"]
    assert lines[2].split() == ["slow", "denied", "80.0", "ms", "REVOKED"]
    assert served.last.request.realm == ""


def test_a_drill_as_json(broker: Program, served: Served) -> None:
    served.answers["Drill"] = [BEGUN, event(PASSED)]
    answer = broker.json("drill", "--realm", "evaluation", "--request-id", "0123456789abcdef")
    assert answer == {
        "passed": True,
        "request_id": "0123456789abcdef",
        "drills": [
            {
                "index": 90,
                "realm": "evaluation",
                "canary": "canary-1",
                "at": "2027-01-15T08:00:00Z",
                "by": "spiffe://broker.test/admin",
                "passed": True,
                "bound_ms": 5000.0,
                "revocation": 89,
                "verifiers": [
                    {"verifier": "slow", "outcome": "denied", "time_to_deny_ms": 80.0, "verdict": "REVOKED"},
                    {"verifier": "fast", "outcome": "denied", "time_to_deny_ms": 2.0, "verdict": "REVOKED"},
                ],
            }
        ],
    }
    assert (served.last.request.realm, served.last.request.request_id) == ("evaluation", "0123456789abcdef")


def test_a_drill_that_failed_names_who_was_silent_or_slow(broker: Program, served: Served) -> None:
    served.answers["Drill"] = [BEGUN, event(PASSED), event(FAILED)]
    done = broker("drill")
    assert done.exit_code == 1
    assert "realm production: FAILED" in done.stdout
    assert "denied, too late" in done.stdout
    assert "the drill failed; production: silent: mute; slow: late" in done.stderr
    code, error = (done := broker("drill", "-o", "json")).exit_code, json.loads(done.stderr)["error"]
    assert (code, error["reason"]) == (1, "DRILL")
    answer = json.loads(done.stdout)
    assert answer["passed"] is False
    assert answer["drills"][1]["verifiers"][0]["time_to_deny_ms"] is None


def test_a_drill_at_whose_end_nobody_was_left_is_no_pass(broker: Program, served: Served) -> None:
    served.answers["Drill"] = [BEGUN, event(result(passed=False))]
    done = broker("drill")
    assert done.exit_code == 1
    assert "no verifier stayed until its end" in done.stderr


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (NotFound("no verifier listens in realm evaluation", hint="see: broker verifiers"), 1),
        (Invalid("realm", "is unknown"), 2),
        (Forbidden("only an admin may do this"), 3),
        (grpc.StatusCode.UNAVAILABLE, 1),
    ],
)
def test_a_drill_that_is_refused_prints_no_result(broker: Program, served: Served, failure: object, code: int) -> None:
    served.answers["Drill"] = [failure]
    done = broker("drill", "--realm", "evaluation")
    assert (done.exit_code, done.stdout) == (code, "")


def test_a_drill_of_no_realm_is_no_pass(broker: Program, served: Served) -> None:
    """P7: silence is not success."""
    served.answers["Drill"] = []
    assert broker.error("drill")[0] == 1


@pytest.mark.parametrize("end", [Hang(), StoreFull("full"), grpc.StatusCode.UNAVAILABLE, None])
def test_a_drill_that_breaks_off_is_no_pass_also_if_one_realm_passed(
    broker: Program, served: Served, end: object
) -> None:
    other = pb.DrillResponse(begun=pb.DrillBegun(realm="production", canary="canary-2", verifiers=1))
    served.answers["Drill"] = [BEGUN, event(PASSED), other, *([] if end is None else [end])]
    done = broker("drill", "--timeout", "1s", "-o", "json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["passed"] is False
    assert "no result came for production" in json.loads(done.stderr)["error"]["message"]


def test_an_event_of_a_newer_broker_is_passed_over(broker: Program, served: Served) -> None:
    served.answers["Drill"] = [pb.DrillResponse(), BEGUN, event(PASSED)]
    assert broker("drill").exit_code == 0


@pytest.mark.parametrize(("span", "seconds"), [("15m", 900), ("off", 0)])
def test_drills_are_scheduled(broker: Program, served: Served, span: str, seconds: int) -> None:
    served.answers["ScheduleDrills"] = pb.ScheduleDrillsResponse(index=12)
    arguments = ("drill", "--realm", "evaluation", "--schedule", span)
    answer = broker.json(*arguments, "--request-id", "0123456789abcdef")
    assert answer == {"realm": "evaluation", "every_s": seconds, "index": 12, "request_id": "0123456789abcdef"}
    request = served.last.request
    assert (request.realm, request.every.seconds) == ("evaluation", seconds)
    text = broker(*arguments).stdout
    assert ("every 15 m 0 s" in text) if seconds else ("no longer drilled" in text)


def test_past_drills_are_listed_with_who_failed_and_what_is_scheduled(broker: Program, served: Served) -> None:
    schedules = [pb.DrillSchedule(realm="evaluation", every=Duration(seconds=900))]
    served.answers["ListDrills"] = pb.ListDrillsResponse(drills=[FAILED, PASSED], schedules=schedules)
    lines = broker("drill", "history").stdout.splitlines()
    heads = ["INDEX", "AT", "REALM", "PASSED", "VERIFIERS", "SLOWEST", "BY", "WHO", "FAILED"]
    assert lines[0].split() == heads
    assert lines[1].split()[:7] == ["90", "2027-01-15T08:00:00Z", "production", "no", "3", "9000.0", "ms"]
    assert lines[1].endswith("silent: mute; slow: late")
    assert lines[2].split()[3:7] == ["yes", "2", "80.0", "ms"]
    assert lines[-1].split() == ["evaluation", "15", "m", "0", "s"]
    answer = broker.json("drill", "history", "--realm", "evaluation", "--limit", "7")
    assert [one["realm"] for one in answer["drills"]] == ["production", "evaluation"]
    assert answer["schedules"] == [{"realm": "evaluation", "every_s": 900}]
    assert (served.last.request.realm, served.last.request.limit) == ("evaluation", 7)
    served.answers["ListDrills"] = pb.ListDrillsResponse()
    assert broker("drill", "history").stdout.splitlines()[0].split() == heads


def test_names_from_afar_do_not_steer_the_terminal(broker: Program, served: Served) -> None:
    evil = "\x1b[2J[red]x\nPASSED"
    bad = result(verifier(evil, outcome=evil, verdict=evil), realm=evil, passed=False)
    begun = pb.DrillResponse(begun=pb.DrillBegun(realm=evil, canary=evil))
    served.answers["Drill"] = [begun, event(bad)]
    served.answers["ListDrills"] = pb.ListDrillsResponse(
        drills=[bad], schedules=[pb.DrillSchedule(realm=evil, every=Duration(seconds=10))]
    )
    for arguments in (("drill",), ("drill", "history")):
        output = broker(*arguments).output
        assert "\x1b" not in output
        assert "\\x1b[2J[red]x\\nPASSED" in output


def test_many_who_failed_are_counted(broker: Program, served: Served) -> None:
    many = [verifier(f"v{number}", outcome="silent") for number in range(30)]
    served.answers["Drill"] = [event(result(*many, passed=False))]
    assert "v9 and 20 more" in broker("drill").stderr
