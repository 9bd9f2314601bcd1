"""Drills: what each verifier said of a canary, what that proves, and the record of it."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from broker.domain.policy import Role
from broker.errors import Invalid, NotFound, Rejected, Revoked, Stale, StoreCorrupt
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.service.calling import Caller
from broker.service.policies import Policies
from broker.service.ports import Clock, Ledger, RequestKey, Write
from broker.service.proof_ports import DrillRecorded, DrillsScheduled, Proofs

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
ACCEPTED = "ACCEPTED"
SHORTEST_S = 10
LONGEST_S = 31 * 86_400
# Verdicts come from outside and go to the ledger: only words that are known.
_VERDICTS = frozenset({ACCEPTED, *(refusal.reason for refusal in Rejected.__subclasses__())})
_UNKNOWN = "INVALID"
# An end of the canary's own, as by its expiry, proves nothing of the revocation. A lapsed lease is a denial (P5).
_DEATHS = frozenset({Revoked.reason, Stale.reason})


class Outcome(StrEnum):
    """What a drill found at one verifier; `ACCEPTING`: it did not report the canary's death in time."""

    DENIED = "denied"
    SILENT = "silent"
    REFUSED = "refused"
    ACCEPTING = "accepting"


@dataclass(frozen=True, slots=True)
class Drilled:
    """How one verifier did; `verdict` is what it said last. Microseconds from the commit to its report."""

    verifier: str
    outcome: Outcome
    verdict: str
    time_to_deny_us: int | None = None


@dataclass(frozen=True, slots=True)
class DrillResult:
    """What a drill found in one realm, `index` being that of its entry; those that failed first, then the slowest."""

    index: int
    realm: str
    canary: str
    at: datetime
    by: str
    bound_ms: int
    revocation: int
    verifiers: tuple[Drilled, ...]

    @property
    def failed(self) -> tuple[Drilled, ...]:
        """Who did not deny, or denied later than the bound."""
        return tuple(one for one in self.verifiers if one.outcome is not Outcome.DENIED or self.is_slow(one))

    @property
    def passed(self) -> bool:
        """Whether every verifier, of one or more, saw the canary alive, and then dead within the bound."""
        return bool(self.verifiers) and not self.failed

    def is_slow(self, one: Drilled) -> bool:
        """Tell whether it denied, but after the bound."""
        return one.time_to_deny_us is not None and one.time_to_deny_us > self.bound_ms * 1000

    def problem(self) -> str:
        """Return what is wrong, for people, each verifier by its name; empty when nothing is."""
        if self.passed:
            return ""
        if not self.verifiers:
            what = "no verifier stayed until its end"
        else:
            named: dict[str, list[str]] = {}
            for one in self.failed:
                named.setdefault("slow" if self.is_slow(one) else one.outcome.value, []).append(one.verifier)
            what = "; ".join(f"{word}: {_some(names)}" for word, names in named.items())
        return (
            f"the drill in realm {self.realm} at {self.at:%Y-%m-%dT%H:%M:%SZ} failed: {what}; see: broker drill history"
        )


Stream = int | tuple[str, int]
"""A stream of this broker, or of another one, by the name of its process."""


@dataclass(slots=True)
class _Shown:
    """One stream to which the canary was shown."""

    verifier: str
    verdict: str = ""
    was_accepted: bool = False
    is_asked: bool = True
    is_able: bool = True
    ended_ns: int | None = None
    # It ended before the revocation was on its way.
    is_early: bool = False


class Showing:
    """One canary before the verifiers of a realm, each stream by its number. Pure: instants are arguments.

    `elsewhere`: the names of those that listen to other brokers, which show it to them and tell of it in parts.
    """

    def __init__(self, verifiers: Mapping[int, str], elsewhere: Collection[str] = ()) -> None:
        self._shown: dict[Stream, _Shown] = {stream: _Shown(verifier) for stream, verifier in verifiers.items()}
        # Of whom no broker has told anything yet.
        self._unheard = set(elsewhere)
        self._is_revoking = False

    def report(self, stream: Stream, verifier: str, verdict: str, *, is_end: bool, now_ns: int) -> None:
        """Take what a stream said. What makes no sense changes nothing."""
        shown = self._shown.get(stream)
        if shown is None or shown.verifier != verifier or shown.ended_ns is not None:
            return
        verdict = verdict if verdict in _VERDICTS else _UNKNOWN
        if is_end:
            # The end of what never began, or that ends in acceptance, is nonsense.
            if shown.was_accepted and verdict != ACCEPTED:
                shown.verdict, shown.ended_ns, shown.is_early = verdict, now_ns, not self._is_revoking
        elif not shown.was_accepted:
            shown.verdict, shown.was_accepted, shown.is_asked = verdict, verdict == ACCEPTED, False

    def cannot(self, stream: Stream) -> None:
        """Note that a stream cannot be asked: nobody waits for it, and it counts as silent."""
        self._shown[stream].is_able = False

    def leave(self, stream: Stream) -> None:
        """Forget a verifier that accepts nothing any more, by its own word."""
        self._shown.pop(stream, None)

    def part(self) -> bytes:
        """Return how far the streams of this broker are, for the one whose drill it is."""
        lines = [
            [stream, one.verifier, one.verdict, one.was_accepted, one.ended_ns is not None, one.is_able]
            for stream, one in self._shown.items()
        ]
        return json.dumps(lines, separators=(",", ":")).encode("ascii")

    def take(self, broker: str, part: bytes, now_ns: int) -> None:
        """Take what another broker tells: what is new happened before `now_ns`. Raises StoreCorrupt."""
        told = {(broker, line.stream): line for line in _lines(part)}
        for stream in [one for one in self._shown if isinstance(one, tuple) and one[0] == broker and one not in told]:
            self.leave(stream)
        for stream, line in told.items():
            self._unheard.discard(line.verifier)
            shown = self._shown.setdefault(stream, _Shown(line.verifier))
            shown.is_able = line.is_able
            if line.was_accepted:
                self.report(stream, line.verifier, ACCEPTED, is_end=False, now_ns=now_ns)
            if line.verdict:
                self.report(stream, line.verifier, line.verdict, is_end=line.has_ended, now_ns=now_ns)

    def only_elsewhere(self, names: Collection[str]) -> None:
        """Forget, of those of whom no broker has told anything, who listens elsewhere no more."""
        self._unheard.intersection_update(names)

    def revoking(self) -> None:
        """Note that the revocation is on its way: from here on, a canary may die."""
        self._is_revoking = True

    def ask_again(self) -> tuple[int, ...]:
        """Return those of this broker that have refused it since they were asked; they count as asked once more."""
        refusing = [
            (stream, one)
            for stream, one in self._shown.items()
            if isinstance(stream, int) and not (one.is_asked or one.was_accepted)
        ]
        for _, one in refusing:
            one.is_asked = True
        return tuple(stream for stream, _ in refusing)

    @property
    def is_seen(self) -> bool:
        """Whether all that could be asked have accepted it."""
        return not self._unheard and all(one.was_accepted or not one.is_able for one in self._shown.values())

    @property
    def is_over(self) -> bool:
        """Whether all that accepted it have reported its end."""
        return all(one.ended_ns is not None for one in self._shown.values() if one.was_accepted)

    def drilled(self, committed_ns: int) -> tuple[Drilled, ...]:
        """Judge, the revocation having been committed at `committed_ns`; those that failed first, then the slowest."""
        found = [_judged(one, committed_ns) for one in self._shown.values()]
        found += [Drilled(verifier, Outcome.SILENT, "") for verifier in self._unheard]
        return tuple(sorted(found, key=_worst_first))


@dataclass(frozen=True, slots=True)
class _Line:
    """What another broker tells of one of its streams."""

    stream: int
    verifier: str
    verdict: str
    was_accepted: bool
    has_ended: bool
    is_able: bool


def _lines(part: bytes) -> list[_Line]:
    try:
        return [_Line(*line) for line in json.loads(part)]
    except (ValueError, TypeError) as bad:
        raise StoreCorrupt("what a broker tells of a drill cannot be read") from bad


def _judged(one: _Shown, committed_ns: int) -> Drilled:
    if not one.verdict:
        return Drilled(one.verifier, Outcome.SILENT, "")
    if not one.was_accepted or one.is_early:
        return Drilled(one.verifier, Outcome.REFUSED, one.verdict)
    if one.ended_ns is None or one.verdict not in _DEATHS:
        return Drilled(one.verifier, Outcome.ACCEPTING, one.verdict)
    # Rounded up: what is reported is never shorter than what was.
    after_us = -(-max(0, one.ended_ns - committed_ns) // NS_PER_US)
    return Drilled(one.verifier, Outcome.DENIED, one.verdict, after_us)


def _worst_first(one: Drilled) -> tuple[bool, int, str]:
    return one.outcome is Outcome.DENIED, -(one.time_to_deny_us or 0), one.verifier


class DrillBook:
    """The record of drills, and how often there shall be one."""

    def __init__(self, ledger: Ledger, proofs: Proofs, policies: Policies, clock: Clock) -> None:
        self._ledger = ledger
        self._proofs = proofs
        self._policies = policies
        self._clock = clock
        self._kept: dict[int, DrillResult] = {}

    def record(self, result: DrillResult) -> DrillResult:
        """Write what a drill found; return it with its index. Raises what `Ledger.append` raises."""
        document = spelled(result)
        counts = {outcome.value: 0 for outcome in Outcome}
        for one in result.verifiers:
            counts[one.outcome.value] += 1
        times = [one.time_to_deny_us for one in result.verifiers if one.time_to_deny_us is not None]
        body = {
            "realm": result.realm,
            "canary": result.canary,
            "revocation": result.revocation,
            "passed": result.passed,
            "bound_ms": result.bound_ms,
            "verifiers": len(result.verifiers),
            **counts,
            "slowest_us": max(times, default=None),
            "sha256": hashlib.sha256(document).hexdigest(),
        }
        at = self._clock.now()
        write = Write(
            [lambda index: encode_entry(Entry(index, Kind.DRILLED, at, result.by, body))],
            effects=(DrillRecorded(result.realm, document),),
        )
        return replace(result, index=self._ledger.append(write).result().indices.start)

    def schedule(self, caller: Caller, realm: str, every_s: int, request: RequestKey) -> int:
        """Have `realm` drilled every so many seconds; 0 ends it. Return the entry's index.

        Raises:
            Forbidden, Invalid, NotFound: Refused; nothing was written.
            Whatever `Ledger.append` raises.
        """
        caller.must_be(Role.ADMIN, Role.OPERATOR)
        if every_s != 0 and not SHORTEST_S <= every_s <= LONGEST_S:
            raise Invalid("every", f"{every_s} s", hint="use 10 s to 31 days, or 0 to end the schedule")
        is_known = realm in self._policies.current().policy.realms or realm in self._policies.refresh().policy.realms
        # A schedule can outlive its realm, and must then be ended all the same.
        if not is_known and (every_s != 0 or realm not in dict(self._proofs.drill_schedules())):
            raise NotFound(f"there is no realm {realm}", hint="see: broker status")
        at = self._clock.now()
        body = {"realm": realm, "every_s": every_s, "request": request.request_id}
        write = Write(
            [lambda index: encode_entry(Entry(index, Kind.DRILLS_SCHEDULED, at, caller.principal, body))],
            request=request,
            effects=(DrillsScheduled(realm, every_s),),
        )
        return self._ledger.append(write).result().indices.start

    def past(self, realm: str | None, limit: int) -> Sequence[DrillResult]:
        """Return past drills, the newest first. Raises StoreUnavailable."""
        return [read_result(record.index, record.document) for record in self._proofs.drills(realm, limit)]

    def last_parts(self, realm: str) -> Mapping[str, tuple[DrillResult, Drilled]]:
        """Return each verifier's part in the last drill of `realm` that it was in, if that was lately."""
        records = self._proofs.drills(realm, _BACK)
        kept = {one.index: self._kept.get(one.index) or read_result(one.index, one.document) for one in records}
        # Asked for once a second by whoever watches; the documents of many verifiers are long.
        self._kept = {**{i: one for i, one in self._kept.items() if one.realm != realm}, **kept}
        parts: dict[str, tuple[DrillResult, Drilled]] = {}
        for result in kept.values():
            for one in result.verifiers:
                parts.setdefault(one.verifier, (result, one))
        return parts

    def schedules(self) -> Sequence[tuple[str, int]]:
        """Return realm and seconds of each schedule. Raises StoreUnavailable."""
        return self._proofs.drill_schedules()

    def of_canary(self, realm: str, canary: str) -> DrillResult | None:
        """Return the drill with this canary, if it was recorded lately. Raises StoreUnavailable."""
        return next((one for one in self.past(realm, _LATELY) if one.canary == canary), None)


# So far back a repeated request finds its first answer, and a verifier its last drill.
_LATELY = 100
_BACK = 8


def spelled(result: DrillResult) -> bytes:
    """Return the document of a drill: JSON, names sorted, no spaces."""
    document = {
        "at": result.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "bound_ms": result.bound_ms,
        "by": result.by,
        "canary": result.canary,
        "passed": result.passed,
        "realm": result.realm,
        "revocation": result.revocation,
        "verifiers": [
            {
                "outcome": one.outcome.value,
                "verdict": one.verdict,
                "verifier": one.verifier,
                **({} if one.time_to_deny_us is None else {"time_to_deny_us": one.time_to_deny_us}),
            }
            for one in result.verifiers
        ],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def read_result(index: int, document: bytes) -> DrillResult:
    """Read what `spelled` wrote. Raises StoreCorrupt."""
    try:
        fields: dict[str, Any] = json.loads(document)
        return DrillResult(
            index,
            fields["realm"],
            fields["canary"],
            datetime.fromisoformat(fields["at"]),
            fields["by"],
            fields["bound_ms"],
            fields["revocation"],
            tuple(
                Drilled(one["verifier"], Outcome(one["outcome"]), one["verdict"], one.get("time_to_deny_us"))
                for one in fields["verifiers"]
            ),
        )
    except (ValueError, KeyError, TypeError) as bad:
        raise StoreCorrupt(f"the drill recorded at index {index} cannot be read") from bad


MAX_NAMED = 10


def _some(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
