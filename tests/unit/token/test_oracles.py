"""PyJWT and joserfc as oracles: they verify what we sign, and accept whatever we accept."""

import random
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwk as jose_jwk
from joserfc import jwt as jose_jwt

from broker.errors import Malformed, Untrusted
from broker.token.claims import Claims, decode_claims, encode_claims
from broker.token.jws import b64url, unb64url
from broker.token.keys import Purpose, check_certificate, public_jwk
from broker.token.verification import check_signature
from tests.realm_keys import RealmKeys
from tests.unit.token.made import claims_of

KEYS = RealmKeys.of_today()
TRUSTED = check_certificate(KEYS.token.certificate, KEYS.trust, Purpose.TOKEN)
HELD = {TRUSTED.kid: TRUSTED}
JWK = {**public_jwk(TRUSTED.public_key), "kid": TRUSTED.kid, "alg": "ES256", "use": "sig"}
PYJWT_KEY = jwt.PyJWK.from_dict(JWK)
JOSE_KEY = jose_jwk.ECKey.import_key(JWK)


def by_pyjwt(token: str) -> dict[str, Any]:
    return jwt.decode(
        token,
        PYJWT_KEY,
        algorithms=["ES256"],
        audience=KEYS.trust.audience,
        issuer=KEYS.trust.issuer,
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )


def by_joserfc(token: str) -> dict[str, Any]:
    return jose_jwt.decode(token, JOSE_KEY, algorithms=["ES256"]).claims


def as_json(claims: Claims) -> dict[str, Any]:
    named = {name: getattr(claims, name) for name in Claims.__slots__}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in named.items() if value is not None
    }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(claims_of(KEYS))
def test_both_verify_our_tokens_and_read_the_same_claims(claims):
    named = {name: getattr(claims, name) for name in Claims.__slots__}
    token = KEYS.mint(**named)
    assert check_signature(token, HELD).claims == claims
    assert by_pyjwt(token) == by_joserfc(token) == as_json(claims)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_we_accept_they_accept(seed):
    """Truly signed payloads, altered before they were signed: ours must be the narrowest gate."""
    chance = random.Random(seed)
    from tests.realm_keys import sign
    from tests.unit.token.test_fuzz import bytes_of

    payload = encode_claims(KEYS.claims(run="a-run-of-tests", labels=("a=b",)))
    accepted = 0
    for _ in range(1500):
        changed = bytes_of(chance, payload)
        header = unb64url(KEYS.mint().split(".", 1)[0]) if chance.random() < 0.001 else HEADER
        message = f"{b64url(header)}.{b64url(changed)}"
        token = f"{message}.{b64url(sign(KEYS.token.private, message.encode()))}"
        try:
            signed = check_signature(token, HELD)
        except (Malformed, Untrusted):
            continue
        accepted += 1
        assert encode_claims(signed.claims) == changed, "what we accept has one spelling"
        assert by_joserfc(token) == as_json(signed.claims)
        if signed.claims.iss == KEYS.trust.issuer and signed.claims.aud == KEYS.trust.audience:
            assert by_pyjwt(token) == as_json(signed.claims)
    assert accepted > 20, "a test in which nothing is accepted shows nothing"


HEADER = unb64url(KEYS.mint().split(".", 1)[0])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(claims_of(KEYS), st.randoms(use_true_random=False))
def test_decoding_accepts_exactly_what_encoding_writes(claims, chance):
    from tests.unit.token.test_fuzz import bytes_of

    data = encode_claims(claims)
    assert decode_claims(data) == claims
    for _ in range(5):
        changed = bytes_of(chance, data)
        expected = naive(changed)
        try:
            found = decode_claims(changed)
        except Malformed:
            assert expected is None, changed
        else:
            assert found == expected, changed


def naive(data: bytes) -> Claims | None:
    """The slow way: a JSON parser, the constructor's rules, and the one spelling."""
    import json

    try:
        fields = json.loads(data.decode("ascii"))
        for name in ("user", "workload", "run", "test", "cnf", "act"):
            fields.setdefault(name, None)
        if any(type(fields[name]) is not int for name in ("iat", "nbf", "exp", "idx")):
            return None
        claims = Claims(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
    except (ValueError, TypeError, KeyError, AttributeError, Malformed):
        return None
    return claims if encode_claims(claims) == data else None
