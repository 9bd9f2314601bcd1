"""What a realm's root says when the ledger was restored from a backup: which one it is from now on, and after which.

A verifier that was in step with the ledger `before` goes on with the ledger `after` by this word alone.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from broker.errors import Malformed, Untrusted
from broker.token.jws import parse_jws, signing_input, strict_json
from broker.token.keys import RealmTrust, verify_es256

RESTORATION_TYP = "ledger-restored+jwt"
MAX_RESTORATION_BYTES = 4096
# What a frame may carry: a ledger that was restored more often is followed by new verifiers only.
MAX_RESTORATIONS = 16
_INCARNATION = re.compile(r"[!-~]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Restoration:
    """The ledger `before`, restored with its first `size` entries, is the ledger `after`. `at`: Unix seconds."""

    before: str
    after: str
    size: int
    at: int

    def __post_init__(self) -> None:
        names = (self.before, self.after)
        if not all(isinstance(one, str) and _INCARNATION.fullmatch(one) for one in names) or self.before == self.after:
            raise Malformed("a restoration must name two ledgers")
        if not all(type(one) is int and one > 0 for one in (self.size, self.at)):
            raise Malformed("a restoration must say how many entries, and when")


def restoration_signing_input(root_kid: str, trust: RealmTrust, restoration: Restoration) -> bytes:
    """Return what the realm's root signs."""
    claims = {
        "after": restoration.after,
        "before": restoration.before,
        "iat": restoration.at,
        "iss": trust.issuer,
        "realm": trust.realm,
        "size": restoration.size,
    }
    payload = json.dumps(claims, sort_keys=True, separators=(",", ":")).encode("ascii")
    return signing_input(typ=RESTORATION_TYP, kid=root_kid, payload=payload)


def check_restoration(text: str, trust: RealmTrust) -> Restoration:
    """Return what a pinned root said.

    Raises:
        Malformed: Not a restoration of the only form there is.
        Untrusted: Not signed by a root of `trust`, or for another realm (P8).
    """
    jws = parse_jws(text, typ=RESTORATION_TYP, max_bytes=MAX_RESTORATION_BYTES)
    root = trust.root(jws.kid)
    if root is None or not verify_es256(root, jws.signature, jws.signing_input):
        raise Untrusted("the restoration is not signed by a pinned root")
    claims = strict_json(jws.payload)
    if not isinstance(claims, dict) or set(claims) != {"after", "before", "iat", "iss", "realm", "size"}:
        raise Malformed("a restoration must have exactly our claims")
    if (claims["iss"], claims["realm"]) != (trust.issuer, trust.realm):
        raise Untrusted("the restoration is for another realm")
    return Restoration(claims["before"], claims["after"], claims["size"], claims["iat"])


def leads_to(found: Iterable[Restoration], before: str, after: str) -> tuple[str, ...]:
    """Return the ledgers from `before` on that were restored, one after the other, until `after`; none: no way."""
    by_before = {one.before: one.after for one in found}
    way = [before]
    while way[-1] != after:
        following = by_before.get(way[-1])
        if following is None or following in way:
            return ()
        way.append(following)
    return tuple(way[:-1])
