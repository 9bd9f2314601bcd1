"""The log's Ed25519 key: in an encrypted local file, or in Vault's transit engine, which it never leaves (P9)."""

import base64
import binascii
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hvac.utils import format_url

from broker.adapters.key_files import load_or_make
from broker.adapters.vault_session import VaultSession
from broker.errors import SignerUnavailable
from broker.ledger.note import PUBLIC_KEY_BYTES, SIGNATURE_BYTES
from broker.service.ports import Clock

FILE = "checkpoints.pem"
# In the place of a realm's name, which cannot begin so: no realm has this key.
IN_PLACE_OF_REALM = "_checkpoints"
# A rotated key is seen so late, and what it replaced goes on signing until then.
LOOK_AGAIN_NS = 60 * 1_000_000_000


class LocalCheckpointKey:
    """The CheckpointSigner port on a file. Makes the key on first use."""

    def __init__(self, folder: Path, passphrase: bytes) -> None:
        self._path = folder / FILE
        self._passphrase = passphrase
        self._lock = threading.Lock()
        self._key: Ed25519PrivateKey | None = None

    def public_keys(self) -> Sequence[bytes]:
        """As the port says."""
        return (self._loaded().public_key().public_bytes_raw(),)

    def sign(self, message: bytes) -> bytes:
        """As the port says."""
        return self._loaded().sign(message)

    def _loaded(self) -> Ed25519PrivateKey:
        with self._lock:
            if self._key is None:
                key = load_or_make(self._path, self._passphrase, Ed25519PrivateKey.generate)
                if not isinstance(key, Ed25519PrivateKey):
                    raise SignerUnavailable(f"{self._path} is not an Ed25519 key")
                self._key = key
            return self._key


@dataclass(frozen=True, slots=True)
class _Versions:
    """Numbers and public keys, newest first, as read at `at_ns`."""

    numbers: tuple[int, ...]
    public: tuple[bytes, ...]
    at_ns: int


class VaultCheckpointKey:
    """The CheckpointSigner port on a transit key of type ed25519. Safe for use by several threads."""

    def __init__(self, session: VaultSession, clock: Clock, *, mount: str, key_name: str) -> None:
        self._session = session
        self._clock = clock
        self._mount = mount
        self._name = key_name.replace("{realm}", IN_PLACE_OF_REALM)
        self._known: _Versions | None = None

    def public_keys(self) -> Sequence[bytes]:
        """As the port says."""
        return self._versions().public

    def sign(self, message: bytes) -> bytes:
        """As the port says."""
        number = self._versions().numbers[0]
        try:
            answer = self._session.call(
                "sign-checkpoint",
                # A batch of one: refused alone, it would be answered as if Vault itself had failed.
                lambda vault: vault.post(
                    self._path("sign"),
                    json={
                        "batch_input": [{"input": base64.b64encode(message).decode("ascii")}],
                        "key_version": number,
                    },
                ),
            )
            return _signature(answer.get("data"), number)
        except SignerUnavailable:
            # Perhaps this version may not sign any more.
            self._known = None
            raise

    def _versions(self) -> _Versions:
        known, now_ns = self._known, self._clock.boottime_ns()
        if known is None or now_ns - known.at_ns > LOOK_AGAIN_NS:
            answer = self._session.call("read-checkpoint-key", lambda vault: vault.get(self._path("keys")))
            known = self._known = _versions(answer.get("data"), self._name, now_ns)
        return known

    def _path(self, verb: str) -> str:
        return str(format_url("/v1/{mount}/{verb}/{name}", mount=self._mount, verb=verb, name=self._name))


def _versions(data: object, name: str, now_ns: int) -> _Versions:
    if not isinstance(data, Mapping) or not isinstance(data.get("keys"), Mapping):
        raise SignerUnavailable(f"Vault answered something that makes no sense about the key {name}")
    if data.get("type") != "ed25519":
        raise SignerUnavailable(f"the Vault key {name} is not of type ed25519")
    if data.get("exportable") is not False or data.get("allow_plaintext_backup") is not False:
        raise SignerUnavailable(
            f"the Vault key {name} could leave Vault: it is exportable or allows a plaintext backup",
            hint="make the key anew, as deploy/vault/prepare.sh does",
        )
    try:
        found = sorted(((int(number), _public(fields)) for number, fields in data["keys"].items()), reverse=True)
    except (ValueError, KeyError, TypeError) as odd:
        raise SignerUnavailable(f"Vault answered something that makes no sense about the key {name}") from odd
    if not found:
        raise SignerUnavailable(f"the Vault key {name} has no version")
    return _Versions(tuple(number for number, _ in found), tuple(public for _, public in found), now_ns)


def _public(fields: Any) -> bytes:
    public = base64.b64decode(fields["public_key"], validate=True)
    if len(public) != PUBLIC_KEY_BYTES:
        raise ValueError("not an Ed25519 key")
    return public


def _signature(data: object, number: int) -> bytes:
    results = data.get("batch_results") if isinstance(data, Mapping) else None
    result = results[0] if isinstance(results, list) and len(results) == 1 else None
    text = result.get("signature") if isinstance(result, Mapping) else None
    prefix = f"vault:v{number}:"
    try:
        if isinstance(text, str) and text.startswith(prefix):
            signature = base64.b64decode(text.removeprefix(prefix), validate=True)
            if len(signature) == SIGNATURE_BYTES:
                return signature
    except binascii.Error:
        pass
    raise SignerUnavailable("Vault did not sign the checkpoint")
