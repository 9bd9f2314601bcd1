"""A run's key is proven for each request anew: nothing else than exactly that proof is taken."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Malformed, RunProofRefused
from broker.token.claims import TOKEN_TYP
from broker.token.jws import assemble, b64url, parse_jws, signing_input
from broker.token.keys import P256_ORDER, public_jwk, thumbprint
from broker.token.run_proof import (
    MAX_AGE_S,
    MAX_AHEAD_S,
    RUN_PROOF_TYP,
    ProofClaims,
    check_run_proof,
    parse_run_proof,
    proof_signing_input,
    request_hash,
)
from broker.token.verification import check_signature
from tests.realm_keys import RealmKeys, sign

NOW_S = 1_800_000_000
REQUEST = b"a request"
KEY = ec.generate_private_key(ec.SECP256R1())
JWK = public_jwk(KEY.public_key())
OTHER = ec.generate_private_key(ec.SECP256R1())
GOOD = ProofClaims("TokenService/Mint", "run-00000001", request_hash(REQUEST), "jti-00000001", NOW_S)


def proof_of(claims=GOOD, key=KEY, kid=None):
    message = proof_signing_input(kid or thumbprint(public_jwk(key.public_key())), claims)
    return assemble(message, sign(key, message))


def spelled(payload, *, typ=RUN_PROOF_TYP, kid=None):
    """A proof with any payload, truly signed by the run's key."""
    message = signing_input(typ=typ, kid=kid or thumbprint(JWK), payload=payload)
    return assemble(message, sign(KEY, message))


def check(text, **changed):
    asked = {"method": "TokenService/Mint", "run": "run-00000001", "request": REQUEST, "now_s": NOW_S, **changed}
    return check_run_proof(parse_run_proof(text), asked.pop("key", JWK), **asked)


def test_the_proof_that_all_these_attacks_alter_is_good():
    assert check(proof_of()) == GOOD
    opening = ProofClaims("RunService/OpenRun", None, request_hash(REQUEST), "jti-00000002", NOW_S)
    assert check(proof_of(opening), method="RunService/OpenRun", run=None) == opening


def test_a_run_resumed_with_another_key_is_refused_with_the_reason():
    with pytest.raises(RunProofRefused, match="another key than the one the run was opened with"):
        check(proof_of(key=OTHER))
    # The right name with the wrong key behind it.
    with pytest.raises(RunProofRefused, match="wrong signature"):
        check(proof_of(key=OTHER, kid=thumbprint(JWK)))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"method": "TokenService/MintBatch"}, "not for TokenService/MintBatch"),
        ({"run": "run-00000002"}, "another run"),
        ({"run": None}, "another run"),
        ({"request": b"another request"}, "another request"),
        ({"request": b""}, "another request"),
        ({"now_s": NOW_S - MAX_AHEAD_S - 1}, "from the future"),
        ({"now_s": NOW_S + MAX_AGE_S + 1}, "too old"),
    ],
)
def test_a_proof_for_one_request_is_none_for_another(changed, why):
    with pytest.raises(RunProofRefused, match=why):
        check(proof_of(), **changed)


@pytest.mark.parametrize("off_s", [-MAX_AHEAD_S, 0, MAX_AGE_S])
def test_a_clock_that_is_a_little_off_is_borne(off_s):
    assert check(proof_of(), now_s=NOW_S + off_s) == GOOD


@pytest.mark.parametrize("off_s", [-3600, 3600])
def test_who_has_a_wrong_clock_is_told_the_brokers(off_s):
    with pytest.raises(RunProofRefused) as caught:
        check(proof_of(), now_s=NOW_S + off_s)
    assert caught.value.metadata["now"] == str(NOW_S + off_s)


def payload(**changed):
    named = {"iat": NOW_S, "jti": "jti-00000001", "method": "TokenService/Mint", "run": "run-00000001"}
    named |= {"sha256": request_hash(REQUEST), **changed}
    named = {name: value for name, value in named.items() if value is not None}
    return json.dumps(named, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "bad",
    [
        payload(iat="1800000000"),
        payload(iat=1_800_000_000.0),
        payload(iat=-1),
        payload(iat=True),
        payload(iat=10**30),
        payload(iat=None),
        payload(jti=None),
        payload(jti="short"),
        payload(jti="with space"),
        payload(jti="x" * 65),
        payload(method=None),
        payload(method="Mint"),
        payload(method="/broker.v1.TokenService/Mint"),
        payload(run=""),
        payload(sha256=None),
        payload(sha256="x" * 42),
        payload(aud="else"),
        payload(jwk=JWK),
        payload().replace(b",", b", "),
        payload().replace(b'"iat"', b'"\\u0069at"'),
        payload()[:-1] + b',"sha256":"' + b"A" * 43 + b'"}',
        b"\xef\xbb\xbf" + payload(),
        payload().decode().encode("utf-16"),
        payload() + b"\n",
        b"{}",
        b"[]",
        b"\xff",
    ],
)
def test_t6_t11_a_payload_that_is_not_exactly_its_claims_is_refused(bad):
    with pytest.raises(RunProofRefused, match="malformed"):
        parse_run_proof(spelled(bad))


def header_changed(**changed):
    named = {"alg": "ES256", "kid": thumbprint(JWK), "typ": RUN_PROOF_TYP, **changed}
    header = json.dumps({k: v for k, v in named.items() if v is not None}, separators=(",", ":"), sort_keys=True)
    message = f"{b64url(header.encode())}.{b64url(payload())}".encode()
    return assemble(message, sign(KEY, message))


@pytest.mark.parametrize(
    "changed",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"jwk": JWK},
        {"jku": "https://evil.example"},
        {"crit": ["exp"]},
        {"typ": None},
        {"typ": "dpop+jwt"},
        {"kid": None},
    ],
)
def test_t1_t3_t4_no_other_header_is_taken(changed):
    with pytest.raises(RunProofRefused, match="malformed"):
        parse_run_proof(header_changed(**changed))


@pytest.mark.parametrize("bad", ["", ".", "a.b", "a.b.c.d", proof_of() + "=", " " + proof_of(), "é" + proof_of()])
def test_t7_t8_another_form_is_refused(bad):
    with pytest.raises(RunProofRefused):
        parse_run_proof(bad)


def test_t10_a_long_one_is_not_looked_at():
    with pytest.raises(RunProofRefused, match="longer than 1024"):
        parse_run_proof("a" * 1025)


def test_t9_zero_and_the_other_spelling_of_a_signature_are_refused():
    header, body, signature = proof_of().split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    s = P256_ORDER - int.from_bytes(raw[32:], "big")
    for forged in (bytes(64), raw[:32] + s.to_bytes(32, "big"), raw[:32] + bytes(32)):
        with pytest.raises(RunProofRefused, match="wrong signature"):
            check(f"{header}.{body}.{b64url(forged)}")


def test_t12_a_proof_is_no_token_and_a_token_is_no_proof():
    keys = RealmKeys()
    with pytest.raises(Malformed):
        check_signature(proof_of(), {})
    with pytest.raises(RunProofRefused):
        parse_run_proof(keys.mint())
    with pytest.raises(Malformed):
        parse_jws(proof_of(), typ=TOKEN_TYP)
    with pytest.raises(RunProofRefused):
        parse_run_proof(spelled(payload(), typ=TOKEN_TYP))


@pytest.mark.parametrize(
    "changed",
    [
        {**JWK, "d": JWK["x"]},
        {**JWK, "kty": "RSA"},
        {name: value for name, value in JWK.items() if name != "y"},
    ],
)
def test_a_key_that_is_none_proves_nothing(changed):
    with pytest.raises((Malformed, RunProofRefused, KeyError)):
        check(proof_of(), key=changed)


@given(st.binary(max_size=200))
def test_whatever_is_sent_is_refused_and_nothing_else(data):
    with pytest.raises(RunProofRefused):
        parse_run_proof(data.decode("latin-1"))


@pytest.mark.parametrize("bad", [{"method": "Mint"}, {"iat": 1.5}])
def test_what_cannot_be_proven_is_not_spelled(bad):
    named = {"method": GOOD.method, "run": None, "sha256": GOOD.sha256, "jti": GOOD.jti, "iat": NOW_S, **bad}
    with pytest.raises(Malformed):
        ProofClaims(**named)
