"""Root keys in an encrypted local file, one for each realm: the embedded default."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from broker.adapters.key_files import load_or_make
from broker.errors import SignerUnavailable
from broker.token.identifiers import identifier
from broker.token.keys import public_jwk, raw_signature, thumbprint

_ES256 = ec.ECDSA(hashes.SHA256())


class LocalRoot:
    """The Root port on PKCS#8 files of mode 0600, encrypted with a passphrase. Makes a key on first use."""

    def __init__(self, folder: Path, passphrase: bytes) -> None:
        if not passphrase:
            raise SignerUnavailable("the passphrase of the root keys is empty", hint="write one to the passphrase file")
        self._folder = folder
        self._passphrase = passphrase
        self._lock = threading.Lock()
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}

    def public_jwk(self, realm: str) -> Sequence[Mapping[str, str]]:
        """As the port says."""
        return [public_jwk(self._key(realm).public_key())]

    def sign(self, realm: str, message: bytes) -> tuple[str, bytes]:
        """As the port says."""
        key = self._key(realm)
        return thumbprint(public_jwk(key.public_key())), raw_signature(key.sign(message, _ES256))

    def _key(self, realm: str) -> ec.EllipticCurvePrivateKey:
        with self._lock:
            if realm not in self._keys:
                path = self._folder / f"root-{identifier('realm', realm)}.pem"
                key = load_or_make(path, self._passphrase, _make)
                if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
                    raise SignerUnavailable(f"{path} is not a P-256 key")
                self._keys[realm] = key
            return self._keys[realm]


def _make() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
