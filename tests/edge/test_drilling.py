"""Questions travel among the frames, and a drill that cannot be made is an alarm of its own."""

import asyncio
import secrets

import pytest

from broker.adapters.key_rotation import KeyRotation, Lifetimes
from broker.adapters.local_root import LocalRoot
from broker.adapters.memory_signer import make_memory_key
from broker.edge.grpc.drilling import Begun, Drilling
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.noting import Noting
from broker.edge.grpc.subscribing import MAX_QUESTIONS, MAX_QUEUED, Subscriber
from broker.errors import NotFound, Overloaded, SignerUnavailable, StoreUnavailable
from broker.service.canary import Canaries
from broker.service.drill import DrillBook
from broker.service.listening import Listeners
from broker.service.metering import Unmetered
from broker.service.publish import Published, Publisher
from broker.service.roster import RosterKeeper
from broker.v1 import feed_pb2
from tests.served import ADMIN, POLICY, PRINCIPALS
from tests.unit.service.world import make_world

GATEWAY = PRINCIPALS["gateway"]


class Room:
    """A feed without a network: the test takes messages from a stream's queue, and reports."""

    def __init__(self, folder):
        self.world = world = make_world(folder)
        world.apply(POLICY)
        self.signer = KeyRotation(
            LocalRoot(folder / "keys", b"not a secret in a test"),
            world.clock,
            realms=world.policies.realm_keys,
            publish=lambda *_: None,
            make=make_memory_key,
            meter=Unmetered(),
            lifetimes=Lifetimes(),
        )
        self.listeners = Listeners(started_ns=None, is_sole=True)
        publisher = Publisher(world.ledger, world.policies, self.signer, world.clock, boot="boot-1")
        self.hub = FeedHub(publisher, world.policies, self.listeners, world.clock, Unmetered())
        canaries = Canaries(
            world.ledger,
            world.policies,
            self.signer,
            world.revocations,
            world.clock,
            new_id=lambda: secrets.token_urlsafe(16),
            meter=Unmetered(),
        )
        self.drilling = Drilling(
            self.hub,
            canaries,
            DrillBook(world.ledger, world.ledger.proofs, world.policies, world.clock),
            world.policies,
            world.clock,
            Unmetered(),
        )

    def close(self):
        self.signer.close()
        self.world.ledger.close()

    def join(self, verifier=GATEWAY, speaks=("probe", "survey")):
        now_ns = self.world.clock.boottime_ns()
        listener = self.listeners.join(
            verifier=verifier, realm="evaluation", version="1", address="", lease_ms=3000, now_ns=now_ns
        )
        return self.hub.subscribe("evaluation", listener, frozenset(speaks))

    def report(self, subscriber, probe, verdict, *, ended=False):
        report = feed_pb2.ProbeReport(id=probe, verdict=verdict, ended=ended)
        self.hub.questions.reported(subscriber.listener, report)

    async def events(self, request=None):
        return [event async for event in self.drilling.drill("evaluation", ADMIN, request)]


@pytest.fixture
def in_room(tmp_path):
    def run(test, *, signs=True):
        async def whole():
            room = Room(tmp_path)
            if signs:
                room.signer.start()
            try:
                await asyncio.wait_for(test(room), 60)
            finally:
                room.close()

        asyncio.run(whole())

    return run


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is seen from outside
            await asyncio.sleep(0.005)


def frame(number):
    return Published(b"%d" % number, number, number + 1, 0, True)


def test_a_canary_is_judged_after_the_frames_that_were_queued_before_it():
    subscriber = Subscriber("evaluation", None, position=0)
    subscriber.offer(frame(0))
    assert subscriber.ask(b"a canary")
    subscriber.offer(frame(1))
    assert [subscriber.next_message() for _ in range(3)] == [b"0", b"a canary", b"1"]


def test_b_a_slow_subscriber_costs_a_bounded_amount_and_loses_frames_but_no_question():
    subscriber = Subscriber("evaluation", None, position=0)
    assert [subscriber.ask(b"%d" % n) for n in range(MAX_QUESTIONS + 1)] == [True] * MAX_QUESTIONS + [False]
    for number in range(MAX_QUEUED):
        assert subscriber.offer(frame(number))
    assert not subscriber.offer(frame(MAX_QUEUED))
    # A snapshot comes next; the questions are still there, after it.
    assert subscriber.position is None
    assert list(subscriber.queue) == [b"%d" % n for n in range(MAX_QUESTIONS)]
    assert subscriber.next_message() == b"0"
    assert subscriber.ask(b"more")


def test_a_drill_that_cannot_mint_is_an_alarm_until_one_passes(in_room):
    async def test(room):
        subscriber = room.join()
        with pytest.raises(SignerUnavailable):
            await room.events()
        [problem] = room.drilling.problems
        assert "could not be made" in problem
        assert "evaluation" in problem
        room.signer.start()
        drilling = asyncio.create_task(room.events())
        await until(lambda: subscriber.queue)
        probe = feed_pb2.ListenResponse.FromString(subscriber.next_message()).probe
        room.report(subscriber, probe.id, "ACCEPTED")
        await until(lambda: room.world.ledger.revocations(0, 1))
        room.report(subscriber, probe.id, "REVOKED", ended=True)
        begun, result = await drilling
        assert begun == Begun("evaluation", probe.id, 1)
        assert result.passed
        assert room.drilling.problems == ()

    in_room(test, signs=False)


def test_p11_a_drill_that_cannot_revoke_says_so_and_leaves_the_next_one_free(in_room):
    async def test(room):
        subscriber = room.join()
        drilling = asyncio.create_task(room.events())
        await until(lambda: subscriber.queue)
        probe = feed_pb2.ListenResponse.FromString(subscriber.next_message()).probe
        room.world.ledger.close()
        room.report(subscriber, probe.id, "ACCEPTED")
        with pytest.raises(StoreUnavailable):
            await drilling
        assert "could not be made" in room.drilling.problems[0]
        with pytest.raises(StoreUnavailable):
            await room.events()

    in_room(test)


def test_b_one_drill_at_a_time(in_room):
    async def test(room):
        subscriber = room.join()
        drilling = asyncio.create_task(room.events())
        await until(lambda: subscriber.queue)
        with pytest.raises(Overloaded, match="under way"):
            await room.events()
        # Not the fault of any verifier.
        assert room.drilling.problems == ()
        probe = feed_pb2.ListenResponse.FromString(subscriber.next_message()).probe
        room.report(subscriber, probe.id, "NOT_ALLOWED")
        subscriber.listener.gave_up_ns = 1
        _, result = await drilling
        # The only one has left: nothing is proven.
        assert (result.passed, result.verifiers) == (False, ())
        assert "no verifier stayed" in room.drilling.problems[0]

    in_room(test)


def test_a_report_of_no_drill_or_an_earlier_one_changes_nothing(in_room):
    async def test(room):
        subscriber = room.join()
        room.report(subscriber, "never-begun", "ACCEPTED")
        drilling = asyncio.create_task(room.events())
        await until(lambda: subscriber.queue)
        probe = feed_pb2.ListenResponse.FromString(subscriber.next_message()).probe
        other = room.join("spiffe://lab.example/other")
        # Who was not asked cannot answer for who was.
        room.report(other, probe.id, "ACCEPTED")
        room.report(other, probe.id, "REVOKED", ended=True)
        room.report(subscriber, probe.id, "ACCEPTED")
        await until(lambda: room.world.ledger.revocations(0, 1))
        room.report(subscriber, probe.id, "REVOKED", ended=True)
        _, result = await drilling
        assert [one.verifier for one in result.verifiers] == [GATEWAY]
        room.report(subscriber, probe.id, "ACCEPTED")

    in_room(test)


def test_an_alarm_ends_with_its_realm(in_room):
    async def test(room):
        room.join()
        with pytest.raises(SignerUnavailable):
            await room.events()
        assert room.drilling.problems
        realm = '  evaluation: {issuer: "https://broker.example/evaluation"'
        kept = [line for line in POLICY.splitlines() if not line.startswith(realm) and "evaluation" not in line]
        room.world.apply("\n".join(kept) + "\n")
        assert room.drilling.problems == ()

    in_room(test, signs=False)


def test_a_broker_that_ends_notes_that_nobody_listens_to_it_any_more(in_room):
    async def test(room):
        noting = Noting(RosterKeeper(room.world.ledger.roster, room.listeners, room.world.clock), room.hub)
        running = asyncio.create_task(noting.run())
        room.hub.on_coming_or_going(room.join().listener)
        known = room.world.ledger.roster.known
        await until(lambda: [one.is_present for one in known(None)] == [True])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await noting.close()
        assert [one.is_present for one in known(None)] == [False]

    in_room(test)


def test_without_verifiers_there_is_nothing_to_drill(in_room):
    async def test(room):
        with pytest.raises(NotFound, match="no verifier listens"):
            await room.drilling.realms("evaluation")
        with pytest.raises(NotFound, match="there is no realm"):
            await room.drilling.realms("nowhere")
        room.join()
        assert await room.drilling.realms(None) == ("evaluation",)

    in_room(test)
