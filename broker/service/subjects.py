"""The tokens that a broker is shown: verified as verifiers do, and looked up in the record of what was minted."""

import threading
from dataclasses import dataclass, replace
from datetime import datetime

from broker.errors import Invalid, Malformed, Untrusted, WrongRealm
from broker.ledger.entry import Kind, decode_entry
from broker.service.derivation_ports import TokenIsAlive
from broker.service.mint import decode_claims_of
from broker.service.ports import CertificateRecord, Clock, Ledger, Signer
from broker.token.binding import Shown, check_holder
from broker.token.claims import TOKEN_TYP, Claims
from broker.token.dpop import DpopProof, Replays
from broker.token.jws import parse_jws
from broker.token.keys import Purpose, check_certificate
from broker.token.revocation import Facts, Matcher, Revocation, facts_of
from broker.token.verification import Time, check_alive, check_signature, check_use

MS_PER_S = 1000
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Subject:
    """A token that is good now: ours, unexpired, recorded, not revoked by anything below the index `since`."""

    claims: Claims
    kid: str
    facts: Facts
    grant: str
    since: int

    @property
    def alive(self) -> TokenIsAlive:
        """What has to hold still when something is derived from it."""
        return TokenIsAlive(self.facts, self.claims.idx, self.since)


class Subjects:
    """Judges tokens. Follows revocations and keys from its first question on. Safe for threads; blocks on the store."""

    def __init__(self, ledger: Ledger, signer: Signer, clock: Clock) -> None:
        self._ledger = ledger
        self._signer = signer
        self._clock = clock
        self._turn = threading.Lock()
        self._next = 0
        self._began_at: datetime = clock.now()
        self._matcher = Matcher()
        self._certificates: dict[str, CertificateRecord] = {}
        self._seen = Replays()

    def judge(self, token: str) -> Subject:
        """Return what a token is.

        Raises:
            Malformed, Untrusted, WrongRealm, Expired, NotYetValid, Revoked: Refused.
            StoreUnavailable, SignerUnavailable: It cannot be judged now.
        """
        certificate = self._follow(token)
        trust = self._signer.roots(certificate.realm)
        key = check_certificate(certificate.certificate, trust, Purpose.TOKEN)
        signed = check_signature(token, {key.kid: key})
        claims = signed.claims
        if claims.realm != certificate.realm:
            raise WrongRealm("the token is not of the realm of its key")
        check_use(signed, claims.models[0], trust=trust, keys={key.kid: key}, time=self._time())
        grant = self._recorded(claims)
        facts = facts_of(claims, signed.kid)
        with self._turn:
            check_alive(facts, claims.idx, self._matcher)
            return Subject(claims, signed.kid, facts, grant, self._next)

    def must_hold(self, token: str, subject: Subject, shown: Shown | None) -> None:
        """Refuse who does not show that a bound token is theirs. Raises NotHolder."""
        now = self._time()
        now_s = now.latest_ms // MS_PER_S

        def remember(proof: DpopProof) -> None:
            with self._turn:
                self._seen.add(proof, now_s)

        check_holder(token, subject.claims.cnf, shown, earliest_s=now_s, latest_s=now_s, remember=remember)

    def _time(self) -> Time:
        now_ms = int(self._clock.now().timestamp() * MS_PER_S)
        return Time(now_ms, now_ms)

    def _follow(self, token: str) -> CertificateRecord:
        """Take up what was written since the last time, and return the certificate of the key that the token names."""
        unverified_kid = parse_jws(token, typ=TOKEN_TYP).kid
        now = self._clock.now()
        with self._turn:
            changes = self._ledger.changes(self._next, now=now)
            for one in changes.revocations:
                # Seconds since this began: the matcher's clock is shorter than the wall's.
                self._matcher.add(Revocation(one.index, one.selector), self._since_began_ns(one.keep_until))
            for certificate in changes.certificates:
                if certificate.purpose is Purpose.TOKEN:
                    self._certificates[certificate.kid] = certificate
            self._next = changes.head.size
            self._matcher.prune(self._since_began_ns(now))
            for kid in [kid for kid, known in self._certificates.items() if known.expires_at <= now]:
                del self._certificates[kid]
            found = self._certificates.get(unverified_kid)
        if found is None:
            raise Untrusted("no trusted key signed it")
        return found

    def _since_began_ns(self, at: datetime) -> int:
        return max(0, int((at - self._began_at).total_seconds())) * NS_PER_S

    def _recorded(self, claims: Claims) -> str:
        """Return the grant of a token's mint. What a stolen key signed was never minted (P1). Raises Untrusted."""
        try:
            [entry] = [decode_entry(data) for data in self._ledger.entries(claims.idx, claims.idx + 1)]
            recorded = decode_claims_of(entry) if entry.kind is Kind.TOKEN_MINTED else None
            # Signed again after a restart, it is issued later, and the same token otherwise.
            if recorded is not None and replace(recorded, iat=claims.iat) == claims:
                return str(entry.body["grant"])
        except (ValueError, Invalid, Malformed) as bad:
            raise Untrusted("the token was never minted") from bad
        raise Untrusted("the token was never minted")
