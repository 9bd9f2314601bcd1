"""Where one process's receipts lie until the broker has them: a folder with a journal and the key that signs it.

    STATE_DIR/receipts/REALM/KID/   key: JSON, mode 0600; lock: held by the process; *.seg: the journal

Each process, and each child that a fork makes, has a folder and a key of its own, so that its numbers are its own,
whatever is restored from a backup. What a process that is no more has left is adopted by the next one that uses the
same STATE_DIR, and sent under the key that it was written for.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from broker.sdk.journal import Journal, sync_folder
from broker.token.keys import public_jwk, raw_signature, thumbprint
from broker.token.receipts import enrolment
from broker.v1 import feed_pb2

_ES256 = ec.ECDSA(hashes.SHA256())
_KEY = "key"
_LOCK = "lock"
# Being made; no other process looks into it.
_NEW = ".new-"
# All that could be read of it was sent; the rest is for people.
_TORN = ".torn-"
log = logging.getLogger("broker.sdk")
MAX_KEY_BYTES = 4096


class Spool:
    """One folder, held by this process alone. Make it with `new_spool` or `adopted`."""

    def __init__(
        self, folder: Path, lock: int, realm: str, incarnation: str, key: ec.EllipticCurvePrivateKey, journal: Journal
    ) -> None:
        self.realm = realm
        self.incarnation = incarnation
        self.journal = journal
        self._folder = folder
        self._lock = lock
        self._key = key
        public = key.public_key()
        self._point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.kid = thumbprint(public_jwk(public))

    def sign(self, message: bytes) -> bytes:
        """Return r || s."""
        return raw_signature(self._key.sign(message, _ES256))

    def enrolment(self) -> feed_pb2.ListenRequest:
        """Return what presents the key to a broker."""
        proof = self.sign(enrolment(self.realm, self._point))
        return feed_pb2.ListenRequest(enroll=feed_pb2.EnrollKey(public_key=self._point, signature=proof))

    def close(self, *, remove: bool) -> None:
        """Let go of the folder; `remove` it when the broker has all that is in it."""
        self.journal.close()
        if remove and self.journal.is_torn:
            # Evidence, for people: how many were in there nobody can tell.
            log.warning("receipts at the end of %s cannot be read; it is kept as %s*", self._folder, _TORN)
            with contextlib.suppress(OSError):
                self._folder.rename(self._folder.with_name(f"{_TORN}{self._folder.name}"))
        elif remove:
            shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)

    def forget_after_fork(self) -> None:
        """In a child: it is the parent's."""
        self.journal.forget_after_fork()
        with contextlib.suppress(OSError):
            os.close(self._lock)


def new_spool(state_dir: Path, realm: str, incarnation: str, *, max_bytes: int) -> Spool:
    """Make a folder with a new key. Raises OSError."""
    home = _home(state_dir, realm)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    folder = home / f"{_NEW}{secrets.token_hex(8)}"
    folder.mkdir(mode=0o700)
    lock = _locked(folder)
    if lock is None:
        raise OSError(None, "another process took the new folder")
    try:
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
        data = json.dumps({"format": 1, "realm": realm, "incarnation": incarnation, "key": pem}).encode("ascii")
        _write(folder / _KEY, data)
        sync_folder(folder)
        # Under its own name only when it is whole; the lock stays on it.
        folder = folder.rename(home / thumbprint(public_jwk(key.public_key())))
        # Those above it may be as new.
        for above in (home, home.parent, state_dir):
            sync_folder(above)
        return Spool(folder, lock, realm, incarnation, key, Journal(folder, max_bytes=max_bytes))
    except BaseException:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def has_left(state_dir: Path, realm: str) -> bool:
    """Tell whether any process kept receipts here, and may not have sent them all."""
    try:
        return any(not folder.name.startswith(_TORN) for folder in _home(state_dir, realm).iterdir())
    except OSError:
        return False


def adopted(state_dir: Path, realm: str) -> Iterator[Spool]:
    """Yield what processes that are no more have left. Removes what holds nothing. Raises OSError."""
    home = _home(state_dir, realm)
    if not home.is_dir():
        return
    for folder in sorted(home.iterdir()):
        lock = _locked(folder) if folder.is_dir() and not folder.name.startswith(_TORN) else None
        if lock is None:
            continue
        found = None if folder.name.startswith(_NEW) else _read(folder, lock, realm)
        if found is not None:
            yield found
            continue
        if folder.name.startswith(_NEW):
            # Its process died before there was anything in it.
            shutil.rmtree(folder, ignore_errors=True)
        else:
            log.warning("receipts may be left in %s, whose key or records cannot be read; it is left alone", folder)
        os.close(lock)


def _read(folder: Path, lock: int, realm: str) -> Spool | None:
    """Return the spool in a folder, or None: it has no usable key, and is left as it is."""
    try:
        kept = json.loads((folder / _KEY).read_bytes()[:MAX_KEY_BYTES])
        key = load_pem_private_key(kept["key"].encode("ascii"), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or kept["format"] != 1 or kept["realm"] != realm:
            return None
        spool = Spool(
            folder, lock, realm, str(kept["incarnation"]), key, Journal(folder, max_bytes=0, is_writable=False)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return spool if spool.kid == folder.name else None


def _home(state_dir: Path, realm: str) -> Path:
    return state_dir / "receipts" / realm


def _locked(folder: Path) -> int | None:
    """Return a lock on the folder, or None: its process lives, or it is gone."""
    try:
        fd = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(None, "no space left for a receipt key")
        os.fsync(fd)
    finally:
        os.close(fd)
