"""Revoking and reinstating: what is refused, what is written, and what it blocks."""

from datetime import timedelta

import pytest

from broker.domain.asking import Ask
from broker.domain.policy import Role
from broker.errors import Forbidden, Invalid, RequestReused
from broker.ledger.entry import Kind, decode_entry
from broker.service.calling import Caller
from broker.service.ports import CertificateAdded, Write
from broker.service.revoke import KEEP_MARGIN, MAX_REASON_CHARS
from broker.token.keys import Purpose
from broker.token.revocation import Selector
from tests.realm_keys import RealmKeys
from tests.served import POLICY
from tests.unit.service.world import MAX_TTL_S, OPS, request

ASK = Ask("evaluation", "acme", "alice", None, ("mythos",), "acme-ci")
WITHOUT_GLOBEX = "\n".join(line for line in POLICY.splitlines() if "globex" not in line and "bob" not in line) + "\n"


def revoke(world, selector, *, by=OPS, reason="a test", whole_realm=False, key=None):
    return world.revoke(by, selector, reason=reason, whole_realm=whole_realm, request=key or request(str(selector)))


def reinstate(world, selector, *, by=OPS, reason="a test"):
    return world.reinstate(by, selector, reason=reason, request=request(str(selector)))


def is_allowed(world):
    return world.explain(OPS, ASK).is_allowed


@pytest.mark.parametrize("role", [Role.HARNESS, Role.VERIFIER, Role.AUDITOR])
def test_nobody_but_an_admin_revokes_or_reinstates(world, role):
    size, other = world.size, Caller("spiffe://acme.example/ci", role, "acme")
    for act in (revoke, reinstate):
        with pytest.raises(Forbidden):
            act(world, Selector.of(partner="acme"), by=other)
    assert world.size == size


@pytest.mark.parametrize("reason", ["", "   ", "\n", "x" * (MAX_REASON_CHARS + 1), "a\x00b", "a\nb", "a\x1b[31mb"])
def test_a_reason_that_is_empty_long_or_more_than_a_line_is_refused(world, reason):
    size = world.size
    for act in (revoke, reinstate):
        with pytest.raises(Invalid) as caught:
            act(world, Selector.of(partner="acme"), reason=reason)
        assert caught.value.field == "reason"
        assert caught.value.hint
    assert world.size == size


def test_a_whole_realm_must_be_meant_and_a_part_of_it_needs_no_more_words(world):
    with pytest.raises(Invalid) as caught:
        revoke(world, Selector.of(realm="evaluation"))
    assert "--yes" in caught.value.hint
    assert revoke(world, Selector.of(realm="evaluation", partner="acme")).blocks
    assert revoke(world, Selector.of(realm="evaluation"), whole_realm=True).blocks


@pytest.mark.parametrize("also", [{}, {"partner": "acme"}, {"token": "A" * 22}])
def test_p7_a_realm_that_no_live_token_can_have_is_refused_with_the_names_of_those_that_are(world, also):
    size = world.size
    with pytest.raises(Invalid) as caught:
        revoke(world, Selector.of(realm="evaluatoin", **also), whole_realm=True)
    assert caught.value.field == "selector.realm"
    assert "evaluation, research" in caught.value.hint
    assert world.size == size


def test_p4_a_realm_that_left_the_policy_is_revocable_for_as_long_as_a_token_of_it_can_live(world):
    ends_at = world.clock.now() + timedelta(hours=1)
    key = RealmKeys.of_today("sandbox").token
    certificate = CertificateAdded("sandbox", Purpose.TOKEN, key.kid, key.certificate, ends_at)
    world.ledger.append(Write([lambda index: b"entry"], effects=(certificate,))).result()
    assert revoke(world, Selector.of(realm="sandbox"), whole_realm=True).index
    world.clock.advance(3601)
    with pytest.raises(Invalid, match="sandbox"):
        revoke(world, Selector.of(realm="sandbox"), whole_realm=True)


@pytest.mark.parametrize(
    "selector",
    [
        Selector.of(partner="globex"),
        Selector.of(user="bob"),
        Selector.of(environment="globex-cluster"),
        Selector.of(model="sphinx"),
        Selector.of(label="tier=gone"),
        Selector.of(partner="globex", model="mythos@blue"),
        Selector.of(token="A" * 22),
    ],
    ids=str,
)
def test_p4_what_left_the_policy_is_revocable_because_its_tokens_live_on(world, selector):
    world.apply(WITHOUT_GLOBEX)
    assert "globex" not in world.policies.current().policy.partners
    revoked = revoke(world, selector)
    [entry] = world.ledger.entries(revoked.index, revoked.index + 1)
    assert decode_entry(entry).kind is Kind.REVOKED


def test_p3_a_block_holds_from_the_moment_that_revoke_returns_until_exactly_it_is_reinstated(world):
    selector = Selector.of(partner="acme", model="mythos")
    assert is_allowed(world)
    assert revoke(world, selector).blocks
    assert not is_allowed(world)
    for other in (
        Selector.of(partner="acme"),
        Selector.of(model="mythos"),
        Selector.of(partner="acme", model="oracle"),
    ):
        assert reinstate(world, other) is None
        assert not is_allowed(world)
    assert reinstate(world, selector) is not None
    assert is_allowed(world)


def test_of_two_blocks_on_one_partner_each_must_be_reinstated(world):
    wide, narrow = Selector.of(partner="acme"), Selector.of(user="alice")
    revoke(world, wide)
    revoke(world, narrow)
    reinstate(world, wide)
    assert not is_allowed(world)
    reinstate(world, narrow)
    assert is_allowed(world)


def test_p4_reinstating_leaves_the_revocation_as_it_is(world):
    revoke(world, Selector.of(partner="acme"))
    before = world.ledger.revocations(0, 10)
    reinstate(world, Selector.of(partner="acme"))
    assert world.ledger.revocations(0, 10) == before


def test_reinstating_what_is_not_blocked_writes_nothing(world):
    size = world.size
    assert reinstate(world, Selector.of(partner="acme")) is None
    assert world.size == size


@pytest.mark.parametrize(
    "selector", [Selector.of(token="A" * 22), Selector.of(run="r" * 22), Selector.of(key="k" * 43)], ids=str
)
def test_what_ends_by_itself_blocks_nothing(world, selector):
    assert not revoke(world, selector).blocks
    assert is_allowed(world)


def test_p4_a_revocation_is_kept_longer_than_any_token_that_it_matches_can_live(world):
    revoke(world, Selector.of(token="A" * 22))
    [record] = world.ledger.revocations(0, 10)
    assert record.keep_until == record.at + timedelta(seconds=MAX_TTL_S) + KEEP_MARGIN


def test_a_repeated_revocation_returns_the_first_answer_and_writes_nothing(world):
    key, selector = request("once"), Selector.of(partner="acme")
    first = revoke(world, selector, key=key)
    size = world.size
    world.clock.advance(60)
    again = revoke(world, selector, key=key)
    # To the millisecond, as the ledger keeps it.
    assert (again.index, again.is_repeat) == (first.index, True)
    assert abs(again.at - first.at) < timedelta(milliseconds=1)
    assert world.size == size
    with pytest.raises(RequestReused):
        revoke(world, Selector.of(partner="globex"), key=request("else", request_id=key.request_id))
    assert world.size == size


def test_a_repeat_of_a_block_that_was_reinstated_since_does_not_block_again(world):
    key, selector = request("once"), Selector.of(partner="acme")
    revoke(world, selector, key=key)
    reinstate(world, selector)
    revoke(world, selector, key=key)
    assert is_allowed(world)


def test_p5_the_bound_is_the_longest_lease_of_the_realms_that_are_concerned(world):
    world.apply(POLICY.replace("max_ttl: 1h, lease: 3s, heartbeat: 1s}\nmodels", "max_ttl: 1h, lease: 9s}\nmodels"))
    assert revoke(world, Selector.of(partner="acme")).bound_ms == 9000
    assert revoke(world, Selector.of(partner="acme", realm="evaluation")).bound_ms == 3000
