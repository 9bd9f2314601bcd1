"""Which certificate goes by which verifier's name: two at once would hide behind each other."""

import hashlib
import ssl

from grpc.aio import ServicerContext

from broker.errors import NameInUse, Unauthenticated


def certificate_of(context: ServicerContext) -> bytes:
    """Return the SHA-256 of the caller's certificate. Raises Unauthenticated."""
    pems = list(context.auth_context().get("x509_pem_cert") or ())
    if len(pems) != 1:
        raise Unauthenticated("no client certificate was presented")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pems[0].decode("ascii"))).digest()


class Names:
    """The names of live streams. The same certificate may have several: replicas that share it."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[bytes, int]] = {}

    def claim(self, realm: str, verifier: str, certificate: bytes) -> None:
        """Take a name for one more stream. Raises NameInUse: another certificate has it."""
        holder, streams = self._held.get((realm, verifier), (certificate, 0))
        if holder != certificate:
            raise NameInUse(f"{verifier} listens already in realm {realm}, with another certificate")
        self._held[realm, verifier] = (certificate, streams + 1)

    def release(self, realm: str, verifier: str) -> None:
        """Give a name back for one stream."""
        certificate, streams = self._held[realm, verifier]
        if streams > 1:
            self._held[realm, verifier] = (certificate, streams - 1)
        else:
            del self._held[realm, verifier]
