"""A store in memory that keeps the promises of Ledger and the ports beside it, for the simulation and the contract suites."""

import copy
import threading
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import assert_never

from broker.domain.approval import Approval
from broker.errors import (
    ApprovalOver,
    Blocked,
    Defect,
    Failure,
    LimitReached,
    NotFound,
    PolicyMoved,
    ReceiptsOutOfOrder,
    RequestReused,
    Revoked,
    RunEnded,
    StoreCorrupt,
    StoreUnavailable,
    VotedAlready,
)
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry, leaf_hash
from broker.ledger.merkle import Frontier
from broker.ledger.note import NoteSignature, merged, parse_note
from broker.service.approval_ports import (
    ApprovalAsked,
    ApprovalEnded,
    ApprovalIsOpen,
    ApprovalRecord,
    HasNotVoted,
    RoomToAsk,
    VoteCast,
)
from broker.service.derivation_ports import TokenIsAlive
from broker.service.explain_ports import KEEP_DENIALS, MOST_DENIALS, Denial
from broker.service.limit_ports import (
    RATE_WINDOW,
    Count,
    Counted,
    Limit,
    Scope,
    TokensCounted,
    WithinLimits,
    limit_reached,
    subject_of,
)
from broker.service.policy_ports import PolicyDocument, PolicyVersion
from broker.service.ports import (
    Appended,
    BlockIsSet,
    BlockLifted,
    CertificateAdded,
    CertificateRecord,
    Changes,
    Clock,
    Effect,
    Guard,
    Head,
    KeyIsTrusted,
    PolicyRecord,
    PolicyReplaced,
    RevocationAdded,
    RevocationRecord,
    RunHasLapsed,
    RunIsOpen,
    RunKept,
    RunLapsed,
    RunOpened,
    RunRecord,
    TokensRevoked,
    Write,
)
from broker.service.proof_ports import (
    Completed,
    CompletionAwaited,
    CompletionIsDue,
    CompletionRecord,
    DrillRecord,
    DrillRecorded,
    DrillsScheduled,
    Sighting,
    VerifierForgotten,
)
from broker.service.receipt_ports import (
    ReceiptKeyEnrolled,
    ReceiptKeyIsNew,
    ReceiptKeyRecord,
    ReceiptsFollow,
    ReceiptsWritten,
)
from broker.service.tree_ports import CheckpointRecord, TreeHead
from broker.token.approval import decode_request
from broker.token.revocation import Dimension, Revocation, Selector

KEEP_REQUESTS = timedelta(days=8)
_RUN_SHAPE = {Dimension.RUN, Dimension.REALM, Dimension.PARTNER}


@dataclass(slots=True)
class Disk:
    """What outlives a broker. Several may use one; a backup is a copy."""

    incarnation: str
    entries: list[bytes] = field(default_factory=list)
    version: int = 0
    policies: list[tuple[PolicyVersion, PolicyReplaced]] = field(default_factory=list)
    blocks: dict[Selector, int] = field(default_factory=dict)
    revocations: dict[int, RevocationRecord] = field(default_factory=dict)
    certificates: dict[tuple[int, str], CertificateRecord] = field(default_factory=dict)
    runs: dict[str, RunRecord] = field(default_factory=dict)
    requests: dict[tuple[str, str], tuple[bytes, range, datetime]] = field(default_factory=dict)
    completions: dict[int, CompletionRecord] = field(default_factory=dict)
    drills: list[DrillRecord] = field(default_factory=list)
    schedules: dict[str, int] = field(default_factory=dict)
    counts: list[tuple[Count, datetime]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    sightings: dict[tuple[str, str], Sighting] = field(default_factory=dict)
    approvals: dict[str, ApprovalRecord] = field(default_factory=dict)
    checkpoints: dict[int, CheckpointRecord] = field(default_factory=dict)
    receipt_keys: dict[str, ReceiptKeyRecord] = field(default_factory=dict)
    # Of the disk and not of a ledger: two brokers on one disk write one after the other.
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def new(cls, incarnation: str, at: datetime) -> "Disk":
        """Make an empty ledger, whose first entry names its incarnation."""
        entry = Entry(0, Kind.LEDGER_CREATED, at, "broker", {"incarnation": incarnation})
        return cls(incarnation, [encode_entry(entry)])

    def backup(self) -> "Disk":
        """Return a copy of what is there now."""
        shallow = copy.copy(self)
        for name in (
            "entries", "policies", "blocks", "revocations", "certificates", "runs", "requests", "completions", "drills",
            "schedules", "sightings", "approvals", "checkpoints", "counts", "tokens", "receipt_keys",
        ):  # fmt: skip
            setattr(shallow, name, copy.copy(getattr(self, name)))
        shallow.lock = threading.Lock()
        return shallow

    @property
    def head(self) -> Head:
        """Where it is."""
        return Head(self.incarnation, len(self.entries), self.version)

    def append(self, write: Write, at: datetime) -> Appended:
        """Do `write` or nothing of it. Raises as `Ledger.append`."""
        request = write.request
        if request is not None:
            known = self.requests.get((request.principal, request.request_id))
            if known is not None:
                if known[0] != request.digest:
                    raise RequestReused(f"request_id {request.request_id} was used for something else")
                return Appended(known[1], True, self.version)
        if write.expecting is not None and write.expecting != self.version:
            raise PolicyMoved(f"the policy is at version {self.version}, not {write.expecting}")
        noted: list[LimitReached] = []
        for guard in write.guards:
            self._check(guard, noted)
        first = len(self.entries)
        try:
            entries = [draft(first + offset) for offset, draft in enumerate(write.drafts)]
        except Failure:
            raise
        except Exception as problem:
            raise Defect(f"a write failed by a defect ({type(problem).__name__})") from problem
        self.entries += entries
        indices = range(first, len(self.entries))
        for effect in write.effects:
            self.version += self._apply(effect, indices)
        if request is not None:
            self.requests[request.principal, request.request_id] = (request.digest, indices, at)
        return Appended(indices, False, self.version, tuple(noted))

    def _check(self, guard: Guard, noted: list[LimitReached]) -> None:
        match guard:
            case RunIsOpen(run, partner, realm, at):
                record = self.runs.get(run)
                if record is None or record.partner != partner or record.realm != realm:
                    raise NotFound(f"there is no run {run} of yours in this realm")
                if record.is_closed or record.lease_ends_at <= at:
                    raise RunEnded(f"run {run} is over")
            case RunHasLapsed(run, at):
                record = self.runs.get(run)
                if record is None or record.is_closed or record.lease_ends_at > at:
                    raise RunEnded(f"run {run} has not lapsed, or has ended before")
            case WithinLimits(limits, at):
                for limit in limits:
                    self._must_be_within(limit, at, noted)
            case BlockIsSet(selector):
                if selector not in self.blocks:
                    raise NotFound(f"there is no block on {selector}")
            case KeyIsTrusted(kid):
                if any(one.selector.conditions == ((Dimension.KEY, kid),) for one in self.revocations.values()):
                    raise Blocked("the key that signed the first answer is revoked")
            case TokenIsAlive(facts, idx, since):
                for index, record in self.revocations.items():
                    if index >= since and Revocation(index, record.selector).kills(facts, idx):
                        raise Revoked(f"revoked at {index}", metadata={"index": str(index)})
            case CompletionIsDue(revocation):
                due = self.completions.get(revocation)
                if due is None or due.entry is not None:
                    raise NotFound(f"the revocation at {revocation} waits for no completion")
            case RoomToAsk() | ApprovalIsOpen() | HasNotVoted():
                self._check_approval(guard)
            case ReceiptKeyIsNew(kid):
                if kid in self.receipt_keys:
                    raise RequestReused("this receipt key is enrolled already")
            case ReceiptsFollow(kid, after):
                known = self.receipt_keys.get(kid)
                if known is None or known.through != after:
                    raise ReceiptsOutOfOrder(f"this key's receipts are not written up to {after}")
            case _:
                assert_never(guard)

    def _apply(self, effect: Effect, indices: range) -> bool:
        """Change the state; return whether the policy version moves."""
        first = indices.start
        match effect:
            case PolicyReplaced():
                applied = PolicyVersion(self.version + 1, first, effect.by, effect.at, effect.reason)
                self.policies.append((applied, effect))
                return True
            case RevocationAdded():
                return self._revoke(effect, first)
            case TokensRevoked(selectors, reason, by, at, keep_until):
                for index, selector in zip(indices, selectors, strict=True):
                    self.revocations[index] = RevocationRecord(index, selector, reason, by, at, keep_until)
            case BlockLifted(selector):
                self.blocks.pop(selector, None)
                return True
            case RunOpened(run):
                self.runs[run.id] = run
            case RunKept(run_id, ends_at):
                run = self.runs[run_id]
                self.runs[run_id] = replace(run, lease_ends_at=max(run.lease_ends_at, ends_at))
            case RunLapsed(run_id):
                self.runs[run_id] = replace(self.runs[run_id], is_closed=True, is_lapsed=True)
            case TokensCounted(counts, at, runs):
                self.counts += [(one, at) for one in counts]
                for run_id, tokens in runs:
                    self.tokens[run_id] = self.tokens.get(run_id, 0) + tokens
            case CertificateAdded(realm, purpose, kid, certificate, expires_at):
                self.certificates[first, kid] = CertificateRecord(first, realm, purpose, kid, certificate, expires_at)
            case CompletionAwaited(realms, lease_ms):
                last = indices.stop - 1
                self.completions[last] = CompletionRecord(last, first, realms, lease_ms, None, None)
            case Completed(revocation, document):
                kept = zlib.decompress(zlib.compress(document))
                self.completions[revocation] = replace(self.completions[revocation], entry=first, document=kept)
            case VerifierForgotten(verifier, realm):
                self.sightings.pop((realm, verifier), None)
            case DrillRecorded(realm, document):
                self.drills.append(DrillRecord(first, realm, document))
            case DrillsScheduled(realm, every_s):
                self.schedules.pop(realm, None)
                if every_s:
                    self.schedules[realm] = every_s
            case ApprovalAsked() | VoteCast() | ApprovalEnded():
                self._apply_approval(effect, first)
            case ReceiptKeyEnrolled(kid, realm, verifier, point):
                self.receipt_keys[kid] = ReceiptKeyRecord(kid, realm, verifier, point, first, 0)
            case ReceiptsWritten(kid, through):
                self.receipt_keys[kid] = replace(self.receipt_keys[kid], through=through)
            case _:
                assert_never(effect)
        return False

    def _check_approval(self, guard: RoomToAsk | ApprovalIsOpen | HasNotVoted) -> None:
        match guard:
            case RoomToAsk(partner, most, at):
                asked = [one.approval for one in self.approvals.values() if one.approval.request.partner == partner]
                waiting = [
                    one
                    for one in asked
                    if one.ended is None and one.request.created_at + timedelta(seconds=one.request.window_s) > at
                ]
                if len(waiting) >= most:
                    raise LimitReached(f"{most} requests of {partner} wait for approval")
            case ApprovalIsOpen(approval):
                record = self.approvals.get(approval)
                if record is None:
                    raise NotFound(f"there is no approval {approval}")
                if record.approval.ended is not None:
                    raise ApprovalOver(f"approval {approval} was {record.approval.ended.how}")
            case HasNotVoted(approval, person):
                record = self.approvals.get(approval)
                if record is not None and any(vote.person == person for vote in record.approval.votes):
                    raise VotedAlready(f"{person} has voted on approval {approval}")

    def _apply_approval(self, effect: ApprovalAsked | VoteCast | ApprovalEnded, index: int) -> None:
        match effect:
            case ApprovalAsked(document):
                request = decode_request(document)
                self.approvals[request.id] = ApprovalRecord(index, document, Approval(request))
            case VoteCast(approval, vote):
                record = self.approvals[approval]
                others = tuple(one for one in record.approval.votes if one.person != vote.person)
                voted = replace(record.approval, votes=(*others, vote))
                self.approvals[approval] = replace(record, approval=voted)
            case ApprovalEnded(approval, ended):
                record = self.approvals[approval]
                self.approvals[approval] = replace(record, approval=replace(record.approval, ended=ended))

    def _revoke(self, effect: RevocationAdded, index: int) -> bool:
        selector = effect.selector
        self.revocations[index] = RevocationRecord(
            index, selector, effect.reason, effect.by, effect.at, effect.keep_until
        )
        if effect.blocks:
            self.blocks[selector] = index
        run = self.runs.get(selector.get(Dimension.RUN) or "")
        if run is not None and set(selector.dimensions) <= _RUN_SHAPE:
            named = (selector.get(Dimension.REALM) or run.realm, selector.get(Dimension.PARTNER) or run.partner)
            if named == (run.realm, run.partner):
                self.runs[run.id] = replace(run, is_closed=True)
                self.counts = [
                    (replace(one, ends_at=min(one.ends_at, effect.at)) if one.run == run.id else one, at)
                    for one, at in self.counts
                ]
        return effect.blocks or selector.is_absolute

    def _must_be_within(self, limit: Limit, at: datetime, noted: list[LimitReached]) -> None:
        mine = [(one, minted_at) for one, minted_at in self.counts if one.scope == limit.scope]
        match limit.counted:
            case Counted.MINTS_PER_MINUTE:
                leaving = [(minted_at + RATE_WINDOW, one.tokens) for one, minted_at in mine]
            case Counted.LIVE_TOKENS:
                leaving = [(one.ends_at, one.tokens) for one, _ in mine]
            case Counted.TOKENS_PER_RUN:
                leaving = [(datetime.max.replace(tzinfo=UTC), self.tokens.get(limit.run or "", 0))]
            case Counted.LIVE_RUNS:
                leaving = [(datetime.max.replace(tzinfo=UTC), self._live_runs(limit.scope, at))]
            case _:
                assert_never(limit.counted)
        taken = sorted((leaves_at, tokens) for leaves_at, tokens in leaving if leaves_at > at)
        used = sum(tokens for _, tokens in taken)
        if used + limit.wanted <= limit.most:
            return
        wait_s, too_many = None, used + limit.wanted - limit.most
        if limit.counted in (Counted.MINTS_PER_MINUTE, Counted.LIVE_TOKENS) and limit.wanted <= limit.most:
            for leaves_at, tokens in taken:
                too_many -= tokens
                if too_many <= 0:
                    wait_s = (leaves_at - at).total_seconds()
                    break
        reached = limit_reached(limit, used, wait_s)
        if not limit.is_audit_only:
            raise reached
        noted.append(reached)

    def _live_runs(self, scope: Scope, at: datetime) -> int:
        live = [run for run in self.runs.values() if not run.is_closed and run.lease_ends_at > at]
        if scope.grant is None:
            return sum(run.partner == scope.partner for run in live)
        return sum(
            scope.grant in dict(run.grants).values()
            and scope.subject in (None, subject_of(run.partner, run.user, run.workload))
            for run in live
        )

    def changes(self, after: int, now: datetime) -> Changes:
        """Return one consistent view of what came at index >= `after`."""
        return Changes(
            self.head,
            [one for one in self._from(after) if one.keep_until > now],
            [
                one
                for _, one in sorted(self.certificates.items(), key=lambda item: item[0])
                if one.index >= after and one.expires_at > now
            ],
        )

    def _from(self, index: int) -> list[RevocationRecord]:
        found = []
        for at in reversed(self.revocations):
            if at < index:
                break
            found.append(self.revocations[at])
        return found[::-1]

    def policy(self) -> PolicyRecord:
        """Return the policy in force."""
        newest = self.policies[-1][1] if self.policies else None
        keys = (one.selector for one in self.revocations.values() if one.selector.is_absolute)
        return PolicyRecord(
            self.version,
            newest.document if newest else "",
            newest.by if newest else "",
            newest.at if newest else None,
            dict(self.blocks),
            frozenset(selector.get(Dimension.KEY) or "" for selector in keys),
            newest.reason if newest else "",
        )


class FakeLedger:
    """One broker's way to a disk: the ports Ledger, Proofs, Roster and PolicyHistory. Safe for threads."""

    def __init__(self, disk: Disk, clock: Clock, on_commit: Callable[[], None] = lambda: None) -> None:
        self.disk = disk
        self._clock = clock
        self._on_commit = on_commit
        self._is_closed = False
        self.tree = FakeTree(disk)
        self.checkpoints = FakeCheckpoints(disk)

    def append(self, write: Write) -> "Future[Appended]":
        """As the port says."""
        future: Future[Appended] = Future()
        try:
            with self.disk.lock:
                self._must_be_open()
                appended = self.disk.append(write, self._clock.now())
        except Failure as failure:
            future.set_exception(failure)
        else:
            if write.effects and not appended.is_repeat:
                self._on_commit()
            future.set_result(appended)
        return future

    def head(self) -> Head:
        """As the port says."""
        return self.disk.head

    def entries(self, start: int, stop: int) -> Sequence[bytes]:
        """As the port says."""
        return self.disk.entries[max(0, start) : max(0, stop)]

    def changes(self, after: int, *, now: datetime) -> Changes:
        """As the port says."""
        with self.disk.lock:
            return self.disk.changes(after, now)

    def policy(self) -> PolicyRecord:
        """As the port says."""
        with self.disk.lock:
            return self.disk.policy()

    def version_applied_at(self, index: int) -> int:
        """As the port says."""
        for applied, _ in self.disk.policies:
            if applied.index == index:
                return applied.version
        raise StoreCorrupt(f"entry {index} applied no policy")

    def applied(self, below: int | None, limit: int) -> Sequence[PolicyVersion]:
        """As the port says."""
        kept = (applied for applied, _ in reversed(self.disk.policies))
        return [one for one in kept if below is None or one.version < below][:limit]

    def before(self, index: int) -> PolicyVersion | None:
        """As the port says."""
        return next((applied for applied, _ in reversed(self.disk.policies) if applied.index < index), None)

    def as_of(self, version: int) -> PolicyDocument | None:
        """As the port says."""
        kept = (PolicyDocument(applied, one.document) for applied, one in reversed(self.disk.policies))
        return next((one for one in kept if one.applied.version <= version), None)

    def run(self, run: str) -> RunRecord | None:
        """As the port says."""
        return self.disk.runs.get(run)

    def runs(self, partner: str | None, limit: int) -> Sequence[RunRecord]:
        """As the port says."""
        newest = sorted(self.disk.runs.values(), key=lambda run: (-run.opened_at.timestamp(), run.id))
        return [run for run in newest if partner in (None, run.partner)][:limit]

    def lapsed(self, now: datetime, limit: int) -> Sequence[RunRecord]:
        """As the port says."""
        over = [run for run in self.disk.runs.values() if not run.is_closed and run.lease_ends_at <= now]
        return sorted(over, key=lambda run: run.lease_ends_at)[:limit]

    def revocations(self, after: int, limit: int, *, partner: str | None = None) -> Sequence[RevocationRecord]:
        """As the port says."""
        with self.disk.lock:
            found = [one for at, one in sorted(self.disk.revocations.items()) if at > after]
        return [one for one in found if partner in (None, one.selector.get(Dimension.PARTNER))][:limit]

    def prune(self, now: datetime) -> int:
        """As the port says."""
        disk = self.disk
        with self.disk.lock:
            before = len(disk.revocations) + len(disk.certificates) + len(disk.requests) + len(disk.counts)
            disk.counts = [(one, at) for one, at in disk.counts if max(one.ends_at, at + RATE_WINDOW) > now]
            disk.revocations = {at: one for at, one in disk.revocations.items() if one.keep_until > now}
            disk.certificates = {at: one for at, one in disk.certificates.items() if one.expires_at > now}
            disk.requests = {at: one for at, one in disk.requests.items() if one[2] > now - KEEP_REQUESTS}
            after = len(disk.revocations) + len(disk.certificates) + len(disk.requests) + len(disk.counts)
            return before - after

    def wall_clock(self) -> datetime | None:
        """As the port says."""
        return None

    def close(self) -> None:
        """As the port says."""
        self._is_closed = True

    def receipt_key(self, kid: str) -> ReceiptKeyRecord | None:
        """As the port says."""
        return self.disk.receipt_keys.get(kid)

    def entries_at(self, indices: Collection[int]) -> Mapping[int, bytes]:
        """As the port says."""
        return {at: self.disk.entries[at] for at in indices if 0 <= at < len(self.disk.entries)}

    def completion(self, revocation: int) -> CompletionRecord | None:
        """As the port says."""
        return self.disk.completions.get(revocation)

    def awaited(self) -> Sequence[CompletionRecord]:
        """As the port says."""
        return [one for _, one in sorted(self.disk.completions.items()) if one.entry is None]

    def drills(self, realm: str | None, limit: int) -> Sequence[DrillRecord]:
        """As the port says."""
        return [drill for drill in reversed(self.disk.drills) if realm in (None, drill.realm)][:limit]

    def drill_schedules(self) -> Sequence[tuple[str, int]]:
        """As the port says."""
        return sorted(self.disk.schedules.items())

    def minted(self, containing: Sequence[bytes], *, since: datetime) -> Iterator[bytes]:
        """As the port says."""
        for data in tuple(self.disk.entries):
            if all(part in data for part in containing):
                entry = decode_entry(data)
                if entry.kind is Kind.TOKEN_MINTED and entry.at >= since:
                    yield data

    def approvals_by_id(self, ids: Collection[str]) -> Sequence[ApprovalRecord]:
        """As the port says."""
        return [self.disk.approvals[one] for one in ids if one in self.disk.approvals]

    def approvals_asked(
        self, *, partner: str | None, groups: Collection[str] | None, limit: int
    ) -> Sequence[ApprovalRecord]:
        """As the port says."""
        newest = sorted(self.disk.approvals.values(), key=lambda one: -one.index)
        wanted = [one for one in newest if partner in (None, one.approval.request.partner)]
        return [one for one in wanted if groups is None or one.approval.request.group in groups][:limit]

    def note(self, sightings: Sequence[Sighting]) -> None:
        """As the port says."""
        with self.disk.lock:
            self._must_be_open()
            for one in sightings:
                before = self.disk.sightings.get((one.realm, one.verifier))
                if before is not None and before.seen_at > one.seen_at:
                    kept = replace(before, head=max(before.head, one.head))
                else:
                    kept = one if before is None else replace(one, head=max(before.head, one.head))
                self.disk.sightings[one.realm, one.verifier] = kept

    def known(self, realm: str | None) -> Sequence[Sighting]:
        """As the port says."""
        with self.disk.lock:
            return [one for at, one in sorted(self.disk.sightings.items()) if realm in (None, at[0])]

    def _must_be_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable("the store is closed")


class FakeTree:
    """The port Tree, made anew from the entries each time."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def head(self) -> TreeHead:
        """As the port says."""
        leaves = [leaf_hash(entry) for entry in tuple(self._disk.entries)]
        return TreeHead(self._disk.incarnation, len(leaves), Frontier().extended(leaves).root())

    def tile(self, level: int, index: int) -> Sequence[bytes]:
        """As the port says."""
        span = 256**level
        first, size = index * 256, len(self._disk.entries)
        leaves = [leaf_hash(entry) for entry in self._disk.entries[first * span : min(size, (first + 256) * span)]]
        whole = range(0, len(leaves) // span * span, span)
        return [Frontier().extended(leaves[at : at + span]).root() for at in whole]


class FakeCheckpoints:
    """The port Checkpoints."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def newest(self, *, settled: bool = False) -> CheckpointRecord | None:
        """As the port says."""
        with self._disk.lock:
            sizes = [size for size, one in self._disk.checkpoints.items() if one.is_settled or not settled]
            return self._disk.checkpoints[max(sizes)] if sizes else None

    def keep(self, record: CheckpointRecord) -> CheckpointRecord:
        """As the port says."""
        with self._disk.lock:
            kept = self._disk.checkpoints.setdefault(record.size, record)
            for size in sorted(self._disk.checkpoints)[:-1000]:
                del self._disk.checkpoints[size]
            return kept

    def settle(self, size: int, cosignatures: Sequence[NoteSignature]) -> None:
        """As the port says."""
        with self._disk.lock:
            kept = self._disk.checkpoints.get(size)
            if kept is not None:
                note = merged(parse_note(kept.note.encode()), cosignatures)
                self._disk.checkpoints[size] = replace(kept, note=str(note), is_settled=True)


class FakeExplaining:
    """The ports Denials and RevocationSearch on a disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._denials: dict[tuple[str, str, str], Denial] = {}

    def note(self, denials: Sequence[Denial]) -> None:
        """As the port says."""
        for one in sorted(denials, key=lambda one: one.at):
            key = (one.partner, one.principal, one.request_id)
            if key not in self._denials or self._denials[key].at <= one.at:
                self._denials[key] = one
        for partner in {one.partner for one in denials}:
            newest = max(one.at for one in denials if one.partner == partner)
            own = sorted((one.at for one in self._denials.values() if one.partner == partner), reverse=True)
            oldest = max(newest - KEEP_DENIALS, own[MOST_DENIALS - 1] if len(own) >= MOST_DENIALS else own[-1])
            self._denials = {
                key: one for key, one in self._denials.items() if one.partner != partner or one.at >= oldest
            }

    def find(self, request_id: str, partner: str | None, *, since: datetime) -> Denial | None:
        """As the port says."""
        found = [
            one
            for one in self._denials.values()
            if one.request_id == request_id and one.at >= since and partner in (None, one.partner)
        ]
        return max(found, key=lambda one: one.at, default=None)

    def naming(
        self, conditions: Sequence[tuple[Dimension, str]], *, after: int, kid: str, limit: int
    ) -> Sequence[RevocationRecord]:
        """As the port says."""
        wanted = set(conditions)
        return [
            one
            for at, one in sorted(self._disk.revocations.items())
            if (at > after or one.selector.conditions == ((Dimension.KEY, kid),))
            and wanted & set(one.selector.conditions)
        ][:limit]
