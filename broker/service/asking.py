"""Answer questions about the past: what happened, the story of a token or a run, what came after a revocation."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from broker.audit.events import ACCEPTED, DECISIONS, USE, batch_in, decision_of, facet
from broker.errors import Invalid, NotFound, StoreCorrupt
from broker.ledger.entry import Entry, Kind, decode_entry
from broker.service.complete import revocation_at
from broker.service.indexing import Indexer
from broker.service.mint import decode_claims_of
from broker.service.ports import Ledger
from broker.service.proof_ports import Proofs
from broker.service.question_ports import EventIndex, Ref, Refs, Wanted
from broker.service.revoke import Revoked
from broker.token.completion import Statement, unverified_statements
from broker.token.receipts import Line, What
from broker.token.revocation import Dimension, Revocation, Selector, facts_of

MAX_TOLD = 1_000
MAX_LOOKS = 10
KINDS = (*(kind.value for kind in Kind), USE)
_REVOKING = (Kind.REVOKED, Kind.RUN_CLOSED, Kind.RUN_LAPSED)
_DECIDED = {What.ACCEPTED: ACCEPTED, What.SUMMED: ACCEPTED, What.DENIED: "denied"}


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that happened; what it does not tell is empty. `head` None: it is no use."""

    index: int
    line: int
    at: datetime
    kind: str
    by: str
    decision: str = ""
    realm: str = ""
    partner: str = ""
    user: str = ""
    workload: str = ""
    environment: str = ""
    run: str = ""
    test: str = ""
    models: tuple[str, ...] = ()
    token: str = ""
    grant: str = ""
    reason: str = ""
    head: int | None = None
    count: int = 0
    role: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Some of what happened, of the first `size` entries; `after`: where to go on, or None."""

    told: Sequence[Told]
    after: Ref | None
    size: int


@dataclass(frozen=True, slots=True)
class VerifierSaid:
    """What is known of a verifier: how it stopped, as the completion says, and the highest head its receipts tell."""

    verifier: str
    keeps_receipts: bool
    stopped: str
    head: int | None


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What was accepted after a revocation; see audit.proto."""

    told: Sequence[Told]
    is_truncated: bool
    before_in_force: int
    in_force_at: datetime | None
    verifiers: Sequence[VerifierSaid]
    size: int

    @property
    def is_proven(self) -> bool:
        """Whether each verifier would have had to sign a use, and none did."""
        stopped = [one for one in self.verifiers if one.stopped]
        is_known = self.in_force_at is not None and all(one.keeps_receipts for one in stopped)
        return is_known and not self.told and not self.is_truncated


class Questions:
    """Safe to call from any thread. Each raises StoreUnavailable, and Overloaded while the index is far behind."""

    def __init__(self, ledger: Ledger, proofs: Proofs, index: EventIndex, indexer: Indexer) -> None:
        self._ledger = ledger
        self._proofs = proofs
        self._index = index
        self._indexer = indexer

    def query(self, wanted: Wanted, after: Ref | None, limit: int) -> Answer:
        """Return what happened. Raises Invalid: nothing bounds it."""
        if not wanted.facets and wanted.from_ms is None and wanted.until_ms is None:
            raise Invalid(
                "query", "has no bounds", hint="name a time, a partner, a run, a token or the like; for all: audit tail"
            )
        size = self._covered()
        refs = self._index.find(wanted, after, limit)
        return Answer(self._told(refs.refs), refs.after, size)

    def trail(self, *, token: str = "", run: str = "") -> Answer:
        """Return the story of a token or a run; `after` is set if it is too long to be told here.

        Raises:
            NotFound: There is none.
        """
        size = self._covered()
        refs = self._all(facet("token", token) if token else facet("run", run))
        roles = dict.fromkeys(refs.refs, "")
        if not any(line == 0 for _, line in refs.refs):
            what = f"token {token}" if token else f"run {run}"
            raise NotFound(f"the ledger tells of no {what}", hint="see: broker audit query --help")
        entries = self._entries({index for index, _ in refs.refs})
        origin = entries[min(index for index, line in refs.refs if line == 0)]
        roles |= self._before(origin, entries.values())
        roles |= self._around(origin, token)
        told = [replace(one, role=roles.get((one.index, one.line), "")) for one in self._told(sorted(roles))]
        return Answer([replace(one, role=one.role or _role(one)) for one in told], refs.after, size)

    def after_revocation(self, index: int) -> Aftermath:
        """Return the uses that were accepted after the revocation at an index. Raises NotFound: there is none."""
        size = self._covered()
        record = self._proofs.completion(index)
        revoked = revocation_at(self._ledger, index, record)
        if revoked is None:
            raise NotFound(f"entry {index} is no revocation", hint="see: broker audit query --decision revoked")
        document = b"" if record is None or record.document is None else record.document
        statements = unverified_statements(document.decode("ascii"))
        in_force_at = max((one.in_force_at for one in statements), default=None)
        late: list[Told] = []
        in_time = 0
        for revocation, told, line in self._killed(revoked):
            # A head is how many entries were applied: the revocation only by one above its index.
            if line.head > revocation.index or (in_force_at is not None and told.at > in_force_at):
                late.append(told)
            else:
                in_time += line.count
            if len(late) > MAX_TOLD:
                break
        verifiers = self._verifiers(statements, revoked.realms or self._realms(revoked.selector))
        return Aftermath(tuple(late[:MAX_TOLD]), len(late) > MAX_TOLD, in_time, in_force_at, verifiers, size)

    def _killed(self, revoked: Revoked) -> Iterator[tuple[Revocation, Told, Line]]:
        """Yield the uses, recorded since, of what was revoked, with the revocation that killed it."""
        if revoked.entries == 1:
            revocation = Revocation(revoked.index, revoked.selector)
            for refs in self._found_since(revoked.index, _ways(revoked.selector)):
                for told, line in self._lines(refs):
                    if revocation.selector.is_absolute or line.index < revocation.index:
                        yield revocation, told, line
            return
        # A child can be revoked beside its parent.
        seen: set[Ref] = set()
        for revocation in self._each(revoked):
            realm, token = (revocation.selector.get(one) for one in (Dimension.REALM, Dimension.TOKEN))
            # By the rarest word alone: to weigh it against others takes longer than to look at what it finds.
            ways = [[facet("token", token)], [facet("parent", token)]]
            for refs in self._found_since(revocation.index, ways):
                new = [ref for ref in refs if ref[1] and ref not in seen]
                seen.update(new)
                for told, line in self._lines(new):
                    if told.decision == ACCEPTED and told.realm == realm and line.index < revocation.index:
                        yield revocation, told, line

    def _each(self, revoked: Revoked) -> Iterator[Revocation]:
        """Yield the revocations of many single tokens, each at its own index: together they name their realm alone."""
        first, stop = revoked.index - revoked.entries + 1, revoked.index + 1
        for start in range(first, stop, _ENTRIES_AT_ONCE):
            for data in self._ledger.entries(start, min(start + _ENTRIES_AT_ONCE, stop)):
                entry = decode_entry(data)
                named = entry.body["selector"]
                if not isinstance(named, dict):
                    raise StoreCorrupt(f"entry {entry.index} is a revocation without a selector")
                yield Revocation(entry.index, Selector.of(**named))

    def _covered(self) -> int:
        size = self._ledger.head().size
        self._indexer.must_cover(size)
        return size

    def _all(self, *facets: str, after: Ref | None = None) -> Refs:
        """Return all events with these facets, or the first thousand."""
        found: list[Ref] = []
        for _ in range(MAX_LOOKS):
            refs = self._index.find(Wanted(frozenset(facets)), after, MAX_TOLD - len(found))
            found += refs.refs
            after = refs.after
            if after is None or len(found) >= MAX_TOLD:
                break
        return Refs(found, after)

    def _before(self, origin: Entry, entries: Iterable[Entry]) -> Mapping[Ref, str]:
        """Return what led to it: the policy, the key, the run, the approvals, the parents."""
        roles: dict[Ref, str] = {}
        policy = self._index.last((facet("kind", Kind.POLICY_APPLIED.value),), origin.index)
        if policy is not None:
            roles[policy, 0] = "the policy in force"
        for approval in {entry.body.get("approval") for entry in entries}:
            if isinstance(approval, str):
                # A mint that names it carries the word, too, and is not told of here: it may be another's.
                for kind in _APPROVALS:
                    refs = self._all(facet("approval", approval), facet("kind", kind.value)).refs
                    roles |= dict.fromkeys(refs, "")
        claims = origin.body.get("claims")
        if origin.kind in (Kind.TOKEN_MINTED, Kind.CANARY_MINTED) and isinstance(claims, Mapping):
            roles |= self._before_token(origin, claims)
        return roles

    def _before_token(self, origin: Entry, claims: Mapping[str, Any]) -> Mapping[Ref, str]:
        roles: dict[Ref, str] = {}
        certified = (facet("key", origin.body.get("kid")), facet("kind", Kind.KEY_CERTIFIED.value))
        key = self._index.last(certified, origin.index)
        if key is not None:
            roles[key, 0] = "the key that signs it"
        for kind in (Kind.RUN_OPENED, Kind.RUN_CLOSED, Kind.RUN_LAPSED):
            if isinstance(claims.get("run"), str):
                refs = self._all(facet("run", claims["run"]), facet("kind", kind.value)).refs
                roles |= dict.fromkeys(refs, "its run")
        for parent in claims.get("parents") or ():
            refs = self._all(facet("token", parent), facet("kind", Kind.TOKEN_MINTED.value)).refs
            roles |= dict.fromkeys(refs, "an ancestor")
        return roles

    def _around(self, origin: Entry, token: str) -> Mapping[Ref, str]:
        """Return what came of it: children, revocations that killed it, their completions."""
        roles: dict[Ref, str] = {}
        if token:
            refs = self._all(facet("parent", token), facet("kind", Kind.TOKEN_MINTED.value)).refs
            roles |= dict.fromkeys(refs, "derived from it")
        for index in self._killers(origin):
            roles[index, 0] = "revoked it" if token else "revoked it or some of it"
            done = self._all(facet("revocation", index), facet("kind", Kind.REVOCATION_COMPLETED.value)).refs
            roles |= dict.fromkeys(done, "in force everywhere")
        return roles

    def _killers(self, origin: Entry) -> Iterator[int]:
        """Yield the revocations that hit what an entry tells of."""
        body: Mapping[str, Any] = origin.body
        if origin.kind in (Kind.TOKEN_MINTED, Kind.CANARY_MINTED):
            facts = facts_of(decode_claims_of(origin), str(body.get("kid")))
        else:
            named = [body.get(name) for name in ("realm", "partner", "user", "workload", "environment")]
            who = tuple(() if value is None else (str(value),) for value in named)
            facts = ((), *who, tuple(body.get("models") or ()), (str(body.get("run")),), (), (), (), (), ())
        seen: set[int] = set()
        for dimension in Dimension:
            for value in facts[dimension]:
                for kind in _REVOKING:
                    for index, _ in self._all(
                        facet(dimension.name.lower(), value), facet("kind", kind.value), after=(origin.index, 0)
                    ).refs:
                        seen.add(index)
        for index, entry in sorted(self._entries(seen).items()):
            selector = entry.body.get("selector")
            if isinstance(selector, Mapping) and Selector.of(**selector).matches(facts):
                yield index

    def _found_since(self, index: int, ways: Sequence[Sequence[str]]) -> Iterator[Sequence[Ref]]:
        """Yield what was recorded after the entry at an index and has all facets of one of the ways."""
        for way in ways:
            after: Ref | None = (index, 1 << 31)
            for _ in range(MAX_LOOKS):
                refs = self._index.find(Wanted(frozenset(way)), after, MAX_TOLD)
                yield refs.refs
                after = refs.after
                if after is None:
                    break

    def _verifiers(self, statements: Sequence[Statement], realms: Iterable[str]) -> tuple[VerifierSaid, ...]:
        stopped = {stop.verifier: stop.state for one in statements for stop in one.verifiers}
        keeping: set[str] = set()
        for realm in realms:
            refs = self._all(facet("realm", realm), facet("kind", Kind.RECEIPT_KEY_ENROLLED.value)).refs
            keeping |= {entry.by for entry in self._entries({index for index, _ in refs}).values()}
        return tuple(
            VerifierSaid(
                one,
                one in keeping,
                stopped.get(one, ""),
                self._index.highest_head((facet("by", one), facet("kind", Kind.RECEIPTS_KEPT.value))),
            )
            for one in sorted(keeping | set(stopped))
        )

    def _realms(self, selector: Selector) -> tuple[str, ...]:
        realm = selector.get(Dimension.REALM)
        return () if realm is None else (realm,)

    def _entries(self, indices: set[int]) -> dict[int, Entry]:
        found: dict[int, Entry] = {}
        for index in sorted(indices):
            [data] = self._ledger.entries(index, index + 1)
            found[index] = decode_entry(data)
        return found

    def _told(self, refs: Sequence[Ref]) -> list[Told]:
        entries = self._entries({index for index, _ in refs})
        return [_told_of(entries[index]) if line == 0 else self._use(entries[index], line)[0] for index, line in refs]

    def _lines(self, refs: Sequence[Ref]) -> Iterator[tuple[Told, Line]]:
        entries = self._entries({index for index, _ in refs})
        for index, line in refs:
            yield self._use(entries[index], line)

    def _use(self, entry: Entry, number: int) -> tuple[Told, Line]:
        batch = batch_in(entry)
        assert batch is not None  # noqa: S101 - the index says so
        line = batch.lines[number - 1]
        told = Told(
            entry.index,
            number,
            datetime.fromtimestamp(line.last_at_ms / 1000, UTC),
            USE,
            entry.by,
            decision=_DECIDED.get(line.what, ""),
            realm=batch.realm,
            models=(line.model,) if line.model else (),
            token=line.token,
            reason=line.reason,
            head=line.head,
            count=line.count,
        )
        if not line.token or not 0 < line.index < entry.index:
            return told, line
        minted = _told_of(self._entries({line.index})[line.index])
        if minted.token != line.token:
            return told, line
        names = ("partner", "user", "workload", "environment", "run", "test", "grant")
        return replace(told, **{name: getattr(minted, name) for name in names}), line


def _ways(selector: Selector) -> Sequence[Sequence[str]]:
    """Return by which facets accepted uses are found of tokens that a revocation may have killed."""
    common = [facet(_FACETS.get(one, one.name.lower()), value) for one, value in selector.conditions]
    ways = [[*common, facet("decision", ACCEPTED)]]
    for dimension, value in selector.conditions:
        if dimension is Dimension.TOKEN:
            # What was derived from it died, too.
            ways.append([facet("parent", value), *(one for one in ways[0] if one != facet("token", value))])
    return ways


_FACETS = {Dimension.MODEL: "covers"}
_ENTRIES_AT_ONCE = 500


_APPROVALS = (
    Kind.APPROVAL_REQUESTED,
    Kind.APPROVAL_GIVEN,
    Kind.APPROVAL_DENIED,
    Kind.APPROVAL_WITHDRAWN,
    Kind.APPROVAL_SPENT,
)


def _told_of(entry: Entry) -> Told:
    body: Mapping[str, Any] = entry.body
    claims = body.get("claims")
    selector = body.get("selector")
    said: Mapping[str, Any] = {
        **body,
        **(selector if isinstance(selector, Mapping) else {}),
        **(claims if isinstance(claims, Mapping) else {}),
    }

    def text(name: str) -> str:
        value = said.get(name)
        return value if isinstance(value, str) else ""

    models = said.get("models", [said["model"]] if "model" in said else [])
    return Told(
        entry.index,
        0,
        entry.at,
        entry.kind.value,
        entry.by,
        decision=decision_of(entry.kind),
        realm=text("realm"),
        partner=text("partner"),
        user=text("user"),
        workload=text("workload"),
        environment=text("env") or text("environment"),
        run=text("run"),
        test=text("test"),
        models=tuple(str(model) for model in models) if isinstance(models, list) else (),
        token=text("jti") or text("token"),
        grant=text("grant"),
        reason=text("reason"),
    )


def _role(told: Told) -> str:
    return _ROLES.get(told.kind, "") or ("a use that was " + (told.decision or "ended") if told.kind == USE else "")


_ROLES = {
    Kind.APPROVAL_REQUESTED.value: "approval was asked for",
    Kind.APPROVAL_GIVEN.value: "somebody approved it",
    Kind.APPROVAL_DENIED.value: "somebody denied it",
    Kind.APPROVAL_SPENT.value: "the approval was spent on it",
    Kind.RUN_OPENED.value: "the run was opened",
    Kind.RUN_CLOSED.value: "the run was closed",
    Kind.RUN_LAPSED.value: "the run lapsed",
    Kind.TOKEN_MINTED.value: "the token was minted",
    Kind.REVOKED.value: "revoked it",
}


def checked_decision(text: str) -> str:
    """Return a decision. Raises Invalid: there is no such."""
    if text not in DECISIONS:
        raise Invalid("decision", f"{text!r} is none", hint=f"use {', '.join(DECISIONS)}")
    return text


def checked_kind(text: str) -> str:
    """Return a kind of event. Raises Invalid: there is no such."""
    if text not in KINDS:
        raise Invalid("kind", f"{text!r} is none", hint=f"use {', '.join(KINDS)}")
    return text


def milliseconds(at: datetime) -> int:
    """Return Unix milliseconds."""
    return (at - _EPOCH) // timedelta(milliseconds=1)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
