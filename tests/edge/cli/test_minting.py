"""`broker token mint`, `token inspect` and `explain`."""

import base64
import json

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from broker.errors import Blocked, LimitReached, NotGranted
from broker.v1 import policy_pb2, tokens_pb2
from tests.edge.cli.conftest import Program
from tests.edge.cli.feeding import Realm
from tests.edge.cli.served import Served

SPEC = ("--realm", "evaluation", "--partner", "acme", "--user", "alice", "--model", "mythos")
MINT = ("token", "mint", *SPEC)
KEYS = ["token", "id", "index", "expires_at", "grant"]


def minted(number: int = 1) -> tokens_pb2.MintedToken:
    return tokens_pb2.MintedToken(
        token=f"header{number}.payload.signature",
        id=f"id-{number}",
        index=number,
        expires_at=Timestamp(seconds=1_800_000_000),
        grant="acme-evals",
    )


def raw_segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def segment(value: object) -> str:
    return raw_segment(json.dumps(value).encode())


def test_the_token_is_printed_alone(broker: Program, served: Served) -> None:
    served.answers["Mint"] = tokens_pb2.MintResponse(token=minted())
    result = broker(*MINT)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "header1.payload.signature\n", "")


def test_all_of_the_spec_is_sent(broker: Program, served: Served) -> None:
    served.answers["Mint"] = tokens_pb2.MintResponse(token=minted())
    arguments = ("--model", "fable@eu-1", "--run", "run-12345678", "--test", "case-7", "--ttl", "10m")
    assert broker(*MINT, *arguments).exit_code == 0
    spec = served.last.request.spec
    assert (spec.realm, spec.partner, spec.user, spec.workload) == (
        "evaluation",
        "acme",
        "alice",
        "",
    )
    assert (list(spec.models), spec.run, spec.test) == (["mythos", "fable@eu-1"], "run-12345678", "case-7")
    assert spec.lifetime.seconds == 600


def test_what_is_left_out_is_not_sent(broker: Program, served: Served) -> None:
    served.answers["Mint"] = tokens_pb2.MintResponse(token=minted())
    arguments = ("token", "mint", "--realm", "r", "--partner", "acme", "--workload", "ci", "--model", "m")
    assert broker(*arguments).exit_code == 0
    spec = served.last.request.spec
    assert (spec.HasField("user"), spec.workload) == (False, "ci")
    assert not spec.HasField("lifetime")
    assert (spec.run, spec.test) == ("", "")


def test_one_token_as_json(broker: Program, served: Served) -> None:
    served.answers["Mint"] = tokens_pb2.MintResponse(token=minted())
    answer = broker.json(*MINT)
    assert list(answer) == [*KEYS, "request_id"]
    assert answer["expires_at"] == "2027-01-15T08:00:00Z"
    assert (answer["id"], answer["index"], answer["grant"]) == ("id-1", 1, "acme-evals")


def test_a_batch_is_one_call_and_one_line_each(broker: Program, served: Served) -> None:
    served.answers["MintBatch"] = tokens_pb2.MintBatchResponse(tokens=[minted(1), minted(2)])
    result = broker(*MINT, "--count", "2")
    assert result.stdout == "header1.payload.signature\nheader2.payload.signature\n"
    assert len(served.calls) == 1
    assert len(served.last.request.specs) == 2


def test_a_batch_of_one_is_a_batch(broker: Program, served: Served) -> None:
    served.answers["MintBatch"] = tokens_pb2.MintBatchResponse(tokens=[minted()])
    answer = broker.json(*MINT, "--count", "1")
    assert list(answer) == ["tokens", "request_id"]
    assert [list(token) for token in answer["tokens"]] == [KEYS]


def test_a_thousand_large_tokens_fit_one_answer(broker: Program, served: Served) -> None:
    large = tokens_pb2.MintedToken(token="x" * 8192)
    served.answers["MintBatch"] = tokens_pb2.MintBatchResponse(tokens=[large] * 1000)
    result = broker(*MINT, "--count", "1000")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1000


@pytest.mark.parametrize("count", ["0", "1001", "-1", "x", "1.5", "99999999999999999999"])
def test_a_batch_is_one_to_a_thousand(broker: Program, served: Served, count: str) -> None:
    assert broker(*MINT, "--count", count).exit_code == 2
    assert served.calls == []


def test_a_denied_mint_says_how_to_find_out_why(broker: Program, served: Served) -> None:
    served.answers["Mint"] = NotGranted("acme may not use mythos in evaluation for alice from acme-ci (no grant)")
    result = broker(*MINT, "--request-id", "request-0000-0001")
    assert result.exit_code == 3
    assert result.stderr == (
        "broker: denied: acme may not use mythos in evaluation for alice from acme-ci (no grant); "
        "ask an admin, or see: broker explain --realm evaluation --partner acme --user alice --model mythos; "
        "or, by its request id: broker explain denial request-0000-0001\n"
    )
    for failure, code in ((Blocked("blocked since index 7"), 3), (LimitReached("3 tokens at once"), 1)):
        served.answers["Mint"] = failure
        result = broker(*MINT, "--request-id", "request-0000-0001")
        assert result.exit_code == code
        assert result.stderr.endswith("why: broker explain denial request-0000-0001\n")
    served.answers["Mint"] = NotGranted("no grant")
    code, error = broker.error(*MINT)
    assert (code, error["reason"]) == (3, "NOT_GRANTED")
    assert error["hint"].startswith("ask an admin, or see: broker explain --realm evaluation")


def test_a_partner_that_the_context_does_not_know_is_told_with_those_it_knows(broker: Program, served: Served) -> None:
    result = broker("token", "mint", *SPEC[:3], "nobody", *SPEC[4:])
    assert result.exit_code == 2
    assert "acme, globex" in result.stderr
    assert served.calls == []


def explained(allowed: bool) -> policy_pb2.ExplainResponse:
    return policy_pb2.ExplainResponse(
        allowed=allowed,
        grant="acme-evals" if allowed else "",
        rules=[
            policy_pb2.ExplainedRule(rule="realm", passes=True, detail="evaluation is in the policy"),
            policy_pb2.ExplainedRule(rule="grant acme-evals", passes=allowed, detail="covers [bold]all[/bold] of it"),
        ],
        demands=[policy_pb2.ExplainedDemand(rule="binding", detail="must be bound", enforced=True)] if allowed else [],
        remedy="an admin adds \x1b[2J",
    )


@pytest.mark.parametrize("allowed", [True, False])
def test_an_explanation_is_an_answer_whichever_it_is(broker: Program, served: Served, allowed: bool) -> None:
    served.answers["Explain"] = explained(allowed)
    answer = broker.json("explain", *SPEC)
    assert list(answer) == ["allowed", "grant", "rules", "demands", "remedy"]
    assert answer["allowed"] is allowed
    assert answer["rules"][1] == {
        "rule": "grant acme-evals",
        "passes": allowed,
        "detail": "covers [bold]all[/bold] of it",
    }
    text = broker("explain", *SPEC).stdout
    assert text.startswith("allowed by grant acme-evals\n" if allowed else "denied\n")
    assert "covers [bold]all[/bold] of it" in text
    assert ("must be bound" in text) is allowed
    assert "what would change it: an admin adds" in text
    assert "\x1b[2J" not in text


def test_the_environment_to_assume_is_sent(broker: Program, served: Served) -> None:
    served.answers["Explain"] = explained(allowed=True)
    assert broker("explain", *SPEC, "--environment", "acme-cluster").exit_code == 0
    assert served.last.request.environment == "acme-cluster"


def test_inspecting_shows_all_and_believes_nothing(bare: Program, realm: Realm) -> None:
    token = realm.token()
    answer = bare.json("token", "inspect", stdin=f"  {token}\n")
    assert list(answer) == ["verified", "header", "claims"]
    assert answer["verified"] is False
    assert answer["header"]["typ"] == "at+jwt"
    assert answer["claims"]["partner"] == "acme"
    text = bare("token", "inspect", stdin=token).stdout
    assert text.startswith("NOT VERIFIED")
    assert "acme/user/alice" in text
    assert token.split(".")[2] not in text


def test_inspecting_shows_a_forged_token_too(bare: Program) -> None:
    token = f"{segment({'alg': 'none'})}.{segment({'exp': 10**30, 'iat': 1_800_000_000, 'x': [1, None]})}."
    answer = bare.json("token", "inspect", stdin=token)
    assert answer["header"] == {"alg": "none"}
    text = bare("token", "inspect", stdin=token).stdout
    assert "2027-01-15T08:00:00Z" in text
    assert str(10**30) in text


def test_a_token_cannot_steer_the_terminal(bare: Program) -> None:
    header, claims = segment({"alg": "\x1b[2J"}), segment({"[red]": "\x1b]0;owned\x07"})
    token = f"{header}.{claims}.x"
    text = bare("token", "inspect", stdin=token).stdout
    assert "\x1b" not in text
    assert "[red]" in text


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "..",
        f"{segment([])}.{segment({})}.x",
        f"{segment({})}.{segment(3)}.x",
        ".".join([segment({}), raw_segment(b"[" * 5000), "x"]),
        ".".join([segment({}), raw_segment(b'{"a":NaN}'), "x"]),
        ".".join([segment({}), raw_segment(b"\xff\xfe"), "x"]),
        f"{segment({})}.é.x",
        "\x00" * 9,
        "x" * 20_000,
    ],
)
def test_what_is_no_token_cannot_be_inspected(bare: Program, token: str) -> None:
    code, error = bare.error("token", "inspect", stdin=token)
    assert (code, error["reason"]) == (3, "MALFORMED")
