"""Limits by a real broker: refused by name, with the time to wait; two brokers on one database count as one."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc import status_pb2 as rpc_status

from broker.errors import LimitReached, Stale, Untrusted
from broker.sdk import Client, UsedUp
from broker.v1 import runs_pb2, tokens_pb2
from tests.e2e.test_completion_several import two
from tests.edge.test_callers import refusal
from tests.served import POLICY, Served, request_id, wait_until
from tests.waiting import eventually

pytest_plugins = ["tests.fixtures_stores"]

GRANT = "  - {id: acme-evaluation, partner: acme, realm: evaluation, models: [mythos, oracle], environments: [acme-ci], users: [alice], workloads: [nightly], ttl: {default: 10m, max: 1h}}\n"
REACHED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")


def limited(limits, *, partner="", mode=""):
    assert GRANT in POLICY
    text = POLICY.replace(
        GRANT,
        GRANT.replace("ttl: {default: 10m, max: 1h}}", f"ttl: {{default: 10m, max: 1h}}, limits: {limits}{mode}}}"),
    )
    return text.replace("    users: [alice]\n", f"    users: [alice]\n    limits: {partner}\n") if partner else text


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("limits")) as broker:
        yield broker


def retry_s(call):
    """The seconds of RetryInfo, as Google's own library reads them, or None."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return info.retry_delay.ToMilliseconds() / 1000
    return None


def batch(broker, count, **spec):
    request = tokens_pb2.MintBatchRequest(request_id=request_id(), specs=[broker.spec(**spec)] * count)
    return broker.tokens().MintBatch(request, timeout=10)


def test_a_rate_is_refused_by_name_with_when_to_come_again(broker):
    broker.apply(limited("{mints_per_minute: 5}"))
    batch(broker, 4)
    broker.mint()
    found = refusal(broker.mint)
    assert found[:2] == REACHED
    assert {name: found[3][name] for name in ("limit", "scope", "most", "wanted")} == {
        "limit": "mints_per_minute", "scope": "grant acme-evaluation", "most": "5", "wanted": "1",
    }  # fmt: skip
    assert 1 < retry_s(broker.mint) <= 60
    # More than there ever is room for is not to be waited for.
    assert retry_s(lambda: batch(broker, 6)) is None
    with Client.connect(broker.endpoint, identity=broker.identity("acme")) as client:
        with pytest.raises(LimitReached) as caught:
            client.mint(realm="evaluation", partner="acme", models=["mythos"], user="alice")
        assert 1 < caught.value.retry_after_s <= 60
    # Another grant has nothing to do with it.
    broker.mint(realm="research", models=["oracle"])


def test_a_repeated_request_counts_once(broker):
    broker.apply(limited("{user: {live_tokens: 3}}"))
    requests = [tokens_pb2.MintRequest(request_id=request_id(), spec=broker.spec()) for _ in range(3)]
    ids = {broker.tokens().Mint(request, timeout=10).token.id for request in requests for _ in range(3)}
    assert len(ids) == 3
    assert refusal(broker.mint)[3]["scope"] == "grant acme-evaluation for acme/user/alice"
    # Each user or workload by itself.
    nightly = tokens_pb2.TokenSpec(realm="evaluation", partner="acme", workload="nightly", models=["mythos"])
    broker.tokens().Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=nightly), timeout=10)


def test_a_partners_limits_hold_over_all_of_its_grants(broker):
    broker.apply(limited("{batch: 100}", partner="{live_tokens: 2, live_runs: 1}"))
    broker.mint()
    broker.mint(realm="research", models=["oracle"])
    assert refusal(broker.mint)[3]["scope"] == "partner acme"

    def opening():
        request = runs_pb2.OpenRunRequest(
            request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"]
        )
        return broker.runs().OpenRun(request, timeout=10)

    opened = opening().run
    found = refusal(opening)
    assert (found[:2], found[3]["limit"]) == (REACHED, "live_runs")
    broker.runs().CloseRun(runs_pb2.CloseRunRequest(request_id=request_id(), run=opened.id), timeout=10)
    closed = opening().run
    broker.runs().CloseRun(runs_pb2.CloseRunRequest(request_id=request_id(), run=closed.id), timeout=10)


def test_a_grant_that_is_only_audited_refuses_nothing_and_says_what_it_would_have(broker):
    broker.apply(limited("{live_tokens: 1}", mode=", mode: audit"))
    for _ in range(3):
        broker.mint()

    def told():
        lines = [json.loads(line) for line in broker.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("rule") == "live_tokens" and line.get("grant") == "acme-evaluation"]

    eventually(lambda: len(told()) >= 2, "what would have been denied")


def test_uses_per_token_are_in_the_token_and_counted_by_each_verifier(broker):
    broker.apply(limited("{uses_per_token: 2}"))
    token = broker.mint().token
    for _ in range(2):
        with broker.verifier() as verifier:
            # The first of the two uses.
            wait_until(lambda verifier=verifier: is_accepted(verifier, token))
            assert verifier.verify(token, model="mythos").claims.uses == 2
            with pytest.raises(UsedUp):
                verifier.verify(token, model="mythos")


def is_accepted(verifier, token):
    try:
        verifier.verify(token, model="mythos")
    except (Stale, Untrusted):
        return False
    return True


def test_64_racing_mints_at_two_brokers_on_one_database_are_never_one_above(postgresql_home, tmp_path):
    with two(tmp_path, f'url = "{postgresql_home.url}"') as brokers:
        brokers[0].apply(limited("{mints_per_minute: 20, live_tokens: 40}"))
        wait_until(lambda: refusal(lambda: brokers[1].mint(realm="research", models=["oracle"])) is None)
        stubs = [broker.tokens() for broker in brokers]
        ready = threading.Barrier(64)

        def race(number):
            request = tokens_pb2.MintRequest(request_id=request_id(), spec=brokers[0].spec())
            ready.wait(30)
            return refusal(lambda: stubs[number % 2].Mint(request, timeout=20))

        with ThreadPoolExecutor(64) as pool:
            found = list(pool.map(race, range(64)))
    assert found.count(None) == 20
    assert {each[:2] for each in found if each} == {REACHED}
    assert {each[3]["limit"] for each in found if each} == {"mints_per_minute"}
