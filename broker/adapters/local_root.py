"""Root keys in an encrypted local file, one for each realm: the embedded default."""

import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.errors import SignerUnavailable
from broker.token.identifiers import identifier
from broker.token.keys import public_jwk, raw_signature, thumbprint

_ES256 = ec.ECDSA(hashes.SHA256())
_OTHERS = 0o077
_OTHERS_WRITE = 0o022


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
                self._keys[realm] = self._load(path) if path.exists() else self._make(path)
            return self._keys[realm]

    def _load(self, path: Path) -> ec.EllipticCurvePrivateKey:
        try:
            if path.stat().st_mode & _OTHERS:
                raise SignerUnavailable(f"{path} can be read by others", hint=f"chmod 600 {path}")
            key = serialization.load_pem_private_key(path.read_bytes(), self._passphrase)
        except OSError as problem:
            raise SignerUnavailable(f"{path} cannot be read: {problem.strerror}") from problem
        except (ValueError, TypeError) as problem:
            raise SignerUnavailable(
                f"{path} cannot be decrypted", hint="the passphrase is not the one it was written with"
            ) from problem
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise SignerUnavailable(f"{path} is not a P-256 key")
        return key

    def _make(self, path: Path) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(self._passphrase),
        )
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._folder.stat().st_mode & _OTHERS_WRITE:
                raise SignerUnavailable(f"{self._folder} can be changed by others", hint=f"chmod 700 {self._folder}")
            write_secret(path, pem, must_be_new=True)
        except FileExistsError:
            # Another broker made it meanwhile; two root keys would be one too many.
            return self._load(path)
        except OSError as problem:
            raise SignerUnavailable(f"{path} cannot be written: {problem.strerror}") from problem
        return key


def write_secret(path: Path, data: bytes, *, must_be_new: bool = False) -> None:
    """Write a file of mode 0600 that is whole or not there, also after a power cut.

    Raises:
        OSError: Nothing was written; FileExistsError if it must be new and is not.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if must_be_new:
            os.link(draft, path)
            draft.unlink()
        else:
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
