"""Say of a token whether it is alive, by what it is dead, what allowed it, and whether it would be minted today."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from broker.domain.policy import Role
from broker.errors import NotFound
from broker.ledger.entry import Entry, Kind, decode_entry
from broker.service.calling import Caller
from broker.service.explain import Explanation, explained
from broker.service.explain_ports import RevocationSearch
from broker.service.mint import decode_claims_of
from broker.service.plan_policy import ask_of
from broker.service.policies import Policies
from broker.service.policy_ports import PolicyHistory
from broker.service.ports import Clock, Ledger, RevocationRecord
from broker.service.proof_ports import Proofs
from broker.token.claims import MAX_LIFETIME_S, Claims
from broker.token.identifiers import opaque_id
from broker.token.revocation import Dimension, Revocation, facts_of

MOST_REVOCATIONS = 1000
MAX_INDEX = 2**63 - 2
SLICE = 2000
READ_NS = 3_000_000_000


@dataclass(frozen=True, slots=True)
class Fate:
    """A token as the ledger knows it. `rule` is what decided whether it lives; `detail` the same for people."""

    is_alive: bool
    rule: str
    detail: str
    claims: Claims
    by: str
    minted_at: datetime
    grant: str
    policy_version: int
    revocations: tuple[int, ...]
    today: Explanation


class ExplainToken:
    """Explains tokens by what is recorded. Who has a partner learns of its own tokens only."""

    def __init__(
        self,
        ledger: Ledger,
        proofs: Proofs,
        history: PolicyHistory,
        search: RevocationSearch,
        policies: Policies,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._proofs = proofs
        self._history = history
        self._search = search
        self._policies = policies
        self._clock = clock

    def __call__(self, caller: Caller, token: str, *, index: int | None, sha256: str | None) -> Fate:
        """Explain the token with this id.

        Args:
            caller: Who asks.
            token: Its id.
            index: Its ledger index, where it is known.
            sha256: The hash of what is signed in it, in hex, where it is at hand.

        Raises:
            Forbidden: The role may not ask.
            Invalid: It is no token id.
            NotFound: No such token was minted, or it is another partner's: these cannot be told apart.
        """
        caller.must_be(Role.HARNESS, Role.PARTNER_ADMIN, Role.ADMIN, Role.AUDITOR)
        opaque_id("token", token)
        entry = self._entry(token, index, caller.partner)
        if entry is None:
            raise NotFound(
                f"no token {token} was minted that you may know of",
                hint="check the id: broker token inspect; tokens that ended long ago are found by their index alone",
            )
        claims = decode_claims_of(entry)
        self._policies.refresh()
        in_force = self._policies.current()
        killers = self._killers(claims, str(entry.body["kid"]))
        is_alive, rule, detail = self._verdict(entry, claims, killers, sha256)
        today = explained(ask_of(_named(claims)), in_force, for_partner=caller.partner is not None)
        applied = self._history.before(entry.index)
        return Fate(
            is_alive,
            rule,
            detail,
            claims,
            entry.by,
            entry.at,
            str(entry.body["grant"]),
            applied.version if applied is not None else 0,
            tuple(one.index for one in killers[:10]),
            today,
        )

    def _entry(self, token: str, index: int | None, partner: str | None) -> Entry | None:
        candidates: Sequence[bytes]
        if index is not None:
            candidates = self._ledger.entries(min(index, MAX_INDEX), min(index, MAX_INDEX) + 1)
        else:
            # Whatever lives was minted within the longest life there can be.
            since = self._clock.now() - timedelta(seconds=MAX_LIFETIME_S)
            candidates = list(self._proofs.minted([f'"jti":{json.dumps(token)}'.encode()], since=since))
        for data in candidates:
            entry = decode_entry(data)
            claims = entry.body.get("claims")
            if entry.kind is Kind.TOKEN_MINTED and isinstance(claims, Mapping) and claims.get("jti") == token:
                return entry if partner in (None, claims.get("partner")) else None
        return None

    def _killers(self, claims: Claims, kid: str) -> list[RevocationRecord]:
        facts = facts_of(claims, kid)
        named = [(dimension, value) for dimension in Dimension for value in facts[dimension]]
        after, killers = claims.idx, []
        while True:
            page = self._search.naming(named, after=after, kid=kid, limit=MOST_REVOCATIONS)
            killers += [one for one in page if Revocation(one.index, one.selector).kills(facts, claims.idx)]
            if len(page) < MOST_REVOCATIONS or killers:
                return killers
            after = max(after, page[-1].index)

    def _verdict(
        self, entry: Entry, claims: Claims, killers: Sequence[RevocationRecord], sha256: str | None
    ) -> tuple[bool, str, str]:
        if sha256 is not None and self._is_forged(entry, sha256):
            detail = f"what is signed is not what ledger entry {entry.index} records: altered, or forged with its id"
            return False, "forged", detail
        if killers:
            first = killers[0]
            rule = "key" if first.selector.is_absolute else "revocation"
            return False, rule, f"revoked at index {first.index} by {first.by}: {first.selector} ({first.reason})"
        ends = datetime.fromtimestamp(claims.exp, UTC)
        if ends <= self._clock.now():
            return False, "life", f"its life ended at {ends.isoformat()}"
        return True, "alive", f"no revocation matches it, and its life ends at {ends.isoformat()}"

    def _is_forged(self, entry: Entry, sha256: str) -> bool:
        """Tell whether the ledger says that something else was signed; false too where it was too long to read."""
        if entry.body.get("sha256") == sha256:
            return False
        # A repeated request may have been answered with the same token under another key, at any time since.
        deadline_ns = self._clock.boottime_ns() + READ_NS
        text, start, size = f'"sha256":"{sha256}"'.encode(), entry.index + 1, self._ledger.head().size
        while start < size:
            if self._clock.boottime_ns() > deadline_ns:
                return False
            if any(text in data for data in self._ledger.entries(start, start + SLICE)):
                return False
            start += SLICE
        return True


def _named(claims: Claims) -> Mapping[str, object]:
    return {name: getattr(claims, name) for name in ("realm", "partner", "user", "workload", "models", "env")}
