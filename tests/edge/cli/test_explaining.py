"""`broker explain denial`, `token` and `path`."""

import hashlib

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from broker.errors import NotFound
from broker.v1 import policy_pb2 as pb
from tests.edge.cli.conftest import Program
from tests.edge.cli.feeding import Realm
from tests.edge.cli.served import Served

AT = Timestamp(seconds=1_800_000_000)
RULES = [
    pb.ExplainedRule(rule="realm", passes=True, detail="known"),
    pb.ExplainedRule(rule="default", detail="no\x1b[2J"),
]
DENIED = pb.ExplainDenialResponse(
    partner="acme",
    principal="spiffe://acme/ci",
    at=AT,
    method="TokenService/Mint",
    reason="NOT_GRANTED",
    message="acme may not",
    rules=RULES,
    remedy="an admin adds bob",
    policy_version=7,
)
FATE = pb.ExplainTokenResponse(
    alive=False,
    rule="revocation",
    detail="revoked at index 9",
    token="t" * 22,
    index=5,
    minted_at=AT,
    expires_at=AT,
    realm="evaluation",
    partner="acme",
    user="alice",
    models=["mythos"],
    grant="acme-evals",
    policy_version=3,
    revocations=[9],
    rules=RULES,
)


@pytest.mark.parametrize(("options", "principal"), [((), "admin"), (("--partner", "acme"), "acme-ci")])
def test_a_denial_is_explained(broker: Program, served: Served, options: tuple[str, ...], principal: str) -> None:
    served.answers["ExplainDenial"] = DENIED
    answer = broker.json("explain", "denial", "request-0000-0001", *options)
    assert (answer["reason"], answer["remedy"], answer["policy_version"]) == ("NOT_GRANTED", "an admin adds bob", 7)
    assert answer["at"] == "2027-01-15T08:00:00Z"
    assert served.last.principal.endswith(principal)
    text = broker("explain", "denial", "request-0000-0001", *options).stdout
    assert "was denied at 2027-01-15T08:00:00Z (NOT_GRANTED): acme may not" in text
    assert "what would have changed it: an admin adds bob" in text
    assert "\x1b[2J" not in text


def test_a_denial_that_is_not_known_is_a_failure(broker: Program, served: Served) -> None:
    served.answers["ExplainDenial"] = NotFound("no denial of request x is known", hint="look in the log")
    code, error = broker.error("explain", "denial", "request-0000-0001")
    assert (code, error["reason"], error["hint"]) == (1, "NOT_FOUND", "look in the log")


def test_a_token_is_explained_by_its_id(broker: Program, served: Served) -> None:
    served.answers["ExplainToken"] = FATE
    answer = broker.json("explain", "token", "t" * 22)
    assert (answer["alive"], answer["rule"], answer["revocations"], answer["workload"]) == (
        False,
        "revocation",
        [9],
        None,
    )
    assert (served.last.request.token, served.last.request.sha256) == ("t" * 22, b"")
    assert broker("explain", "token", "t" * 22).stdout.startswith("dead (revocation): revoked at index 9\n")


def test_p12_a_token_on_stdin_stays_here_and_its_id_and_hash_are_sent(
    broker: Program, served: Served, realm: Realm
) -> None:
    served.answers["ExplainToken"] = FATE
    token = realm.token()
    assert broker("explain", "token", stdin=f"{token}\n").exit_code == 0
    sent = served.last.request
    assert sent.sha256 == hashlib.sha256(token.rpartition(".")[0].encode()).digest()
    assert sent.token
    assert token[10:60].encode() not in sent.SerializeToString()


def test_p12_a_token_as_an_argument_is_refused(broker: Program, served: Served, realm: Realm) -> None:
    result = broker("explain", "token", realm.token())
    assert result.exit_code == 2
    assert served.calls == []


def test_what_is_no_token_is_told(broker: Program, served: Served) -> None:
    for text in ("", "x", "a.b.c", "eyJ9.e30.x"):
        assert broker("explain", "token", stdin=text).exit_code == 3
    assert served.calls == []


def test_paths_are_listed(broker: Program, served: Served) -> None:
    served.answers["ExplainPath"] = pb.ExplainPathResponse(
        version=7,
        ways=[
            pb.ModelPath(
                partner="acme",
                subjects=["user alice"],
                environments=["lab: certificate spiffe://acme/lab"],
                grant="acme-evals",
                terms=["for up to 1h"],
                callers=["spiffe://acme/ci (harness)"],
                block="block partner=acme",
            )
        ],
        changers=[pb.PathChanger(by="policy", who="spiffe://lab/ops", what="replaces the policy")],
    )
    answer = broker.json("explain", "path", "--realm", "evaluation", "--model", "mythos")
    assert answer["ways"][0]["block"] == "block partner=acme"
    assert answer["changers"] == [{"by": "policy", "who": "spiffe://lab/ops", "what": "replaces the policy"}]
    text = broker("explain", "path", "--realm", "evaluation", "--model", "mythos").stdout
    assert text.startswith("1 way to mythos in evaluation, by policy version 7\n")
    assert "closed now by block partner=acme" in text
