"""Questions to verifiers, unsigned because they change nothing: what a selector would cut, how a canary is judged."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from broker.service.listening import Listener
from broker.token.revocation import Selector
from broker.v1 import feed_pb2

PROBE = "probe"
SURVEY = "survey"
# Beyond it, what a verifier says of its uses is nonsense, and must not spoil a sum.
MAX_USES = 10_000_000
ANSWER_S = 0.5


class Asked(Protocol):
    """A stream that can be asked something."""

    @property
    def realm(self) -> str:
        """Its realm."""

    @property
    def listener(self) -> Listener:
        """Whose it is."""

    @property
    def speaks(self) -> frozenset[str]:
        """What the verifier understands, by its hello."""

    def ask(self, message: bytes) -> bool:
        """Queue a message after the frames that are queued; return False when too many wait."""


@dataclass(frozen=True, slots=True)
class SurveyAnswers:
    """Running uses that a selector matches, as verifiers say; who was asked, and who of them did not answer."""

    uses: int
    silent: tuple[str, ...]
    asked: tuple[str, ...]


@dataclass(slots=True)
class _Survey:
    waiting: set[int]
    uses: int = 0
    is_answered: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Report:
    """What one stream said of a canary: on arrival, or (`is_end`) when one that it had accepted was no more."""

    probe: str
    stream: int
    verifier: str
    verdict: str
    is_end: bool


def _unheard(report: Report) -> None:
    del report


class Questions:
    """Asks, and gathers the answers. One event loop owns it."""

    def __init__(self, live: Callable[[], Iterable[Asked]]) -> None:
        self._live = live
        self._surveys: dict[str, _Survey] = {}
        self._asked = 0
        self.on_report: Callable[[Report], None] = _unheard
        """Called in the loop with each report of a canary."""

    async def survey(self, selector: Selector, timeout_s: float = ANSWER_S) -> SurveyAnswers:
        """Ask each live stream of the realms concerned how many running uses `selector` matches."""
        self._asked += 1
        name = f"survey-{self._asked}"
        question = feed_pb2.Survey(
            id=name,
            dimensions=[f"DIMENSION_{dimension.name}" for dimension, _ in selector.conditions],
            values=[value for _, value in selector.conditions],
        )
        message = feed_pb2.ListenResponse(survey=question).SerializeToString()
        concerned = [one for one in self._live() if selector.concerns(one.realm)]
        # Who cannot be asked cannot answer: nobody waits for it.
        able = {one.listener.stream for one in concerned if SURVEY in one.speaks and one.ask(message)}
        survey = _Survey(set(able))
        self._surveys[name] = survey
        try:
            async with asyncio.timeout(timeout_s):
                while survey.waiting:
                    survey.is_answered.clear()
                    await survey.is_answered.wait()
        except TimeoutError:
            pass
        finally:
            del self._surveys[name]
        answered = able - survey.waiting
        silent = [one for one in concerned if one.listener.stream not in answered]
        return SurveyAnswers(survey.uses, _names(silent), _names(concerned))

    def answer(self, listener: Listener, report: feed_pb2.SurveyReport) -> None:
        """Take the answer of one stream; only the first one to a question that it was asked counts."""
        survey = self._surveys.get(report.id)
        if survey is None or listener.stream not in survey.waiting:
            return
        survey.waiting.discard(listener.stream)
        survey.uses += min(report.uses, MAX_USES)
        survey.is_answered.set()

    def probe(self, asked: Asked, message: bytes) -> bool:
        """Show a canary, as `probe_message` made it, to one stream; return False when it cannot be shown to it."""
        return PROBE in asked.speaks and asked.ask(message)

    def reported(self, listener: Listener, report: feed_pb2.ProbeReport) -> None:
        """Hand on what a stream said of a canary."""
        self.on_report(Report(report.id, listener.stream, listener.verifier, report.verdict, report.ended))


def probe_message(probe: feed_pb2.Probe) -> bytes:
    """Return what shows a canary: the same bytes for all."""
    return feed_pb2.ListenResponse(probe=probe).SerializeToString()


def _names(asked: Iterable[Asked]) -> tuple[str, ...]:
    return tuple(sorted(one.listener.verifier for one in asked))
