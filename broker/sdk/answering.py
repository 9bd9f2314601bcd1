"""What a verifier tells the broker of its uses: cuts with each acknowledgement, answers to surveys and to canaries."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from broker.errors import Invalid, Rejected
from broker.sdk.uses import Use, Uses
from broker.token.revocation import Dimension, Selector, facts_of
from broker.v1 import feed_pb2

log = logging.getLogger("broker.sdk")

# The first byte of a message whose only member is a probe (3) or a survey (4): what else begins so is for the follower.
_QUESTIONS = (0x1A, 0x22)
MAX_QUESTION_BYTES = 32 << 10
MAX_CANARIES = 16
# Under way at once. A broker asks one or two; more are not answered.
MAX_SURVEYS = 16
MAX_ID_CHARS = 64
# So many different revocations a broker reads from one acknowledgement; the next ones tell of the others.
MAX_CUTS = 1024
MAX_HOLD_S = 300.0
ACCEPTED = "ACCEPTED"

Send = Callable[[feed_pb2.ListenRequest], None]


def question_of(message: bytes) -> feed_pb2.ListenResponse | None:
    """Return the probe or survey in a serialized ListenResponse, or None: it is for the follower to judge."""
    if not message or message[0] not in _QUESTIONS or len(message) > MAX_QUESTION_BYTES:
        return None
    try:
        parsed = feed_pb2.ListenResponse.FromString(message)
    except DecodeError:
        return None
    return parsed if parsed.WhichOneof("message") in ("probe", "survey") else None


@dataclass(slots=True)
class _Canary:
    use: Use
    end: asyncio.TimerHandle


class Answers:
    """Answers for one verifier, in its feed's loop. Nothing that is asked changes what the verifier goes by."""

    def __init__(self, uses: Uses) -> None:
        self._uses = uses
        self._canaries: OrderedDict[str, _Canary] = OrderedDict()
        self._surveys: set[asyncio.Future[int]] = set()

    def acknowledgement(self, ack: feed_pb2.Ack) -> feed_pb2.Ack:
        """Add how many uses run, and which were cut since the last one. If it is not sent, `take_back` it."""
        ack.uses = len(self._uses)
        for index, uses in self._uses.take_cuts(MAX_CUTS):
            ack.cuts.add(index=index, uses=uses)
        return ack

    def take_back(self, ack: feed_pb2.Ack) -> None:
        """Keep for the next acknowledgement what this one did not tell."""
        self._uses.put_cuts_back([(cut.index, cut.uses) for cut in ack.cuts])

    def answer(self, question: feed_pb2.ListenResponse, send: Send) -> None:
        """Answer now or soon, by calling `send` in this loop. Never raises."""
        asked = question.probe if question.WhichOneof("message") == "probe" else question.survey
        if not 0 < len(asked.id) <= MAX_ID_CHARS:
            log.debug("a question without a usable name")
            return
        try:
            if isinstance(asked, feed_pb2.Probe):
                self._probe(asked, send)
            else:
                self._survey(asked, send)
        except Exception:  # a question must not end the stream by which revocations come
            log.exception("a defect in the answer to a question")

    def end_stream(self) -> None:
        """Let go of the canaries of a stream that has ended: who asked is gone."""
        while self._canaries:
            self._let_go(next(iter(self._canaries)))
        for survey in tuple(self._surveys):
            survey.cancel()

    def _probe(self, probe: feed_pb2.Probe, send: Send) -> None:
        self._let_go(probe.id)
        use = Use(self._uses, probe.token, probe.model, is_canary=True)
        try:
            use.__enter__()
        except Rejected as refused:
            send(_report(probe.id, refused.reason))
            return
        loop = asyncio.get_running_loop()
        if len(self._canaries) >= MAX_CANARIES:
            self._let_go(next(iter(self._canaries)))
        end = loop.call_later(min(probe.hold_ms / 1000, MAX_HOLD_S), self._let_go, probe.id)
        self._canaries[probe.id] = _Canary(use, end)
        send(_report(probe.id, ACCEPTED))

        def wake() -> None:
            # Called by whichever thread cancels.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._ended, probe.id, use, send)

        if not self._uses.attach_waker(use, wake):
            wake()

    def _ended(self, probe_id: str, use: Use, send: Send) -> None:
        held = self._canaries.get(probe_id)
        if held is None or held.use is not use or use.reason is None:
            return
        self._let_go(probe_id)
        send(_report(probe_id, use.reason.reason, ended=True))

    def _let_go(self, probe_id: str) -> None:
        held = self._canaries.pop(probe_id, None)
        if held is not None:
            held.end.cancel()
            held.use.__exit__(None, None, None)

    def _survey(self, survey: feed_pb2.Survey, send: Send) -> None:
        if len(self._surveys) >= MAX_SURVEYS:
            log.debug("too many surveys at once")
            return
        try:
            dimensions = [Dimension(number) for number in survey.dimensions]
            selector = Selector(tuple(zip(dimensions, survey.values, strict=True)))
        except (Invalid, ValueError) as unknown:
            log.debug("a survey that this version does not understand: %s", unknown)
            return
        # In a thread: ten thousand uses take longer to look at than a revocation may wait.
        counting = asyncio.get_running_loop().run_in_executor(None, _matching, self._uses.held(), selector)
        self._surveys.add(counting)

        def told(done: "asyncio.Future[int]") -> None:
            self._surveys.discard(done)
            if not done.cancelled():
                send(feed_pb2.ListenRequest(survey=feed_pb2.SurveyReport(id=survey.id, uses=done.result())))

        counting.add_done_callback(told)


def _matching(uses: Sequence[Use], selector: Selector) -> int:
    count = 0
    for use in uses:
        proof = use.begun
        if proof is not None and selector.matches(facts_of(proof.claims, proof.kid, proof.model)):
            count += 1
    return count


def _report(probe_id: str, verdict: str, *, ended: bool = False) -> feed_pb2.ListenRequest:
    return feed_pb2.ListenRequest(probe=feed_pb2.ProbeReport(id=probe_id, verdict=verdict, ended=ended))
