"""Mint a canary, a token that opens nothing, and revoke it as any other token."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from broker.domain.asking import Ask
from broker.domain.decision import Allowed
from broker.domain.policy import CANARY_MODEL, CANARY_PARTNER, Policy, Realm
from broker.errors import ClockAstray, NotFound, SignerUnavailable
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry
from broker.service.metering import Meter
from broker.service.mint import claims_for, decode_claims_of
from broker.service.policies import Policies
from broker.service.ports import Clock, KeyIsTrusted, Ledger, RequestKey, Signer, Write
from broker.service.revoke import Revocations
from broker.token.claims import TOKEN_TYP, encode_claims, numbered
from broker.token.jws import assemble, signing_input
from broker.token.keys import Purpose
from broker.token.revocation import Selector

# Stands in a canary for who asked; the entry says who it was.
CANARY_CLIENT = f"spiffe://{CANARY_PARTNER}/canary"
LIFETIME_S = 60
# It must outlive the drill, or its own end would pass for its revocation.
OUTLIVES_LEASE_S = 30


@dataclass(frozen=True, slots=True)
class Canary:
    """A canary on its way. With `is_repeat` it was minted before, by the same request, and there is no token again."""

    id: str
    realm: str
    token: str
    minted_at: datetime
    expires_at: datetime
    is_repeat: bool = False


class Canaries:
    """Mints canaries and ends them. No policy allows them: their partner and model are names that none may define."""

    def __init__(
        self,
        ledger: Ledger,
        policies: Policies,
        signer: Signer,
        revocations: Revocations,
        clock: Clock,
        *,
        new_id: Callable[[], str],
        meter: Meter,
    ) -> None:
        self._ledger = ledger
        self._policies = policies
        self._signer = signer
        self._revocations = revocations
        self._clock = clock
        self._new_id = new_id
        self._meter = meter

    def mint(self, realm: str, by: str, request: RequestKey | None) -> Canary:
        """Record a canary, then sign it (P1). Blocks.

        Raises:
            NotFound: The policy has no such realm.
            SignerUnavailable, ClockAstray: Nothing can be minted now.
            Whatever `Ledger.append` raises.
        """
        policy = self._policies.current().policy
        if realm not in policy.realms:
            raise NotFound(f"there is no realm {realm}", hint=_realms_of(policy))
        astray = self._clock.is_astray()
        if astray is not None:
            raise ClockAstray(astray)
        now = self._clock.now()
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        key = self._signer.current(realm, Purpose.TOKEN)
        if key.signs_until <= now:
            raise SignerUnavailable(f"the signing key of realm {realm} has ended")
        ask = Ask(realm, CANARY_PARTNER, None, "canary", (CANARY_MODEL,), CANARY_PARTNER)
        allowed = Allowed("", lifetime_s(policy.realms[realm]))
        claims = claims_for(ask, allowed, CANARY_CLIENT, policy, now, self._new_id())
        signed: list[bytes] = []

        def draft(index: int) -> bytes:
            payload = encode_claims(numbered(claims, index))
            signed[:] = [signing_input(typ=TOKEN_TYP, kid=key.kid, payload=payload)]
            body: dict[str, object] = {"kid": key.kid, "sha256": hashlib.sha256(signed[0]).hexdigest()}
            if request is not None:
                body["request"] = request.request_id
            entry = Entry(index, Kind.CANARY_MINTED, now, by, body)
            return encode_entry(entry, spelled={"claims": payload.decode("ascii")})

        write = Write([draft], request=request, guards=(KeyIsTrusted(key.kid),))
        appended = self._ledger.append(write).result()
        expires_at = datetime.fromtimestamp(claims.exp, UTC)
        if appended.is_repeat:
            return self._minted_before(appended.indices.start)
        [signature] = key.sign(signed).result()
        return Canary(claims.jti, realm, assemble(signed[0], signature), now, expires_at)

    def end(self, canary: Canary, by: str) -> tuple[int, int, int]:
        """Revoke the canary; return the index, and this process's clock before the commit and after it. Blocks.

        Raises:
            Whatever `Ledger.append` raises.
        """
        selector = Selector.of(realm=canary.realm, token=canary.id)
        # Kept as long as the canary can live, and not for a week: drills are many, and verifiers hold what is kept.
        revocations = replace(self._revocations, max_ttl=canary.expires_at - canary.minted_at)
        write = revocations.write(selector, reason="a drill", by=by, kind=Kind.REVOKED, request=None)
        asked_ns = self._clock.boottime_ns()
        appended = self._ledger.append(write).result()
        committed_ns = self._clock.boottime_ns()
        self._meter.revoked("realm+token")
        return appended.indices.start, asked_ns, committed_ns

    def _minted_before(self, index: int) -> Canary:
        [data] = self._ledger.entries(index, index + 1)
        claims = decode_claims_of(decode_entry(data))
        return Canary(
            claims.jti,
            claims.realm,
            "",
            datetime.fromtimestamp(claims.iat, UTC),
            datetime.fromtimestamp(claims.exp, UTC),
            is_repeat=True,
        )


def lifetime_s(realm: Realm) -> int:
    """Return how long a canary lives if nothing is done: never longer than a token of its realm may."""
    return min(realm.max_ttl_s, max(LIFETIME_S, realm.lease_ms // 1000 + OUTLIVES_LEASE_S))


def _realms_of(policy: Policy) -> str:
    return f"the realms are {', '.join(sorted(policy.realms))}" if policy.realms else "apply a policy first"
