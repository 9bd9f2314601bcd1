"""Complete a revocation: sign for each realm that it is in force there, and record it, once."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from broker.errors import NotFound, StoreCorrupt
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.service.listening import NS_PER_MS, Outcome, Stop
from broker.service.policies import Policies
from broker.service.ports import Clock, Ledger, Signer, SigningKey, Write
from broker.service.proof_ports import Completed, CompletionIsDue, CompletionRecord, Proofs
from broker.service.revoke import Revoked
from broker.token.completion import Statement, VerifierStop, completion_signing_input, in_order, statement_payload
from broker.token.jws import assemble
from broker.token.keys import Purpose
from broker.token.revocation import Selector


@dataclass(frozen=True, slots=True)
class InForce:
    """A revocation that no verifier contradicts any more, and how that came about.

    `unknown_ns`: how long it waited for verifiers that nobody here knew of. `tokens`: the live tokens that
    it hit, by realm; None when they were not counted.
    """

    revoked: Revoked
    outcomes: tuple[Outcome, ...]
    unknown_ns: int
    tokens: Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion as it was recorded, at ledger index `entry`; `document` holds a statement in each line."""

    revocation: int
    entry: int
    document: str


class Complete:
    """Signs and records completions. Raises SignerUnavailable while a realm's key is missing: then try again."""

    def __init__(self, ledger: Ledger, proofs: Proofs, policies: Policies, signer: Signer, clock: Clock) -> None:
        self._ledger = ledger
        self._proofs = proofs
        self._policies = policies
        self._signer = signer
        self._clock = clock

    def __call__(self, done: InForce) -> Completion:
        """Record the completion, or return the one that another broker recorded before.

        Raises:
            SignerUnavailable: A realm concerned has no key for completions now; nothing was written.
            StoreUnavailable: Nothing is known; try again.
        """
        index = done.revoked.index
        now = self._clock.now()
        incarnation = self._ledger.head().incarnation
        # A realm that has left the policy meanwhile is certified no keys; nobody is left to be told.
        realms = tuple(realm for realm in done.revoked.realms if realm in self._policies.current().policy.realms)
        done = replace(done, revoked=replace(done.revoked, realms=realms))
        statements = [self._statement(realm, done, now, incarnation) for realm in realms]
        document = "".join(f"{text}\n" for _, text in statements)
        ways = [outcome.how for outcome in done.outcomes]
        body = {
            "revocation": index,
            "entries": done.revoked.entries,
            "realms": list(realms),
            "sha256": hashlib.sha256(document.encode("ascii")).hexdigest(),
            "kids": [kid for kid, _ in statements],
            "listening": len(ways),
            **{how.value: ways.count(how) for how in Stop},
            "took_ms": max([_ms(outcome.after_ns) for outcome in done.outcomes] + [_ms(done.unknown_ns)]),
            "waited_ms": _ms(done.unknown_ns),
            "tokens": None if done.tokens is None else sum(done.tokens.values()),
            "uses_cut": sum(outcome.uses_cut for outcome in done.outcomes),
        }
        write = Write(
            [lambda at: encode_entry(Entry(at, Kind.REVOCATION_COMPLETED, now, "broker", body))],
            guards=(CompletionIsDue(index),),
            effects=(Completed(index, document.encode("ascii")),),
            urgent=True,
        )
        try:
            entry = self._ledger.append(write).result().indices.start
        except NotFound:
            before = self.recorded(index)
            if before is None:
                raise
            return before
        return Completion(index, entry, document)

    def recorded(self, index: int) -> Completion | None:
        """Return the completion of the revocation at `index`, if it was made.

        Raises:
            StoreUnavailable: It cannot be read.
            StoreCorrupt: It is not the one that the ledger tells of.
        """
        record = self._proofs.completion(index)
        if record is None or record.entry is None or record.document is None:
            return None
        found = self._ledger.entries(record.entry, record.entry + 1)
        said = decode_entry(found[0]).body.get("sha256") if found else None
        if said != hashlib.sha256(record.document).hexdigest():
            raise StoreCorrupt(f"the completion of revocation {index} is not what the ledger tells of")
        return Completion(index, record.entry, record.document.decode("ascii"))

    def _statement(self, realm: str, done: InForce, now: datetime, incarnation: str) -> tuple[str, str]:
        key = self._signer.current(realm, Purpose.COMPLETION)
        payload = statement_payload(_said(realm, done, now, incarnation, self._signer.roots(realm).issuer, key))
        message = completion_signing_input(key.kid, payload)
        [signature] = key.sign([message]).result()
        return key.kid, assemble(message, signature)


def revocation_at(ledger: Ledger, index: int, record: CompletionRecord | None) -> Revoked | None:
    """Return the revocation at a ledger index as it was made, or None: another thing is there, or nothing.

    Raises:
        StoreUnavailable: The ledger cannot be read.
    """
    found = ledger.entries(index, index + 1)
    if not found:
        return None
    entry = decode_entry(found[0])
    if entry.kind not in (Kind.REVOKED, Kind.RUN_CLOSED, Kind.RUN_LAPSED):
        return None
    named = entry.body.get("selector")
    if not isinstance(named, dict):
        raise StoreCorrupt(f"entry {index} is a revocation without a selector")
    entries = 1 if record is None else index - record.first + 1
    if entries > 1:
        named = {"realm": named["realm"]}
    return Revoked(
        index,
        entry.at,
        bool(entry.body.get("blocks", False)),
        record.lease_ms if record is not None else 0,
        True,
        Selector.of(**named),
        str(entry.body.get("reason", "")),
        entry.by,
        record.realms if record is not None else (),
        record is not None,
        entries,
    )


def _said(realm: str, done: InForce, now: datetime, incarnation: str, issuer: str, key: SigningKey) -> Statement:
    revoked = done.revoked
    stops = in_order(
        [
            VerifierStop(outcome.verifier, realm, outcome.how.value, _ms(outcome.after_ns), outcome.uses_cut)
            for outcome in done.outcomes
            if outcome.realm == realm
        ]
    )
    waited_ms = _ms(done.unknown_ns)
    took_ms = max([stop.after_ms for stop in stops] + [waited_ms])
    return Statement(
        iss=issuer,
        iat=int(now.timestamp()),
        realm=realm,
        realms=revoked.realms,
        incarnation=incarnation,
        index=revoked.index,
        entries=revoked.entries,
        selector=tuple(sorted((dimension.name.lower(), value) for dimension, value in revoked.selector.conditions)),
        reason=revoked.reason,
        by=revoked.by,
        blocks=revoked.blocks,
        committed_at=revoked.at,
        in_force_at=revoked.at + timedelta(milliseconds=took_ms),
        waited_ms=waited_ms,
        verifiers=stops,
        tokens=None if done.tokens is None else done.tokens.get(realm, 0),
        uses_cut=sum(stop.uses_cut for stop in stops),
        certificate=key.certificate,
    )


def _ms(span_ns: int) -> int:
    return math.ceil(span_ns / NS_PER_MS)
