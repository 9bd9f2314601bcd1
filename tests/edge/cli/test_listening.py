"""`broker verifiers`, `--watch` and `forget`."""

import json

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.errors import Forbidden, Invalid, NotFound
from broker.v1 import status_pb2
from tests.edge.cli.conftest import Program
from tests.edge.cli.served import InTurn, Served

LONG = "spiffe://broker.test/a-verifier-with-a-name-that-is-longer-than-a-terminal-is-wide"
VERIFIERS = status_pb2.ListVerifiersResponse(
    verifiers=[
        status_pb2.VerifierStatus(
            verifier=LONG,
            realm="evaluation",
            version="0.1.0",
            address="127.0.0.1:5",
            head=1230,
            behind=4,
            silent_for=Duration(nanos=250_000_000),
            state="fresh",
            last_nack="FRAME_GAP: [red]a delta[/red]\nfrom 7\x1b[2J",
            fresh_for=Duration(seconds=4, nanos=500_000_000),
            uses=3,
            last_drill=status_pb2.LastDrill(
                at=Timestamp(seconds=1_800_000_000), outcome="denied", time_to_deny=Duration(nanos=12_000_000)
            ),
            seen_at=Timestamp(seconds=1_800_000_100),
        ),
        status_pb2.VerifierStatus(
            verifier="spiffe://broker.test/gone",
            realm="evaluation",
            state="lapsed",
            seen_at=Timestamp(seconds=1_800_000_000),
            last_drill=status_pb2.LastDrill(outcome="silent"),
        ),
        status_pb2.VerifierStatus(verifier="spiffe://broker.test/new", realm="evaluation", state="joining"),
    ]
)


def test_verifiers_are_listed_one_to_a_line_and_uncut(broker: Program, served: Served) -> None:
    served.answers["ListVerifiers"] = VERIFIERS
    result = broker("verifiers")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert lines == [line.rstrip() for line in lines]
    heads = ["VERIFIER", "REALM", "STATE", "FRESH FOR", "BEHIND", "USES", "LAST DRILL", "VERSION", "ADDRESS"]
    assert [head for head in (*heads, "LAST REFUSAL") if head not in lines[0]] == []
    assert lines[1].split()[:12] == [
        LONG,
        "evaluation",
        "fresh",
        "4.5",
        "s",
        "4",
        "3",
        "denied",
        "in",
        "12",
        "ms",
        "0.1.0",
    ]
    assert "[red]a delta[/red]\\nfrom 7\\x1b[2J" in lines[1]
    assert "no more; seen 2027-01-15T08:00:00Z" in lines[2]
    assert "silent" in lines[2]
    assert "never" in lines[3]


def test_verifiers_as_json(broker: Program, served: Served) -> None:
    served.answers["ListVerifiers"] = VERIFIERS
    answer = broker.json("verifiers", "--realm", "evaluation")
    assert list(answer) == ["verifiers"]
    assert answer["verifiers"][0] == {
        "verifier": LONG,
        "realm": "evaluation",
        "version": "0.1.0",
        "address": "127.0.0.1:5",
        "head": 1230,
        "behind": 4,
        "silent_ms": 250.0,
        "state": "fresh",
        "fresh_for_ms": 4500.0,
        "uses": 3,
        "last_drill": {"at": "2027-01-15T08:00:00Z", "outcome": "denied", "time_to_deny_ms": 12.0},
        "seen_at": "2027-01-15T08:01:40Z",
        "last_nack": "FRAME_GAP: [red]a delta[/red]\nfrom 7\x1b[2J",
    }
    assert answer["verifiers"][1]["last_drill"]["time_to_deny_ms"] is None
    assert (answer["verifiers"][2]["last_drill"], answer["verifiers"][2]["seen_at"]) == (None, None)
    assert served.last.request.realm == "evaluation"


def test_that_nobody_listens_is_said(broker: Program, served: Served) -> None:
    served.answers["ListVerifiers"] = status_pb2.ListVerifiersResponse()
    result = broker("verifiers")
    assert result.exit_code == 0
    assert "nobody listens" in result.stderr
    assert broker.json("verifiers") == {"verifiers": []}


def test_watching_prints_the_list_again_and_again(broker: Program, served: Served) -> None:
    served.answers["ListVerifiers"] = InTurn(VERIFIERS, VERIFIERS, Forbidden("enough"))
    result = broker("verifiers", "--watch", "--realm", "evaluation")
    assert result.exit_code == 3
    assert result.stdout.count("VERIFIER") == 2
    assert [call.request.realm for call in served.calls] == ["evaluation"] * 3


def test_watching_as_json_is_an_object_a_line(broker: Program, served: Served) -> None:
    served.answers["ListVerifiers"] = InTurn(VERIFIERS, VERIFIERS, Forbidden("enough"))
    lines = broker("verifiers", "--watch", "-o", "json").stdout.splitlines()
    assert [len(json.loads(line)["verifiers"]) for line in lines] == [3, 3]


def test_watching_outlives_a_broker_that_is_away_for_a_while(broker: Program, served: Served) -> None:
    served.answers["ListVerifiers"] = InTurn(VERIFIERS, grpc.StatusCode.UNAVAILABLE, VERIFIERS, Forbidden("enough"))
    result = broker("verifiers", "--watch")
    assert result.exit_code == 3
    assert result.stdout.count("VERIFIER") == 2
    assert "no answer from the broker" in result.stderr


def test_a_verifier_is_forgotten(broker: Program, served: Served) -> None:
    served.answers["ForgetVerifier"] = status_pb2.ForgetVerifierResponse(index=77)
    arguments = ("verifiers", "forget", "spiffe://a/b", "--realm", "r", "--reason", "taken down")
    answer = broker.json(*arguments, "--request-id", "0123456789abcdef")
    assert answer == {"verifier": "spiffe://a/b", "realm": "r", "index": 77, "request_id": "0123456789abcdef"}
    request = served.last.request
    assert (request.verifier, request.realm, request.reason) == ("spiffe://a/b", "r", "taken down")
    assert "forgot spiffe://a/b in realm r at index 77" in broker(*arguments).stdout


@pytest.mark.parametrize(
    ("failure", "code"), [(NotFound("unknown"), 1), (Invalid("verifier", "still listens"), 2), (Forbidden("no"), 3)]
)
def test_a_verifier_that_cannot_be_forgotten_is_a_failure(
    broker: Program, served: Served, failure: Exception, code: int
) -> None:
    served.answers["ForgetVerifier"] = failure
    result = broker("verifiers", "forget", "spiffe://a/b", "--realm", "r", "--reason", "x")
    assert (result.exit_code, result.stdout) == (code, "")
