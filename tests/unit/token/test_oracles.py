"""PyJWT and joserfc as oracles: they verify what we sign, and accept whatever we accept."""

import copy
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwk as jose_jwk
from joserfc import jwt as jose_jwt
from joserfc.errors import JoseError

from broker.edge.http.app import _jwk
from broker.errors import Malformed, Untrusted
from broker.service.ports import CertificateRecord
from broker.token.claims import Claims, decode_claims, encode_claims
from broker.token.jws import b64url, unb64url
from broker.token.keys import Purpose, check_certificate, load_jwk, parse_trust, public_jwk
from broker.token.verification import check_signature
from tests.realm_keys import RealmKeys
from tests.unit.token.made import claims_of

KEYS = RealmKeys.of_today()
TRUSTED = check_certificate(KEYS.token.certificate, KEYS.trust, Purpose.TOKEN)
HELD = {TRUSTED.kid: TRUSTED}
ROTATED = KEYS.certified(Purpose.TOKEN)


def record(certificate: str, kid: str) -> CertificateRecord:
    return CertificateRecord(1, KEYS.realm, Purpose.TOKEN, kid, certificate, datetime(2027, 1, 1, tzinfo=UTC))


# As the broker publishes them, the key of before a rotation beside the present one.
JWKS = {"keys": [_jwk(record(key.certificate, key.kid)) for key in (ROTATED, KEYS.token)]}
PYJWT_KEYS = jwt.PyJWKSet.from_dict(JWKS)
JOSE_KEYS = jose_jwk.KeySet.import_key_set(copy.deepcopy(JWKS))


def by_pyjwt(token: str) -> dict[str, Any]:
    return jwt.decode(
        token,
        PYJWT_KEYS[jwt.get_unverified_header(token)["kid"]],
        algorithms=["ES256"],
        audience=KEYS.trust.audience,
        issuer=KEYS.trust.issuer,
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )


def by_joserfc(token: str) -> dict[str, Any]:
    return jose_jwt.decode(token, JOSE_KEYS, algorithms=["ES256"]).claims


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


def test_both_take_the_key_of_each_token_from_our_set_also_across_a_rotation():
    for key in (ROTATED, KEYS.token):
        token = KEYS.mint(by=key, jti="a" * 22)
        assert by_pyjwt(token) == by_joserfc(token) == as_json(KEYS.claims(jti="a" * 22))
    stranger = RealmKeys.of_today().mint()
    with pytest.raises(KeyError):
        by_pyjwt(stranger)
    with pytest.raises(JoseError, match="kid"):
        by_joserfc(stranger)
    for jwk in JWKS["keys"]:
        plain = {name: jwk[name] for name in ("kty", "crv", "x", "y")}
        assert public_jwk(load_jwk(plain)) == plain
        assert set(jwk) == {*plain, "kid", "use", "alg", "broker_certificate", "broker_purpose"}, "no private member"


FOLDER = Path(__file__).parents[2] / "vectors"
TOKENS, LISTED = (json.loads((FOLDER / name).read_text("ascii")) for name in ("tokens.json", "oracles.json"))
TRUST = parse_trust(json.dumps(TOKENS["trust"]))["evaluation"]
PINNED = check_certificate(TOKENS["certificate"], TRUST, Purpose.TOKEN)
PINNED_JWK = {**public_jwk(PINNED.public_key), "kid": PINNED.kid, "alg": "ES256", "use": "sig"}


def pyjwt_accepts(token: str) -> bool:
    try:
        jwt.decode(
            token,
            jwt.PyJWKSet.from_dict({"keys": [PINNED_JWK]})[jwt.get_unverified_header(token)["kid"]],
            algorithms=["ES256"],
            audience=TRUST.audience,
            issuer=TRUST.issuer,
            options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
        )
    except (jwt.PyJWTError, KeyError, ValueError):
        return False
    return True


def joserfc_accepts(token: str) -> bool:
    rules = jose_jwt.JWTClaimsRegistry(
        now=TOKENS["latest_ms"] // 1000,
        iss={"essential": True, "value": TRUST.issuer},
        aud={"essential": True, "value": TRUST.audience},
        exp={"essential": True},
    )
    try:
        keys = jose_jwk.KeySet.import_key_set({"keys": [dict(PINNED_JWK)]})
        rules.validate(jose_jwt.decode(token, keys, algorithms=["ES256"]).claims)
    # It lets a RecursionError out, which is why the list in the design has it.
    except (JoseError, ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize(("accepts", "library"), [(pyjwt_accepts, "pyjwt"), (joserfc_accepts, "joserfc")])
def test_what_they_alone_accept_is_listed_with_its_reason(accepts, library):
    for vector in TOKENS["good"]:
        assert accepts(vector["token"]), vector["name"]
    alone = {(one["id"], one["name"]) for one in TOKENS["bad"] if accepts(one["token"])}
    listed = {(id_, name) for id_, of in LISTED["accepted"].items() for name in of[library]}
    # A library that has become stricter is no defect here.
    assert alone <= listed
    assert all(of["reason"] for of in LISTED["accepted"].values())
