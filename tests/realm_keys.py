"""A realm with real keys: signs certificates, tokens, frames and echoes as a broker does, and as it must not."""

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from broker.token.claims import TOKEN_TYP, Claims, encode_claims
from broker.token.jws import assemble, signing_input
from broker.token.keys import (
    Purpose,
    RealmTrust,
    certificate_payload,
    certificate_signing_input,
    public_jwk,
    raw_signature,
    thumbprint,
)
from broker.token.restoration import Restoration, restoration_signing_input
from broker.token.revocation import Selector
from broker.v1 import feed_pb2

ES256 = ec.ECDSA(hashes.SHA256())
FRAME_CONTEXT = b"broker.v1.FrameBody\x00"
ECHO_CONTEXT = b"broker.v1.EchoBody\x00"
KEPT_CONTEXT = b"broker.v1.ReceiptsKept\x00"
NOW_S = 1_800_000_000


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    return raw_signature(key.sign(message, ES256))


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """A key with its certificate."""

    private: ec.EllipticCurvePrivateKey
    certificate: str

    @property
    def kid(self) -> str:
        return thumbprint(public_jwk(self.private.public_key()))


@dataclass(slots=True)
class RealmKeys:
    """One realm's root, feed key and token key. Times are Unix seconds around `now_s`."""

    realm: str = "evaluation"
    now_s: int = NOW_S
    life_s: int = 600
    root: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    feed: CertifiedKey = field(init=False)
    token: CertifiedKey = field(init=False)

    def __post_init__(self) -> None:
        self.feed = self.certified(Purpose.FEED)
        self.token = self.certified(Purpose.TOKEN)

    @classmethod
    def of_today(cls, realm: str = "evaluation") -> "RealmKeys":
        # What a session makes at its start is used at its end, which may be half an hour later.
        return cls(realm, int(time.time()), life_s=6 * 3600)

    @property
    def trust(self) -> RealmTrust:
        return RealmTrust(
            self.realm,
            f"https://{self.realm}.example.org",
            f"{self.realm}.models",
            (public_jwk(self.root.public_key()),),
        )

    def certified(
        self,
        purpose: Purpose,
        *,
        not_before: int | None = None,
        signs_until: int | None = None,
        expires: int | None = None,
    ) -> CertifiedKey:
        key = ec.generate_private_key(ec.SECP256R1())
        payload = certificate_payload(
            self.trust,
            purpose,
            public_jwk(key.public_key()),
            not_before=not_before or self.now_s - 3600,
            signs_until=signs_until or self.now_s + 86_400,
            expires=expires or self.now_s + 90_000,
        )
        message = certificate_signing_input(thumbprint(public_jwk(self.root.public_key())), payload)
        return CertifiedKey(key, assemble(message, sign(self.root, message)))

    def claims(self, **changed: Any) -> Claims:
        claims = Claims(
            iss=self.trust.issuer,
            sub="acme/user/bob",
            aud=self.trust.audience,
            client_id="spiffe://example.org/harness/acme",
            iat=self.now_s,
            nbf=self.now_s - 5,
            exp=self.now_s + self.life_s,
            jti=secrets.token_urlsafe(16),
            scope="model:mythos",
            realm=self.realm,
            partner="acme",
            user="bob",
            workload=None,
            run=None,
            test=None,
            models=("mythos",),
            env="ci",
            labels=(),
            parents=(),
            idx=5,
        )
        return replace(claims, **changed)

    def mint(self, *, by: CertifiedKey | None = None, **changed: Any) -> str:
        key = by or self.token
        message = signing_input(typ=TOKEN_TYP, kid=key.kid, payload=encode_claims(self.claims(**changed)))
        return assemble(message, sign(key.private, message))

    def body(self, **fields: Any) -> feed_pb2.FrameBody:
        """A delta without contents at head 10, unless said otherwise."""
        filled = {
            "realm": self.realm,
            "incarnation": "ledger-1",
            "boot": "boot-1",
            "kind": feed_pb2.FRAME_KIND_DELTA,
            "previous_head": 10,
            "head": 10,
            "as_of_ns": 1_000_000_000,
            "wall_ms": self.now_s * 1000,
            "lease_ms": 5000,
            "heartbeat_ms": 1000,
        }
        return feed_pb2.FrameBody(**{**filled, **fields})

    def delta(self, **fields: Any) -> bytes:
        return self.signed_frame(self.body(**fields))

    def snapshot(self, **fields: Any) -> bytes:
        filled = {
            "kind": feed_pb2.FRAME_KIND_SNAPSHOT,
            "previous_head": 0,
            "parts": 1,
            "keys": [self.token.certificate],
        }
        return self.signed_frame(self.body(**{**filled, **fields}))

    def signed_frame(self, body: feed_pb2.FrameBody, *, by: CertifiedKey | None = None) -> bytes:
        key, data = by or self.feed, body.SerializeToString()
        frame = feed_pb2.SignedFrame(
            body=data, signature=sign(key.private, FRAME_CONTEXT + data), certificate=key.certificate
        )
        return feed_pb2.ListenResponse(frame=frame).SerializeToString()

    def echo(self, *, by: CertifiedKey | None = None, **fields: Any) -> bytes:
        filled = {"realm": self.realm, "boot": "boot-1", "verifier": "spiffe://example.org/verifier/one"}
        data = feed_pb2.EchoBody(**{**filled, **fields}).SerializeToString()
        key = by or self.feed
        signed = feed_pb2.SignedEcho(
            body=data, signature=sign(key.private, ECHO_CONTEXT + data), certificate=key.certificate
        )
        return feed_pb2.ListenResponse(echo=signed).SerializeToString()

    def restoration(self, before: str, after: str, *, size: int = 7, trust: RealmTrust | None = None) -> str:
        """The root's word that a ledger was restored."""
        made = Restoration(before, after, size, self.now_s)
        kid = thumbprint(public_jwk(self.root.public_key()))
        message = restoration_signing_input(kid, trust or self.trust, made)
        return assemble(message, sign(self.root, message))

    def kept(self, *, by: CertifiedKey | None = None, context: bytes = KEPT_CONTEXT, **fields: Any) -> bytes:
        """The answer to receipts."""
        filled = {"realm": self.realm, "incarnation": "ledger-1", "wall_ms": self.now_s * 1000, "key": "k" * 43}
        data = feed_pb2.ReceiptsKept(**{**filled, **fields}).SerializeToString()
        key = by or self.feed
        signed = feed_pb2.SignedReceiptsKept(
            body=data, signature=sign(key.private, context + data), certificate=key.certificate
        )
        return feed_pb2.ListenResponse(receipts_kept=signed).SerializeToString()


def entry(index: int, keep_s: int = 3600, **conditions: str) -> feed_pb2.FeedRevocation:
    """A revocation as it is on the wire."""
    selector = Selector.of(**conditions)
    return feed_pb2.FeedRevocation(
        index=index,
        dimensions=[int(dimension) for dimension, _ in selector.conditions],
        values=[value for _, value in selector.conditions],
        keep_s=keep_s,
    )


def indexed(entries: Iterable[feed_pb2.FeedRevocation], first: int, stop: int) -> list[feed_pb2.FeedRevocation]:
    return [one for one in entries if first <= one.index < stop]
