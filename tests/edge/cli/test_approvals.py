"""`broker approval`: what is shown is what is signed, and a script can wait for people."""

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from google.protobuf.timestamp_pb2 import Timestamp

from broker.edge.cli.context import Context, write_context
from broker.edge.cli.durations import shown
from broker.errors import ApprovalNeeded, ApprovalOver, Forbidden, LoginTooOld, VotedAlready
from broker.token.approval import Decision, check_statement, encode_request, request_hash
from broker.token.keys import public_jwk
from broker.v1 import approvals_pb2 as pb
from broker.v1 import runs_pb2, tokens_pb2
from tests.asked import asked
from tests.authority import Issued
from tests.edge.cli.conftest import DOMAIN, Program
from tests.edge.cli.served import Hang, InTurn, Served

REQUEST = asked(requester=f"{DOMAIN}/acme-ci")
ID, DOCUMENT = REQUEST.id, encode_request(REQUEST)
ASK = ("approval", "request", "--realm", "evaluation", "--partner", "acme", "--user", "bob", "--model", "mythos")
APPROVER = f"{DOMAIN}/verifier"


def told(state: Any = pb.APPROVAL_STATE_WAITING, *, document: bytes = DOCUMENT, **more: Any) -> pb.Approval:
    return pb.Approval(
        **{
            "id": ID,
            "request": document,
            "state": state,
            "why": "1 of 2 approved",
            "until": Timestamp(seconds=1_800_000_000, nanos=7_000_000),
            "votes": [
                pb.ApprovalVote(
                    person="dave",
                    principal="spiffe://lab.example/dave",
                    approves=True,
                    at=Timestamp(seconds=1_799_999_000),
                    counts=True,
                )
            ],
            "index": 7,
            **more,
        }
    )


@pytest.fixture(autouse=True)
def answers(served: Served) -> None:
    served.answers["RequestApproval"] = pb.RequestApprovalResponse(approval=told())
    served.answers["GetApproval"] = pb.GetApprovalResponse(approval=told(), principal=APPROVER)
    served.answers["ListApprovals"] = pb.ListApprovalsResponse(approvals=[told()])
    served.answers["Approve"] = pb.ApproveResponse(approval=told(pb.APPROVAL_STATE_APPROVED))
    served.answers["Deny"] = pb.DenyResponse(approval=told(pb.APPROVAL_STATE_DENIED))
    served.answers["Withdraw"] = pb.WithdrawResponse(approval=told(pb.APPROVAL_STATE_WITHDRAWN))


def test_the_id_of_what_was_asked_for_is_printed_alone(broker: Program, served: Served) -> None:
    result = broker(*ASK, "--for", "run", "--workload", "ci", "--ttl", "10m")
    assert (result.exit_code, result.stdout) == (0, f"{ID}\n")
    request = served.last.request
    assert (request.purpose, request.realm, request.partner) == (pb.APPROVAL_PURPOSE_RUN, "evaluation", "acme")
    assert (request.user, request.workload, list(request.models)) == ("bob", "ci", ["mythos"])
    assert request.lifetime.seconds == 600
    assert served.last.principal == f"{DOMAIN}/acme-ci"
    broker(*ASK, "--for", "token")
    assert served.last.request.purpose == pb.APPROVAL_PURPOSE_TOKEN
    assert not served.last.request.HasField("lifetime")


def test_a_script_gets_all_of_it(broker: Program) -> None:
    answer = broker.json(*ASK, "--for", "run")
    assert (answer["id"], answer["state"], answer["index"]) == (ID, "waiting", 7)
    assert answer["sha256"] == request_hash(DOCUMENT)
    assert answer["request"]["models"] == ["mythos"]
    assert answer["request"]["needed"] == 2
    assert answer["votes"][0] == {
        "person": "dave",
        "principal": "spiffe://lab.example/dave",
        "approves": True,
        "at": "2027-01-15T07:43:20Z",
        "counts": True,
    }


def test_show_says_in_words_each_thing_that_is_signed(broker: Program) -> None:
    result = broker("approval", "show", ID)
    assert result.exit_code == 0
    text = result.stdout
    assert "is waiting: 1 of 2 approved, until 2027-01-15T08:00:00Z" in text
    assert "dave approved" in text
    signed = json.loads(DOCUMENT)
    for name in ("id", "nonce", "realm", "partner", "user", "workload", "environment", "grant", "requester", "group", "binding", "created_at"):  # fmt: skip
        assert signed[name] in text, name
    for words in (f"one token, of a life of {shown(600)}", f"2 of group board within {shown(3600)}", f"each within {shown(900)}", f"good for {shown(7200)}".split(" ", 2)[2], "delegation 0"):  # fmt: skip
        assert words in text, words
    assert request_hash(DOCUMENT) in text


def test_list_shows_who_wants_what(broker: Program, served: Served) -> None:
    result = broker("approval", "list", "--waiting", "--as", "verifier")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["APPROVAL", ID]
    assert (served.last.request.waiting, served.last.principal) == (True, APPROVER)
    broker("approval", "list", "--partner", "acme")
    assert (served.last.request.partner, served.last.principal) == ("acme", f"{DOMAIN}/acme-ci")
    assert len(broker.json("approval", "list")["approvals"]) == 1


def key_of(issued: Issued) -> dict[str, str]:
    return public_jwk(serialization.load_pem_private_key(issued.key.read_bytes(), None).public_key())


@pytest.mark.parametrize(("command", "decision"), [("approve", Decision.APPROVE), ("deny", Decision.DENY)])
def test_b15_what_is_shown_is_what_is_signed_by_the_certificate_s_key(
    broker: Program, served: Served, issued: dict[str, Issued], command: str, decision: Decision
) -> None:
    result = broker("approval", command, ID, "--as", "verifier", stdin="y\n")
    assert result.exit_code == 0, result.output
    # First what will be signed, then the question, then what came of it.
    assert result.stdout.index(request_hash(DOCUMENT)) < result.stdout.rindex(f"approval {ID} is")
    assert f"{command} this as {APPROVER}?" in result.stderr
    sent = served.last.request
    statement = check_statement(sent.statement, key_of(issued["verifier"]))
    assert (statement.request, statement.decision, statement.approver) == (request_hash(DOCUMENT), decision, APPROVER)
    # The certificate's own key counts, not one that is sent beside it.
    assert sent.key == ""


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_whoever_does_not_say_yes_has_signed_nothing(broker: Program, served: Served, answer: str) -> None:
    result = broker("approval", "approve", ID, "--as", "verifier", stdin=answer)
    assert result.exit_code != 0
    assert served.last.method == "GetApproval"


def test_a_script_says_yes_beforehand_and_can_pin_what_it_saw(broker: Program, served: Served) -> None:
    seen = request_hash(DOCUMENT)
    answer = broker.json("approval", "approve", ID, "--as", "verifier", "--yes", "--sha256", seen)
    assert answer["state"] == "approved"
    code, error = broker.error("approval", "approve", ID, "--as", "verifier", "--yes", "--sha256", "0" * 64)
    assert (code, error["reason"]) == (2, "USAGE")
    assert served.last.method == "GetApproval"
    code, error = broker.error("approval", "approve", ID, "--as", "verifier")
    assert (code, error["hint"]) == (2, "look at it with show, then give --yes")


@pytest.mark.parametrize(
    "shown",
    [
        told(document=b"{}"),
        told(document=DOCUMENT.replace(b'"needed":2', b'"needed":0')),
        told(document=DOCUMENT + b" "),
        told(document=encode_request(replace(REQUEST, id="B" * 22))),
        told(document=encode_request(replace(REQUEST, id="B" * 22)), id="B" * 22),
    ],
    ids=["no request", "zero approvals", "a space", "another inside", "another altogether"],
)
def test_b15_a_broker_that_shows_something_else_gets_no_signature(
    broker: Program, served: Served, shown: pb.Approval
) -> None:
    served.answers["GetApproval"] = pb.GetApprovalResponse(approval=shown, principal=APPROVER)
    code, error = broker.error("approval", "approve", ID, "--as", "verifier", "--yes")
    assert (code, error["hint"].partition(";")[0]) == (1, "sign nothing")
    assert served.last.method == "GetApproval"


@pytest.mark.parametrize(
    "failure", [Forbidden("you asked", hint="x"), VotedAlready("y"), LoginTooOld("y"), ApprovalOver("z")]
)
def test_a_refusal_is_3(broker: Program, served: Served, failure: Any) -> None:
    served.answers["Approve"] = failure
    code, error = broker.error("approval", "approve", ID, "--as", "verifier", "--yes")
    assert (code, error["reason"]) == (3, failure.reason)


def test_without_a_key_that_can_sign_nothing_is_sent(
    broker: Program, served: Served, context: Context, home: Any
) -> None:
    code, error = broker.error("approval", "approve", ID, "--yes")
    assert (code, "--as" in error["hint"]) == (2, True)
    identity = context.identities["verifier"]
    broken = home / "broken.key"
    broken.write_text("no key")
    identities = {**context.identities, "verifier": replace(identity, key=broken)}
    write_context(replace(context, identities=identities, approver="verifier"), home / "broker" / "context.json")
    code, error = broker.error("approval", "approve", ID, "--yes")
    assert (code, error["reason"]) == (1, "FILE")
    assert not served.calls


def test_the_context_can_name_who_approves(broker: Program, served: Served, context: Context, home: Any) -> None:
    write_context(replace(context, approver="verifier"), home / "broker" / "context.json")
    assert broker("approval", "approve", ID, "--yes").exit_code == 0
    assert served.last.principal == APPROVER


def test_it_is_taken_back_by_the_harness(broker: Program, served: Served) -> None:
    result = broker("approval", "withdraw", ID, "--partner", "acme")
    assert (result.exit_code, result.stdout) == (0, f"approval {ID} is withdrawn\n")
    assert served.last.principal == f"{DOMAIN}/acme-ci"
    assert broker.error("approval", "withdraw", ID)[0] == 2


def watch(*states: Any) -> list[Any]:
    return [state if not isinstance(state, int) else pb.WatchApprovalResponse(approval=told(state)) for state in states]


WAITING, APPROVED, DENIED = pb.APPROVAL_STATE_WAITING, pb.APPROVAL_STATE_APPROVED, pb.APPROVAL_STATE_DENIED


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([WAITING, WAITING, APPROVED], 0),
        ([APPROVED], 0),
        ([WAITING, DENIED], 3),
        ([pb.APPROVAL_STATE_WITHDRAWN], 3),
        ([pb.APPROVAL_STATE_EXPIRED], 3),
        ([pb.APPROVAL_STATE_SPENT], 3),
        ([pb.APPROVAL_STATE_LAPSED], 3),
        ([pb.APPROVAL_STATE_VOID], 3),
    ],
)
def test_a_script_waits_until_people_have_decided(
    broker: Program, served: Served, states: list[Any], code: int
) -> None:
    served.answers["WatchApproval"] = watch(*states)
    result = broker("approval", "wait", ID, "--partner", "acme")
    assert result.exit_code == code
    assert result.stdout.startswith(f"approval {ID} is ")
    assert result.stderr.count("waiting: 1 of 2 approved") == int(WAITING in states)


def test_a_stream_that_breaks_or_ends_decides_nothing(broker: Program, served: Served) -> None:
    from grpc import StatusCode

    served.answers["WatchApproval"] = InTurn(watch(StatusCode.UNAVAILABLE), watch(WAITING), watch(WAITING, APPROVED))
    result = broker("approval", "wait", ID, "--partner", "acme", "--timeout", "1m")
    assert result.exit_code == 0
    assert [call.method for call in served.calls] == ["WatchApproval"] * 3


def test_nobody_waits_longer_than_they_said(broker: Program, served: Served) -> None:
    served.answers["WatchApproval"] = watch(WAITING, Hang())
    code, error = broker.error("approval", "wait", ID, "--partner", "acme", "--timeout", "1s")
    assert (code, error["reason"]) == (1, "APPROVAL_NEEDED")
    assert "1 of 2 approved" in error["message"]
    served.answers["WatchApproval"] = [ApprovalNeeded("x")]
    assert broker.error("approval", "wait", ID, "--partner", "acme")[0] == 3


def test_an_approval_is_named_when_the_token_is_minted_or_the_run_opened(broker: Program, served: Served) -> None:
    served.answers["Mint"] = tokens_pb2.MintResponse(token=tokens_pb2.MintedToken(token="t"))
    common = ("--realm", "evaluation", "--partner", "acme", "--user", "bob", "--model", "mythos", "--approval", ID)
    broker("token", "mint", *common)
    assert served.last.request.spec.approval == ID
    served.answers["OpenRun"] = runs_pb2.OpenRunResponse(run=runs_pb2.Run(id="run-12345678"))
    broker("run", "open", *common)
    assert (served.last.request.approval, served.last.request.user) == (ID, "bob")


def test_p12_nothing_that_is_shown_steers_the_terminal(broker: Program, served: Served) -> None:
    served.answers["GetApproval"] = pb.GetApprovalResponse(
        approval=told(why="\x1b[2Jnothing to see", spent_on="\x1b]0;x"), principal="\x1b[31mcarol"
    )
    assert "\x1b" not in broker("approval", "show", ID).output
