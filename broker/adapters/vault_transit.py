"""Keys in Vault's transit engine: their public halves, and signatures that are verified before anybody sees them."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hvac.utils import format_url

from broker.adapters.vault_session import VaultSession
from broker.errors import ConfigInvalid, Malformed, SignerUnavailable
from broker.service.metering import Meter
from broker.token.identifiers import identifier
from broker.token.jws import unb64url
from broker.token.keys import Jwk, public_jwk, respelled, thumbprint, verify_es256

# OpenBao refuses a request with more than 1,000 JSON strings, names of members included (its listener's
# max_request_json_strings): two for an item, and those beside the batch leave room for 497 items.
MAX_ITEMS = 490
# A token key's name ends so, and a realm's may not: the root key of a realm `x-tokens` would be the token key of `x`.
TOKENS_SUFFIX = "-tokens"


class NoSignature(StrEnum):
    """Why a message has none."""

    REFUSED = "Vault refused to sign with this version of the key"
    WRONG = "Vault returned a wrong signature"


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One version of a transit key."""

    number: int
    made_at: datetime
    jwk: Jwk
    kid: str
    public_key: ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class KeyNames:
    """Names of transit keys: `template` with the realm in the place of `{realm}`."""

    template: str

    def __post_init__(self) -> None:
        # Without the realm in it, all realms would share one key (P8).
        if self.template.count("{realm}") != 1 or not self.template.replace("{realm}", "").isascii():
            raise ConfigInvalid("vault.key_name", ("must hold {realm} once",))

    def of(self, realm: str) -> str:
        """Return the name of the realm's key. Raises Invalid for what is no realm's name."""
        return self.template.replace("{realm}", identifier("realm", realm))


class TransitKeys:
    """The keys under one transit mount. Safe for use by several threads."""

    def __init__(self, session: VaultSession, meter: Meter, *, mount: str = "transit") -> None:
        self._session = session
        self._meter = meter
        self._mount = mount

    def versions(self, name: str) -> tuple[KeyVersion, ...]:
        """Return the versions in use of a key, newest first, at least one.

        Raises:
            SignerUnavailable: No answer; or the key is not a P-256 key, or could leave Vault (P9).
        """
        answer = self._session.call("read-key", lambda vault: vault.get(self._path("keys", name)))
        data = answer.get("data")
        if not isinstance(data, Mapping):
            raise _senseless(name)
        if data.get("type") != "ecdsa-p256":
            raise SignerUnavailable(f"the Vault key {name} is not of type ecdsa-p256")
        if data.get("exportable") is not False or data.get("allow_plaintext_backup") is not False:
            raise SignerUnavailable(
                f"the Vault key {name} could leave Vault: it is exportable or allows a plaintext backup",
                hint="make the key anew, as deploy/vault/prepare.sh does",
            )
        try:
            found = [_version(number, fields) for number, fields in data["keys"].items()]
        except (KeyError, TypeError, AttributeError, ValueError) as odd:
            raise _senseless(name) from odd
        if not found:
            raise _senseless(name)
        return tuple(sorted(found, key=lambda version: version.number, reverse=True))

    def sign(
        self, name: str, version: KeyVersion, messages: Sequence[bytes], *, read_timeout_s: float | None = None
    ) -> list[bytes | NoSignature]:
        """Sign at most MAX_ITEMS messages in one call: for each r || s, verified, or why there is none.

        Raises:
            SignerUnavailable: No answer, or one that does not fit what was asked.
        """
        # OpenBao ignores a key version beside an item, so it stands beside the batch.
        items = [{"input": base64.b64encode(message).decode("ascii")} for message in messages]
        answer = self._session.call(
            "sign",
            lambda vault: vault.post(
                self._path("sign", name) + "/sha2-256",
                json={"batch_input": items, "key_version": version.number, "marshaling_algorithm": "jws"},
            ),
            read_timeout_s=read_timeout_s,
        )
        data = answer.get("data")
        results = data.get("batch_results") if isinstance(data, Mapping) else None
        if not isinstance(results, list) or len(results) != len(messages):
            raise _senseless(name)
        return [self._judged(version, message, result) for message, result in zip(messages, results, strict=True)]

    def _path(self, verb: str, name: str) -> str:
        return str(format_url("/v1/{mount}/{verb}/{name}", mount=self._mount, verb=verb, name=name))

    def _judged(self, version: KeyVersion, message: bytes, result: object) -> bytes | NoSignature:
        if not isinstance(result, Mapping) or result.get("error"):
            return NoSignature.REFUSED
        signature = _signature(result.get("signature"), version)
        if signature is None or not verify_es256(version.public_key, signature, message):
            self._meter.vault_called("sign", "wrong-signature", 0.0)
            return NoSignature.WRONG
        return signature


def _version(number: str, fields: Mapping[str, Any]) -> KeyVersion:
    public_key = load_pem_public_key(fields["public_key"].encode("ascii"))
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        raise ValueError("not a P-256 key")  # noqa: TRY004 - whatever is odd about an answer is one error
    made_at = datetime.fromisoformat(fields["creation_time"])
    if made_at.tzinfo is None:
        raise ValueError("a time without a zone")
    jwk = public_jwk(public_key)
    return KeyVersion(int(number), made_at, jwk, thumbprint(jwk), public_key)


def _signature(text: object, version: KeyVersion) -> bytes | None:
    """Return what is behind `vault:vN:`, or None."""
    prefix = f"vault:v{version.number}:"
    if not isinstance(text, str) or not text.startswith(prefix):
        return None
    try:
        return respelled(unb64url(text.removeprefix(prefix)))
    except Malformed:
        return None


def _senseless(name: str) -> SignerUnavailable:
    return SignerUnavailable(f"Vault answered something that makes no sense about the key {name}")
