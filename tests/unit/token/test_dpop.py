"""DPoP proofs (RFC 9449): what passes, and each way in which a near miss does not."""

import json
import random
import time

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from broker.errors import ConfigInvalid, Invalid, Malformed, NotHolder
from broker.sdk.dpop import DpopKey
from broker.token.binding import Bound, Method, ShownCertificate, ShownProof, bound_of, check_holder
from broker.token.dpop import (
    KEPT_S,
    MAX_AGE_S,
    MAX_AHEAD_S,
    MAX_PROOF_BYTES,
    DpopProof,
    Replays,
    check_dpop,
    make_dpop,
    normal_url,
    token_hash,
)
from broker.token.jws import b64url, unb64url
from broker.token.keys import P256_ORDER, public_jwk, raw_signature, thumbprint
from tests.realm_keys import RealmKeys

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
JWK = public_jwk(KEY.public_key())
TOKEN = RealmKeys().mint(cnf={"jkt": thumbprint(JWK)})
URL = "https://models.example/v1/mythos"
NOW = 1_800_000_000
HEADER = {"typ": "dpop+jwt", "alg": "ES256", "jwk": JWK}
CLAIMS = {"jti": "proof-0001", "htm": "POST", "htu": URL, "iat": NOW, "ath": token_hash(TOKEN)}


def signed(message: bytes, key=KEY) -> bytes:
    return raw_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))


def proof_of(header=HEADER, claims=CLAIMS, key=KEY) -> str:
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    message = ".".join(b64url(part) for part in parts)
    return f"{message}.{b64url(signed(message.encode(), key))}"


def check(text: str, **changes) -> DpopProof:
    asked = {"token": TOKEN, "method": "POST", "url": URL, "key": thumbprint(JWK), "earliest_s": NOW, "latest_s": NOW}
    return check_dpop(text, **{**asked, **changes})


def test_a_proof_for_this_request_by_the_tokens_key_is_good():
    made = make_dpop(JWK, signed, method="POST", url=f"{URL}?a=b#c", token=TOKEN, jti="proof-0001", now_s=NOW)
    for text in (made, proof_of()):
        assert check(text) == DpopProof(thumbprint(JWK), "proof-0001", NOW)
    assert check(proof_of(), url=f"{URL}?query=is#ignored")
    assert check(proof_of(claims={**CLAIMS, "htu": "HTTPS://Models.Example:443/v1/mythos"}))


def test_either_spelling_of_a_signature_is_good_because_clients_are_not_ours():
    text = proof_of()
    message, _, signature = text.rpartition(".")
    raw = unb64url(signature)
    s = P256_ORDER - int.from_bytes(raw[32:], "big")
    assert check(f"{message}.{b64url(raw[:32] + s.to_bytes(32, 'big'))}")


PRIVATE = {**JWK, "d": b64url(KEY.private_numbers().private_value.to_bytes(32, "big"))}
BAD_HEADERS = {
    "another typ": {**HEADER, "typ": "at+jwt"},
    "typ in capitals": {**HEADER, "typ": "DPoP+JWT"},
    "no typ": {"alg": "ES256", "jwk": JWK},
    "alg none": {**HEADER, "alg": "none"},
    "symmetric": {**HEADER, "alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}},
    "another curve's alg": {**HEADER, "alg": "ES384"},
    "no key": {"typ": "dpop+jwt", "alg": "ES256"},
    "a private key": {**HEADER, "jwk": PRIVATE},
    "an RSA key": {**HEADER, "jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}},
    "a key with more": {**HEADER, "jwk": {**JWK, "kid": "one"}},
    "a point off the curve": {**HEADER, "jwk": {**JWK, "y": JWK["x"]}},
    "a key that is a list": {**HEADER, "jwk": [JWK]},
    "kid": {**HEADER, "kid": "one"},
    "jku": {**HEADER, "jku": "https://evil.example"},
    "crit": {**HEADER, "crit": ["b64"], "b64": False},
    "a list": [HEADER],
    "a name twice": b'{"typ":"dpop+jwt","typ":"dpop+jwt","alg":"ES256","jwk":{}}',
    "not JSON": b"header",
}


@pytest.mark.parametrize("name", sorted(BAD_HEADERS))
def test_p7_a_proof_with_another_header_is_refused(name):
    with pytest.raises(NotHolder) as caught:
        check(proof_of(header=BAD_HEADERS[name]))
    assert PRIVATE["d"] not in str(caught.value)


def test_p12_a_private_key_inside_is_named_and_not_repeated():
    with pytest.raises(NotHolder, match="private key") as caught:
        check(proof_of(header=BAD_HEADERS["a private key"]))
    assert PRIVATE["d"] not in repr(caught.value)
    assert caught.value.__cause__ is None


BAD_CLAIMS = {
    **{f"no {name}": {key: value for key, value in CLAIMS.items() if key != name} for name in CLAIMS},
    "one more": {**CLAIMS, "nonce": "a"},
    "another method": {**CLAIMS, "htm": "GET"},
    "a method in small letters": {**CLAIMS, "htm": "post"},
    "another host": {**CLAIMS, "htu": "https://models.example.evil/v1/mythos"},
    "another port": {**CLAIMS, "htu": "https://models.example:8443/v1/mythos"},
    "another scheme": {**CLAIMS, "htu": "http://models.example/v1/mythos"},
    "another path": {**CLAIMS, "htu": "https://models.example/v1/oracle"},
    "a path in capitals": {**CLAIMS, "htu": "https://models.example/v1/Mythos"},
    "a longer path": {**CLAIMS, "htu": f"{URL}/"},
    "a shorter path": {**CLAIMS, "htu": "https://models.example/v1"},
    "a path that is escaped": {**CLAIMS, "htu": "https://models.example/v1/mytho%73"},
    "a query": {**CLAIMS, "htu": f"{URL}?a=b"},
    "a fragment": {**CLAIMS, "htu": f"{URL}#a"},
    "a user": {**CLAIMS, "htu": "https://models.example@models.example/v1/mythos"},
    "a URL with a space": {**CLAIMS, "htu": f"{URL} "},
    "no URL": {**CLAIMS, "htu": 7},
    "another token": {**CLAIMS, "ath": token_hash(RealmKeys().mint())},
    "no hash": {**CLAIMS, "ath": "a"},
    "an iat that is a text": {**CLAIMS, "iat": str(NOW)},
    "an iat that is true": {**CLAIMS, "iat": True},
    "an iat with a fraction": {**CLAIMS, "iat": NOW + 0.5},
    "too old": {**CLAIMS, "iat": NOW - MAX_AGE_S - 1},
    "from the future": {**CLAIMS, "iat": NOW + MAX_AHEAD_S + 1},
    "a short jti": {**CLAIMS, "jti": "a"},
    "a long jti": {**CLAIMS, "jti": "a" * 257},
    "a jti that is a number": {**CLAIMS, "jti": 12345678},
    "a list": [CLAIMS],
    "a jti twice": json.dumps(CLAIMS).encode()[:-1] + b',"jti":"proof-0002"}',
    "UTF-16": json.dumps(CLAIMS).encode("utf-16"),
}


@pytest.mark.parametrize("name", sorted(BAD_CLAIMS))
def test_p7_a_proof_that_says_something_else_is_refused(name):
    with pytest.raises(NotHolder):
        check(proof_of(claims=BAD_CLAIMS[name]))


def test_p7_a_proof_by_another_key_is_refused_whether_or_not_it_says_so():
    theirs = public_jwk(OTHER.public_key())
    for text in (proof_of(header={**HEADER, "jwk": theirs}, key=OTHER), proof_of(key=OTHER)):
        with pytest.raises(NotHolder):
            check(text)


def test_p7_what_is_no_proof_is_refused():
    good = proof_of()
    head, body, tail = good.split(".")
    long = json.dumps({**CLAIMS, "htu": URL + "a" * MAX_PROOF_BYTES}).encode()
    for text in (
        "", ".", "..", head, f"{head}.{body}", f"{head}.{body}.", f"{good}.", f".{body}.{tail}", f"{head}..{tail}",
        f" {good}", f"{good} ", f"{good}\n", f"{head}=.{body}.{tail}", f"{head}.{body}.{tail[:-1]}", f"{good},{good}",
        good.replace(".", "\u00b7"), "\u0661" * 200, TOKEN, proof_of(claims=long), None, 7, b"bytes",
    ):  # fmt: skip
        with pytest.raises(NotHolder):
            check(text)


def test_p7_no_changed_character_of_a_proof_passes():
    good = proof_of()
    chance = random.Random(1)
    for _ in range(600):
        at = chance.randrange(len(good))
        other = chance.choice("ABCDabcd0189-_.=/ ")
        if other == good[at]:
            continue
        with pytest.raises(NotHolder):
            check(good[:at] + other + good[at + 1 :])


@pytest.mark.parametrize("offset", [-MAX_AGE_S, 0, MAX_AHEAD_S])
def test_the_window_holds_its_edges(offset):
    assert check(proof_of(claims={**CLAIMS, "iat": NOW + offset})).iat == NOW + offset


def test_the_bounds_of_now_widen_the_window_and_nothing_else():
    """A verifier that knows the time to some seconds does not refuse what may be good."""
    old = proof_of(claims={**CLAIMS, "iat": NOW - MAX_AGE_S - 2})
    assert check(old, earliest_s=NOW - 2)
    with pytest.raises(NotHolder, match="too old"):
        check(old, earliest_s=NOW - 1)


@pytest.mark.parametrize(
    "text",
    ["", "models.example", "//models.example/", "ftp://models.example/", "https://", "https:///a", "https://a b/",
     "https://a:123456/", "https://[::1/", "https://a/\u00e4", "https://a\\b/", "https://a/" + "b" * 3000],
)  # fmt: skip
def test_what_is_no_plain_url_has_no_spelling(text):
    with pytest.raises(Malformed):
        normal_url(text)


def test_a_url_has_one_spelling():
    assert (
        normal_url("HTTPS://Models.EXAMPLE") == normal_url("https://models.example:443/") == "https://models.example/"
    )
    assert normal_url("http://[::1]:80/A%2f") == "http://[::1]/A%2f"
    assert normal_url("http://a:443/") == "http://a:443/"


def test_b3_a_proof_is_remembered_for_as_long_as_it_could_be_accepted():
    seen = Replays()
    proof = DpopProof("key", "proof-0001", NOW)
    seen.add(proof, NOW)
    with pytest.raises(NotHolder, match="before"):
        seen.add(proof, NOW + MAX_AGE_S)
    # The same id by another key is another proof.
    seen.add(DpopProof("other", "proof-0001", NOW), NOW)
    assert len(seen) == 2


def test_p7_with_no_room_to_remember_a_proof_is_refused_and_later_there_is_room():
    seen = Replays(most=8, most_of_one=4)
    for number in range(4):
        seen.add(DpopProof("one", f"proof-{number:04}", NOW), NOW)
    for _ in range(2):
        with pytest.raises(NotHolder, match="too many"):
            seen.add(DpopProof("one", "proof-0004", NOW), NOW)
    # One that floods takes nothing from another.
    for number in range(4):
        seen.add(DpopProof("two", f"proof-{number:04}", NOW), NOW)
    with pytest.raises(NotHolder, match="too many"):
        seen.add(DpopProof("three", "proof-0000", NOW), NOW + 1)
    with pytest.raises(NotHolder, match=r"before|too many"):
        seen.add(DpopProof("one", "proof-0000", NOW), NOW + KEPT_S)
    seen.add(DpopProof("three", "proof-0000", NOW + KEPT_S), NOW + KEPT_S + 1)
    assert len(seen) == 1


def test_a_key_that_is_kept_in_a_file_makes_the_same_proofs(tmp_path):
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(KEY.private_bytes(*plain))
    loaded = DpopKey.load(tmp_path / "key.pem")
    assert loaded.thumbprint == thumbprint(JWK)
    now_s = int(time.time())
    assert check(loaded.proof("POST", URL, TOKEN), earliest_s=now_s, latest_s=now_s).key == thumbprint(JWK)
    (tmp_path / "rsa.pem").write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(*plain))
    with pytest.raises(ConfigInvalid):
        DpopKey.load(tmp_path / "rsa.pem")


def test_a_key_of_another_curve_or_file_makes_no_proofs(tmp_path):
    with pytest.raises(ConfigInvalid):
        DpopKey(ec.generate_private_key(ec.SECP384R1()))
    (tmp_path / "key.pem").write_text("no key")
    for path in (tmp_path / "key.pem", tmp_path / "absent.pem"):
        with pytest.raises(ConfigInvalid):
            DpopKey.load(path)


CERTIFICATE = ShownCertificate.of_der(b"a certificate")
TO_CERTIFICATE = Bound.to_certificate(CERTIFICATE.sha256)


def holder(cnf, shown, seen=None) -> None:
    remember = (lambda _: None) if seen is None else (lambda proof: seen.add(proof, NOW))
    check_holder(TOKEN, cnf, shown, earliest_s=NOW, latest_s=NOW, remember=remember)


def test_step_9_a_token_passes_with_what_it_is_bound_to():
    holder(None, None)
    holder(None, CERTIFICATE)
    holder(TO_CERTIFICATE.cnf, CERTIFICATE)
    holder({"jkt": thumbprint(JWK)}, ShownProof(proof_of(), "POST", URL))


def test_p7_step_9_a_token_passes_with_nothing_else():
    proof = ShownProof(proof_of(), "POST", URL)
    for cnf, shown in (
        (TO_CERTIFICATE.cnf, None),
        (TO_CERTIFICATE.cnf, ShownCertificate.of_der(b"another")),
        (TO_CERTIFICATE.cnf, ShownCertificate(b"")),
        (TO_CERTIFICATE.cnf, proof),
        ({"jkt": thumbprint(JWK)}, None),
        ({"jkt": thumbprint(JWK)}, CERTIFICATE),
        # RFC 9449 §7.1: a proof does not make an unbound token a bound one.
        (None, proof),
        ({"jkt": thumbprint(public_jwk(OTHER.public_key()))}, proof),
    ):
        with pytest.raises(NotHolder):
            holder(cnf, shown)


def test_b3_step_9_a_proof_passes_once():
    seen = Replays()
    shown = ShownProof(proof_of(), "POST", URL)
    holder({"jkt": thumbprint(JWK)}, shown, seen)
    with pytest.raises(NotHolder, match="before"):
        holder({"jkt": thumbprint(JWK)}, shown, seen)


def test_a_binding_is_one_thumbprint_and_comes_back_from_the_claims():
    for bound in (TO_CERTIFICATE, Bound(Method.DPOP, thumbprint(JWK))):
        assert bound_of(RealmKeys().claims(cnf=bound.cnf)) == bound
    assert bound_of(RealmKeys().claims()) is None
    for text in ("", "a" * 42, "a" * 44, "=" * 43, "\u0661" * 43):
        with pytest.raises(Invalid):
            Bound(Method.DPOP, text)
    for sha256 in (b"", b"a" * 31, b"a" * 33):
        with pytest.raises(Invalid):
            Bound.to_certificate(sha256)
