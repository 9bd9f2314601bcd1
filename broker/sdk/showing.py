"""What a request shows to be its token's holder: a client certificate, or a DPoP proof for what was really called."""

import base64
import binascii
import re
import ssl
from urllib.parse import unquote

from broker.errors import ConfigInvalid, Malformed, NotHolder
from broker.sdk.bearer import Sent
from broker.token.binding import ShownCertificate, ShownProof
from broker.token.dpop import normal_url

MAX_CERTIFICATE_CHARS = 32_768
# RFC 9440 §2.1: a structured field, the base64 of the DER form between colons.
_FIELD = re.compile(r":([A-Za-z0-9+/]+={0,2}):", re.ASCII)


def checked_origin(origin: str) -> str:
    """Return an origin in its one spelling; empty: none. Raises ConfigInvalid."""
    if not origin:
        return ""
    try:
        spelled = normal_url(origin)
    except Malformed as bad:
        raise ConfigInvalid("origin", (f"{origin!r} is not https://HOST[:PORT]",)) from bad
    if not spelled.endswith("/") or spelled.count("/") != 3:  # noqa: PLR2004 - two of the scheme, one after the host
        raise ConfigInvalid("origin", (f"{origin!r} has a path; give https://HOST[:PORT]",))
    return spelled.removesuffix("/")


def shown_by(sent: Sent, method: str, origin: str, path: str) -> ShownProof | None:
    """Return the DPoP proof of a request for `path` at `origin`, or None: it carries a bearer token.

    Raises:
        NotHolder: There is a proof, and this service was not told what URL it is called by.
    """
    if sent.dpop is None:
        return None
    if not origin:
        raise NotHolder("this service checks no DPoP proofs", hint="give its interceptor or middleware the `origin`")
    return ShownProof(sent.dpop, method, origin + path)


def certificate_shown(pem: str) -> ShownCertificate | None:
    """Return the certificate of a PEM text, or None where it is none: what cannot be read shows nothing."""
    try:
        return ShownCertificate.of_der(ssl.PEM_cert_to_DER_cert(pem.strip()))
    except (ValueError, binascii.Error):
        return None


def certificate_in_header(value: str) -> ShownCertificate | None:
    """Return the certificate that a proxy put into a header, as RFC 9440 has it or as a URL-encoded PEM; or None."""
    if len(value) > MAX_CERTIFICATE_CHARS:
        return None
    field = _FIELD.fullmatch(value.strip())
    if field is None:
        return certificate_shown(unquote(value))
    try:
        return ShownCertificate.of_der(base64.b64decode(field[1], validate=True))
    except binascii.Error:
        return None
