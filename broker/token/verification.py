"""The one path by which a token is accepted, in numbered steps; whatever is not accepted is refused."""

from collections.abc import Mapping
from dataclasses import dataclass

from broker.errors import (
    Expired,
    Invalid,
    NotAllowed,
    NotYetValid,
    Revoked,
    Untrusted,
    WrongRealm,
)
from broker.token.claims import TOKEN_TYP, Claims, decode_claims
from broker.token.identifiers import bare_name, model_name
from broker.token.jws import parse_jws
from broker.token.keys import Purpose, RealmTrust, TrustedKey, verify_es256
from broker.token.revocation import Facts, Matcher, facts_of

MS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class SignedToken:
    """Signed by a key that a root of the realm certified, and well-formed. Not yet accepted for any use."""

    claims: Claims
    kid: str


@dataclass(frozen=True, slots=True)
class Time:
    """The broker's wall clock, Unix milliseconds, between two bounds."""

    earliest_ms: int
    latest_ms: int


def check_signature(token: str, keys: Mapping[str, TrustedKey]) -> SignedToken:
    """Steps 1 to 4: what does not change while the key is trusted.

    Raises:
        Malformed: Not a token of ours.
        Untrusted: No trusted key signed it.
    """
    # 1. The form, the header included; nothing in the header is obeyed.
    jws = parse_jws(token, typ=TOKEN_TYP)
    # 2. The key is one that the realm's root certified for tokens. `keys` holds no other.
    key = keys.get(jws.kid)
    if key is None:
        raise Untrusted("no trusted key signed it")
    # 3. The signature, by the one algorithm of that key. The same answer as for an unknown key.
    if not verify_es256(key.public_key, jws.signature, jws.signing_input):
        raise Untrusted("no trusted key signed it")
    # 4. The claims: exactly ours, each with its one type.
    return SignedToken(decode_claims(jws.payload), jws.kid)


def check_use(
    signed: SignedToken,
    model: str,
    *,
    trust: RealmTrust,
    keys: Mapping[str, TrustedKey],
    time: Time,
) -> None:
    """Steps 5 to 8: judged at every use. Step 9 is `check_holder`, 10 `check_alive`, 11 the freshness lease.

    Raises:
        Untrusted, WrongRealm, Expired, NotYetValid, NotAllowed: Refused.
    """
    claims = signed.claims
    # 5. Issuer, audience and realm are this verifier's, compared whole (P8).
    if claims.iss != trust.issuer or claims.aud != trust.audience or claims.realm != trust.realm:
        raise WrongRealm(f"the token is not for realm {trust.realm}")
    # 6. The key is still trusted, and vouches for a token of this time.
    key = keys.get(signed.kid)
    if (
        key is None
        # `keys` should hold no other; Storm-0558 is what happens when one is there all the same (P8).
        or key.purpose is not Purpose.TOKEN
        or key.realm != claims.realm
        or not key.not_before <= claims.iat <= key.signs_until
        or claims.exp > key.expires
        or time.latest_ms >= key.expires * MS_PER_S
    ):
        raise Untrusted("no trusted key signed it")
    # 7. Its life has begun and is not over, by the broker's clock.
    if time.latest_ms >= claims.exp * MS_PER_S:
        raise Expired("the token has expired", hint="mint a new one")
    if time.earliest_ms < claims.nbf * MS_PER_S:
        raise NotYetValid("the token's life has not begun", hint="check the clocks of the brokers")
    # 8. It covers the model that is asked for; a bare name covers its instances.
    if not _covers(claims.models, model):
        raise NotAllowed("the token does not cover this model", hint="mint one for it")


def check_alive(facts: Facts, idx: int, matcher: Matcher) -> None:
    """Step 10: no revocation kills it (P4). Raises Revoked."""
    found = matcher.find(facts, idx)
    if found is not None:
        raise Revoked(
            f"the token was revoked at index {found.index} ({found.selector})",
            hint="stop; a new token will not be minted while the block is in force",
            metadata={"index": str(found.index)},
        )


def facts_for(signed: SignedToken, model: str) -> Facts:
    """Return what revocations are matched against for this use."""
    return facts_of(signed.claims, signed.kid, model)


def checked_model(model: str) -> str:
    """Return `model` if it can name one. Raises NotAllowed: asking for nothing is not asking for anything."""
    try:
        return model_name("model", model)
    except (Invalid, TypeError) as bad:
        raise NotAllowed("no usable model was asked for", hint="pass the model that will be called") from bad


def _covers(models: tuple[str, ...], asked: str) -> bool:
    return asked in models or bare_name(asked) in models
