"""The book of denials: what is kept, for whom, and what is not worth keeping."""

import pytest

from broker.domain.asking import Ask
from broker.domain.policy import Role
from broker.errors import (
    Blocked,
    Forbidden,
    LimitReached,
    NotFound,
    NotGranted,
    Overloaded,
    PolicyMoved,
    SignerUnavailable,
    StoreUnavailable,
)
from broker.service.calling import Caller
from broker.service.denials import MOST_WAITING, DenialBook
from broker.service.explain_ports import KEEP_DENIALS
from tests.fakes import Disk, FakeExplaining
from tests.unit.service.world import OPS

RID = "request-0000-0001"
DENIED = Ask("research", "acme", None, "nightly", ("oracle",), "acme-ci")
GRANTED = Ask("evaluation", "acme", "alice", None, ("mythos",), "acme-ci")


@pytest.fixture
def store(world):
    return FakeExplaining(Disk.new("a" * 32, world.clock.now()))


@pytest.fixture
def book(world, store):
    return DenialBook(store, world.policies, world.clock)


def note(world, book, failure, *asks, request_id=RID, caller=None):
    book.note(caller or world.acme, "TokenService/Mint", request_id, asks, failure)


def test_a_denial_is_found_before_and_after_it_is_written(world, book, store):
    note(world, book, NotGranted("no grant"), DENIED)
    before = book.find(world.acme, RID, None)
    book.write()
    assert book.find(world.acme, RID, None) == before
    assert DenialBook(store, world.policies, world.clock).find(OPS, RID, "acme") == before


def test_the_rules_of_a_batch_are_those_of_the_ask_that_was_denied(world, book):
    note(world, book, NotGranted("specs[1]: no grant"), GRANTED, DENIED)
    found = book.find(world.acme, RID, None)
    assert found.rules[-1].rule == "default"
    assert found.remedy == "an admin adds nightly to workloads of grant acme-research"


def test_what_a_demand_refused_comes_after_the_rules_that_passed(world, book):
    note(world, book, LimitReached("3 live runs", hint="close one", metadata={"limit": "live_runs"}), GRANTED)
    found = book.find(world.acme, RID, None)
    assert [(rule.rule, rule.passes) for rule in found.rules][-2:] == [
        ("grant acme-evaluation", True),
        ("live_runs", False),
    ]
    assert found.remedy == "close one"


def test_all_problems_of_a_run_are_kept_in_their_order(world, book):
    metadata = {f"problem-{n}": f"model-{n}: default: no grant" for n in range(1, 12)}
    note(world, book, NotGranted("11 problems", metadata=metadata), DENIED)
    assert [rule.rule for rule in book.find(world.acme, RID, None).rules] == [f"problem-{n}" for n in range(1, 12)]


def test_b20_nothing_of_another_partner_is_told_to_who_asked_for_it(world, book):
    theirs = Ask("evaluation", "globex", "bob", None, ("mythos",), "globex-cluster")
    note(world, book, Forbidden("acme may act for its own partner only"), theirs)
    [rule] = book.find(world.acme, RID, None).rules
    assert "globex" not in rule.detail


@pytest.mark.parametrize("kind", [Overloaded, StoreUnavailable, SignerUnavailable, PolicyMoved])
def test_what_was_not_decided_is_no_denial(world, book, kind):
    note(world, book, kind("not now"), DENIED)
    with pytest.raises(NotFound):
        book.find(OPS, RID, None)


def test_who_has_no_partner_is_denied_nothing_that_is_kept(world, book):
    note(world, book, Forbidden("this needs the role harness"), DENIED, caller=OPS)
    with pytest.raises(NotFound):
        book.find(OPS, RID, None)


def test_b19_a_flood_of_denials_costs_a_bounded_amount_and_loses_the_oldest(world, book, store):
    for number in range(MOST_WAITING + 10):
        note(world, book, Blocked("blocked"), DENIED, request_id=f"request-{number:08}")
    with pytest.raises(NotFound):
        book.find(world.acme, "request-00000009", None)
    assert book.find(world.acme, "request-00000010", None)


def test_what_cannot_be_written_now_is_written_later(world, store):
    class Away:
        is_away = True

        def note(self, denials):
            if self.is_away:
                raise StoreUnavailable("away")
            store.note(denials)

        find = staticmethod(store.find)

    away = Away()
    book = DenialBook(away, world.policies, world.clock)
    note(world, book, Blocked("blocked"), DENIED)
    with pytest.raises(StoreUnavailable):
        book.write()
    assert book.find(world.acme, RID, None)
    away.is_away = False
    book.write()
    assert store.find(RID, "acme", since=world.clock.now() - KEEP_DENIALS)


def test_an_old_denial_is_as_unknown_as_none(world, book):
    note(world, book, Blocked("blocked"), DENIED)
    book.write()
    world.clock.advance(KEEP_DENIALS.total_seconds() + 1)
    with pytest.raises(NotFound):
        book.find(OPS, RID, None)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("partner", ["acme", "globex"])
def test_b20_each_role_is_told_what_it_may_know(world, book, role, partner):
    note(world, book, NotGranted("no grant"), DENIED)
    caller = Caller("spiffe://x.y/z", role, partner if role in (Role.HARNESS, Role.PARTNER_ADMIN) else None)
    if role in (Role.ADMIN, Role.AUDITOR) or (caller.partner == "acme"):
        assert book.find(caller, RID, None).rules
    elif caller.partner == "globex":
        for named in (None, "acme", "globex"):
            with pytest.raises(NotFound):
                book.find(caller, RID, named)
    else:
        with pytest.raises(Forbidden):
            book.find(caller, RID, None)
