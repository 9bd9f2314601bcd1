"""The token of a request: exactly one authorization value, `Bearer` or `DPoP` (RFC 6750 §2.1, RFC 9449 §7.1)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from broker.errors import Malformed, NotHolder

_AUTHORIZATION = re.compile(r"([Bb][Ee][Aa][Rr][Ee][Rr]|[Dd][Pp][Oo][Pp]) ([A-Za-z0-9_.-]+)", re.ASCII)
_HINT = "send `Authorization: Bearer TOKEN`"


class NoToken(Malformed):
    """The request carries no token."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a request carries: a token, and the DPoP proof for it where the scheme is DPoP."""

    token: str
    dpop: str | None = None


def sent_token(authorizations: Sequence[str | bytes], proofs: Sequence[str | bytes] = ()) -> Sent:
    """Return the token of the one authorization value, and the one proof that belongs to it.

    A proof beside a bearer token counts for nothing.

    Raises:
        NoToken: There is none.
        Malformed: There are several, or it is neither scheme. None of them is tried (smuggling).
        NotHolder: The scheme is DPoP, and there is not exactly one proof (RFC 9449 §4.3 (1)).
    """
    if not authorizations:
        raise NoToken("no token was sent", hint=_HINT)
    if len(authorizations) > 1:
        raise Malformed("more than one authorization was sent", hint="send exactly one")
    match = _AUTHORIZATION.fullmatch(_text(authorizations[0]))
    if match is None:
        raise Malformed("the authorization is not a bearer token", hint=_HINT)
    if match[1].lower() == "bearer":
        return Sent(match[2])
    if len(proofs) != 1:
        raise NotHolder(f"{len(proofs) or 'no'} DPoP proofs were sent", hint="send exactly one, in `DPoP`")
    return Sent(match[2], _text(proofs[0]))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
