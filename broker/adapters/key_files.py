"""Private keys in local files: PKCS#8 of mode 0600, encrypted with a passphrase, made on first use."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from broker.errors import SignerUnavailable

_OTHERS = 0o077
_OTHERS_WRITE = 0o022

Make = Callable[[], ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey]


def load_or_make(path: Path, passphrase: bytes, make: Make) -> PrivateKeyTypes:
    """Return the key in the file, of whatever kind it is; make it if there is none.

    Raises:
        SignerUnavailable: It cannot be read, decrypted or written, or others may read it.
    """
    if path.exists():
        return _load(path, passphrase)
    key = make()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & _OTHERS_WRITE:
            raise SignerUnavailable(f"{folder} can be changed by others", hint=f"chmod 700 {folder}")
        write_secret(path, pem, must_be_new=True)
    except FileExistsError:
        # Another broker made it meanwhile; two keys would be one too many.
        return _load(path, passphrase)
    except OSError as problem:
        raise SignerUnavailable(f"{path} cannot be written: {problem.strerror}") from problem
    return key


def _load(path: Path, passphrase: bytes) -> PrivateKeyTypes:
    try:
        if path.stat().st_mode & _OTHERS:
            raise SignerUnavailable(f"{path} can be read by others", hint=f"chmod 600 {path}")
        return serialization.load_pem_private_key(path.read_bytes(), passphrase)
    except OSError as problem:
        raise SignerUnavailable(f"{path} cannot be read: {problem.strerror}") from problem
    except (ValueError, TypeError) as problem:
        raise SignerUnavailable(
            f"{path} cannot be decrypted", hint="the passphrase is not the one it was written with"
        ) from problem


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
