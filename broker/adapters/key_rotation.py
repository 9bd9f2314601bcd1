"""Certified keys that sign in turn: the next is published before the last one ends."""

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, assert_never

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

log = logging.getLogger("broker.keys")

# A verifier judges `iat` by whole seconds of some broker's clock, and a request may be repeated a little later.
BACKDATE = timedelta(seconds=60)
# Published, but not used until verifiers had time to hear of it.
SETTLE = timedelta(seconds=3)
RETRY_S = 1.0
# A completion carries its certificate, so this is only for those who take the key from the key set.
COMPLETION_KEYS_KEPT = timedelta(days=31)

Slot = tuple[str, Purpose]


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """For how long keys sign; they are replaced at half of it."""

    token: timedelta = timedelta(minutes=10)
    feed: timedelta = timedelta(hours=24)
    """Also that of keys for completions: so both work while Vault is away."""

    def of(self, purpose: Purpose) -> timedelta:
        """Return the time for which a key of this purpose signs."""
        return self.token if purpose is Purpose.TOKEN else self.feed


@dataclass(frozen=True, slots=True)
class _Held:
    key: SigningKey
    realm: RealmKeys
    signs_from: datetime
    renew_at: datetime
    made_at: datetime


def _outlives(purpose: Purpose, realm: RealmKeys) -> timedelta:
    """Return for how long a key vouches for what it signed, after it has stopped signing."""
    match purpose:
        case Purpose.TOKEN:
            # As long as its tokens can live.
            return timedelta(seconds=realm.max_ttl_s)
        case Purpose.FEED:
            return timedelta()
        case Purpose.COMPLETION:
            return COMPLETION_KEYS_KEPT
        case _:
            assert_never(purpose)


class Certify(Protocol):
    """Has a public key certified and returns the certificate. `since`: it signed from then on, if that is earlier."""

    def __call__(self, jwk: Jwk, since: datetime | None = None, /) -> str:
        """Raises SignerUnavailable."""


MakeKey = Callable[[str, Purpose, Certify, datetime], SigningKey]
"""Makes a key for a realm and purpose: gets a function that certifies a public key, and `signs_until`."""


class KeyRotation:
    """Keeps one key ready for each realm and purpose, in a thread of its own.

    `make` makes the key; the root certifies it; `publish` must have made the certificate durable before
    the key signs anything (P9). While the root is away, what is certified goes on until its end; but if
    the token keys themselves are elsewhere, `away` says why they cannot be reached now, and they are not given out.
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
        purposes: tuple[Purpose, ...] = tuple(Purpose),
        lifetimes: Lifetimes = Lifetimes(),
        away: Callable[[], str] = str,
    ) -> None:
        self._root = root
        self._clock = clock
        self._realms = realms
        self._publish = publish
        self._make = make
        self._meter = meter
        self._purposes = purposes
        self._lifetimes = lifetimes
        self._away = away
        # Newest last. Replaced as a whole, so that readers need no lock.
        self._held: Mapping[Slot, tuple[_Held, ...]] = {}
        self._trusts: Mapping[str, RealmTrust] = {}
        self._problem = ""
        self._forgotten: frozenset[str] = frozenset()
        # One rotation at a time. Held while the root is asked, which may hang.
        self._turn = threading.Lock()
        # For what is held and forgotten. Never held while anybody is asked: who forgets is the feed.
        self._state = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="key-rotation", daemon=True)

    def start(self) -> None:
        """Certify what is missing now, then go on in the background. A root that is away is not an error."""
        self.rotate()
        self._thread.start()

    def current(self, realm: str, purpose: Purpose) -> SigningKey:
        """Return the newest key that may sign now. Raises SignerUnavailable."""
        # Before the mint is recorded: an entry for each token that cannot be signed would help nobody.
        if purpose is Purpose.TOKEN and (why := self._away()):
            raise SignerUnavailable(f"realm {realm} has no key to sign with: {why}")
        now = self._clock.now()
        held = self._held.get((realm, purpose), ())
        usable = [one for one in held if one.key.signs_until > now]
        settled = [one for one in usable if one.signs_from <= now]
        if not usable:
            why = self._problem or ("its key has ended" if held else "not certified yet")
            raise SignerUnavailable(f"realm {realm} has no key to sign with: {why}")
        chosen = settled[-1] if settled else usable[0]
        return chosen.key

    def roots(self, realm: str) -> RealmTrust:
        """Return what verifiers of the realm must pin. Raises SignerUnavailable."""
        trust = self._trusts.get(realm)
        if trust is None:
            raise SignerUnavailable(f"the root keys of realm {realm} are not known: {self._problem or 'not read yet'}")
        return trust

    @property
    def problem(self) -> str:
        """What the last rotation could not do, or nothing."""
        return self._problem

    def forget(self, kids: Iterable[str]) -> None:
        """Stop using revoked keys at once and have them replaced. Never waits for the root."""
        with self._state:
            self._forgotten |= frozenset(kids)
            self._held = {
                slot: tuple(one for one in held if one.key.kid not in self._forgotten)
                for slot, held in self._held.items()
            }
        self._wake.set()

    def rotate(self) -> None:
        """Certify what is missing or due. What fails is tried again later; the others go on."""
        with self._turn:
            problem = ""
            now = self._clock.now()
            self._drop_ended(now)
            for realm in self._realms():
                for purpose in self._purposes:
                    try:
                        self._look_after(realm, purpose, now)
                    except Failure as failure:
                        problem = failure.message
                    except Exception:
                        # A defect with one key must not end the rotation of all others.
                        log.exception("a key could not be rotated")
                        problem = "a defect in the broker"
            self._problem = problem

    def close(self) -> None:
        """Forget all keys."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        with self._state:
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

    def _drop_ended(self, now: datetime) -> None:
        # The private half goes when it may no longer sign, also that of a realm which the policy names no more.
        with self._state:
            self._held = {
                slot: kept
                for slot, held in self._held.items()
                if (kept := tuple(one for one in held if one.key.signs_until > now))
            }

    def _look_after(self, realm: RealmKeys, purpose: Purpose, now: datetime) -> None:
        slot = (realm.realm, purpose)
        newest = next(iter(self._held.get(slot, ())[-1:]), None)
        age_s = (now - newest.made_at).total_seconds() if newest is not None else math.nan
        self._meter.key_age(realm.realm, purpose.value, age_s)
        # A certificate names the realm's issuer and covers its longest token: it ends when they change.
        is_good = newest is not None and newest.renew_at > now and newest.realm == realm
        if is_good and realm.realm in self._trusts:
            return
        trust = self._trust(realm)
        is_urgent = newest is None or newest.realm != realm
        made = self._certified(realm, trust, purpose, now, is_urgent=is_urgent)
        with self._state:
            if made.key.kid not in self._forgotten and not self._closing:
                self._held = {**self._held, slot: (*self._held.get(slot, ()), made)}
        self._meter.key_age(realm.realm, purpose.value, 0.0)

    def _trust(self, realm: RealmKeys) -> RealmTrust:
        trust = RealmTrust(realm.realm, realm.issuer, realm.audience, tuple(self._root.public_jwk(realm.realm)))
        self._trusts = {**self._trusts, realm.realm: trust}
        return trust

    def _certified(
        self, realm: RealmKeys, trust: RealmTrust, purpose: Purpose, now: datetime, *, is_urgent: bool
    ) -> _Held:
        life = self._lifetimes.of(purpose)
        signs_until = now + life
        expires = signs_until + _outlives(purpose, realm)

        def certify(jwk: Jwk, since: datetime | None = None, /) -> str:
            not_before = now - BACKDATE
            payload = certificate_payload(
                trust,
                purpose,
                jwk,
                not_before=int(min(not_before, since or not_before).timestamp()),
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
        if key.kid in self._forgotten:
            raise SignerUnavailable(f"the token key of realm {realm.realm} is revoked; rotate it in Vault")
        self._publish(realm.realm, purpose, key.kid, key.certificate, expires + timedelta(seconds=1))
        return _Held(key, realm, now if is_urgent else now + SETTLE, now + life / 2, now)
