"""Two brokers on one PostgreSQL: a completion is made once, and by whoever is there."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from broker.token.completion import check_completions
from broker.token.keys import parse_trust
from broker.v1 import revocations_pb2 as pb
from broker.v1 import selector_pb2
from tests.completing import ask, document, silent_verifier
from tests.served import POLICY, Served, request_id, wait_until

pytest_plugins = ["tests.fixtures_stores"]

LEASE_S = 3
GATEWAY = "spiffe://lab.example/gateway"


@pytest.fixture
def brokers(postgresql, tmp_path):
    """Two brokers with the same root keys, CA and store."""
    database = postgresql.new_database()
    store = f'url = "{postgresql.url(database)}"'
    with two(tmp_path, store) as pair:
        yield pair
    postgresql.drop_database(database)


@contextmanager
def two(folder, store, policy=POLICY):
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    with Served(folder / "a", store=store, policy=policy) as first:
        second = Served(folder / "b", store=store, policy=None)
        # One CA and one home of the root keys for both.
        second.authority, second.papers = first.authority, first.papers
        second._config = (folder / "a" / "broker.toml").read_text()
        second._config = second._config.replace(str(folder / "a" / "data"), str(folder / "b" / "data"))
        for port in (first.port, first.http_port):
            second._config = second._config.replace(f"127.0.0.1:{port}", "127.0.0.1:0")
        (folder / "b" / "data").mkdir()
        shutil.copytree(folder / "a" / "data" / "keys", folder / "b" / "data" / "keys")
        second._config = second._config.replace('"127.0.0.1:0"', '"127.0.0.1:PORT"', 1).replace(
            '"127.0.0.1:0"', '"127.0.0.1:HTTP"', 1
        )
        with second:
            yield first, second


def checked(served, complete):
    trusts = {}
    for realm in ("evaluation", "research"):
        trusts |= parse_trust(served.trust(realm).read_text())
    return check_completions(document(complete), trusts)


def test_p6_a_verifier_of_another_broker_is_named_and_waited_for(brokers):
    here, there = brokers
    verifier = there.verifier()
    # The other broker has told of it.
    wait_until(lambda: listed(here))
    events = here.revoke(wait=True, partner="acme")
    [outcome] = events[-1].complete.verifiers
    assert (outcome.verifier, outcome.state) == (GATEWAY, "acknowledged")
    [evaluation, _] = checked(here, events[-1].complete)
    # Nobody can know who else listens elsewhere: a lease has passed.
    assert evaluation.waited_ms >= LEASE_S * 1000
    assert ask(there, events[0].committed.index)[-1].complete == events[-1].complete
    verifier.close()


def listed(served):
    from broker.v1 import status_pb2

    return served.status().ListVerifiers(status_pb2.ListVerifiersRequest(), timeout=10).verifiers


def test_p6_what_a_dead_broker_committed_is_completed_by_another_one(brokers):
    dying, living = brokers
    with silent_verifier(dying):
        wait_until(lambda: listed(living))
        request = pb.RevokeRequest(
            request_id=request_id(), selector=selector_pb2.Selector(partner="acme"), reason="a test", wait=True
        )
        stream = dying.revocations().Revoke(request, timeout=60)
        committed = next(stream).committed
        dying.kill()
        with pytest.raises(grpc.RpcError):
            list(stream)
    # Asked where it was not made, by its index and by repeating the request.
    with ThreadPoolExecutor(2) as pool:
        by_index = pool.submit(ask, living, committed.index, timeout=90)
        by_request = pool.submit(lambda: list(living.revocations().Revoke(request, timeout=90)))
        told, repeated = by_index.result()[-1].complete, by_request.result()
    assert repeated[0].committed.index == committed.index
    assert repeated[-1].complete == told
    [evaluation, _] = checked(living, told)
    [stop] = evaluation.verifiers
    assert (stop.verifier, stop.state) == (GATEWAY, "lapsed")
    assert stop.after_ms >= LEASE_S * 1000


def test_uses_that_were_cut_at_a_verifier_of_another_broker_are_counted_and_a_dry_run_names_it(brokers):
    here, there = brokers
    verifier = there.verifier()
    token = here.mint()
    there.until_accepted(verifier, token.token)
    wait_until(lambda: listed(here))
    request = pb.RevokeRequest(
        request_id=request_id(), selector=selector_pb2.Selector(token=token.id), reason="a test", dry_run=True
    )
    with verifier.use(token.token, model="mythos") as one, verifier.use(token.token, model="mythos") as two:
        [event] = here.revocations().Revoke(request, timeout=30)
        # Whom only another broker can ask did not say.
        assert list(event.preview.verifiers) == [GATEWAY]
        assert list(event.preview.silent) == [GATEWAY]
        events = here.revoke(wait=True, token=token.id)
        assert one.cancelled.is_set()
        assert two.cancelled.is_set()
    complete = events[-1].complete
    assert complete.uses_cut == 2
    evaluation = checked(here, complete)[0]
    assert [(stop.verifier, stop.uses_cut) for stop in evaluation.verifiers] == [(GATEWAY, 2)]
    # The broker that was told counts them once, by itself.
    other = here.mint()
    there.until_accepted(verifier, other.token)
    with verifier.use(other.token, model="mythos"):
        assert there.revoke(wait=True, token=other.id)[-1].complete.uses_cut == 1
    verifier.close()
