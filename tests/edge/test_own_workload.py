"""A harness that is a workload of its partner asks for tokens without saying for whom."""

import grpc
import pytest

from broker.sdk import Client
from tests.served import Served


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served")) as served:
        yield served


def test_a_run_of_the_sdk_needs_no_more_than_realm_partner_and_models(broker):
    verifier = broker.verifier()
    verifier.wait_fresh(10)
    client = Client.connect(broker.endpoint, identity=broker.identity("acme"))
    with client, client.run(realm="evaluation", partner="acme", models=["mythos"]) as run:
        token = run.token(test="case-7")
        assert run.token(test="case-7") == token
        broker.until_accepted(verifier, token)
        claims = verifier.verify(token, model="mythos").claims
        assert (claims.sub, claims.test) == ("acme/workload/nightly", "case-7")
    verifier.close()


def test_a_user_that_is_named_is_the_one(broker):
    client = Client.connect(broker.endpoint, identity=broker.identity("acme"))
    with client:
        assert client.mint(realm="evaluation", partner="acme", models=["mythos"], user="alice").id


def test_a_harness_that_is_no_workload_must_say_for_whom(broker):
    with pytest.raises(grpc.RpcError) as refused:
        broker.mint("globex", partner="globex", user=None)
    assert "user" in refused.value.details()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
