"""What a verifier tells the broker of its uses: cuts, surveys, canaries. In a loop, without a connection."""

import asyncio
import time

import pytest

from broker.errors import Revoked
from broker.sdk.answering import MAX_CANARIES, MAX_CUTS, MAX_QUESTION_BYTES, MAX_SURVEYS, Answers, question_of
from broker.sdk.feed import Connection
from broker.sdk.following import nothing_trusted
from broker.sdk.outside import boottime_ns
from broker.sdk.stream import Pace
from broker.sdk.uses import Use, Uses
from broker.sdk.verifier import Verifier
from broker.token.revocation import Dimension
from broker.v1 import feed_pb2
from tests.realm_keys import RealmKeys, entry

KEYS = RealmKeys.of_today()
NONCE = b"n" * 16
SECOND_NS = 1_000_000_000


@pytest.fixture
def verifier():
    one = Verifier(Connection(("localhost:1",), KEYS.realm, None, Pace()), KEYS.trust)
    now_ns = boottime_ns()
    one._follower.ask_echo(NONCE, now_ns)
    one._follower.take(KEYS.echo(nonce=NONCE, verifier_clock_ns=now_ns, broker_clock_ns=now_ns), now_ns)
    one._follower.take(KEYS.snapshot(as_of_ns=now_ns, wall_ms=int(time.time() * 1000), lease_ms=60_000), now_ns)
    yield one
    one.close()


def revoke(one, *indices_and_conditions):
    """Apply one frame, as the feed does: the follower takes it, then the uses are judged anew."""
    entries = [entry(index, **conditions) for index, conditions in indices_and_conditions]
    step = one._follower.take(
        KEYS.delta(
            previous_head=one._follower.state.head,
            head=indices_and_conditions[-1][0] + 1,
            as_of_ns=boottime_ns(),
            wall_ms=int(time.time() * 1000),
            revocations=entries,
        ),
        boottime_ns(),
    )
    one._on_step(step)


def told(answers):
    ack = answers.acknowledgement(feed_pb2.Ack(head=1, incarnation="x"))
    return ack.uses, [(cut.index, cut.uses) for cut in ack.cuts]


def test_each_cut_is_told_once_under_the_revocation_that_made_it(verifier):
    answers = Answers(verifier._uses)
    alice = KEYS.mint(jti="a" * 22)
    other = KEYS.mint(jti="b" * 22)
    with verifier.use(alice, "mythos"), verifier.use(alice, "mythos"), verifier.use(other, "mythos") as spared:
        assert told(answers) == (3, [])
        revoke(verifier, (20, {"token": "a" * 22}))
        assert told(answers) == (1, [(20, 2)])
        assert told(answers) == (1, [])
        assert not spared.cancelled.is_set()
        revoke(verifier, (30, {"partner": "acme"}))
        assert told(answers) == (0, [(30, 1)])


def test_an_acknowledgement_that_was_not_sent_loses_no_cut(verifier):
    answers = Answers(verifier._uses)
    token = KEYS.mint(jti="a" * 22)
    with verifier.use(token, "mythos"):
        revoke(verifier, (20, {"token": "a" * 22}))
        ack = answers.acknowledgement(feed_pb2.Ack())
        answers.take_back(ack)
        assert told(answers) == (0, [(20, 1)])
        assert told(answers) == (0, [])


def test_a_use_that_ended_by_itself_was_not_cut(verifier):
    answers = Answers(verifier._uses)
    with verifier.use(KEYS.mint(jti="a" * 22), "mythos"):
        pass
    revoke(verifier, (20, {"token": "a" * 22}))
    assert told(answers) == (0, [])


def test_the_end_of_the_verifier_is_no_cut_of_a_revocation(verifier):
    answers = Answers(verifier._uses)
    with verifier.use(KEYS.mint(), "mythos"):
        verifier.close()
    assert told(answers) == (0, [])


class Broker:
    """Asks, and keeps what is answered."""

    def __init__(self, answers):
        self.answers = answers
        self.heard = []
        self.news = asyncio.Event()

    def send(self, message):
        self.heard.append(message)
        self.news.set()

    async def hear(self, count=1):
        async with asyncio.timeout(10):
            while len(self.heard) < count:
                self.news.clear()
                await self.news.wait()
        return self.heard[count - 1]

    def probe(self, token, *, probe="drill-1", model="mythos", hold_ms=60_000):
        message = feed_pb2.Probe(id=probe, token=token, model=model, hold_ms=hold_ms)
        self.answers.answer(feed_pb2.ListenResponse(probe=message), self.send)

    def survey(self, dimensions, values):
        message = feed_pb2.Survey(id="survey-1", dimensions=dimensions, values=values)
        self.answers.answer(feed_pb2.ListenResponse(survey=message), self.send)


def report(message):
    return (message.probe.id, message.probe.verdict, message.probe.ended)


def test_a_living_canary_is_accepted_held_and_reported_when_it_dies(verifier):
    async def drill():
        broker = Broker(Answers(verifier._uses))
        broker.probe(KEYS.mint(jti="c" * 22))
        assert report(await broker.hear()) == ("drill-1", "ACCEPTED", False)
        # It is counted nowhere.
        assert verifier.state().uses == 0
        assert told(broker.answers) == (0, [])
        await asyncio.to_thread(revoke, verifier, (20, {"token": "c" * 22}))
        assert report(await broker.hear(2)) == ("drill-1", "REVOKED", True)
        assert told(broker.answers) == (0, [])
        assert not verifier._uses.is_holding

    asyncio.run(drill())


@pytest.mark.parametrize(
    ("token", "model", "verdict"),
    [
        (KEYS.mint(jti="d" * 22), "mythos", "REVOKED"),
        ("nonsense", "mythos", "MALFORMED"),
        ("", "mythos", "MALFORMED"),
        (KEYS.mint(jti="e" * 22), "other", "NOT_ALLOWED"),
        (KEYS.mint(jti="e" * 22, realm="production"), "mythos", "WRONG_REALM"),
    ],
    ids=["revoked", "malformed", "empty", "another-model", "another-realm"],
)
def test_a_canary_is_judged_as_any_token_is(verifier, token, model, verdict):
    revoke(verifier, (20, {"token": "d" * 22}))

    async def drill():
        broker = Broker(Answers(verifier._uses))
        broker.probe(token, model=model)
        assert report(await broker.hear()) == ("drill-1", verdict, False)
        assert not verifier._uses.is_holding

    asyncio.run(drill())


def test_a_canary_is_let_go_after_its_time_when_its_stream_ends_and_when_there_are_too_many(verifier):
    async def drill():
        answers = Answers(verifier._uses)
        broker = Broker(answers)
        broker.probe(KEYS.mint(), hold_ms=1)
        async with asyncio.timeout(10):
            while verifier._uses.is_holding:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
        for number in range(MAX_CANARIES + 5):
            broker.probe(KEYS.mint(), probe=f"drill-{number}")
        assert len(verifier._uses._held) == MAX_CANARIES
        # The same drill again replaces its canary.
        broker.probe(KEYS.mint(), probe=f"drill-{MAX_CANARIES + 4}")
        assert len(verifier._uses._held) == MAX_CANARIES
        answers.end_stream()
        assert not verifier._uses.is_holding
        heard = len(broker.heard)
        await asyncio.to_thread(revoke, verifier, (20, {"partner": "acme"}))
        await asyncio.sleep(0)
        assert len(broker.heard) == heard

    asyncio.run(drill())


def test_a_survey_counts_the_uses_that_a_selector_matches(verifier):
    async def ask():
        broker = Broker(Answers(verifier._uses))
        broker.probe(KEYS.mint())
        await broker.hear()
        broker.heard.clear()
        with verifier.use(KEYS.mint(jti="a" * 22), "mythos"), verifier.use(KEYS.mint(jti="b" * 22), "mythos@one"):
            counts = []
            for dimensions, values in (
                ([Dimension.PARTNER], ["acme"]),
                ([Dimension.PARTNER, Dimension.TOKEN], ["acme", "a" * 22]),
                ([Dimension.MODEL], ["mythos@one"]),
                ([Dimension.PARTNER], ["globex"]),
            ):
                broker.survey(dimensions, values)
                counts.append((await broker.hear(len(counts) + 1)).survey.uses)
            return counts

    assert asyncio.run(ask()) == [2, 1, 1, 0]


@pytest.mark.parametrize(
    ("dimensions", "values"),
    [([], []), ([99], ["x"]), ([0], ["x"]), ([2, 1], ["acme", "evaluation"]), ([2], []), ([2], ["A B"])],
    ids=["empty", "unknown", "zero", "out-of-order", "no-value", "malformed"],
)
def test_a_survey_that_makes_no_sense_is_not_answered_and_ends_nothing(verifier, dimensions, values):
    async def ask():
        broker = Broker(Answers(verifier._uses))
        broker.survey(dimensions, values)
        broker.survey([Dimension.PARTNER], ["acme"])
        await broker.hear()
        return len(broker.heard)

    assert asyncio.run(ask()) == 1


def test_a_survey_of_a_stream_that_has_ended_is_dropped(verifier):
    async def ask():
        answers = Answers(verifier._uses)
        broker = Broker(answers)
        broker.survey([Dimension.PARTNER], ["acme"])
        answers.end_stream()
        await asyncio.sleep(0.05)
        return broker.heard

    assert asyncio.run(ask()) == []


def test_only_a_question_is_a_question():
    probe = feed_pb2.ListenResponse(probe=feed_pb2.Probe(id="x")).SerializeToString()
    survey = feed_pb2.ListenResponse(survey=feed_pb2.Survey(id="x")).SerializeToString()
    assert question_of(probe) is not None
    assert question_of(survey) is not None
    frame = KEYS.snapshot()
    # A frame behind a question is a frame: the last of several members counts.
    for message in (b"", frame, probe + frame, probe[:-1] + b"\xff" * 9, b"\x2a\x00", b"\x1a\xff\xff"):
        assert question_of(message) is None
    large = feed_pb2.ListenResponse(probe=feed_pb2.Probe(token="x" * MAX_QUESTION_BYTES)).SerializeToString()
    assert question_of(large) is None


def killed_at(index):
    return Revoked("the token was revoked", metadata={"index": str(index)})


def test_a_use_that_is_cut_between_its_verdict_and_its_beginning_never_ran_and_is_not_counted(verifier):
    calls = []

    def verify(token, model):
        calls.append(token)
        if len(calls) > 1:
            raise killed_at(20)
        proof = verifier.verify(token, model)
        # As the feed's thread would, at the worst moment.
        uses.recheck()
        return proof

    uses = Uses(verify, nothing_trusted)
    with pytest.raises(Revoked), Use(uses, KEYS.mint(), "mythos"):
        pytest.fail("it began")
    assert len(calls) == 2
    assert len(uses) == 0
    assert not uses.is_holding
    assert uses.take_cuts(10) == ()


def test_the_end_of_a_use_that_began_during_a_recheck_is_not_forgotten(verifier):
    now_s = int(time.time())
    short = KEYS.mint(iat=now_s, nbf=now_s - 5, exp=now_s + 60)
    swaps = []

    def verify(token, model):
        if swaps and token != short:
            # One ends and one begins while the held ones are judged.
            uses.end(swaps.pop())
            late.__enter__()
        return verifier.verify(token, model)

    uses = Uses(verify, lambda: verifier._follower.state)
    late = Use(uses, short, "mythos")
    with Use(uses, KEYS.mint(), "mythos"), Use(uses, KEYS.mint(), "mythos") as other:
        swaps.append(other)
        uses.recheck()
        assert uses._nearest_exp_s == now_s + 60
    uses.end(late)
    assert len(uses) == 0
    uses.close(killed_at(1))


def test_a_use_that_is_begun_twice_or_ended_twice_is_counted_as_it_is(verifier):
    use = verifier.use(KEYS.mint(), "mythos")
    for _ in range(2):
        with use:
            assert verifier.state().uses == 1
        assert verifier.state().uses == 0
    verifier._uses.end(use)
    assert verifier.state().uses == 0


def test_more_revocations_than_one_acknowledgement_holds_are_told_by_the_next(verifier):
    answers = Answers(verifier._uses)
    verifier._uses.put_cuts_back([(index, 1) for index in range(1, MAX_CUTS + 3)])
    assert len(told(answers)[1]) == MAX_CUTS
    assert told(answers) == (0, [(MAX_CUTS + 1, 1), (MAX_CUTS + 2, 1)])


def test_b_a_flood_of_surveys_is_answered_in_part(verifier):
    async def ask():
        broker = Broker(Answers(verifier._uses))
        for _ in range(MAX_SURVEYS * 10):
            broker.survey([Dimension.PARTNER], ["acme"])
        await broker.hear(MAX_SURVEYS)
        await asyncio.sleep(0.05)
        return len(broker.heard)

    assert asyncio.run(ask()) == MAX_SURVEYS


def test_the_revocation_that_killed_a_token_is_named_and_nonsense_from_elsewhere_is_none(verifier):
    token = KEYS.mint(jti="a" * 22)
    revoke(verifier, (20, {"token": "a" * 22}))
    with pytest.raises(Revoked) as caught:
        verifier.verify(token, "mythos")
    assert caught.value.index == 20
    assert [Revoked("", metadata={"index": text}).index for text in ("", "x", "-1", "9" * 5000)] == [0] * 4
    assert Revoked("").index == 0
