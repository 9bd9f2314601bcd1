"""T10: no input makes a pattern search for long; 8,192 bytes made for it stay below 50 ms."""

import random
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from broker.errors import Failure
from broker.token.claims import TOKEN_TYP, decode_claims, encode_claims
from broker.token.identifiers import identifier, label, model_name, opaque_id, principal_uri
from broker.token.jws import MAX_TOKEN_BYTES, b64url, parse_jws, strict_json, unb64url
from broker.token.keys import Purpose, check_certificate, parse_trust
from broker.token.revocation import Selector
from tests.realm_keys import RealmKeys

SLOW_S = 0.05
KEYS = RealmKeys()
PAYLOAD = encode_claims(
    KEYS.claims(
        run="a-run-of-tests",
        test="case-7",
        labels=("a=b", "c=d"),
        models=("mythos", "oracle@eu"),
        scope="model:mythos model:oracle@eu",
        parents=("parent-0001",),
        cnf={"jkt": "a" * 43},
        act={"sub": "b"},
    )
).decode()


def is_slow(work: Callable[[], object]) -> bool:
    """Three times in a row, by the time of this thread: what the machine did meanwhile is not the input's fault."""
    for _ in range(3):
        began = time.thread_time()
        with suppress(Failure):
            work()
        if time.thread_time() - began <= SLOW_S:
            return False
    return True


def filled(before: str, unit: str, after: str, size: int = MAX_TOKEN_BYTES) -> str:
    """`unit` as often as it fits between what stands before and after."""
    return before + unit * ((size - len(before) - len(after)) // len(unit)) + after


UNITS = [
    "a",
    "a.",
    ".",
    "-",
    "a-",
    "..",
    "a@",
    "@",
    "=",
    "a=",
    "/",
    "/a",
    "/.",
    "/..",
    "a/",
    ":1",
    "1",
    "9",
    '"',
    '","',
    "{",
    "}",
    "[",
    "]",
]
UNITS += [
    "{}",
    "[[",
    "\\",
    " ",
    "\n",
    "spiffe://",
    "https://a",
    "model:a ",
    '"a":"a",',
    '"a=b",',
    '"a":{',
    "~",
    "\x7f",
    "\u00fc",
]


def test_t10_no_word_takes_long():
    for rule in (identifier, model_name, label, principal_uri, opaque_id):
        for start in ("", "a", "a@", "a=", "spiffe://", "spiffe://a/", "spiffe://a/b"):
            for unit in UNITS:
                for end in ("", "!", "a", ".", "..", "-", "@", "=", "\n"):
                    # The short ones first: where time doubles with each character, the long one would never end.
                    for size in (25, 28, 32, MAX_TOKEN_BYTES):
                        text = filled(start, unit, end, size)
                        assert not is_slow(lambda rule=rule, text=text: rule("field", text)), (rule, text[:60], end)


def test_t10_no_claim_takes_long():
    """Each place in a payload, filled up with each unit, with the rest after it, without it, and broken at its end."""
    places = [at for at, character in enumerate(PAYLOAD) if character in '":,[]{}=@/']
    for at in places:
        for unit in UNITS:
            rest = PAYLOAD[at:]
            for after in ("", rest, rest[:-1]):
                data = filled(PAYLOAD[:at], unit, after).encode()
                assert not is_slow(lambda data=data: decode_claims(data)), (PAYLOAD[:at][-20:], unit, after[:9])


@pytest.mark.parametrize("seed", [1, 2])
def test_t10_no_repeated_part_of_a_payload_takes_long(seed):
    """`act` may hold anything, so what looks like the rest of a token within them is tried as the rest."""
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(1_000):
        first, second = sorted(chance.choices(range(len(PAYLOAD)), k=2))
        start, end = sorted(chance.choices(range(len(PAYLOAD)), k=2))
        before, after = PAYLOAD[:start], chance.choice((PAYLOAD[end:], PAYLOAD[start:], "}", ""))
        data = filled(before, PAYLOAD[first : second + 1], after).encode()
        assert not is_slow(lambda data=data: decode_claims(data)), data[:300]


def test_t10_objects_that_look_like_the_rest_of_a_token_take_no_long():
    """The open end `{.*}` of the pattern, with as many places to stop at as fit."""
    until_cnf = '},"aud":"a","client_id":"spiffe://a/b","cnf":{'
    until_env = (
        until_cnf + '},"env":"a","exp":1,"iat":1,"idx":1,"iss":"https://a","jti":"abcdefgh","labels":[],"models":["a"],'
    )
    before_end = PAYLOAD.rindex("}")
    for unit in (
        until_cnf,
        until_env,
        "}",
        '},"env":"a"',
        until_cnf + "}" * 60,
        until_cnf * 4 + '},"env":"a",' * 9,
        '{"a":' + until_cnf,
    ):
        for after in (
            "",
            "}",
            PAYLOAD[before_end:],
            PAYLOAD[PAYLOAD.index('},"aud"') :],
            PAYLOAD[PAYLOAD.index('},"aud"') : -2] + "!",
        ):
            data = filled('{"act":{', unit, after).encode()
            assert not is_slow(lambda data=data: decode_claims(data)), (unit, after)


def test_t10_no_json_base64_or_header_takes_long():
    header = '{"alg":"ES256","kid":"' + "A" * 43 + '","typ":"at+jwt"}'
    signature = "A" * 86
    for unit in UNITS:
        for size in (MAX_TOKEN_BYTES, 1_000_000):
            text = filled("", unit, "", size)
            inner = text.encode()
            for work in (
                lambda inner=inner: strict_json(inner[:MAX_TOKEN_BYTES]),
                lambda inner=inner: strict_json(b'{"a":' + inner[:MAX_TOKEN_BYTES]),
                lambda text=text: unb64url(text),
                lambda text=text: parse_jws(text, typ=TOKEN_TYP),
                lambda text=text: parse_jws(f"{text}.{text}.{signature}", typ=TOKEN_TYP),
                lambda text=text: check_certificate(text, KEYS.trust, Purpose.TOKEN),
                lambda text=text: Selector.of(partner=text),
            ):
                assert not is_slow(work), (unit, size)
        for cut in (8, 22, 30, 66, len(header)):
            segment = b64url(filled(header[:cut], unit, "", 6000).encode())
            assert not is_slow(lambda segment=segment: parse_jws(f"{segment}.AAAA.{signature}", typ=TOKEN_TYP)), (
                unit,
                cut,
            )


def test_t10_no_issuer_of_a_trust_file_takes_long():
    for unit in UNITS:
        for start in ("https://", "https://a", "https://a:1", "https://a/", "https://a/b"):
            for end in ("", "/", "!", ":", "?"):
                issuer = filled(start, unit, end).replace("\\", "").replace('"', "").replace("\n", "")
                document = '{"realms":{"a":{"issuer":"' + issuer + '","audience":"a","roots":[]}}}'
                assert not is_slow(lambda document=document: parse_trust(document)), (start, unit, end)
