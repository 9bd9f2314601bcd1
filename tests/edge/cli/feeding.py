"""A realm with a root, a token key and a feed key, and a feed that serves one snapshot and echoes."""

import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from broker.service.frames import Contents, Stamp, echo, snapshot
from broker.service.ports import CertificateRecord, RevocationRecord
from broker.token.claims import TOKEN_TYP, Claims, encode_claims
from broker.token.jws import assemble, b64url, signing_input
from broker.token.keys import (
    Purpose,
    RealmTrust,
    certificate_payload,
    certificate_signing_input,
    public_jwk,
    raw_signature,
    render_trust,
    thumbprint,
)
from broker.token.revocation import Selector
from broker.v1 import feed_pb2, feed_pb2_grpc

HEAD = 100
BOOT = "boot-1"


@dataclass(frozen=True)
class Key:
    """A signing key that the realm's root certified."""

    private: ec.EllipticCurvePrivateKey
    kid: str
    certificate: str
    signs_until: datetime

    def sign(self, messages: Sequence[bytes]) -> "Future[Sequence[bytes]]":
        signed: Future[Sequence[bytes]] = Future()
        signed.set_result([_sign(self.private, message) for message in messages])
        return signed


@dataclass
class Realm:
    """Everything of one realm that a verifier must be told."""

    name: str = "evaluation"
    revoked: list[Selector] = field(default_factory=list)
    is_silent: bool = False
    heard_of: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.root = ec.generate_private_key(ec.SECP256R1())
        self.trust = RealmTrust(
            self.name, f"https://broker.test/realms/{self.name}", self.name, (public_jwk(self.root.public_key()),)
        )
        self.token_key = self.certified(Purpose.TOKEN)
        self.feed_key = self.certified(Purpose.FEED)

    @property
    def document(self) -> str:
        return render_trust([self.trust])

    def certified(self, purpose: Purpose) -> Key:
        private = ec.generate_private_key(ec.SECP256R1())
        jwk = public_jwk(private.public_key())
        now = int(time.time())
        payload = certificate_payload(
            self.trust, purpose, jwk, not_before=now - 60, signs_until=now + 3600, expires=now + 7200
        )
        message = certificate_signing_input(thumbprint(self.trust.roots[0]), payload)
        certificate = assemble(message, _sign(self.root, message))
        return Key(private, thumbprint(jwk), certificate, datetime.fromtimestamp(now + 3600, UTC))

    def token(self, **changes: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": self.trust.issuer,
            "sub": "acme/user/alice",
            "aud": self.trust.audience,
            "client_id": "spiffe://broker.test/acme-ci",
            "iat": now - 1,
            "nbf": now - 5,
            "exp": now + 300,
            "jti": b64url(secrets.token_bytes(16)),
            "scope": "model:mythos",
            "realm": self.name,
            "partner": "acme",
            "user": "alice",
            "workload": None,
            "run": None,
            "test": None,
            "models": ("mythos",),
            "env": "acme-ci",
            "labels": (),
            "parents": (),
            "idx": 10,
        }
        message = signing_input(
            typ=TOKEN_TYP, kid=self.token_key.kid, payload=encode_claims(Claims(**{**claims, **changes}))
        )
        return assemble(message, _sign(self.token_key.private, message))


class FeedServicer(feed_pb2_grpc.FeedServiceServicer):
    """One snapshot, then answers to echoes."""

    def __init__(self, realm: Realm) -> None:
        self._realm = realm

    def Listen(self, requests: Iterator[feed_pb2.ListenRequest], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self._realm.heard_of.set()
        if self._realm.is_silent:
            for _request in requests:
                pass
            return
        yield from map(feed_pb2.ListenResponse.FromString, self._snapshot())
        for request in requests:
            if request.WhichOneof("message") == "echo":
                answer = echo(
                    realm=self._realm.name,
                    boot=BOOT,
                    nonce=request.echo.nonce,
                    verifier_clock_ns=request.echo.verifier_clock_ns,
                    broker_clock_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                    verifier="spiffe://broker.test/verifier",
                    key=self._realm.feed_key,
                )
                yield feed_pb2.ListenResponse.FromString(answer)

    def _snapshot(self) -> list[bytes]:
        realm, now = self._realm, datetime.now(UTC)
        later = now + timedelta(hours=1)
        key = realm.token_key
        return snapshot(
            Stamp(
                realm.name, "incarnation-1", BOOT, HEAD, time.clock_gettime_ns(time.CLOCK_BOOTTIME), now, 30_000, 1000
            ),
            Contents(
                [
                    RevocationRecord(50 + number, selector, "because", "admin", now, later)
                    for number, selector in enumerate(realm.revoked)
                ],
                [CertificateRecord(1, realm.name, Purpose.TOKEN, key.kid, key.certificate, later)],
            ),
            realm.feed_key,
        )


def _sign(private: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    return raw_signature(private.sign(message, ec.ECDSA(hashes.SHA256())))
