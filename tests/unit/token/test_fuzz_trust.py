"""Altered certificates and trust files, the certificates truly signed by the root: nothing but what is exactly right."""

import copy
import json
import random
from typing import Any

import pytest

from broker.errors import Malformed, Untrusted
from broker.token.jws import assemble, b64url
from broker.token.keys import (
    CERTIFICATE_TYP,
    P256_ORDER,
    Purpose,
    TrustedKey,
    certificate_signing_input,
    check_certificate,
    parse_trust,
    public_jwk,
    render_trust,
    thumbprint,
)
from tests.realm_keys import RealmKeys, sign

KEYS, OTHER = RealmKeys(), RealmKeys("production")
ROOT_KID = thumbprint(public_jwk(KEYS.root.public_key()))
JWK = public_jwk(KEYS.token.private.public_key())
OTHER_JWK = public_jwk(OTHER.token.private.public_key())
TIMES = [
    0,
    1,
    -1,
    KEYS.now_s,
    KEYS.now_s + 1,
    KEYS.now_s - 3600,
    KEYS.now_s + 90_000,
    2**53 - 1,
    2**53,
    True,
    1.5,
    "1",
    None,
]
ODD: list[Any] = [
    None,
    True,
    0,
    "",
    "a",
    [],
    {},
    ["token"],
    "evaluation",
    "Evaluation",
    "production",
    "token",
    "feed",
    "\u0430",
]
ODD += [KEYS.trust.issuer + "/", OTHER.trust.issuer, JWK, OTHER_JWK, {**JWK, "d": "AA"}, {**JWK, "y": OTHER_JWK["y"]}]


def base() -> dict[str, Any]:
    return {
        "exp": KEYS.now_s + 90_000,
        "iat": KEYS.now_s,
        "iss": KEYS.trust.issuer,
        "jwk": dict(JWK),
        "nbf": KEYS.now_s,
        "purpose": "token",
        "realm": "evaluation",
        "signs_until": KEYS.now_s + 60,
        "sub": KEYS.token.kid,
    }


def is_right(claims: dict[str, Any]) -> bool:
    """By hand: a key that a root of the realm certified for tokens, with times in order."""
    times = [claims.get(name) for name in ("nbf", "signs_until", "exp")]
    return (
        set(claims) == set(base())
        and all(type(time) is int and 0 < time < 2**53 for time in (*times, claims["iat"]))
        and times == sorted(times)
        and (claims["iss"], claims["realm"], claims["purpose"]) == (KEYS.trust.issuer, "evaluation", "token")
        and claims["jwk"] in (JWK, OTHER_JWK)
        and claims["sub"] == thumbprint(claims["jwk"])
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_p8_p9_what_the_root_signed_is_a_certificate_only_if_it_is_right(seed):
    print("seed", seed)
    chance = random.Random(seed)
    accepted = 0
    for _ in range(1500):
        claims = base()
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            name = chance.choice([*claims, "more"])
            match chance.randrange(5):
                case 0:
                    claims.pop(name, None)
                case 1 if name in ("exp", "iat", "nbf", "signs_until"):
                    claims[name] = chance.choice(TIMES)
                case 2:
                    claims["jwk"], claims["sub"] = dict(OTHER_JWK), thumbprint(OTHER_JWK)
                case 3 if isinstance(claims.get("jwk"), dict):
                    inner = chance.choice([*JWK, "kid", "use", "d"])
                    claims["jwk"] = {
                        **claims["jwk"],
                        inner: chance.choice([*JWK.values(), *OTHER_JWK.values(), "", 7, "AA"]),
                    }
                case _:
                    claims[name] = chance.choice(ODD)
        message = certificate_signing_input(ROOT_KID, json.dumps(claims).encode())
        text = assemble(message, sign(KEYS.root, message))
        try:
            key = check_certificate(text, KEYS.trust, Purpose.TOKEN)
        except (Malformed, Untrusted):
            assert not is_right(claims), claims
            continue
        accepted += 1
        assert is_right(claims), claims
        assert isinstance(key, TrustedKey)
        assert (key.kid, key.realm, key.purpose) == (claims["sub"], "evaluation", Purpose.TOKEN)
        assert public_jwk(key.public_key) == claims["jwk"]
        assert (key.not_before, key.signs_until, key.expires) == (claims["nbf"], claims["signs_until"], claims["exp"])
    assert 100 < accepted < 1400, "a test in which all or nothing is accepted shows nothing"


@pytest.mark.parametrize("seed", [1, 2])
def test_t9_no_other_signature_of_a_certificate_is_accepted(seed):
    print("seed", seed)
    chance = random.Random(seed)
    message = certificate_signing_input(ROOT_KID, json.dumps(base()).encode())
    good = sign(KEYS.root, message)
    assert check_certificate(assemble(message, good), KEYS.trust, Purpose.TOKEN)
    r, s = int.from_bytes(good[:32], "big"), int.from_bytes(good[32:], "big")
    for _ in range(2000):
        first, second = (
            chance.choice(
                (
                    r,
                    s,
                    P256_ORDER - r,
                    P256_ORDER - s,
                    0,
                    1,
                    P256_ORDER,
                    P256_ORDER - 1,
                    2**256 - 1,
                    chance.randrange(2**256),
                )
            )
            ^ chance.choice((0, 0, 1 << chance.randrange(256)))
            for _ in range(2)
        )
        changed = (first % 2**256).to_bytes(32, "big") + (second % 2**256).to_bytes(32, "big")
        if changed != good:
            with pytest.raises(Untrusted):
                check_certificate(assemble(message, changed), KEYS.trust, Purpose.TOKEN)


HEADERS = [
    {"alg": "ES256", "kid": ROOT_KID},
    {"alg": "none", "kid": ROOT_KID, "typ": CERTIFICATE_TYP},
    {"alg": "ES256", "kid": ROOT_KID, "typ": "at+jwt"},
    {"alg": "ES256", "kid": ROOT_KID, "typ": "JWT"},
    {"alg": "ES256", "jwk": public_jwk(KEYS.root.public_key()), "kid": ROOT_KID, "typ": CERTIFICATE_TYP},
    {"alg": "ES256", "crit": ["exp"], "kid": ROOT_KID, "typ": CERTIFICATE_TYP},
    {"alg": "ES256", "kid": KEYS.token.kid, "typ": CERTIFICATE_TYP},
    {"alg": "ES256", "kid": "", "typ": CERTIFICATE_TYP},
    {"alg": "ES256", "kid": [ROOT_KID], "typ": CERTIFICATE_TYP},
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_t3_t12_a_certificate_has_one_header(header):
    message = (
        f"{b64url(json.dumps(header, separators=(',', ':')).encode())}.{b64url(json.dumps(base()).encode())}".encode()
    )
    with pytest.raises((Malformed, Untrusted)):
        check_certificate(assemble(message, sign(KEYS.root, message)), KEYS.trust, Purpose.TOKEN)


@pytest.mark.parametrize("seed", [1, 2])
def test_p7_p8_a_trust_file_with_anything_in_it_is_refused_or_keeps_realms_apart(seed):
    print("seed", seed)
    chance = random.Random(seed)
    document = json.loads(render_trust([KEYS.trust, OTHER.trust]))
    values: list[Any] = [
        None,
        True,
        7,
        1.5,
        "",
        "a",
        "A",
        "a..b",
        "https://a",
        "https://a/",
        "http://a",
        [],
        {},
        ["a"],
        {"a": 1},
    ]
    values += [
        KEYS.trust.issuer,
        KEYS.trust.audience,
        [JWK],
        [OTHER_JWK],
        [JWK, JWK],
        [JWK, OTHER_JWK],
        [{**JWK, "d": "AA"}],
        JWK,
    ]
    third = {"issuer": "https://t.example", "audience": "t", "roots": [JWK]}
    read = 0
    for _ in range(4000):
        changed = json.loads(json.dumps(document))
        for _ in range(chance.choice((1, 1, 2, 3))):
            realms = changed.get("realms")
            match chance.randrange(6):
                case 0:
                    changed[chance.choice(["realms", "more", ""])] = copy.deepcopy(chance.choice(values))
                case 1 if isinstance(realms, dict):
                    name = chance.choice(["evaluation", "production", "third", "Third", "", "a..b", "\u0430"])
                    realms[name] = copy.deepcopy(chance.choice([*values, third, third, third]))
                case 2 if isinstance(realms, dict) and realms:
                    realms.pop(chance.choice(sorted(realms)))
                case _ if isinstance(realms, dict) and realms:
                    realm = realms[chance.choice(sorted(realms))]
                    if isinstance(realm, dict):
                        name = chance.choice(["issuer", "audience", "roots", "more"])
                        if chance.random() < 0.2:
                            realm.pop(name, None)
                        else:
                            realm[name] = copy.deepcopy(chance.choice(values))
                case _:
                    pass
        try:
            trusts = parse_trust(json.dumps(changed, ensure_ascii=False))
        except Malformed:
            continue
        read += 1
        assert parse_trust(render_trust(trusts.values())) == trusts
        # Nothing was left out or filled in.
        assert {
            name: {"issuer": t.issuer, "audience": t.audience, "roots": list(t.roots)} for name, t in trusts.items()
        } == changed["realms"]
        assert set(changed) == {"realms"}
        # P8: no two realms share what tells them apart.
        marks = [mark for t in trusts.values() for mark in (t.issuer, t.audience, *map(thumbprint, t.roots))]
        assert len(set(marks)) == len(marks)
    assert read > 100, "a test in which nothing is read shows nothing"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"7",
        b"null",
        b"true",
        b'"text"',
        b"[]",
        b'["exp"]',
        b"{}",
        b"\xff",
        b"[" * 9,
        json.dumps(list(base())).encode(),
    ],
)
def test_p7_what_is_no_object_is_no_certificate_though_the_root_signed_it(payload):
    message = certificate_signing_input(ROOT_KID, payload)
    with pytest.raises(Malformed):
        check_certificate(assemble(message, sign(KEYS.root, message)), KEYS.trust, Purpose.TOKEN)


@pytest.mark.parametrize(
    "document",
    ["", "7", "null", "true", '"text"', "[]", '["realms"]', '{"realms":7}', '{"realms":"text"}', '{"realms":{"a":7}}'],
)
def test_p7_what_is_no_object_is_no_trust_file(document):
    with pytest.raises(Malformed):
        parse_trust(document)
