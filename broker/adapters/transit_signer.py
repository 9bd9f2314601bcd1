"""Token keys that stay in Vault: every signature is made there, those of concurrent mints together."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Event

from broker.adapters.key_rotation import Certify
from broker.adapters.memory_signer import make_memory_key
from broker.adapters.transit_batches import Batches
from broker.adapters.vault_transit import TOKENS_SUFFIX, KeyNames, KeyVersion, NoSignature, TransitKeys
from broker.errors import SignerUnavailable
from broker.service.ports import Clock, SigningKey
from broker.token.keys import Purpose

OVER = datetime.min.replace(tzinfo=UTC)
# Vault's clock, which says when the key was made, is not ours.
CLOCKS_APART = timedelta(hours=1)
TRIAL = b"broker: may this key sign?"


@dataclass(frozen=True, slots=True)
class TransitKey:
    """The SigningKey port on one version of a transit key. It is over as soon as Vault refuses to sign with it."""

    kid: str
    certificate: str
    _signs_until: datetime
    _name: str = field(repr=False)
    _version: KeyVersion = field(repr=False)
    _batches: Batches = field(repr=False)
    _is_refused: Event = field(default_factory=Event, repr=False)

    @property
    def signs_until(self) -> datetime:
        """As the port says."""
        return OVER if self._is_refused.is_set() else self._signs_until

    def sign(self, messages: Sequence[bytes]) -> "Future[Sequence[bytes]]":
        """As the port says. Answered or failed within `Batches.answer_within_s`."""
        return self._batches.sign(self._name, self._version, messages, on_refused=self._is_refused.set)


class TransitSigner:
    """Makes token keys on transit and feed keys in memory: `make` is a MakeKey of key_rotation.

    After a rotation in Vault the new version is certified when the key is renewed, or at once when
    min_encryption_version makes Vault refuse the old one.
    """

    def __init__(
        self, keys: TransitKeys, clock: Clock, *, key_name: str = "broker-{realm}" + TOKENS_SUFFIX, **bounds: float
    ) -> None:
        self._keys = keys
        self._names = KeyNames(key_name)
        self._batches = Batches(keys, clock, **bounds)

    def make(self, realm: str, purpose: Purpose, certify: Certify, signs_until: datetime) -> SigningKey:
        """Have the newest version of the realm's token key certified; a key for the feed is made in memory.

        Raises:
            SignerUnavailable: Vault is away, or does not sign with the newest version.
        """
        # Revoking must go on while Vault is sealed or dead, so what signs the feed is never in it.
        if purpose is not Purpose.TOKEN:
            return make_memory_key(realm, purpose, certify, signs_until)
        name = self._names.of(realm)
        newest = self._keys.versions(name)[0]
        # Nothing is published of a key that Vault does not let us use.
        [tried] = self._keys.sign(name, newest, [TRIAL])
        if isinstance(tried, NoSignature):
            raise SignerUnavailable(f"{tried}: {name}")
        # The same key is certified again and again, also by other brokers: each certificate must cover what
        # was signed under the ones before, because a verifier keeps the one that lasts longest.
        certificate = certify(newest.jwk, newest.made_at - CLOCKS_APART)
        return TransitKey(newest.kid, certificate, signs_until, name, newest, self._batches)

    def close(self) -> None:
        """Fail what waits and stop."""
        self._batches.close()
