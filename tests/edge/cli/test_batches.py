"""`broker revoke tokens`: many ids on stdin."""

import io
import json
import sys

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from broker.edge.cli import batches
from broker.errors import Forbidden, Overloaded
from broker.v1 import revocations_pb2 as pb
from broker.v1 import selector_pb2
from tests.edge.cli.conftest import Program
from tests.edge.cli.feeding import Realm
from tests.edge.cli.served import Hang, InTurn, Served

TOKENS = ("revoke", "tokens", "--realm", "evaluation", "--reason", "leaked")
IDS = [f"token-{number:06}" for number in range(25_000)]


class Ledger:
    """Takes batches, and tells of each by its last index."""

    def __init__(self) -> None:
        self.head = 0
        self.batches: dict[int, pb.RevokeTokensRequest] = {}

    def revoke(self, request: pb.RevokeTokensRequest) -> list[pb.RevokeTokensResponse]:
        self.head += len(request.tokens)
        self.batches[self.head] = request
        return [pb.RevokeTokensResponse(event=self.committed(self.head))]

    def get(self, request: pb.GetRevocationRequest) -> list[pb.GetRevocationResponse]:
        complete = pb.RevocationComplete(
            took=Duration(seconds=2),
            entry=request.index + 1000,
            statements=["s"],
            verifiers=[
                pb.VerifierOutcome(verifier="slow", realm="evaluation", state="lapsed", after=Duration(seconds=2))
            ],
        )
        events = [self.committed(request.index), pb.RevokeResponse(complete=complete)]
        return [pb.GetRevocationResponse(event=event) for event in events]

    def committed(self, index: int) -> pb.RevokeResponse:
        return pb.RevokeResponse(
            committed=pb.RevocationCommitted(
                index=index,
                entries=len(self.batches[index].tokens),
                selector=selector_pb2.Selector(realm="evaluation"),
                awaits_completion=self.batches[index].wait,
            )
        )


@pytest.fixture
def ledger(served: Served) -> Ledger:
    made = Ledger()
    served.answers["RevokeTokens"] = made.revoke
    served.answers["GetRevocation"] = made.get
    return made


def test_ids_go_in_batches_in_their_order_and_the_indices_are_told(broker: Program, ledger: Ledger) -> None:
    done = broker(*TOKENS, stdin="\n".join(IDS))
    assert (done.exit_code, done.stderr) == (0, "")
    assert [len(batch.tokens) for batch in ledger.batches.values()] == [10_000, 10_000, 5_000]
    assert [one for batch in ledger.batches.values() for one in batch.tokens] == IDS
    assert {(batch.realm, batch.reason, batch.wait) for batch in ledger.batches.values()} == {
        ("evaluation", "leaked", False)
    }
    lines = done.stdout.splitlines()
    assert lines[0] == "revoked 25000 tokens of realm evaluation"
    assert [line.split()[:3] for line in lines[2:]] == [
        ["1", "10000", "10000"],
        ["10001", "20000", "10000"],
        ["20001", "25000", "5000"],
    ]


def test_as_json_with_each_completion(broker: Program, ledger: Ledger) -> None:
    answer = broker.json(*TOKENS, "--wait", "--request-id", "0123456789abcdef", stdin="\n".join(IDS[:10_001]))
    assert list(answer) == ["realm", "tokens", "complete", "request_id", "batches"]
    assert (answer["tokens"], answer["complete"], answer["request_id"]) == (10_001, True, "0123456789abcdef")
    assert [(one["index"], one["entries"], one["entry"]) for one in answer["batches"]] == [
        (10_000, 10_000, 11_000),
        (10_001, 1, 11_001),
    ]
    assert all(batch.wait for batch in ledger.batches.values())


def test_waiting_says_how_each_batch_went(broker: Program, ledger: Ledger) -> None:
    lines = broker(*TOKENS, "--wait", stdin="\n".join(IDS[:3])).stdout.splitlines()
    assert lines[1] == "keep a completion: broker revoke show LAST --export FILE"
    assert lines[-1].split() == ["1", "3", "3", "2", "s", "slow", "(lease", "ran", "out)", "0"]


def test_the_same_request_id_is_the_same_for_each_batch_and_another_for_the_next(
    broker: Program, ledger: Ledger
) -> None:
    for _ in range(2):
        broker(*TOKENS, "--request-id", "0123456789abcdef", stdin="\n".join(IDS[:20_000]))
    first, second, again, more = (batch.request_id for batch in ledger.batches.values())
    assert (first, second) == (again, more)
    assert first != second
    assert 8 <= len(first) <= 64


def test_white_space_empty_lines_and_repeats_are_no_ids(broker: Program, ledger: Ledger) -> None:
    assert broker(*TOKENS, stdin="token-000001\r\n\n  token-000002 \ntoken-000001\n\n").exit_code == 0
    [batch] = ledger.batches.values()
    assert list(batch.tokens) == ["token-000001", "token-000002"]


@pytest.mark.parametrize(
    ("bad", "lines"),
    [
        ("short", "3"),
        ("x" * 65, "3"),
        ("x" * 255, "3"),
        ("x" * 256, "3"),
        ("x" * 100_000, "3"),
        ("two words", "3"),
        ("token-\x00001", "3"),
        ("tokén-000001", "3"),
        ("token.000001", "3"),
        ("\n\nbad", "5"),
        ("bad\n" * 12, "3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 2 more"),
    ],
    ids=range(11),
)
def test_when_any_line_is_bad_it_is_named_and_nothing_is_sent(
    broker: Program, served: Served, bad: str, lines: str
) -> None:
    code, error = broker.error(*TOKENS, stdin=f"token-000001\ntoken-000002\n{bad}\ntoken-000003")
    assert code == 2
    assert error["message"] == f"no token id in line {lines}; nothing was sent"
    assert served.calls == []


def test_p12_a_token_in_place_of_its_id_is_refused_and_not_repeated(
    broker: Program, served: Served, realm: Realm
) -> None:
    token = realm.token()
    done = broker(*TOKENS, stdin=f"token-000001\n{token}\n")
    assert done.exit_code == 2
    assert "line 2;" in done.stderr
    assert token[:16] not in done.output
    assert served.calls == []


@pytest.mark.parametrize("stdin", ["", "\n", " \n\r\n"])
def test_no_id_at_all_is_a_usage_error(broker: Program, served: Served, stdin: str) -> None:
    code, error = broker.error(*TOKENS, stdin=stdin)
    assert (code, error["message"]) == (2, "there is no id on stdin")
    assert served.calls == []


def test_a_terminal_is_no_list_of_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    from broker.edge.cli.problems import Misused
    from broker.edge.cli.stdin import read_ids

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(Misused, match="terminal"):
        read_ids()


@pytest.mark.parametrize("end", [Overloaded("too much"), grpc.StatusCode.UNAVAILABLE, None])
def test_a_batch_that_is_not_taken_says_how_many_were_and_how_to_go_on(
    broker: Program, served: Served, ledger: Ledger, end: object
) -> None:
    served.answers["RevokeTokens"] = InTurn(ledger.revoke, [] if end is None else [end])
    done = broker(*TOKENS, "--wait", "--request-id", "0123456789abcdef", "-o", "json", stdin="\n".join(IDS))
    assert done.exit_code == 1
    answer = json.loads(done.stdout)
    assert (answer["tokens"], answer["complete"], len(answer["batches"])) == (10_000, False, 1)
    error = json.loads(done.stderr)["error"]
    assert error["message"].startswith("10000 of 25000 tokens are revoked")
    assert "0123456789abcdef" in error["hint"]


def test_a_first_batch_that_is_refused_is_that_refusal(broker: Program, served: Served) -> None:
    served.answers["RevokeTokens"] = [Forbidden("only an admin may do this")]
    done = broker(*TOKENS, stdin="token-000001\n")
    assert (done.exit_code, done.stdout) == (3, "")


@pytest.mark.parametrize("end", [Hang(), Overloaded("too much"), grpc.StatusCode.UNAVAILABLE])
def test_waiting_that_ends_early_is_a_failure_that_says_how_to_look_later(
    broker: Program, served: Served, ledger: Ledger, end: object
) -> None:
    ledger.batches[3] = pb.RevokeTokensRequest(tokens=IDS[:3], wait=True)
    served.answers["GetRevocation"] = [pb.GetRevocationResponse(event=ledger.committed(3)), end]
    done = broker(*TOKENS, "--wait", "--timeout", "1s", "-o", "json", stdin="\n".join(IDS[:3]))
    assert done.exit_code == 1
    assert json.loads(done.stdout)["complete"] is False
    assert json.loads(done.stderr)["error"]["hint"].endswith("broker revoke show 3 --wait")


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with batches._bar("revoked", 20_000, show=True) as advance:
        advance(10_000)
    assert "10000/20000" in terminal.getvalue()
