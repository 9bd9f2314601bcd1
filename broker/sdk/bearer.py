"""The token of a request: exactly one authorization value, `Bearer` and nothing else (RFC 6750 §2.1)."""

import re
from collections.abc import Sequence

from broker.errors import Malformed

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] ([A-Za-z0-9_.-]+)", re.ASCII)


class NoToken(Malformed):
    """The request carries no token."""


def bearer_token(values: Sequence[str | bytes]) -> str:
    """Return the token of the one authorization value.

    Raises:
        NoToken: There is none.
        Malformed: There are several, or it is not a bearer token. None of them is tried (smuggling).
    """
    if not values:
        raise NoToken("no token was sent", hint="send `Authorization: Bearer TOKEN`")
    if len(values) > 1:
        raise Malformed("more than one authorization was sent", hint="send exactly one")
    value = values[0]
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    match = _BEARER.fullmatch(text)
    if match is None:
        raise Malformed("the authorization is not a bearer token", hint="send `Authorization: Bearer TOKEN`")
    return match.group(1)
