"""Certified keys that sign in turn: the next is published before the last one ends."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.errors import Failure, SignerUnavailable
from broker.service.metering import Meter
from broker.service.ports import Clock, PublishCertificate, RealmKeys, Root, SigningKey
from broker.token.jws import assemble
from broker.token.keys import (
    Jwk,
    Purpose,
    RealmTrust,
    certificate_payload,
    certificate_signing_input,
    check_certificate,
    thumbprint,
)

# A verifier judges `iat` by whole seconds of some broker's clock, and a request may be repeated a little later.
BACKDATE = timedelta(seconds=60)
# Published, but not used until verifiers had time to hear of it.
SETTLE = timedelta(seconds=3)
RETRY_S = 1.0

Slot = tuple[str, Purpose]


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """For how long keys sign; they are replaced at half of it."""

    token: timedelta = timedelta(minutes=10)
    feed: timedelta = timedelta(hours=24)

    def of(self, purpose: Purpose) -> timedelta:
        """Return the time for which a key of this purpose signs."""
        return self.token if purpose is Purpose.TOKEN else self.feed


@dataclass(frozen=True, slots=True)
class _Held:
    key: SigningKey
    signs_from: datetime
    renew_at: datetime
    made_at: datetime


MakeKey = Callable[[str, Purpose, Callable[[Jwk], str], datetime], SigningKey]
"""Makes a key for a realm and purpose: gets a function that certifies a public key, and `signs_until`."""


class KeyRotation:
    """Keeps one key ready for each realm and purpose, in a thread of its own.

    `make` makes the key; the root certifies it; `publish` must have made the certificate durable before
    the key signs anything (P9). While the root is away, what is certified goes on until its end.
    """

    def __init__(
        self,
        root: Root,
        clock: Clock,
        *,
        realms: Callable[[], Iterable[RealmKeys]],
        publish: PublishCertificate,
        make: MakeKey,
        meter: Meter,
        purposes: tuple[Purpose, ...] = (Purpose.TOKEN, Purpose.FEED),
        lifetimes: Lifetimes = Lifetimes(),
    ) -> None:
        self._root = root
        self._clock = clock
        self._realms = realms
        self._publish = publish
        self._make = make
        self._meter = meter
        self._purposes = purposes
        self._lifetimes = lifetimes
        # Newest last. Replaced as a whole, so that readers need no lock.
        self._held: Mapping[Slot, tuple[_Held, ...]] = {}
        self._trusts: Mapping[str, RealmTrust] = {}
        self._problem = ""
        self._turn = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="key-rotation", daemon=True)

    def start(self) -> None:
        """Certify what is missing now, then go on in the background. A root that is away is not an error."""
        self.rotate()
        self._thread.start()

    def current(self, realm: str, purpose: Purpose) -> SigningKey:
        """Return the newest key that may sign now. Raises SignerUnavailable."""
        now = self._clock.now()
        held = self._held.get((realm, purpose), ())
        usable = [one for one in held if one.key.signs_until > now]
        settled = [one for one in usable if one.signs_from <= now]
        if not usable:
            raise SignerUnavailable(f"realm {realm} has no key to sign with: {self._problem or 'not certified yet'}")
        chosen = settled[-1] if settled else usable[0]
        return chosen.key

    def roots(self, realm: str) -> RealmTrust:
        """Return what verifiers of the realm must pin. Raises SignerUnavailable."""
        trust = self._trusts.get(realm)
        if trust is None:
            raise SignerUnavailable(f"the root keys of realm {realm} are not known: {self._problem or 'not read yet'}")
        return trust

    def forget(self, kids: Iterable[str]) -> None:
        """Stop using revoked keys at once and have them replaced."""
        gone = frozenset(kids)
        with self._turn:
            self._held = {
                slot: tuple(one for one in held if one.key.kid not in gone) for slot, held in self._held.items()
            }
        self._wake.set()

    def rotate(self) -> None:
        """Certify what is missing or due. What fails is tried again later; the others go on."""
        with self._turn:
            self._problem = ""
            now = self._clock.now()
            for realm in self._realms():
                for purpose in self._purposes:
                    try:
                        self._look_after(realm, purpose, now)
                    except Failure as failure:
                        self._problem = failure.message

    def close(self) -> None:
        """Forget all keys."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._held = {}

    def wake(self) -> None:
        """Look again soon: realms may have changed."""
        self._wake.set()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(timeout=RETRY_S)
            self._wake.clear()
            if not self._closing:
                self.rotate()

    def _look_after(self, realm: RealmKeys, purpose: Purpose, now: datetime) -> None:
        slot = (realm.realm, purpose)
        # The private half goes when it may no longer sign.
        held = tuple(one for one in self._held.get(slot, ()) if one.key.signs_until > now)
        if held:
            self._meter.key_age(realm.realm, purpose.value, (now - held[-1].made_at).total_seconds())
        if held and held[-1].renew_at > now and realm.realm in self._trusts:
            self._held = {**self._held, slot: held}
            return
        self._held = {**self._held, slot: held}
        trust = self._trust(realm)
        made = self._certified(realm, trust, purpose, now, is_first=not held)
        self._held = {**self._held, slot: (*held, made)}

    def _trust(self, realm: RealmKeys) -> RealmTrust:
        trust = RealmTrust(realm.realm, realm.issuer, realm.audience, tuple(self._root.public_jwk(realm.realm)))
        self._trusts = {**self._trusts, realm.realm: trust}
        return trust

    def _certified(
        self, realm: RealmKeys, trust: RealmTrust, purpose: Purpose, now: datetime, *, is_first: bool
    ) -> _Held:
        life = self._lifetimes.of(purpose)
        signs_until = now + life
        # A token key vouches for its tokens as long as they can live.
        expires = signs_until + (timedelta(seconds=realm.max_ttl_s) if purpose is Purpose.TOKEN else timedelta())

        def certify(jwk: Jwk) -> str:
            payload = certificate_payload(
                trust,
                purpose,
                jwk,
                not_before=int((now - BACKDATE).timestamp()),
                signs_until=int(signs_until.timestamp()),
                expires=int(expires.timestamp()) + 1,
            )
            newest = trust.roots[0]
            message = certificate_signing_input(thumbprint(newest), payload)
            kid, signature = self._root.sign(realm.realm, message)
            if kid != thumbprint(newest):
                raise SignerUnavailable(f"the root key of realm {realm.realm} was rotated meanwhile")
            certificate = assemble(message, signature)
            # What came from outside is verified before it is used.
            check_certificate(certificate, trust, purpose)
            return certificate

        key = self._make(realm.realm, purpose, certify, signs_until)
        self._publish(realm.realm, purpose, key.kid, key.certificate, expires + timedelta(seconds=1))
        return _Held(key, now if is_first else now + SETTLE, now + life / 2, now)
