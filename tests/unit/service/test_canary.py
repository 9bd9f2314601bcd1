"""A canary: recorded before it is signed, short-lived, covered by no grant, and revoked as any token."""

import secrets
from datetime import timedelta

import pytest

from broker.adapters.key_rotation import KeyRotation, Lifetimes
from broker.adapters.local_root import LocalRoot
from broker.adapters.memory_signer import make_memory_key
from broker.errors import Blocked, NotFound, RequestReused, SignerUnavailable, StoreUnavailable
from broker.ledger.entry import Kind, decode_entry
from broker.service.canary import Canaries, lifetime_s
from broker.service.metering import Unmetered
from broker.service.revoke import KEEP_MARGIN
from broker.token.claims import decode_claims
from broker.token.jws import parse_jws
from broker.token.keys import Purpose
from broker.token.revocation import Dimension, Matcher, Revocation, Selector, facts_of
from tests.served import ADMIN, POLICY
from tests.unit.service.world import OPS, request


@pytest.fixture
def signer(world, tmp_path):
    made = KeyRotation(
        LocalRoot(tmp_path / "keys", b"not a secret in a test"),
        world.clock,
        realms=world.policies.realm_keys,
        publish=lambda *_: None,
        make=make_memory_key,
        meter=Unmetered(),
        lifetimes=Lifetimes(),
    )
    made.start()
    yield made
    made.close()


@pytest.fixture
def canaries(world, signer):
    return Canaries(
        world.ledger,
        world.policies,
        signer,
        world.revocations,
        world.clock,
        new_id=lambda: secrets.token_urlsafe(16),
        meter=Unmetered(),
    )


def claims_of(canary):
    return decode_claims(parse_jws(canary.token, typ="at+jwt").payload)


def entry(world, index):
    [data] = world.ledger.entries(index, index + 1)
    return decode_entry(data)


def test_p1_a_canary_is_in_the_ledger_as_it_is_signed(world, canaries):
    size = world.size
    canary = canaries.mint("evaluation", ADMIN, None)
    recorded, claims = entry(world, size), claims_of(canary)
    assert (recorded.kind, recorded.by) == (Kind.CANARY_MINTED, ADMIN)
    assert recorded.body["claims"]["jti"] == claims.jti == canary.id
    assert recorded.body["claims"]["idx"] == claims.idx == size
    assert (claims.partner, claims.workload, claims.user) == ("broker-drill", "canary", None)
    assert claims.models == ("broker-drill-canary",)
    assert claims.exp - claims.iat == 60
    assert recorded.at == canary.minted_at


def test_p1_no_canary_leaves_when_its_entry_is_not_durable(world, canaries):
    world.ledger.close()
    with pytest.raises(StoreUnavailable):
        canaries.mint("evaluation", ADMIN, None)


def test_p4_its_revocation_kills_it_and_names_nothing_else(world, canaries):
    canary = canaries.mint("evaluation", ADMIN, None)
    before_ns = world.clock.boottime_ns()
    index, asked_ns, committed_ns = canaries.end(canary, "broker")
    assert asked_ns <= committed_ns
    assert committed_ns >= before_ns
    [revoked] = [one for one in world.ledger.revocations(0, 10) if one.index == index]
    assert revoked.selector == Selector.of(realm="evaluation", token=canary.id)
    assert revoked.by == "broker"
    # As long as it can live, and for clocks that are wrong; but not for the week that a token could.
    assert canary.expires_at + KEEP_MARGIN - timedelta(seconds=1) <= revoked.keep_until
    assert revoked.keep_until <= canary.expires_at + KEEP_MARGIN + timedelta(seconds=5)
    matcher = Matcher()
    claims = claims_of(canary)
    facts = facts_of(claims, "k" * 43, "broker-drill-canary")
    assert canary.id in facts[Dimension.TOKEN]
    matcher.add(_revocation(revoked), 2**60)
    assert matcher.find(facts, claims.idx) is not None
    # And blocks nobody.
    assert world.ledger.policy().blocks == {}


def _revocation(record):
    return Revocation(record.index, record.selector)


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 60),
        # It must not end by itself before the lease that bounds the drill.
        ({"lease": "60s"}, 90),
        # And lives no longer than any token of its realm may.
        ({"max_ttl": "20s"}, 20),
    ],
)
def test_a_canary_outlives_its_drill_and_no_token_of_its_realm(world, changes, seconds):
    document = POLICY.replace("max_ttl: 1h, lease: 3s", "max_ttl: MAX, lease: LEASE", 1)
    document = document.replace("MAX", changes.get("max_ttl", "1h")).replace("LEASE", changes.get("lease", "3s"))
    if "max_ttl" in changes:
        document = "\n".join(line for line in document.splitlines() if "-evaluation, partner" not in line) + "\n"
    world.apply(document)
    assert lifetime_s(world.policies.refresh().policy.realms["evaluation"]) == seconds


def test_a_repeated_request_is_told_of_the_first_canary_and_gets_no_token(world, canaries):
    key = request("drill")
    first = canaries.mint("evaluation", ADMIN, key)
    size = world.size
    again = canaries.mint("evaluation", ADMIN, key)
    assert (again.id, again.is_repeat, again.token) == (first.id, True, "")
    assert world.size == size
    with pytest.raises(RequestReused):
        canaries.mint("evaluation", ADMIN, request("another", request_id=key.request_id))


def test_p9_a_revoked_key_signs_no_canary(world, canaries, signer):
    kid = signer.current("evaluation", Purpose.TOKEN).kid
    world.revoke(OPS, Selector.of(key=kid), reason="stolen", whole_realm=False, request=request())
    size = world.size
    with pytest.raises(Blocked):
        canaries.mint("evaluation", ADMIN, None)
    assert world.size == size


def test_p7_without_a_realm_or_a_key_there_is_no_canary(world, canaries, signer):
    size = world.size
    with pytest.raises(NotFound, match="evaluation, research"):
        canaries.mint("nowhere", ADMIN, None)
    signer.close()
    with pytest.raises(SignerUnavailable):
        canaries.mint("evaluation", ADMIN, None)
    assert world.size == size
