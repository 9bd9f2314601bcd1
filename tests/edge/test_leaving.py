"""A verifier that ends by itself is not waited for; one that is killed is."""

import time

import pytest

from broker.errors import Stale, Untrusted
from tests.served import Served


@pytest.fixture(params=[False, True], ids=["grpc-door", "feed-door"])
def broker(request, tmp_path):
    (tmp_path / "served").mkdir()
    with Served(tmp_path / "served", with_feed_door=request.param) as served:
        yield served


def accepts(verifier, token):
    try:
        verifier.verify(token, model="mythos")
    except (Untrusted, Stale):
        return False
    return True


def complete_after_s(broker, token_id):
    began = time.monotonic()
    broker.revoke(wait=True, token=token_id)
    return time.monotonic() - began


def test_p6_a_verifier_that_closes_gives_up_its_lease_and_is_not_waited_for(broker):
    verifier = broker.verifier()
    minted = broker.mint()
    broker.until_accepted(verifier, minted.token)
    began = time.monotonic()
    verifier.close()
    assert time.monotonic() - began < 2
    with pytest.raises(Stale):
        verifier.verify(minted.token, model="mythos")
    # The realm's lease is 3 s.
    assert complete_after_s(broker, minted.id) < 1.5


def test_p6_a_verifier_whose_stream_breaks_is_waited_for(broker):
    verifier = broker.verifier()
    minted = broker.mint()
    broker.until_accepted(verifier, minted.token)
    # As a crash or a cut cable: nothing is said, and the lease may still be used.
    verifier._feed.stop()
    assert accepts(verifier, minted.token)
    assert complete_after_s(broker, minted.id) > 1.5
    assert not accepts(verifier, minted.token)
    verifier.close()
