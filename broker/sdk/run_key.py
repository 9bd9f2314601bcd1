"""The key of a run: made by the harness, proven at each call, and kept in a file to go on after a restart."""

import json
import os
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message

from broker.errors import ConfigInvalid
from broker.token.jws import assemble
from broker.token.keys import public_jwk, raw_signature, thumbprint
from broker.token.run_proof import RUN_PROOF_KEY, ProofClaims, proof_signing_input, request_hash

OWNER_ONLY = 0o600
_OTHERS = 0o077
_ES256 = ec.ECDSA(hashes.SHA256())
_FIELDS = {"run", "key", "realm", "partner", "models", "user", "workload"}


class RunKey:
    """A P-256 key, and proofs by it. Safe for threads. Never shown, logged or pickled."""

    def __init__(self, private: ec.EllipticCurvePrivateKey, *, now_s: Callable[[], float] = time.time) -> None:
        self._private = private
        self._now_s = now_s
        # How far the broker's clock is ahead of ours, as far as it had to tell.
        self._ahead_s = 0.0
        self.jwk = public_jwk(private.public_key())
        self.thumbprint = thumbprint(self.jwk)

    @classmethod
    def new(cls) -> Self:
        """Make one."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    def __repr__(self) -> str:
        return f"RunKey({self.thumbprint})"

    def __reduce__(self) -> Any:
        raise TypeError("a run's key is not copied; keep it with a key file")

    def public_text(self) -> str:
        """Return the public JWK, as OpenRun takes it."""
        return json.dumps(self.jwk, sort_keys=True, separators=(",", ":"))

    def metadata(self, method: str, run: str | None, request: Message) -> tuple[tuple[str, str], ...]:
        """Return the metadata of one attempt of a call, `method` as `TokenService/Mint`. Each attempt needs its own."""
        claims = ProofClaims(
            method,
            run,
            request_hash(request.SerializeToString(deterministic=True)),
            secrets.token_urlsafe(16),
            int(self._now_s() + self._ahead_s),
        )
        message = proof_signing_input(self.thumbprint, claims)
        return ((RUN_PROOF_KEY, assemble(message, raw_signature(self._private.sign(message, _ES256)))),)

    def learn_clock(self, broker_now: str) -> bool:
        """Go by the broker's clock from now on, as it told in a refusal; return whether that changes anything."""
        if not (broker_now.isascii() and broker_now.isdecimal() and len(broker_now) <= 12):  # noqa: PLR2004 - far beyond any date
            return False
        before, self._ahead_s = self._ahead_s, int(broker_now) - self._now_s()
        return abs(before - self._ahead_s) > 1

    def to_pem(self) -> str:
        """Return the private key, PKCS#8. A secret."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode("ascii")

    @classmethod
    def from_pem(cls, text: str) -> Self:
        """Read a private key. Raises ValueError unless it is a P-256 key."""
        private = serialization.load_pem_private_key(text.encode("ascii"), None)
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise TypeError("not a P-256 key")
        return cls(private)


@dataclass(frozen=True, slots=True)
class KeptRun:
    """What is needed to go on with a run after a restart."""

    run: str
    key: RunKey = field(repr=False)
    realm: str
    partner: str
    models: tuple[str, ...]
    user: str | None = None
    workload: str | None = None


def keep_run(kept: KeptRun, path: str | Path) -> None:
    """Write a new file with mode 0600, in one step, durably.

    Raises:
        ConfigInvalid: There is one already, or it cannot be written.
    """
    target = Path(path)
    document = {
        "run": kept.run,
        "realm": kept.realm,
        "partner": kept.partner,
        "models": list(kept.models),
        "user": kept.user,
        "workload": kept.workload,
        "key": kept.key.to_pem(),
    }
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        # Born with its mode: there is no moment at which others can open it.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, OWNER_ONLY)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                json.dump(document, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            # Linked and not renamed: the key of another run is never overwritten.
            os.link(partial, target)
        finally:
            partial.unlink()
    except FileExistsError as there:
        raise ConfigInvalid(
            "key_file", (f"{target}: is there already, perhaps of a run that goes on; resume it, or remove the file",)
        ) from there
    except OSError as bad:
        raise ConfigInvalid("key_file", (f"{target}: {bad.strerror or 'cannot be written'}",)) from bad


def must_be_free(path: str | Path) -> None:
    """Refuse a key file that is there already, before a run is opened for nothing. Raises ConfigInvalid."""
    if os.path.lexists(path):
        raise ConfigInvalid(
            "key_file", (f"{path}: is there already, perhaps of a run that goes on; resume it, or remove the file",)
        )


def read_kept_run(path: str | Path) -> KeptRun:
    """Read what `keep_run` wrote.

    Raises:
        ConfigInvalid: It is missing, damaged, somebody else's, or others may read it.
    """
    try:
        with Path(path).open(encoding="ascii") as file:
            # Of the open file, so that it cannot be exchanged after the check.
            _must_be_private(path, os.fstat(file.fileno()))
            unverified = json.load(file)
        if set(unverified) != _FIELDS or not all(isinstance(model, str) for model in unverified["models"]):
            raise TypeError("not exactly our fields")
        subjects = (unverified["user"], unverified["workload"])
        texts = [unverified["run"], unverified["realm"], unverified["partner"], *(s for s in subjects if s is not None)]
        if not all(isinstance(text, str) and text for text in texts):
            raise TypeError("not texts")
        return KeptRun(
            run=unverified["run"],
            key=RunKey.from_pem(unverified["key"]),
            realm=unverified["realm"],
            partner=unverified["partner"],
            models=tuple(unverified["models"]),
            user=unverified["user"],
            workload=unverified["workload"],
        )
    except OSError as bad:
        raise ConfigInvalid("key_file", (f"{path}: {bad.strerror or 'cannot be read'}",)) from bad
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        # Without the cause, which may quote the file (P12).
        raise ConfigInvalid("key_file", (f"{path}: is not a run's key file",)) from None


def _must_be_private(path: str | Path, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise ConfigInvalid("key_file", (f"{path}: has mode {mode:04o}, others may use it; chmod 600 it",))
    if status.st_uid not in {os.geteuid(), 0}:
        raise ConfigInvalid("key_file", (f"{path}: belongs to another user",))
