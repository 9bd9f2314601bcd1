"""Read the caller's principal from its client certificate, on each call."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from grpc.aio import ServicerContext

from broker.errors import Invalid, Unauthenticated
from broker.service.calling import CertificateProof
from broker.token.identifiers import principal_uri

MAX_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What the TLS layer has verified: one principal, and when the certificate ends."""

    uri: str
    not_before: datetime
    not_after: datetime
    sha256: bytes

    def proof(self, now: datetime, address: str) -> CertificateProof:
        """Return how a caller from an IP address proved itself.

        The handshake has checked the chain; a connection can outlive its certificate, so its dates are
        judged here, on each call.

        Raises:
            Unauthenticated: It is not valid at `now`.
        """
        if not self.not_before <= now < self.not_after:
            raise Unauthenticated(f"the client certificate of {self.uri} has ended", hint="renew it")
        return CertificateProof(self.uri, self.not_before, address, self.sha256)


class PeerCertificates:
    """Reads certificates; remembers what it read, because each call asks again. One event loop owns it."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, PeerCertificate] = OrderedDict()

    def proof(self, context: ServicerContext, now: datetime) -> CertificateProof:
        """Return how the caller proved itself. Raises Unauthenticated."""
        pems = list(context.auth_context().get("x509_pem_cert") or ())
        if len(pems) != 1:
            raise Unauthenticated("no client certificate was presented")
        certificate = self._known.get(pems[0])
        if certificate is None:
            certificate = _read(lambda: x509.load_pem_x509_certificate(pems[0]))
            self._known[pems[0]] = certificate
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return certificate.proof(now, peer_address(context.peer()))


def peer_address(peer: str) -> str:
    """Return the IP address in gRPC's name of a peer, `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`; else nothing."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else ""


def read_certificate(der: bytes) -> PeerCertificate:
    """Return what matters of a certificate that the TLS layer has verified. Raises Unauthenticated."""
    return _read(lambda: x509.load_der_x509_certificate(der))


def _read(load: Callable[[], x509.Certificate]) -> PeerCertificate:
    try:
        certificate = load()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound) as bad:
        raise Unauthenticated("the client certificate has no URI SAN") from bad
    if len(uris) != 1:
        # SPIFFE X.509-SVID §2: exactly one, or it is unclear who is calling.
        raise Unauthenticated("the client certificate must have exactly one URI SAN")
    try:
        uri = principal_uri("certificate", uris[0])
    except Invalid as bad:
        raise Unauthenticated("the client certificate's URI SAN is not a SPIFFE ID") from bad
    digest = certificate.fingerprint(hashes.SHA256())
    return PeerCertificate(uri, certificate.not_valid_before_utc, certificate.not_valid_after_utc, digest)
