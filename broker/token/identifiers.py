"""The spelling of names. They are compared as bytes, so only one spelling of each is let in."""

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable

from broker.errors import Invalid

MAX_URI_BYTES = 512

# Patterns are made to be put together into larger ones: each looks at its own characters only.
# `.` beside `.` is refused for those who put names into paths.
IDENTIFIER = r"(?![a-z0-9._-]*\.\.)[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?"
MODEL = f"{IDENTIFIER}(?:@{IDENTIFIER})?"
LABEL = f"{IDENTIFIER}={IDENTIFIER}"
PRINCIPAL = (
    r"spiffe://(?![a-z0-9.-]*\.\.)[a-z0-9](?:[a-z0-9.-]{0,252}[a-z0-9])?"
    r"(?:/(?!\.{1,2}(?![A-Za-z0-9._-]))[A-Za-z0-9._-]+)+"
)
OPAQUE_ID = r"[A-Za-z0-9_-]{8,64}"
KEY_ID = r"[A-Za-z0-9_-]{43}"

_IDENTIFIER = re.compile(IDENTIFIER, re.ASCII)
_MODEL = re.compile(MODEL, re.ASCII)
_LABEL = re.compile(LABEL, re.ASCII)
_PRINCIPAL = re.compile(PRINCIPAL, re.ASCII)
_OPAQUE_ID = re.compile(OPAQUE_ID, re.ASCII)
_KEY_ID = re.compile(KEY_ID, re.ASCII)

# The same rules as questions: for a million values at once, where no message is wanted unless one is wrong.
matches_identifier = _IDENTIFIER.fullmatch
matches_model = _MODEL.fullmatch
matches_label = _LABEL.fullmatch
matches_opaque_id = _OPAQUE_ID.fullmatch

_RULE = "use 1 to 128 of a-z 0-9 . _ -, beginning and ending with a letter or digit, without '..'"


def identifier(field: str, text: str) -> str:
    """Return `text` if it is an identifier. Raises Invalid naming `field`."""
    if not _IDENTIFIER.fullmatch(text):
        raise Invalid(field, f"{_shown(text)} is not a valid name", hint=_RULE)
    return text


def model_name(field: str, text: str) -> str:
    """Return `text` if it is `name` or `name@instance`. Raises Invalid naming `field`."""
    if not _MODEL.fullmatch(text):
        raise Invalid(field, f"{_shown(text)} is not a model, `name` or `name@instance`", hint=_RULE)
    return text


def label(field: str, text: str) -> str:
    """Return `text` if it is `name=value`. Raises Invalid naming `field`."""
    if not _LABEL.fullmatch(text):
        raise Invalid(field, f"{_shown(text)} is not a label, `name=value`", hint=_RULE)
    return text


def principal_uri(field: str, text: str) -> str:
    """Return `text` if it is a SPIFFE ID with a path. Raises Invalid naming `field`."""
    if len(text) > MAX_URI_BYTES or not _PRINCIPAL.fullmatch(text):
        raise Invalid(
            field, f"{_shown(text)} is not a principal", hint="use spiffe://trust-domain/path, without a trailing slash"
        )
    return text


def client_id(field: str, text: str) -> str:
    """Return `text` if it is a principal: a SPIFFE ID, or the name of one that proves itself otherwise.

    Raises:
        Invalid: Names `field`.
    """
    return text if _IDENTIFIER.fullmatch(text) else principal_uri(field, text)


def key_id(field: str, text: str) -> str:
    """Return the RFC 7638 thumbprint of a key. Raises Invalid."""
    if not _KEY_ID.fullmatch(text):
        raise Invalid(field, f"{text!r} is no key's thumbprint", hint="43 characters of base64url")
    return text


def opaque_id(field: str, text: str) -> str:
    """Return `text` if it can be an id that we or a caller made at random. Raises Invalid naming `field`."""
    if not _OPAQUE_ID.fullmatch(text):
        raise Invalid(field, f"{_shown(text)} is not an id", hint="use 8 to 64 of A-Z a-z 0-9 _ -")
    return text


def random_id(random_bytes: Callable[[int], bytes]) -> str:
    """Return 128 random bits, base64url: an opaque id that no command line takes for an option."""
    while True:
        made = urlsafe_b64encode(random_bytes(16)).rstrip(b"=").decode("ascii")
        if not made.startswith("-"):
            return made


def bare_name(model: str) -> str:
    """Return the name of `name` or `name@instance`."""
    return model.partition("@")[0]


def _shown(text: str) -> str:
    """Quote what a stranger sent, short and in ASCII, so that it cannot forge a line of a log."""
    return ascii(text if len(text) <= 40 else text[:40] + "...")  # noqa: PLR2004 - the sum of it
