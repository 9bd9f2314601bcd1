"""Every policy is kept with author and reason; one of them restored goes through every check again."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import create_engine

from broker.domain.policy import Role
from broker.errors import ConfigInvalid, Forbidden, Invalid, NotFound, PolicyMoved, RequestReused, StoreCorrupt
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.service.calling import Caller
from broker.service.ports import PolicyReplaced, Write
from broker.token.revocation import Selector
from tests.served import ADMIN, POLICY
from tests.unit.service.test_policies import LONG
from tests.unit.service.world import OPS, digest, request

OTHER = Caller("spiffe://lab.example/other", Role.ADMIN)


def restore(world, version, *, caller=OPS, reason="went wrong", expected_version=None, key=None):
    return world.versions.restore(
        caller, version, reason=reason, expected_version=expected_version, request=key or request()
    )


def body_at(world, index):
    return decode_entry(world.ledger.entries(index, index + 1)[0]).body


def test_each_version_has_its_author_its_reason_and_its_entry(world):
    world.apply(POLICY + "# a\n", reason="we need a")
    world.apply_policy(OTHER, POLICY + "# b\n", expected_version=None, request=request(), reason=" b, too ")
    newest, before, first = world.versions.listed(OPS, None, 10)
    assert (newest.by, newest.reason, before.by, before.reason) == (OTHER.principal, "b, too", ADMIN, "we need a")
    assert first.reason == ""
    assert body_at(world, newest.index)["reason"] == "b, too"
    assert body_at(world, newest.index)["sha256"] == digest((POLICY + "# b\n").encode())
    assert world.policies.current().reason == "b, too"
    assert world.versions.show(OPS, before.version).kept.document == POLICY + "# a\n"


def test_p12_a_reason_that_could_forge_a_line_is_refused_and_nothing_is_applied(world):
    size = world.size
    for reason in ("a\nb", "x" * 501, " ", "\x1b[2J"):
        with pytest.raises(Invalid):
            world.apply(POLICY + "# a\n", reason=reason)
    assert world.size == size


def test_a_restored_policy_is_a_new_version_that_says_which_one_it_was(world):
    [first] = world.versions.listed(OPS, None, 10)
    world.apply(POLICY.replace("users: [alice]", "users: [alice, eve]", 1))
    version, index = restore(world, first.version)
    assert version == world.policies.current().version == first.version + 2
    assert world.policies.current().document == POLICY
    body = body_at(world, index)
    assert (body["restored"], body["reason"]) == (first.version, "went wrong")
    assert world.versions.listed(OPS, None, 1)[0].reason == "went wrong"


def test_a_restore_lifts_no_block_and_revives_nothing(world):
    [first] = world.versions.listed(OPS, None, 10)
    world.revoke(OPS, Selector.of(partner="acme"), reason="x", whole_realm=False, request=request())
    restore(world, first.version)
    assert list(world.policies.current().blocks) == [Selector.of(partner="acme")]


def test_a_repeated_restore_is_done_once(world):
    [first] = world.versions.listed(OPS, None, 10)
    world.apply(POLICY + "# a\n")
    key = request("restore")
    done = restore(world, first.version, key=key)
    assert restore(world, first.version, key=key) == done
    assert len(world.versions.listed(OPS, None, 10)) == 3
    with pytest.raises(RequestReused):
        restore(world, first.version, key=request("another", request_id=key.request_id))


@pytest.mark.parametrize("off", [-1, 1])
def test_p3_a_restore_that_expects_another_version_is_refused(world, off):
    [first] = world.versions.listed(OPS, None, 10)
    size = world.size
    with pytest.raises(PolicyMoved):
        restore(world, first.version, expected_version=first.version + off)
    assert world.size == size


@pytest.mark.parametrize("version", [0, 2, 2**63, 2**64 - 1])
def test_an_unknown_version_is_told_and_nothing_is_done(world, version):
    size = world.size
    with pytest.raises(NotFound) as caught:
        restore(world, version)
    assert caught.value.hint
    with pytest.raises(NotFound):
        world.versions.show(OPS, version)
    assert world.size == size


def test_a_version_that_a_block_made_shows_the_policy_that_was_in_force(world):
    world.revoke(OPS, Selector.of(partner="acme"), reason="x", whole_realm=False, request=request())
    blocked = world.policies.current().version
    world.apply(POLICY + "# a\n")
    shown = world.versions.show(OPS, blocked)
    assert (shown.version, shown.kept.document) == (blocked, POLICY)
    assert shown.kept.applied.version == blocked - 1


@pytest.mark.parametrize("document", ["version: 99\n", "users: [", LONG])
def test_p7_an_old_version_that_would_be_refused_today_is_refused_when_it_is_restored(world, document):
    effect = PolicyReplaced(document, ADMIN, world.clock.now())
    world.ledger.append(Write([lambda index: applied_entry(index, document)], effects=(effect,))).result()
    old = world.policies.refresh().version
    world.apply(POLICY)
    before, size = world.policies.current(), world.size
    with pytest.raises((Invalid, ConfigInvalid)) as caught:
        restore(world, old)
    assert caught.value.hint
    assert (world.policies.refresh(), world.size) == (before, size)
    # It can still be looked at.
    assert world.versions.show(OPS, old).kept.document == document


def test_p10_a_document_that_was_edited_in_the_store_is_neither_shown_nor_restored(world):
    [first] = world.versions.listed(OPS, None, 10)
    world.apply(POLICY + "# a\n")
    engine = create_engine(world.ledger._engine.url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE policies SET document = replace(document, 'users: [alice]', 'users: [alice, eve]') WHERE version = 1"
        )
    engine.dispose()
    for attempt in (lambda: restore(world, first.version), lambda: world.versions.show(OPS, first.version)):
        with pytest.raises(StoreCorrupt):
            attempt()


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMIN])
def test_nobody_but_an_admin_restores(world, role):
    size = world.size
    with pytest.raises(Forbidden):
        restore(world, 1, caller=Caller("spiffe://x.y/z", role, "acme"))
    assert world.size == size


def applied_entry(index, document):
    body = {"request": "r", "sha256": digest(document.encode()), "bytes": len(document.encode())}
    return encode_entry(Entry(index, Kind.POLICY_APPLIED, datetime.now(UTC), ADMIN, body))
