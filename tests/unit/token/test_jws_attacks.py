"""Attacks on a token's form: header, base64url, JSON, signature (threats T1 to T9, section 7)."""

import base64
import json
import secrets

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.errors import Malformed, Rejected, Untrusted
from broker.sdk.opening import Opener
from broker.token.claims import TOKEN_TYP, encode_claims
from broker.token.jws import MAX_TOKEN_BYTES, assemble, b64url, parse_jws, signing_input, strict_json, unb64url
from broker.token.keys import P256_ORDER, Purpose, check_certificate
from broker.token.verification import check_signature
from tests.realm_keys import RealmKeys, sign

KEYS = RealmKeys()
TRUSTED = check_certificate(KEYS.token.certificate, KEYS.trust, Purpose.TOKEN)
HELD = {TRUSTED.kid: TRUSTED}
GOOD = KEYS.mint()
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")


def refused(token: str) -> Rejected:
    with pytest.raises(Rejected) as caught:
        check_signature(token, HELD)
    return caught.value


def signed(header: bytes | str, payload: bytes | None = None) -> str:
    """A token with any header and payload, truly signed by the trusted key over exactly these bytes."""
    header = header.encode() if isinstance(header, str) else header
    payload = encode_claims(KEYS.claims()) if payload is None else payload
    message = f"{b64url(header)}.{b64url(payload)}".encode()
    return assemble(message, sign(KEYS.token.private, message))


def header_with(**changed: object) -> str:
    named = {"alg": "ES256", "kid": KEYS.token.kid, "typ": "at+jwt", **changed}
    return json.dumps({k: v for k, v in named.items() if v is not None}, separators=(",", ":"), sort_keys=True)


def test_the_token_that_all_these_attacks_alter_is_good():
    assert check_signature(GOOD, HELD).claims.partner == "acme"
    assert check_signature(signed(header_with()), HELD).kid == KEYS.token.kid


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "nOnE", "", None, "HS256", "RS256", "ES384", "EdDSA", "es256", "ES256 "]
)
def test_t1_t2_no_other_algorithm_is_obeyed(alg):
    assert type(refused(signed(header_with(alg=alg)))) is Malformed
    none = b64url(header_with(alg=alg).encode())
    for rest in ("", SIGNATURE):
        refused(f"{none}.{PAYLOAD}.{rest}")
    refused(f"{none}.{PAYLOAD}")


def test_t2_the_public_key_is_no_hmac_secret():
    public = KEYS.token.private.public_key()
    for secret in (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        b" " + public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
    ):
        for alg in ("HS256", "ES256"):
            message = f"{b64url(header_with(alg=alg).encode())}.{PAYLOAD}".encode()
            mac = hmac.HMAC(secret, hashes.SHA256())
            mac.update(message)
            tag = mac.finalize()
            for signature in (tag, tag + tag, tag + bytes(32), bytes(32) + tag):
                refused(assemble(message, signature))


@pytest.mark.parametrize(
    "extra",
    [
        {"jwk": {"kty": "EC"}},
        {"jku": "https://evil.example/jwks.json"},
        {"x5u": "https://evil.example/x.pem"},
        {"x5c": ["MII="]},
        {"x5t": "a"},
        {"crit": []},
        {"crit": ["exp"]},
        {"crit": ["unknown"]},
        {"b64": False},
        {"b64": False, "crit": ["b64"]},
        {"b64": True},
        {"zip": "DEF"},
        {"cty": "JWT"},
        {"enc": "A128GCM"},
        {"p2c": 2**31},
        {"unknown": None, "iss": "x"},
    ],
    ids=" ".join,
)
def test_t3_t4_t8_t10_a_header_with_anything_more_is_refused(extra):
    assert type(refused(signed(header_with(**extra)))) is Malformed


@pytest.mark.parametrize(
    "typ",
    [
        None,
        "",
        "JWT",
        "jwt",
        "AT+JWT",
        "application/at+jwt",
        "dpop+jwt",
        "at+jwt ",
        "secevent+jwt",
        "key-certificate+jwt",
        "revocation-completion+jwt",
        "statuslist+jwt",
    ],
)
def test_t12_another_type_is_another_kind_of_token(typ):
    assert type(refused(signed(header_with(typ=typ)))) is Malformed


def test_t12_no_kind_of_what_we_sign_passes_for_another():
    """The matrix: token, certificate, frame, echo, each given to the reader of each other."""
    body = KEYS.body().SerializeToString()
    claims = encode_claims(KEYS.claims())
    token_readers = lambda text: check_signature(text, HELD)  # noqa: E731
    certificate_readers = lambda text: check_certificate(text, KEYS.trust, Purpose.TOKEN)  # noqa: E731
    for text in (KEYS.token.certificate, KEYS.feed.certificate):
        with pytest.raises(Malformed):
            token_readers(text)
    with pytest.raises(Malformed):
        certificate_readers(GOOD)
    # The signature of one over what another would have signed.
    opener = Opener(KEYS.trust)
    from broker.errors import FrameRefused
    from broker.v1 import feed_pb2

    for context in (b"", b"broker.v1.EchoBody\x00", b"broker.v1.FrameBody"):
        frame = feed_pb2.SignedFrame(
            body=body, signature=sign(KEYS.feed.private, context + body), certificate=KEYS.feed.certificate
        )
        with pytest.raises(FrameRefused):
            opener.open(feed_pb2.ListenResponse(frame=frame).SerializeToString())
    # A token's key does not sign frames, a feed's key no tokens.
    frame = KEYS.signed_frame(KEYS.body(), by=KEYS.token)
    with pytest.raises(FrameRefused):
        opener.open(frame)
    message = signing_input(typ=TOKEN_TYP, kid=KEYS.feed.kid, payload=claims)
    refused(assemble(message, sign(KEYS.feed.private, message)))


@pytest.mark.parametrize(
    "kid",
    [
        "",
        "../../../../dev/null",
        "key' OR '1'='1",
        "*)(uid=*",
        "a" * 5000,
        "\x00" * 43,
        7,
        True,
        ["a"],
        {"a": "b"},
        "A" * 42,
        "A" * 44,
        "\u0410" + "A" * 42,
    ],
    ids=repr,
)
def test_t5_kid_is_a_thumbprint_and_nothing_is_looked_up_by_anything_else(kid):
    refused(signed(header_with(kid=kid)))


def test_t5_t14_an_unknown_kid_and_a_wrong_signature_are_the_same_answer():
    other = RealmKeys()
    unknown = refused(other.mint())
    wrong = refused(f"{HEADER}.{PAYLOAD}.{signature_of(1, 1)}")
    assert (type(unknown), str(unknown)) == (type(wrong), str(wrong))
    assert type(unknown) is Untrusted


def test_t13_a_key_of_another_realm_is_not_trusted_though_its_root_is_good_there():
    other = RealmKeys("production")
    with pytest.raises(Untrusted):
        check_certificate(other.token.certificate, KEYS.trust, Purpose.TOKEN)
    # Its own root's certificate, but for our realm's name.
    with pytest.raises(Untrusted):
        check_certificate(KEYS.feed.certificate, KEYS.trust, Purpose.TOKEN)


RESPELLINGS = {
    "header name twice": '{"alg":"none","alg":"ES256","kid":"K","typ":"at+jwt"}',
    "typ twice": '{"alg":"ES256","kid":"K","typ":"JWT","typ":"at+jwt"}',
    "escaped name": '{"\\u0061lg":"ES256","kid":"K","typ":"at+jwt"}',
    "escaped value": '{"alg":"\\u0045S256","kid":"K","typ":"at+jwt"}',
    "order": '{"typ":"at+jwt","alg":"ES256","kid":"K"}',
    "space": '{"alg": "ES256","kid":"K","typ":"at+jwt"}',
    "newline after": '{"alg":"ES256","kid":"K","typ":"at+jwt"}\n',
    "second object": '{"alg":"ES256","kid":"K","typ":"at+jwt"}{}',
    "array": '[{"alg":"ES256","kid":"K","typ":"at+jwt"}]',
    "nul": '{"alg":"ES256","kid":"K","typ":"at+jwt"}\x00',
}


@pytest.mark.parametrize("header", RESPELLINGS.values(), ids=RESPELLINGS)
def test_t6_a_header_has_one_spelling(header):
    refused(signed(header.replace("K", KEYS.token.kid)))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "utf-7"])
def test_t6_header_and_payload_are_plain_ascii(encoding):
    refused(signed(header_with().encode(encoding) if encoding != "utf-7" else b"+" + header_with().encode()))
    claims = encode_claims(KEYS.claims()).decode()
    refused(signed(header_with(), claims.encode(encoding) if encoding != "utf-7" else b"+" + claims.encode()))


def altered(old: str, new: str) -> bytes:
    text = encode_claims(KEYS.claims()).decode()
    assert old in text
    return text.replace(old, new, 1).encode("utf-8", "surrogatepass")


PAYLOADS = {
    "name twice": altered('"realm":', '"realm":"production","realm":'),
    "escaped name": altered('"realm"', '"re\\u0061lm"'),
    "escaped value": altered('"acme"', '"\\u0061cme"'),
    "overlong utf-8": altered('"acme"', '"acme"').replace(b"acme", b"\xc1\xa1cme"),
    "lone surrogate": altered('"acme"', '"\ud800acme"'),
    "nan": altered(f'"exp":{KEYS.now_s + 600}', '"exp":NaN'),
    "infinity": altered(f'"exp":{KEYS.now_s + 600}', '"exp":Infinity'),
    "1e999": altered(f'"exp":{KEYS.now_s + 600}', '"exp":1e999'),
    "float": altered(f'"exp":{KEYS.now_s + 600}', f'"exp":{KEYS.now_s + 600}.0'),
    "exponent": altered(f'"exp":{KEYS.now_s + 600}', '"exp":18e8'),
    "10^30": altered(f'"exp":{KEYS.now_s + 600}', f'"exp":{10**30}'),
    "huge": altered(f'"exp":{KEYS.now_s + 600}', f'"exp":{"9" * 4000}'),
    "minus zero": altered('"idx":5', '"idx":-0'),
    "leading zero": altered('"idx":5', '"idx":05'),
    "plus": altered('"idx":5', '"idx":+5'),
    "trailing bytes": encode_claims(KEYS.claims()) + b"x",
    "trailing space": encode_claims(KEYS.claims()) + b" ",
    "leading space": b" " + encode_claims(KEYS.claims()),
    "two objects": encode_claims(KEYS.claims()) * 2,
    "deep": b"[" * 3000,
    "deep object": b'{"a":' * 1500,
    "unknown claim": altered('"aud"', '"admin":true,"aud"'),
    "exp string": altered(f'"exp":{KEYS.now_s + 600}', f'"exp":"{KEYS.now_s + 600}"'),
    "exp bool": altered(f'"exp":{KEYS.now_s + 600}', '"exp":true'),
    "exp null": altered(f'"exp":{KEYS.now_s + 600}', '"exp":null'),
    "exp array": altered(f'"exp":{KEYS.now_s + 600}', f'"exp":[{KEYS.now_s + 600}]'),
    "exp missing": altered(f'"exp":{KEYS.now_s + 600},', ""),
    "iat missing": altered(f'"iat":{KEYS.now_s},', ""),
    "aud list": altered('"evaluation.models"', '["evaluation.models","evil"]'),
    "aud empty": altered('"evaluation.models"', '""'),
    "negative": altered(f'"nbf":{KEYS.now_s - 5}', '"nbf":-5'),
    "nbf after iat": altered(f'"nbf":{KEYS.now_s - 5}', f'"nbf":{KEYS.now_s + 5}'),
    "a week and a second": altered(f'"exp":{KEYS.now_s + 600}', f'"exp":{KEYS.now_s + 7 * 86_400 + 1}'),
    "homoglyph": altered('"partner":"acme"', '"partner":"\u0430cme"'),
    "dots": altered('"partner":"acme"', '"partner":"ac..me"'),
    "nul": altered('"partner":"acme"', '"partner":"ac\x00me"'),
    "upper case": altered('"partner":"acme"', '"partner":"Acme"'),
    "empty": b"",
    "object": b"{}",
    "number": b"7",
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_t6_t11_a_payload_has_one_spelling_and_each_claim_one_type(payload):
    assert type(refused(signed(header_with(), payload))) is Malformed


@pytest.mark.parametrize("change", ["=", "==", " ", "\n", "\r\n", "\t", "\x00", "%", "\u0661", "\xad"])
@pytest.mark.parametrize("segment", [0, 1, 2])
@pytest.mark.parametrize("at", ["before", "within", "after"])
def test_t7_base64url_has_one_spelling(change, segment, at):
    parts = [HEADER, PAYLOAD, SIGNATURE]
    text = parts[segment]
    parts[segment] = {"before": change + text, "within": text[:9] + change + text[9:], "after": text + change}[at]
    refused(".".join(parts))


def test_t7_the_standard_alphabet_is_another_alphabet():
    while not ({"-", "_"} & set((token := KEYS.mint()).split(".")[2])):
        pass
    refused(token.replace("-", "+").replace("_", "/"))


def test_t7_the_bits_that_a_last_character_has_too_many_are_zero():
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = SIGNATURE[-1]
    same = [c for c in alphabet if c != last and alphabet.index(c) // 16 == alphabet.index(last) // 16]
    assert len(same) == 15
    for character in same:
        text = SIGNATURE[:-1] + character
        assert base64.urlsafe_b64decode(text + "==") == base64.urlsafe_b64decode(SIGNATURE + "==")
        refused(f"{HEADER}.{PAYLOAD}.{text}")


def test_t7_a_length_of_one_more_than_a_multiple_of_four_is_refused():
    for text in ("A", "AAAAA"):
        with pytest.raises(Malformed):
            unb64url(text)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "." * 1_000_000,
        f"{HEADER}.{PAYLOAD}",
        f"{HEADER}.{PAYLOAD}.",
        f"{HEADER}..{SIGNATURE}",
        f".{PAYLOAD}.{SIGNATURE}",
        f"{GOOD}.",
        f"{GOOD}.{SIGNATURE}",
        f"{GOOD}.{PAYLOAD}.{SIGNATURE}",
        json.dumps({"payload": PAYLOAD, "protected": HEADER, "signature": SIGNATURE}),
        json.dumps({"payload": PAYLOAD, "signatures": [{"protected": HEADER, "signature": SIGNATURE}]}),
        '{"x":"' + GOOD + '"}',
        f"{GOOD},{GOOD}",
        f"Bearer {GOOD}",
        GOOD + "A" * MAX_TOKEN_BYTES,
        "A" * 10_000_000,
        "\ud800" + GOOD,
    ],
    ids=lambda token: repr(token[:12]),
)
def test_t8_t10_only_three_segments_of_at_most_8_kib_are_read(token):
    refused(token)


def test_t8_a_token_within_a_token_is_refused():
    refused(signed(header_with(), GOOD.encode()))
    refused(signed(header_with(cty="JWT"), GOOD.encode()))


def signature_of(r: int, s: int) -> str:
    return b64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def test_t9_a_signature_is_r_and_s_in_range_and_in_one_spelling():
    raw = unb64url(SIGNATURE)
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    assert signature_of(r, s) == SIGNATURE
    top = 2**256 - 1
    for pair in [(0, 0), (0, s), (r, 0), (P256_ORDER, s), (r, P256_ORDER), (top, top), (r, top), (s, r)]:
        refused(f"{HEADER}.{PAYLOAD}.{signature_of(*pair)}")
    if r + P256_ORDER <= top:
        refused(f"{HEADER}.{PAYLOAD}.{signature_of(r + P256_ORDER, s)}")
    # The other s verifies in OpenSSL, and would be a second text of the same token.
    TRUSTED.public_key.verify(encode_dss_signature(r, P256_ORDER - s), f"{HEADER}.{PAYLOAD}".encode(), ec_es256())
    refused(f"{HEADER}.{PAYLOAD}.{signature_of(r, P256_ORDER - s)}")
    der = encode_dss_signature(r, s)
    for other in (der, der[:64], raw[:63], raw + b"\x00", raw[:32], b"", b"\x00" + raw):
        refused(f"{HEADER}.{PAYLOAD}.{b64url(other)}")


def ec_es256():
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.ECDSA(hashes.SHA256())


def test_t9_every_signature_that_is_made_is_the_spelling_that_is_accepted():
    for _ in range(64):
        assert check_signature(KEYS.mint(), HELD)


def test_t10_refusing_says_nothing_of_the_token():
    secret = secrets.token_urlsafe(40)
    for token in (secret, f"{secret}.{secret}.{secret}", f"{HEADER}.{b64url(secret.encode())}.{SIGNATURE}"):
        failure = refused(token)
        cause: BaseException | None = failure
        while cause is not None:
            assert secret not in str(cause)
            cause = cause.__cause__
        assert len(str(failure)) < 300


def test_any_bytes_survive_base64url():
    for length in range(70):
        data = secrets.token_bytes(length)
        assert unb64url(b64url(data)) == data
        assert b64url(data) == base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_strict_json_reads_what_has_one_meaning():
    value = {"a": [1, -2, {"b": "c"}], "d": True, "e": None, "f": ""}
    assert strict_json(json.dumps(value).encode()) == value
    assert strict_json(b"9007199254740991") == 2**53 - 1
    for bad in (
        b"9007199254740992",
        b"-9007199254740992",
        b'{"a":1,"a":1}',
        b'{"x":{"a":1,"a":2}}',
        b"\xef\xbb\xbf{}",
        b"1.0",
        b"-0",
        b"01",
        b"+1",
        b"1" + b"0" * 5000,
        b"-1" + b"0" * 16,
        b"[1,]",
        b"'a'",
        b"{a:1}",
        b'"\\u0041"',
        b"//\n1",
    ):
        with pytest.raises(Malformed):
            strict_json(bad)


def test_t6_depth_is_refused_cleanly_also_at_twenty_thousand():
    for data in (b"[" * 20_000 + b"]" * 20_000, b'{"a":' * 20_000 + b"1" + b"}" * 20_000):
        with pytest.raises(Malformed, match="nested"):
            strict_json(data)
    assert strict_json(b"[[[[[[[[]]]]]]]]")
    with pytest.raises(Malformed):
        strict_json(b"[[[[[[[[[]]]]]]]]]")
    # What was closed before does not pay for what is opened later, and brackets in text are text.
    shallow = b"[],{}," * 20
    assert strict_json(b"[" + shallow + b"[[[[[[[]]]]]]]]")
    with pytest.raises(Malformed, match="nested"):
        strict_json(b"[" + shallow + b"[[[[[[[[]]]]]]]]]")
    assert strict_json(b'["[[[[[[[[[[[[{{{{{{{{{"]')
    with pytest.raises(Malformed, match="nested"):
        strict_json(b'["]]]]]]]]]]","]]]]",[[[[[[[[[]]]]]]]]]]')


def test_t10_a_token_has_at_most_8_kib_though_it_is_truly_signed():
    assert parse_jws(GOOD, typ=TOKEN_TYP, max_bytes=len(GOOD))
    with pytest.raises(Malformed, match="longer"):
        parse_jws(GOOD, typ=TOKEN_TYP, max_bytes=len(GOOD) - 1)
    lengths = []
    empty = len(KEYS.mint(act={"sub": ""}))
    for size in range((MAX_TOKEN_BYTES - empty) * 3 // 4 - 8, (MAX_TOKEN_BYTES - empty) * 3 // 4 + 8):
        token = KEYS.mint(act={"sub": "x" * size})
        lengths.append(len(token))
        if len(token) <= MAX_TOKEN_BYTES:
            assert check_signature(token, HELD)
        else:
            assert "longer" in str(refused(token))
    assert MAX_TOKEN_BYTES == 8192
    assert {8192, 8194} & set(lengths)
    assert min(lengths) < 8192 < max(lengths)


def test_p8_parse_believes_nothing():
    parsed = parse_jws(GOOD, typ=TOKEN_TYP)
    assert parsed.kid == KEYS.token.kid
    assert parsed.signing_input == f"{HEADER}.{PAYLOAD}".encode()
