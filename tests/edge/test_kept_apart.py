"""P8 seen from a partner: what it was never granted is as unknown to it as what does not exist."""

import grpc
import pytest

from broker.v1 import status_pb2, tokens_pb2
from tests.edge.test_callers import refusal
from tests.served import POLICY, Served, request_id

# A realm, models and a block that are none of acme's business.
MORE = (
    POLICY.replace(
        "models: [mythos, oracle]\npartners",
        '  production: {issuer: "https://broker.example/production", audience: models.production, max_ttl: 1h}\n'
        "models: [mythos, oracle, secret, {name: vision, labels: {clearance: high}}]\npartners",
    )
    + '  - {id: "spiffe://lab.example/gateway-production", role: verifier, realm: production}\n'
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served"), policy=MORE) as served:
        yield served


def answer(served, realm, model):
    """Return what acme hears when it asks, with the names that it gave itself taken out."""
    spec = tokens_pb2.TokenSpec(realm=realm, partner="acme", user="alice", models=[model])
    code, reason, message, metadata = refusal(
        lambda: served.tokens("acme").Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=spec))
    )
    return code, reason, message.replace(realm, "REALM").replace(model, "MODEL"), metadata.get("rule")


@pytest.mark.parametrize(
    ("realm", "model"),
    [("production", "mythos"), ("production", "unheard-of"), ("evaluation", "secret"), ("evaluation", "vision")],
)
def test_p8_what_exists_elsewhere_is_refused_like_what_does_not_exist(served, realm, model):
    nowhere = answer(served, "nowhere", "unheard-of")
    assert nowhere[:2] == (grpc.StatusCode.PERMISSION_DENIED, "NOT_GRANTED")
    assert answer(served, realm, model) == nowhere


def test_p8_a_block_in_a_realm_that_it_may_not_use_is_not_told(served):
    before = answer(served, "production", "mythos")
    served.revoke(realm="production", whole_realm=True)
    assert answer(served, "production", "mythos") == before
    served.revoke(model="secret")
    assert answer(served, "evaluation", "secret") == before


def test_p8_a_partner_is_told_the_keys_of_no_realm_but_its_own(served):
    ours = served.status("acme").GetTrust(status_pb2.GetTrustRequest()).document
    assert "evaluation" in ours
    assert "research" in ours
    assert "production" not in ours
    theirs = served.status("globex").GetTrust(status_pb2.GetTrustRequest()).document
    assert "research" not in theirs
    missing = refusal(lambda: served.status("acme").GetTrust(status_pb2.GetTrustRequest(realm="nowhere")))
    assert refusal(lambda: served.status("acme").GetTrust(status_pb2.GetTrustRequest(realm="production"))) == missing
    assert "production" in served.status("admin").GetTrust(status_pb2.GetTrustRequest()).document
