"""Root keys in Vault's transit engine, one for each realm; they never leave it (P9)."""

from collections.abc import Mapping, Sequence

from broker.adapters.vault_transit import TOKENS_SUFFIX, KeyNames, NoSignature, TransitKeys
from broker.errors import SignerUnavailable


class VaultRoot:
    """The Root port on transit keys. Asks Vault each time: roots sign once in some minutes, and may be rotated."""

    def __init__(self, keys: TransitKeys, *, key_name: str = "broker-{realm}") -> None:
        self._keys = keys
        self._names = KeyNames(key_name)

    def public_jwk(self, realm: str) -> Sequence[Mapping[str, str]]:
        """As the port says. What is older than the key's min_decryption_version is no longer among them."""
        return [version.jwk for version in self._keys.versions(self._name(realm))]

    def sign(self, realm: str, message: bytes) -> tuple[str, bytes]:
        """As the port says."""
        name = self._name(realm)
        newest = self._keys.versions(name)[0]
        [signature] = self._keys.sign(name, newest, [message])
        if isinstance(signature, NoSignature):
            raise SignerUnavailable(f"{signature}: {name}")
        return newest.kid, signature

    def _name(self, realm: str) -> str:
        name = self._names.of(realm)
        if realm.endswith(TOKENS_SUFFIX):
            raise SignerUnavailable(f"a realm whose name ends in {TOKENS_SUFFIX} cannot have a root key in Vault")
        return name
