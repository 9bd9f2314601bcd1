"""The spelling of names. They are compared as bytes, so only one spelling of each is let in."""

import re
from functools import lru_cache

from broker.errors import Invalid

MAX_IDENTIFIER_BYTES = 128
# The same few names come with every token; what was found good once is good for ever.
_REMEMBERED = 4096
MAX_URI_BYTES = 512

# `.` beside `.` is refused for those who put names into paths.
_IDENTIFIER = re.compile(r"(?!.*\.\.)[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?", re.ASCII)
_PRINCIPAL = re.compile(
    r"spiffe://[a-z0-9](?:[a-z0-9.-]{0,252}[a-z0-9])?(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)+", re.ASCII
)
_OPAQUE = re.compile(r"[A-Za-z0-9_-]{8,64}", re.ASCII)

_RULE = "use 1 to 128 of a-z 0-9 . _ -, beginning and ending with a letter or digit, without '..'"


@lru_cache(_REMEMBERED)
def identifier(field: str, text: str) -> str:
    """Return `text` if it is an identifier. Raises Invalid naming `field`."""
    if not _IDENTIFIER.fullmatch(text):
        raise Invalid(field, f"{_shown(text)} is not a valid name", hint=_RULE)
    return text


@lru_cache(_REMEMBERED)
def model_name(field: str, text: str) -> str:
    """Return `text` if it is `name` or `name@instance`. Raises Invalid naming `field`."""
    name, at, instance = text.partition("@")
    if not _IDENTIFIER.fullmatch(name) or (at and not _IDENTIFIER.fullmatch(instance)):
        raise Invalid(field, f"{_shown(text)} is not a model, `name` or `name@instance`", hint=_RULE)
    return text


@lru_cache(_REMEMBERED)
def label(field: str, text: str) -> str:
    """Return `text` if it is `name=value`. Raises Invalid naming `field`."""
    name, _, value = text.partition("=")
    if not _IDENTIFIER.fullmatch(name) or not _IDENTIFIER.fullmatch(value):
        raise Invalid(field, f"{_shown(text)} is not a label, `name=value`", hint=_RULE)
    return text


@lru_cache(_REMEMBERED)
def principal_uri(field: str, text: str) -> str:
    """Return `text` if it is a SPIFFE ID with a path. Raises Invalid naming `field`."""
    if len(text) > MAX_URI_BYTES or not _PRINCIPAL.fullmatch(text):
        raise Invalid(
            field, f"{_shown(text)} is not a principal", hint="use spiffe://trust-domain/path, without a trailing slash"
        )
    return text


def opaque_id(field: str, text: str) -> str:
    """Return `text` if it can be an id that we or a caller made at random. Raises Invalid naming `field`."""
    if not _OPAQUE.fullmatch(text):
        raise Invalid(field, f"{_shown(text)} is not an id", hint="use 8 to 64 of A-Z a-z 0-9 _ -")
    return text


def bare_name(model: str) -> str:
    """Return the name of `name` or `name@instance`."""
    return model.partition("@")[0]


def _shown(text: str) -> str:
    """Quote what a stranger sent, short and in ASCII, so that it cannot forge a line of a log."""
    if not text:
        return "''"
    return ascii(text if len(text) <= 40 else text[:40] + "...")  # noqa: PLR2004 - the sum of it
