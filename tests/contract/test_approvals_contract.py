"""The promises of the port Approvals, and of its guards, on SQLite, on PostgreSQL, and on the fake (B3, B15)."""

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from broker.domain.approval import Approval, Ended, Standing, Vote
from broker.errors import ApprovalOver, LimitReached, NotFound, StoreCorrupt, VotedAlready
from broker.service.approval_ports import (
    ApprovalAsked,
    ApprovalEnded,
    ApprovalIsOpen,
    ApprovalRecord,
    Approvals,
    HasNotVoted,
    RoomToAsk,
    VoteCast,
)
from broker.service.ports import Appended, Ledger
from broker.token.approval import ApprovalRequest, Decision, encode_request
from tests.asked import AT, after, asked
from tests.fakes import Disk, FakeLedger
from tests.moved_clock import MovedClock
from tests.stores import Home, append, failure_of, key, write

pytest_plugins = ["tests.fixtures_stores"]

RACERS = 64


@dataclass(frozen=True)
class Ports:
    """One implementation, and another broker on the same store."""

    ledger: Ledger
    approvals: Approvals
    another: Callable[[], "Ports"]


def of_sql(home: Home) -> Ports:
    store = home.open()
    return Ports(store, store.approvals, lambda: of_sql(home))


def of_fake(disk: Disk) -> Ports:
    fake = FakeLedger(disk, MovedClock())
    return Ports(fake, fake, lambda: of_fake(disk))


@pytest.fixture(params=["sqlite", "postgresql", "fake"])
def ports(request: pytest.FixtureRequest) -> Ports:
    if request.param == "fake":
        return of_fake(Disk.new("an-incarnation", AT))
    return of_sql(request.getfixturevalue(f"{request.param}_home"))


def ask(ports: Ports, **changed: Any) -> ApprovalRequest:
    made = asked(id=secrets.token_urlsafe(16), **changed)
    append(ports.ledger, 1, ApprovalAsked(encode_request(made)))
    return made


def vote(person: str = "alice", seconds: float = 10, decision: Decision = Decision.APPROVE) -> Vote:
    return Vote(person, f"spiffe://lab.example/{person}", decision, after(seconds), after(seconds - 60))


def cast(ports: Ports, approval: str, one: Vote) -> Any:
    guards = (ApprovalIsOpen(approval), HasNotVoted(approval, one.person))
    return ports.ledger.append(write(1, VoteCast(approval, one), guards=guards))


def end(ports: Ports, approval: str, how: Standing, on: str = "", **options: Any) -> Any:
    ended = ApprovalEnded(approval, Ended(how, after(60), on))
    return ports.ledger.append(write(2, ended, guards=(ApprovalIsOpen(approval),), **options))


def read(ports: Ports, approval: str) -> ApprovalRecord:
    [record] = ports.approvals.approvals_by_id([approval])
    return record


def test_p11_what_was_asked_is_read_letter_by_letter_by_every_broker(ports: Ports) -> None:
    index = ports.ledger.head().size
    made = ask(ports)
    expected = ApprovalRecord(index, encode_request(made), Approval(made))
    assert read(ports, made.id) == read(ports.another(), made.id) == expected
    assert list(ports.approvals.approvals_by_id([])) == []
    assert list(ports.approvals.approvals_by_id(["never-was-asked-for"])) == []


def test_votes_are_kept_in_their_order_and_by_person(ports: Ports) -> None:
    made = ask(ports)
    for one in (vote("carol", 10), vote("alice", 20)):
        cast(ports, made.id, one).result(20)
    assert read(ports.another(), made.id).approval.votes == (vote("carol", 10), vote("alice", 20))
    assert read(ports, ask(ports).id).approval.votes == ()


def test_b15_a_person_votes_once(ports: Ports) -> None:
    made = ask(ports)
    cast(ports, made.id, vote("carol")).result(20)
    size = ports.ledger.head().size
    again = replace(vote("carol", 20), principal="spiffe://lab.example/carol-at-home")
    assert isinstance(failure_of(cast(ports.another(), made.id, again)), VotedAlready)
    assert read(ports, made.id).approval.votes == (vote("carol"),)
    assert ports.ledger.head().size == size
    # Of another request she may.
    cast(ports, ask(ports).id, vote("carol")).result(20)


def test_a_no_replaces_the_same_person_s_yes(ports: Ports) -> None:
    made = ask(ports)
    cast(ports, made.id, vote("carol")).result(20)
    no = vote("carol", 20, Decision.DENY)
    ended = Ended(Standing.DENIED, after(20))
    append(ports.ledger, 1, VoteCast(made.id, no), ApprovalEnded(made.id, ended), guards=(ApprovalIsOpen(made.id),))
    assert read(ports, made.id).approval == Approval(made, (no,), ended)


@pytest.mark.parametrize("how", [Standing.DENIED, Standing.WITHDRAWN, Standing.SPENT])
def test_b3_what_has_ended_is_neither_voted_on_nor_ended_again(ports: Ports, how: Standing) -> None:
    made = ask(ports)
    end(ports, made.id, how, "on-something").result(20)
    size = ports.ledger.head().size
    for again in (ports, ports.another()):
        assert isinstance(failure_of(cast(again, made.id, vote())), ApprovalOver)
        for other in (Standing.DENIED, Standing.WITHDRAWN, Standing.SPENT):
            assert isinstance(failure_of(end(again, made.id, other, "on-something-else")), ApprovalOver)
    assert ports.ledger.head().size == size
    assert read(ports, made.id).approval.ended == Ended(how, after(60), "on-something")


def test_what_never_was_asked_for_can_be_neither_voted_on_nor_spent(ports: Ports) -> None:
    assert isinstance(failure_of(cast(ports, "never-was-asked-for", vote())), NotFound)
    assert isinstance(failure_of(end(ports, "never-was-asked-for", Standing.SPENT)), NotFound)


def test_b3_of_64_that_spend_it_at_the_same_moment_on_two_brokers_exactly_one_wins(ports: Ports) -> None:
    brokers = [ports, ports.another()]
    made = ask(ports)
    size = ports.ledger.head().size
    with ThreadPoolExecutor(RACERS) as pool:
        attempts = list(
            pool.map(lambda n: end(brokers[n % 2], made.id, Standing.SPENT, f"token-number-{n}"), range(RACERS))
        )
    failures = [failure_of(attempt) for attempt in attempts]
    [winner] = [number for number, failure in enumerate(failures) if failure is None]
    assert all(failure is None or isinstance(failure, ApprovalOver) for failure in failures)
    # Of all the others nothing was written: neither an entry nor a token.
    assert ports.ledger.head().size == size + 2
    ended = read(ports.another(), made.id).approval.ended
    assert ended is not None
    assert ended.on == f"token-number-{winner}"


def test_b3_the_request_that_spent_it_is_answered_the_same_when_it_is_repeated(ports: Ports) -> None:
    made = ask(ports)
    request = key("mint")
    first = end(ports, made.id, Standing.SPENT, "a-token-of-it", request=request).result(20)
    again: Appended = end(ports.another(), made.id, Standing.SPENT, "a-token-of-it", request=request).result(20)
    assert again.is_repeat
    assert again.indices == first.indices


def test_p11_an_approval_that_was_spent_is_spent_after_a_restart(ports: Ports) -> None:
    made = ask(ports)
    end(ports, made.id, Standing.SPENT, "run-of-it-000").result(20)
    ports.ledger.close()
    again = ports.another()
    assert isinstance(failure_of(end(again, made.id, Standing.SPENT, "another")), ApprovalOver)
    assert read(again, made.id).approval.ended == Ended(Standing.SPENT, after(60), "run-of-it-000")


def test_they_are_listed_newest_first_by_partner_and_by_group(ports: Ports) -> None:
    one = ask(ports)
    two = ask(ports, partner="globex")
    three = ask(ports, group="council")

    def listed(**wanted: Any) -> list[str]:
        found = ports.approvals.approvals_asked(**{"partner": None, "groups": None, "limit": 10, **wanted})
        return [record.approval.request.id for record in found]

    assert listed() == [three.id, two.id, one.id]
    assert listed(limit=2) == [three.id, two.id]
    assert listed(partner="acme") == [three.id, one.id]
    assert listed(groups=["board"]) == [two.id, one.id]
    assert listed(groups=["board"], partner="acme") == [one.id]
    assert listed(groups=[]) == []
    assert listed(partner="nobody") == []


def test_a_partner_has_so_many_requests_waiting_and_no_more(ports: Ports) -> None:
    def room(most: int, seconds: float = 0, partner: str = "acme") -> Any:
        made = asked(id=secrets.token_urlsafe(16))
        guard = RoomToAsk(partner, most, AT + timedelta(seconds=seconds))
        return failure_of(ports.ledger.append(write(1, ApprovalAsked(encode_request(made)), guards=(guard,))))

    first = ask(ports)
    ask(ports, partner="globex")
    assert room(2) is None
    refused = room(2)
    assert isinstance(refused, LimitReached)
    # Those that were withdrawn, or that nobody can vote on any more, take no room.
    end(ports, first.id, Standing.WITHDRAWN).result(20)
    assert room(2) is None
    assert isinstance(room(2), LimitReached)
    assert room(2, seconds=3600) is None


def test_p10_a_request_that_was_altered_in_the_store_is_read_by_nobody(sqlite_home: Home) -> None:
    ports = of_sql(sqlite_home)
    made = ask(ports)
    for harm in (
        "UPDATE approvals SET document = CAST(replace(document, '\"needed\":2', '\"needed\":0') AS BLOB)",
        f"UPDATE approvals SET document = CAST(replace(document, '{made.id}', 'B123456789') AS BLOB)",
        "UPDATE approvals SET document = X'00'",
    ):
        sqlite_home.sql(harm)
        with pytest.raises(StoreCorrupt):
            ports.approvals.approvals_by_id([made.id])
