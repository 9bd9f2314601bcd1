"""Keys and signatures by themselves: a JWK has one form, a signature one spelling (T9, P9)."""

import itertools
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import Malformed
from broker.token.jws import b64url, unb64url
from broker.token.keys import P256_ORDER, load_jwk, public_jwk, raw_signature, respelled, thumbprint, verify_es256

KEY = ec.generate_private_key(ec.SECP256R1())
JWK = public_jwk(KEY.public_key())
OTHER = public_jwk(ec.generate_private_key(ec.SECP256R1()).public_key())
P384 = ec.generate_private_key(ec.SECP384R1()).public_key().public_numbers()
FIELD = 2**256 - 2**224 + 2**192 + 2**96 - 1
HALF = P256_ORDER // 2
MESSAGE = b"a message"


class Lenient:
    """A library to which every signature is good, as CVE-2022-21449 was to r = s = 0."""

    def verify(self, _signature: bytes, _message: bytes, _algorithm: object) -> None:
        return


def raw(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@pytest.mark.parametrize(
    ("r", "s", "in_range"),
    [
        (0, 0, False),
        (0, 1, False),
        (1, 0, False),
        (1, 1, True),
        (P256_ORDER - 1, HALF, True),
        (P256_ORDER, 1, False),
        (P256_ORDER + 1, 1, False),
        (1, HALF, True),
        (1, HALF + 1, False),
        (1, P256_ORDER - 1, False),
        (1, P256_ORDER, False),
        (2**256 - 1, 1, False),
        (1, 2**256 - 1, False),
    ],
)
def test_t9_the_range_of_a_signature_does_not_depend_on_the_library(r, s, in_range):
    assert verify_es256(cast("Any", Lenient()), raw(r, s), MESSAGE) is in_range
    assert not verify_es256(KEY.public_key(), raw(r, s), MESSAGE)


def test_t9_a_signature_has_64_bytes_also_if_it_means_the_same():
    r, s = 7, 9
    for other in (
        b"",
        raw(r, s)[:-1],
        raw(r, s)[1:],
        raw(r, s) + b"\0",
        b"\0" + raw(r, s),
        raw(r, s)[:32] + b"\0" + raw(r, s)[32:],
        r.to_bytes(32, "big") + s.to_bytes(1, "big"),
        r.to_bytes(32, "big") + s.to_bytes(31, "big"),
        encode_dss_signature(r, s),
    ):
        assert not verify_es256(cast("Any", Lenient()), other, MESSAGE)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=100))
def test_t9_whatever_is_signed_comes_out_in_the_accepted_spelling_and_no_other_verifies(message):
    der = KEY.sign(message, ec.ECDSA(hashes.SHA256()))
    good = raw_signature(der)
    assert verify_es256(KEY.public_key(), good, message)
    r, s = int.from_bytes(good[:32], "big"), int.from_bytes(good[32:], "big")
    assert s <= HALF
    twin = raw(r, P256_ORDER - s)
    KEY.public_key().verify(encode_dss_signature(r, P256_ORDER - s), message, ec.ECDSA(hashes.SHA256()))
    assert not verify_es256(KEY.public_key(), twin, message)
    # What Vault signed comes in either spelling.
    assert respelled(twin) == respelled(good) == good
    for wrong in (raw(s, r), raw((r + 1) % P256_ORDER, s), raw(r, s ^ 1), raw(P256_ORDER - r, s)):
        assert not verify_es256(KEY.public_key(), wrong, message)
    assert not verify_es256(KEY.public_key(), good, message + b"\0")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=80))
def test_respelling_what_is_no_signature_leaves_it_as_it_is(data):
    found = respelled(data)
    assert found == data or (len(data) == 64 and found[:32] == data[:32] and int.from_bytes(found[32:], "big") <= HALF)


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        [],
        None,
        "key",
        7,
        [*JWK.items()],
        *({name: value for name, value in JWK.items() if name != left_out} for left_out in JWK),
        *({**JWK, more: "AA"} for more in ("d", "k", "kid", "use", "alg", "x5c", "key_ops", "")),
        *({**JWK, "kty": other} for other in ("ec", "OKP", "RSA", "oct", "", None, ["EC"])),
        *({**JWK, "crv": other} for other in ("p-256", "P-384", "P-521", "secp256k1", "Ed25519", "", None, ["P-256"])),
        *(
            {**JWK, name: other}
            for name in "xy"
            for other in (7, None, True, ["AA"], {}, "", "AA", JWK[name] + "=", JWK[name] + "A")
        ),
        *({**JWK, name: b64url(unb64url(JWK[name])[1:])} for name in "xy"),
        *({**JWK, name: b64url(b"\0" + unb64url(JWK[name]))} for name in "xy"),
        *({**JWK, name: OTHER[name]} for name in "xy"),
        *({**JWK, name: " " + JWK[name]} for name in "xy"),
        {**JWK, "x": JWK["y"], "y": JWK["x"]},
        {**JWK, "x": "A" * 43, "y": "A" * 43},
        {**JWK, "x": b64url(FIELD.to_bytes(32, "big"))},
        {**JWK, "y": b64url((2**256 - 1).to_bytes(32, "big"))},
        {**JWK, "x": b64url(P384.x.to_bytes(48, "big")), "y": b64url(P384.y.to_bytes(48, "big"))},
    ],
    ids=itertools.count(),
)
def test_t9_t13_a_key_has_one_form_and_is_a_point_on_p_256(jwk):
    with pytest.raises(Malformed):
        load_jwk(jwk)


def test_t9_an_x_beyond_the_field_is_not_the_x_that_it_equals_modulo_p():
    """Two names for one key would be two kids."""
    small = next(x for x in range(1, 99) if _is_on_curve(x))
    y = b64url(_y_of(small).to_bytes(32, "big"))
    assert load_jwk({**JWK, "x": b64url(small.to_bytes(32, "big")), "y": y})
    with pytest.raises(Malformed):
        load_jwk({**JWK, "x": b64url((small + FIELD).to_bytes(32, "big")), "y": y})


B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B


def _y_of(x: int) -> int:
    return pow(x**3 - 3 * x + B, (FIELD + 1) // 4, FIELD)


def _is_on_curve(x: int) -> bool:
    return pow(_y_of(x), 2, FIELD) == (x**3 - 3 * x + B) % FIELD


def test_a_key_with_zeros_before_it_keeps_its_32_bytes():
    """The private key is 1 in 256 times the chance; a short coordinate would be another thumbprint."""
    for number in range(1, 2000):
        key = ec.derive_private_key(number, ec.SECP256R1()).public_key()
        jwk = public_jwk(key)
        assert len(unb64url(jwk["x"])) == len(unb64url(jwk["y"])) == 32
        if unb64url(jwk["x"])[0] == 0:
            assert thumbprint(public_jwk(load_jwk(jwk))) == thumbprint(jwk)
            return
    pytest.fail("no such key among the first")
