"""Realms that need a user and a workload: the user proves themselves, nobody speaks for them, and both are in the token."""

import json

import grpc
import pytest

from broker.errors import Revoked
from broker.token.jws import unb64url
from broker.v1 import tokens_pb2, tokens_pb2_grpc
from tests.edge.test_callers import refusal
from tests.identified import identified
from tests.served import request_id


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with identified(tmp_path_factory.mktemp("identified")) as broker:
        yield broker


def mint(broker, channel, *, user_token="", batch=0, **spec):
    wanted = tokens_pb2.TokenSpec(**{"realm": "shared", "partner": "acme", "models": ["mythos"], **spec})
    stub = tokens_pb2_grpc.TokenServiceStub(channel)
    if batch:
        request = tokens_pb2.MintBatchRequest(request_id=request_id(), specs=[wanted] * batch, user_token=user_token)
        return stub.MintBatch(request, timeout=10).tokens
    request = tokens_pb2.MintRequest(request_id=request_id(), spec=wanted, user_token=user_token)
    return stub.Mint(request, timeout=10).token


def claims_of(broker, minted, verifier):
    broker.until_accepted(verifier, minted.token)
    return verifier.verify(minted.token, model="mythos").claims


def ci(broker):
    return broker.login_channel(broker.github.github_token())


def test_a_workload_acts_for_the_user_who_proved_themselves_and_both_are_in_the_token(broker):
    alice = broker.sso.token(sub="u-alice")
    for channel in (ci(broker), broker.channel("acme")):
        minted = mint(broker, channel, user_token=alice)
        payload = claims(minted.token)
        assert payload["sub"] == "acme/user/alice"
        assert payload["act"] == {"sub": "acme/workload/nightly"}
        assert (payload["user"], payload["workload"]) == ("alice", "nightly")
    assert len(mint(broker, ci(broker), user_token=alice, batch=3, user="alice", workload="nightly")) == 3


def claims(token):
    return json.loads(unb64url(token.split(".")[1]))


def test_p7_a_user_who_is_only_named_is_not_there(broker):
    for channel in (ci(broker), broker.channel("acme")):
        found = refusal(lambda channel=channel: mint(broker, channel, user="alice", workload="nightly"))
        assert found[:2] == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN")
        assert "nobody's word" in found[2]
        assert "user_token" in found[3]["hint"]


def test_one_subject_is_not_two(broker):
    found = refusal(lambda: mint(broker, ci(broker)))
    assert found[:2] == (grpc.StatusCode.PERMISSION_DENIED, "NOT_GRANTED")
    assert "no user is named" in found[2]


def test_a_user_cannot_be_exchanged_for_another(broker):
    alice = broker.sso.token(sub="u-alice")
    found = refusal(lambda: mint(broker, ci(broker), user_token=alice, user="bob", workload="nightly"))
    assert found[:2] == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN")


def test_what_proves_no_user_of_the_callers_partner_proves_nobody(broker):
    wrong = {
        "another partner's user": broker.sso.token(sub="u-bob"),
        "an admin": broker.sso.token(sub="u-carol"),
        "nobody": broker.sso.token(sub="u-alicE"),
        "the workload itself": broker.github.github_token(),
        "a pod": broker.cluster.pod_token(),
        "over": broker.sso.token(sub="u-alice", exp=1),
        "for another": broker.sso.token(sub="u-alice", aud="else"),
        "no token": "x",
        "a token twice": ",".join([broker.sso.token(sub="u-alice")] * 2),
    }
    for what, token in wrong.items():
        for realm in ("shared", "evaluation"):
            found = refusal(lambda token=token, realm=realm: mint(broker, ci(broker), user_token=token, realm=realm))
            assert found is not None, what
            assert found[:2] == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), what
            assert found[3]["hint"]
            assert "globex" not in found[2], what


def test_p4_each_of_the_two_can_be_revoked(broker):
    alice = broker.sso.token(sub="u-alice")
    with broker.verifier("shared", name="gateway-shared") as verifier:
        for selector in ({"user": "alice"}, {"workload": "nightly"}):
            minted = mint(broker, ci(broker), user_token=alice)
            assert claims_of(broker, minted, verifier)
            broker.revoke(partner="acme", wait=True, **selector)
            with pytest.raises(Revoked):
                verifier.verify(minted.token, model="mythos")
            assert refusal(lambda: mint(broker, ci(broker), user_token=alice))[1] == "BLOCKED"
            broker.reinstate(partner="acme", **selector)


def test_p12_the_users_token_is_in_no_log_and_not_in_the_store(broker):
    alice = broker.sso.token(sub="u-alice")
    mint(broker, ci(broker), user_token=alice)
    for file in (broker.log, *broker.folder.glob("data/ledger.db*")):
        assert alice.split(".")[1].encode() not in file.read_bytes()
