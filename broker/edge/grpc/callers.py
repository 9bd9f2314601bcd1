"""Read the caller's principal from its client certificate, on each call."""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from grpc.aio import ServicerContext

from broker.errors import Invalid, Unauthenticated
from broker.token.identifiers import principal_uri

MAX_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What the TLS layer has verified: one principal, and when the certificate ends."""

    uri: str
    not_before: datetime
    not_after: datetime


class PeerCertificates:
    """Reads certificates; remembers what it read, because each call asks again. One event loop owns it."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, PeerCertificate] = OrderedDict()

    def principal(self, context: ServicerContext, now: datetime) -> str:
        """Return the caller's URI. Raises Unauthenticated.

        The handshake has checked the chain; a connection can outlive its certificate, so its dates are
        judged here, on each call.
        """
        pems = list(context.auth_context().get("x509_pem_cert") or ())
        if len(pems) != 1:
            raise Unauthenticated("no client certificate was presented")
        certificate = self._known.get(pems[0])
        if certificate is None:
            certificate = _read(pems[0])
            self._known[pems[0]] = certificate
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        if not certificate.not_before <= now < certificate.not_after:
            raise Unauthenticated(f"the client certificate of {certificate.uri} has ended", hint="renew it")
        return certificate.uri


def _read(pem: bytes) -> PeerCertificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
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
    return PeerCertificate(uri, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
