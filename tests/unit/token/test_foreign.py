"""Other issuers' JWTs, held against the libraries: what we accept they accept, and what we refuse has a reason."""

import json
import time
from contextlib import suppress
from datetime import UTC, datetime

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwk as jose_jwk
from joserfc import jws as jose_jws
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from broker.errors import Malformed, Unauthenticated
from broker.token.foreign import (
    LEEWAY_S,
    authentication_instant,
    check_claims,
    foreign_json,
    is_signed_by,
    key_of_nonce,
    parse_foreign,
    read_key_set,
)
from broker.token.jws import b64url

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
ISSUER, AUDIENCE = "https://sso.example", "broker"
GOOD = {"iss": ISSUER, "aud": AUDIENCE, "sub": "u-1", "iat": NOW_S, "exp": NOW_S + 600}

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVES = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
}
ED = ed25519.Ed25519PrivateKey.generate()
KEYS = {**dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSA), **CURVES, "EdDSA": ED}
OF_PYJWT = {"R": RSAAlgorithm, "P": RSAAlgorithm, "ES": ECAlgorithm, "Ed": OKPAlgorithm}


def public(alg, /, **changes):
    kind = next(kind for start, kind in OF_PYJWT.items() if alg.startswith(start))
    return {**json.loads(kind.to_jwk(KEYS[alg].public_key())), "kid": "k", "alg": alg, "key_ops": ["verify"], **changes}


def key_set(*members):
    return read_key_set(json.dumps({"keys": members}).encode())


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("alg", sorted(KEYS))
def test_what_the_libraries_sign_is_accepted_and_nothing_that_they_refuse(alg):
    text = jwt.encode(GOOD, KEYS[alg], alg, headers={"kid": "k"})
    token, key = parse_foreign(text), key_set(public(alg))["k"]
    assert is_signed_by(token, key)
    # joserfc agrees, by the same key.
    known = jose_jwk.import_key({name: value for name, value in public(alg).items() if name != "key_ops"})
    assert jose_jws.deserialize_compact(text, known, algorithms=[alg]).payload
    for place in (5, len(text) // 2, len(text) - 5):
        altered = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        try:
            assert not is_signed_by(parse_foreign(altered), key)
        except Malformed:
            continue


@pytest.mark.parametrize("alg", sorted(KEYS))
@pytest.mark.parametrize("claimed", [*sorted(KEYS), "Ed25519"])
def test_t2_a_key_signs_with_the_algorithm_that_it_is_for_and_with_no_other(alg, claimed):
    text = jwt.encode(GOOD, KEYS[alg], alg, headers={"kid": "k"})
    keys = key_set(public(alg, alg=claimed))
    assert ("k" in keys and is_signed_by(parse_foreign(text), keys["k"])) == (claimed == alg)


@pytest.mark.parametrize("alg", sorted(KEYS))
def test_without_alg_a_key_is_for_the_one_that_its_kind_is_used_with(alg):
    member = public(alg)
    del member["alg"]
    key = key_set(member)["k"]
    assert is_signed_by(parse_foreign(jwt.encode(GOOD, KEYS[alg], alg, headers={"kid": "k"})), key) == (
        alg in {"RS256", "ES256", "ES384", "ES512", "EdDSA"}
    )


def test_t9_signatures_of_zeros_and_of_other_lengths_are_none():
    token = parse_foreign(jwt.encode(GOOD, CURVES["ES256"], "ES256", headers={"kid": "k"}))
    key = key_set(public("ES256"))["k"]
    assert is_signed_by(token, key)
    half = token.signature[:32]
    for signature in (bytes(64), half + bytes(32), bytes(32) + half, b"", half, token.signature + b"\0", bytes(63)):
        assert not is_signed_by(type(token)(token.alg, token.kid, token.claims, token.signing_input, signature), key)
    assert not is_signed_by(type(token)(token.alg, "other", token.claims, token.signing_input, token.signature), key)


@pytest.mark.parametrize(
    "member",
    [
        public("RS256", e="AQ"),
        public("RS256", e="AQAAAAE"),
        public("RS256", n=b64url(bytes([255] * 128))),
        public("RS256", n=b64url(bytes([255] * 2048))),
        public("RS256", n=1),
        public("RS256", n=public("RS256")["n"] + "="),
        public("RS256", n=None),
        public("RS256", alg="HS256"),
        public("RS256", alg="rs256"),
        public("RS256", use="enc"),
        public("RS256", key_ops=["encrypt"]),
        public("RS256", key_ops="verify"),
        public("RS256", p="AAAA"),
        public("ES256", crv="P-384"),
        public("ES256", crv="secp256k1"),
        public("ES256", x=public("ES256")["y"]),
        public("ES256", x="AAAA"),
        public("EdDSA", crv="Ed448"),
        public("EdDSA", crv="X25519"),
        public("EdDSA", x="AAAA"),
        {"kty": "oct", "kid": "k", "k": "c2VjcmV0", "alg": "HS256"},
        {"kid": "k"},
    ],
)  # fmt: skip
def test_t13_a_key_that_cannot_be_used_is_as_if_it_were_not_there(member):
    assert key_set(member) == {}


def test_a_set_has_a_bounded_number_of_keys_each_once():
    assert len(key_set(*(public("ES256", kid=f"k{n}") for n in range(100)))) == 100
    for members in ([public("ES256", kid=f"k{n}") for n in range(101)], [public("ES256"), public("RS256")]):
        with pytest.raises(Malformed):
            key_set(*members)


@pytest.mark.parametrize("data", [b"[]", b'{"keys":1}', b"{}", b"x", b"", b"\xff", b'{"keys":[],"keys":[]}'])
def test_what_is_no_set_is_refused(data):
    with pytest.raises(Malformed):
        read_key_set(data)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_bytes_are_a_set_by_chance_or_break_anything(data):
    with suppress(Malformed):
        assert read_key_set(data) == {}


@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_=-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}"))
@settings(max_examples=500, deadline=None)
def test_no_text_is_a_token_by_chance_or_breaks_anything(text):
    with pytest.raises(Malformed):
        parse_foreign(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
@settings(max_examples=300, deadline=None)
def test_json_that_has_one_meaning_means_what_python_says(value):
    try:
        data = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert foreign_json(data) == json.loads(data)
    assert foreign_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "text", ["9" * 400, "-9007199254740993", "1e400", "-1e400", "NaN", "Infinity", "[1,]", "{'a':1}"]
)
def test_t6_numbers_that_are_none_and_json_of_others_are_refused(text):
    with pytest.raises(Malformed):
        foreign_json(f'{{"n":{text}}}'.encode())


def checked(**changes):
    claims = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return check_claims(claims, issuer=ISSUER, audience=AUDIENCE, now=NOW)


def test_b5_the_leeway_is_thirty_seconds_on_either_side_and_no_more():
    assert checked() == NOW_S + 600
    assert checked(exp=NOW_S - LEEWAY_S + 1, iat=NOW_S - 100)
    assert checked(iat=NOW_S + LEEWAY_S)
    assert checked(nbf=NOW_S + LEEWAY_S)
    for changes in (
        {"exp": NOW_S - LEEWAY_S, "iat": NOW_S - 100},
        {"iat": NOW_S + LEEWAY_S + 1},
        {"nbf": NOW_S + LEEWAY_S + 1},
        {"exp": NOW_S + 86_401},
    ):
        with pytest.raises(Unauthenticated):
            checked(**changes)


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "exp", "iat"])
@pytest.mark.parametrize("value", [None, True, 0, -1, 1.5, "", "x", [], {}, [AUDIENCE, AUDIENCE], {"a": 1}])
def test_t11_a_claim_of_another_type_is_refused_each(name, value):
    if name == "iat" and value == 0:
        value = -5
    if (name, value) == ("sub", "x"):
        value = "x" * 513
    with pytest.raises(Unauthenticated):
        checked(**{name: value})


def test_who_says_nothing_of_a_login_says_nothing():
    assert authentication_instant({}) is None
    assert authentication_instant({"auth_time": 7, "iat": 7}) == 7
    assert authentication_instant({"auth_time": 7 + LEEWAY_S, "iat": 7}) == 7 + LEEWAY_S
    for future in ({"auth_time": 8 + LEEWAY_S, "iat": 7}, {"auth_time": 7}):
        with pytest.raises(Unauthenticated):
            authentication_instant(future)
    for wrong in (True, "7", 7.5, -1, 2**60):
        with pytest.raises(Unauthenticated):
            authentication_instant({"auth_time": wrong, "iat": 2**50})
    assert key_of_nonce({"nonce": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"})
    for wrong in (None, 1, "", "n-1", "k" * 44, "k" * 42, "k" * 42 + "\n", "k" * 42 + "="):
        assert key_of_nonce({"nonce": wrong}) is None


def test_t10_hostile_texts_take_no_time():
    began = time.monotonic()
    for text in ("." * 16_384, "a." * 8_000, "eyJ" * 5_000, "\u0661" * 16_384, "a" * (10 << 20)):
        with pytest.raises(Malformed):
            parse_foreign(text)
    for data in (
        b"[" * (1 << 20),
        b'{"a":' * (1 << 18),
        b'"' + b"\\" * (1 << 20),
        b"9" * (1 << 20),
        b'{"keys":[' + b"{}," * 99 + b"{}]}",
    ):
        try:
            read_key_set(data)
        except Malformed:
            continue
    assert time.monotonic() - began < 20
