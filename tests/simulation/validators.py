"""The promises, judged on all that happened, in true time, which no part of the system can read."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from broker.errors import Failure
from broker.sdk.following import Step
from broker.service.ports import Appended, BlockLifted, CertificateAdded, RevocationAdded, TokensRevoked, Write
from broker.service.proof_ports import Completed, CompletionAwaited
from broker.token.claims import Claims
from broker.token.completion import check_completions
from broker.token.keys import Purpose
from broker.token.revocation import Dimension, Facts, Matcher, Revocation, Selector, facts_of
from broker.v1 import feed_pb2
from tests.fakes import Disk
from tests.simulation.loop import SimLoop
from tests.simulation.nodes import MILLION
from tests.simulation.outside import REALMS, trust_of
from tests.simulation.processes import VerifierProcess

MS = 1_000_000
# Whole nanoseconds are cut several times on the way.
ROUNDING_NS = 1000
# A timer of a held use looks so often (uses.LONGEST_REST_S).
USE_SLACK_NS = 300 * MS
# So soon after its commit an admin has the answer, when nothing is in the way.
PROMPT_NS = 500 * MS
# Nobody follows it: the state of a verifier that has not begun.
NOWHERE = ""


@dataclass(slots=True)
class Revoked:
    """A revocation as the database has it."""

    index: int
    selector: Selector
    blocks: bool
    committed_ns: int
    returned_ns: int | None = None
    completed_ns: int | None = None


@dataclass(slots=True)
class Timeline:
    """All that one incarnation of the ledger says, in the order of its indices."""

    incarnation: str
    began_ns: int = 0
    revoked: list[Revoked] = field(default_factory=list)
    keys: list[tuple[int, str, str]] = field(default_factory=list)
    completed: set[int] = field(default_factory=set)
    # Selector, index from which, and until which it was blocked.
    blocks: list[tuple[Selector, int, int | None]] = field(default_factory=list)

    def at(self, index: int) -> Revoked | None:
        """Return the revocation at this index."""
        return next((one for one in self.revoked if one.index == index), None)


@dataclass(frozen=True, slots=True)
class Token:
    """A token that left a broker."""

    text: str
    claims: Claims
    kid: str
    incarnation: str

    @property
    def facts(self) -> Facts:
        """As verifiers see it."""
        return facts_of(self.claims, self.kid, self.claims.models[0])


@dataclass(slots=True)
class Lineage:
    """A verifier across its processes: what it acknowledged, it may not forget while it keeps its disk."""

    name: str
    realm: str
    principal: str
    acked: dict[str, int] = field(default_factory=dict)
    # What it ever said, whatever it lost since.
    said: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Seen:
    """How far one process was judged."""

    head: int = 0
    epoch: int = -1
    checked: int = 0
    keys: int = 0
    incarnation: str = NOWHERE


@dataclass(slots=True)
class _Wire:
    """What one stream carried."""

    position: int | None = None
    parts: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    indices: set[int] = field(default_factory=set)


class Validators:
    """Watches a run. `violations` says which promise was broken, when and by whom."""

    def __init__(self, loop: SimLoop, leases_ns: dict[str, int], *, is_sole: bool) -> None:
        self._is_sole = is_sole
        self._loop = loop
        self._leases_ns = leases_ns
        self.timelines: dict[str, Timeline] = {}
        self.newest: Timeline | None = None
        self.violations: list[str] = []
        self.processes: list[tuple[VerifierProcess, Lineage]] = []
        self._seen: dict[VerifierProcess, _Seen] = {}
        self._wires: dict[Any, _Wire] = {}
        # While an old copy is in the database's place: the index from which on it knows nothing.
        self.stale_from: int | None = None
        # By its boot: each broker process that serves it. What it sent arrives when the right one is back, too.
        self.misleading: dict[str, int] = {}
        self._misled: set[VerifierProcess] = set()
        # Who could accept when a revocation was committed; a completion names them.
        self._held_at_commit: dict[tuple[str, int], tuple[int, list[tuple[VerifierProcess, str]]]] = {}
        # When a broker was last started. Who was not there a lease before a commit does not know all who listened.
        self.started_ns = 0

    def violated(self, promise: str, why: str) -> None:
        """Note that a promise is broken."""
        self.violations.append(f"{self._loop.now_ns / 1e9:.6f} {promise}: {why}")

    # The ledger.

    def begin_timeline(self, disk: Disk, incarnation: str) -> Timeline:
        """A ledger begins, perhaps with what an older one had."""
        before = self.newest
        timeline = Timeline(incarnation, self._loop.now_ns)
        if before is not None:
            size = len(disk.entries)
            timeline.revoked = [one for one in before.revoked if one.index < size]
            timeline.completed = {at for at, one in disk.completions.items() if one.entry is not None}
            timeline.keys = [one for one in before.keys if one[0] < size]
            timeline.blocks = [
                (selector, start, stop if stop is None or stop < size else None)
                for selector, start, stop in before.blocks
                if start < size
            ]
        self.timelines[incarnation] = self.newest = timeline
        return timeline

    def committed(self, write: Write, appended: Appended, disk: Disk) -> None:
        """The database has done a write, now."""
        timeline = self.timelines[disk.incarnation]
        first = appended.indices.start
        for effect in write.effects:
            match effect:
                case CompletionAwaited(realms=realms):
                    held = [
                        (process, lineage.principal)
                        for process, lineage in self.processes
                        if lineage.realm in realms and self._can_accept(process)
                    ]
                    self._held_at_commit[disk.incarnation, appended.indices.stop - 1] = (self._loop.now_ns, held)
                case RevocationAdded(selector=selector, blocks=blocks):
                    timeline.revoked.append(Revoked(first, selector, blocks, self._loop.now_ns))
                    if blocks:
                        self._lift(timeline, selector, first)
                        timeline.blocks.append((selector, first, None))
                case TokensRevoked(selectors=selectors):
                    for index, selector in zip(appended.indices, selectors, strict=True):
                        timeline.revoked.append(Revoked(index, selector, False, self._loop.now_ns))
                case Completed(revocation=revocation, document=document):
                    self._judge_statements(disk, revocation, document.decode("ascii"))
                    self.completed(disk.incarnation, revocation)
                case BlockLifted(selector=selector):
                    self._lift(timeline, selector, first)
                case CertificateAdded(realm=realm, purpose=Purpose.TOKEN, kid=kid):
                    timeline.keys.append((first, realm, kid))
                case _:
                    pass

    def _lift(self, timeline: Timeline, selector: Selector, index: int) -> None:
        timeline.blocks = [
            (known, start, index if known == selector and stop is None else stop)
            for known, start, stop in timeline.blocks
        ]

    def returned(self, incarnation: str, index: int) -> None:
        """An admin has the answer `committed`."""
        one = self.timelines[incarnation].at(index)
        if one is None:
            self.violated("P11", f"the revocation at {index} was acknowledged and is not in the ledger")
        elif one.returned_ns is None:
            one.returned_ns = self._loop.now_ns

    def completed(self, incarnation: str, index: int) -> None:
        """A completion was issued: from now on nobody may accept what it concerns (P6)."""
        one = self.timelines[incarnation].at(index)
        if one is None:
            self.violated("P6", f"a completion of {index}, which is no revocation")
            return
        if index in self.timelines[incarnation].completed:
            self.violated("P6", f"a second completion of {index}")
        self.timelines[incarnation].completed.add(index)
        one.completed_ns = self._loop.now_ns
        for process, lineage in self.processes:
            if process.node.is_dead or not one.selector.concerns(process.realm):
                continue
            self._judge_lease(process, lineage)
            self._loop.schedule(
                self._loop.world, self._loop.now_ns + USE_SLACK_NS, self._judge_uses, (process, one, "P6")
            )

    def _judge_statements(self, disk: Disk, index: int, document: str) -> None:
        """What is signed must be well-formed, and tell of each verifier that could accept at the commit."""
        try:
            statements = check_completions(document, {realm: trust_of(realm) for realm in REALMS})
        except Failure as bad:
            self.violated("completion", f"the completion of {index} is refused: {bad}")
            return
        for statement in statements:
            if (statement.index, statement.incarnation) != (index, disk.incarnation):
                self.violated("completion", f"the completion of {index} tells of {statement.index}")
            for stop in statement.verifiers:
                theirs = [lineage for _, lineage in self.processes if lineage.principal == stop.verifier]
                acked = max((head for lineage in theirs for head in lineage.said.values()), default=0)
                if stop.state == "acknowledged" and acked <= index:
                    self.violated("P6", f"{stop.verifier} is said to have acknowledged {index}, and sent {acked}")
        committed_ns, held_then = self._held_at_commit.pop((disk.incarnation, index), (0, []))
        # Who has left in peace may have done so before the broker knew of the commit.
        held = {name for process, name in held_then if not process.verifier._is_closed}
        one = self.timelines[disk.incarnation].at(index)
        # A broker that had its answer late, or not at all, tells of who was there then.
        is_prompt = one is not None and (one.returned_ns or self._loop.now_ns) - committed_ns < PROMPT_NS
        knows_all = is_prompt and self._is_sole and self.started_ns <= committed_ns - max(self._leases_ns.values())
        named = {stop.verifier for statement in statements for stop in statement.verifiers}
        if knows_all and not held <= named:
            self.violated("P6", f"{sorted(held - named)} held a lease at {index} and are not named")

    # P3.

    def minted(self, token: Token, asked_ns: int) -> None:
        """A token left: the policy at its index must have allowed it."""
        timeline = self.timelines[token.incarnation]
        facts, index = facts_of(token.claims, token.kid), token.claims.idx
        for selector, start, stop in timeline.blocks:
            if start < index and (stop is None or stop > index) and selector.matches(facts):
                self.violated("P3", f"token {index} was minted under the block {selector} of {start}")
        for one in timeline.revoked:
            if one.returned_ns is not None and one.returned_ns <= asked_ns and one.index > index:
                self.violated("P3", f"token {index} was asked for after {one.index} had returned")

    # P4, P5, P6 at a verifier.

    def accepted(self, process: VerifierProcess, lineage: Lineage, token: Token) -> None:
        """A verifier accepted a token, now."""
        now_ns, facts = self._loop.now_ns, token.facts
        seen = self._seen_by(process)
        for one in self._binding(process, lineage, token.incarnation):
            if not Revocation(one.index, one.selector).kills(facts, token.claims.idx):
                continue
            told = f"{lineage.name} accepted token {token.claims.idx}, revoked at {one.index}"
            if token.incarnation == seen.incarnation and one.index < max(
                seen.head, lineage.acked.get(token.incarnation, 0)
            ):
                self.violated("P4", f"{told}, which it has applied")
            if now_ns > one.committed_ns + self._leases_ns[process.realm] + ROUNDING_NS:
                self.violated("P5", f"{told}, {(now_ns - one.committed_ns) / 1e9:.3f} s ago")
            if one.completed_ns is not None and now_ns > one.completed_ns:
                self.violated("P6", f"{told}, whose completion was issued")

    def refused_as_revoked(self, process: VerifierProcess, lineage: Lineage, token: Token) -> None:
        """A verifier said Revoked: then there is a revocation that says so."""
        follows = process.verifier._follower.state.incarnation
        timelines = [self.timelines[token.incarnation], self.timelines.get(follows), self.newest]
        if not any(
            Revocation(one.index, one.selector).kills(token.facts, token.claims.idx)
            for timeline in timelines
            if timeline is not None
            for one in timeline.revoked
        ):
            self.violated("P4", f"{lineage.name} refused token {token.claims.idx}, which nothing revokes")

    def is_dead(self, token: Token) -> bool:
        """Tell whether a revocation of its ledger kills a token."""
        return any(
            Revocation(one.index, one.selector).kills(token.facts, token.claims.idx)
            for one in self.timelines[token.incarnation].revoked
        )

    def stepped(self, process: VerifierProcess, lineage: Lineage, step: Step) -> None:
        """A verifier has taken a message."""
        state = process.verifier._follower.state
        seen = self._seen_by(process)
        if state.incarnation != NOWHERE:
            if seen.incarnation == state.incarnation and state.head < seen.head:
                self.violated("feed", f"{lineage.name} went back from {seen.head} to {state.head}")
            if seen.incarnation not in (NOWHERE, state.incarnation):
                self.violated("feed", f"{lineage.name} changed from {seen.incarnation} to {state.incarnation}")
            if state.head < lineage.acked.get(state.incarnation, 0):
                self.violated("feed", f"{lineage.name} is at {state.head}, before what it acknowledged")
            if state.head <= self.misleading.get(state.boot, -1):
                self._misled.add(process)
            self._judge_contents(process, lineage, seen)
            seen.head, seen.incarnation = state.head, state.incarnation
        self._judge_lease(process, lineage)
        if step.has_contents:
            timeline = self.timelines.get(seen.incarnation)
            for one in timeline.revoked if timeline is not None else ():
                if one.index < seen.head and process.held:
                    self._judge_uses(process, one, "P4")

    def acknowledged(self, lineage: Lineage, incarnation: str, head: int, kept: int | None) -> None:
        """A verifier has sent an acknowledgement; `kept` is the head on its disk, if it has one.

        What counts is the last revocation below the head: nothing is lost with a mark that is behind by mints.
        """
        timeline = self.timelines.get(incarnation)
        lineage.said[incarnation] = max(lineage.said.get(incarnation, 0), head)
        last = 0
        for one in timeline.revoked if timeline is not None else ():
            if one.index < head and one.selector.concerns(lineage.realm):
                last = one.index + 1
        if kept is not None and kept < last:
            self.violated("P4", f"{lineage.name} acknowledged {head} with {kept} on its disk")
        lineage.acked[incarnation] = max(lineage.acked.get(incarnation, 0), last)

    def _judge_contents(self, process: VerifierProcess, lineage: Lineage, seen: _Seen) -> None:
        """Whatever is below the head in force must be there (no frame ahead of its events)."""
        state = process.verifier._follower.state
        timeline = self.timelines.get(state.incarnation)
        if timeline is None:
            self.violated("feed", f"{lineage.name} follows an incarnation that never was: {state.incarnation}")
            return
        if state.epoch != seen.epoch:
            seen.epoch, seen.checked, seen.keys = state.epoch, 0, 0
        while seen.checked < len(timeline.revoked) and timeline.revoked[seen.checked].index < state.head:
            one = timeline.revoked[seen.checked]
            if one.selector.concerns(process.realm) and not holds(state.matcher, one):
                self.violated("feed", f"{lineage.name} is at {state.head} without the revocation at {one.index}")
            seen.checked += 1
        while seen.keys < len(timeline.keys) and timeline.keys[seen.keys][0] < state.head:
            index, realm, kid = timeline.keys[seen.keys]
            if realm == process.realm and kid not in state.keys:
                self.violated("feed", f"{lineage.name} is at {state.head} without the key at {index}")
            seen.keys += 1

    def _judge_lease(self, process: VerifierProcess, lineage: Lineage) -> None:
        """How long it may accept, in true time, against the first revocation that it does not hold."""
        follower = process.verifier._follower
        state = follower.state
        if process.verifier._is_closed or state.accept_until_ns < 0 or process in self._misled:
            return
        machine = process.node.machine
        left_ns = state.accept_until_ns - machine.boottime_ns()
        until_ns = self._loop.now_ns + left_ns * MILLION // (MILLION + machine.ppm)
        lease_ns = self._leases_ns[process.realm]
        if until_ns > self._loop.now_ns + lease_ns + ROUNDING_NS:
            self.violated("P5", f"{lineage.name} has a lease of {(until_ns - self._loop.now_ns) / 1e9:.6f} s")
        for one in self._missing(process, state.incarnation, state.head, state.matcher):
            if until_ns > one.committed_ns + lease_ns + ROUNDING_NS:
                late_ns = until_ns - one.committed_ns - lease_ns
                self.violated("P5", f"{lineage.name} lacks {one.index} and accepts {late_ns / 1e9:.6f} s too long")
            if one.completed_ns is not None and until_ns > one.completed_ns + ROUNDING_NS:
                late_ns = until_ns - one.completed_ns
                self.violated("P6", f"{lineage.name} lacks {one.index}, completed {late_ns / 1e9:.6f} s before its end")

    def _can_accept(self, process: VerifierProcess) -> bool:
        until_ns = process.verifier._follower.state.accept_until_ns
        is_open = not process.node.is_dead and not process.verifier._is_closed
        return is_open and until_ns > process.node.machine.boottime_ns()

    def _missing(self, process: VerifierProcess, incarnation: str, head: int, matcher: Matcher) -> list[Revoked]:
        """The revocations that it does not hold: of its own ledger and of the one that took its place."""
        missing: list[Revoked] = []
        mine = self.timelines.get(incarnation)
        if mine is not None:
            missing += _lacking(mine.revoked, head, matcher, process.realm)
        if self.newest is not None and self.newest is not mine:
            after = [one for one in self.newest.revoked if one.committed_ns >= self.newest.began_ns]
            missing += _lacking(after, 0, matcher, process.realm)
        return missing

    def _binding(self, process: VerifierProcess, lineage: Lineage, incarnation: str) -> list[Revoked]:
        """The revocations that a token of `incarnation` is judged by at this verifier."""
        if process in self._misled:
            return []
        revoked = self.timelines[incarnation].revoked
        follows = process.verifier._follower.state.incarnation
        if follows == incarnation or follows not in self.timelines:
            return revoked
        # What a restored backup lost is lost for those who follow the new ledger.
        return [one for one in revoked if self.timelines[follows].at(one.index) is one]

    def _judge_uses(self, process: VerifierProcess, one: Revoked, promise: str) -> None:
        if process.node.is_dead or process.node.is_frozen or process in self._misled:
            return
        process.held = [use for use in process.held if use.reason is None and use in process.verifier._uses._held]
        for use in process.held:
            claims = use.proof.claims
            facts = facts_of(claims, use.proof.kid, use.proof.model)
            if Revocation(one.index, one.selector).kills(facts, claims.idx):
                self.violated(
                    promise, f"{process.node.name} goes on with a use of token {claims.idx}, dead by {one.index}"
                )

    def _seen_by(self, process: VerifierProcess) -> _Seen:
        seen = self._seen.get(process)
        if seen is None:
            seen = self._seen[process] = _Seen()
        return seen

    # The wire.

    def carried(self, stream: Any, message: bytes) -> None:
        """A broker has sent a message on a stream."""
        body = frame_of(message)
        if body is None or self.stale_from is not None:
            return
        wire = self._wires.setdefault(stream, _Wire())
        indices = [entry.index for entry in body.revocations]
        if indices != sorted(set(indices)):
            self.violated("feed", f"a frame with revocations out of order: {indices}")
        timeline = self.timelines.get(body.incarnation)
        if timeline is None:
            self.violated("feed", f"a frame of an incarnation that never was: {body.incarnation}")
            return
        due = [one.index for one in timeline.revoked if one.index < body.head and one.selector.concerns(body.realm)]
        if body.kind == feed_pb2.FRAME_KIND_SNAPSHOT:
            parts = wire.parts.setdefault((body.head, body.as_of_ns), set())
            parts.add(body.part)
            wire.indices = set(indices) if body.part == 0 else wire.indices | set(indices)
            if len(parts) == body.parts:
                wire.position = body.head
                if sorted(wire.indices) != due:
                    self.violated("feed", f"a snapshot at {body.head} holds {sorted(wire.indices)} and not {due}")
            return
        if wire.position != body.previous_head:
            self.violated("feed", f"a delta from {body.previous_head} on a stream at {wire.position}")
        if body.head < body.previous_head:
            self.violated("feed", f"a delta from {body.previous_head} back to {body.head}")
        if indices != [index for index in due if index >= body.previous_head]:
            self.violated("feed", f"a delta from {body.previous_head} to {body.head} holds {indices}")
        wire.position = body.head

    def forget_stream(self, stream: Any) -> None:
        """A stream ended."""
        self._wires.pop(stream, None)


def holds(matcher: Matcher, one: Revoked) -> bool:
    """Tell whether a token that the selector matches, minted just before it, is dead."""
    return matcher.find(_probe(one.selector), one.index - 1) is not None


def _lacking(revoked: list[Revoked], head: int, matcher: Matcher, realm: str) -> list[Revoked]:
    """What is at `head` or after and not yet held; a matcher may hold more than the head says."""
    lacking = []
    for one in reversed(revoked):
        if one.index < head:
            break
        if one.selector.concerns(realm) and not holds(matcher, one):
            lacking.append(one)
    return lacking


@lru_cache(maxsize=4096)
def _probe(selector: Selector) -> Facts:
    values: list[tuple[str, ...]] = [() for _ in range(len(Dimension) + 1)]
    for dimension, value in selector.conditions:
        values[dimension] = (value,)
    return tuple(values)


@lru_cache(maxsize=512)
def frame_of(message: bytes) -> feed_pb2.FrameBody | None:
    """The body of a frame; None for an echo."""
    response = feed_pb2.ListenResponse.FromString(message)
    if response.WhichOneof("message") != "frame":
        return None
    return feed_pb2.FrameBody.FromString(response.frame.body)
