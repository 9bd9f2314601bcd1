"""Claims: the one pattern that reads them beside a slow reader that shares nothing with it (P7, T6, T11)."""

import json
import random
import string
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import Malformed
from broker.token.claims import MAX_LIFETIME_S, Claims, decode_claims, encode_claims, numbered
from tests.realm_keys import RealmKeys

KEYS = RealmKeys()
NOW = KEYS.now_s
LOWER, LETTERS = string.ascii_lowercase + string.digits, string.ascii_letters + string.digits
REQUIRED = {
    *("aud", "client_id", "env", "exp", "iat", "idx", "iss", "jti", "labels", "models", "nbf", "parents"),
    *("partner", "realm", "scope", "sub"),
}
B64URL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
CNFS = [
    {"jkt": "a" * 43},
    {"x5t#S256": "-_" * 21 + "A"},
    {},
    {"jkt": "a" * 42},
    {"jkt": "a" * 44},
    {"jkt": "a" * 43, "x5t#S256": "a" * 43},
    {"x5t": "a" * 43},
    {"jkt": 1},
    {"jkt": "=" * 43},
]
OPTIONAL = {"act", "cnf", "parent_keys", "parent_models", "run", "test", "user", "workload"}
LISTS = {
    "models": "m{}",
    "labels": "a{:02}=b",
    "parents": "parent-{:04}",
    "parent_models": "m{}",
    "parent_keys": "k" * 40 + "{:03}",
}
RICH = KEYS.claims(
    run="a-run-of-tests",
    test="case-7",
    labels=("a=b", "c.d=e_f"),
    models=("mythos", "oracle@eu-1"),
    scope="model:mythos model:oracle@eu-1",
    parents=("parent-0001", "parent-0002"),
    parent_models=("sibyl", "sibyl@eu-1"),
    parent_keys=("k" * 43, "-_" * 21 + "A"),
    cnf={"jkt": "a" * 43},
    act={"sub": "agent", "act": {"sub": "other"}},
)


# The rules of the words, once more and by hand: no pattern, nothing that the code under test uses.


def is_name(text: object) -> bool:
    return (
        isinstance(text, str)
        and 1 <= len(text) <= 128
        and all(character in LOWER + "._-" for character in text)
        and text[0] in LOWER
        and text[-1] in LOWER
        and ".." not in text
    )


def is_model(text: str) -> bool:
    parts = text.split("@")
    return len(parts) <= 2 and all(is_name(part) for part in parts)


def is_label(text: str) -> bool:
    parts = text.split("=")
    return len(parts) == 2 and all(is_name(part) for part in parts)


def is_opaque(text: object) -> bool:
    return isinstance(text, str) and 8 <= len(text) <= 64 and all(character in LETTERS + "_-" for character in text)


def is_principal(text: object) -> bool:
    if not isinstance(text, str) or len(text) > 512 or not text.startswith("spiffe://"):
        return False
    domain, *path = text.removeprefix("spiffe://").split("/")
    return (
        1 <= len(domain) <= 254
        and all(character in LOWER + ".-" for character in domain)
        and domain[0] in LOWER
        and domain[-1] in LOWER
        and ".." not in domain
        and bool(path)
        and all(part not in ("", ".", "..") and all(c in LETTERS + "._-" for c in part) for part in path)
    )


def is_issuer(text: object) -> bool:
    if not isinstance(text, str) or not text.startswith("https://"):
        return False
    place, *path = text.removeprefix("https://").split("/")
    host, colon, port = place.partition(":")
    return (
        bool(host)
        and all(character in LOWER + ".-" for character in host)
        and (not colon or (1 <= len(port) <= 5 and all(character in string.digits for character in port)))
        and all(part and all(character in LETTERS + "._~-" for character in part) for part in path)
    )


def depth(value: object) -> int:
    match value:
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
        case list():
            return 1 + max(map(depth, value), default=0)
    return 0


def is_plain(value: object) -> bool:
    """An object in which everything is text, a whole number of 53 bits, true, false, null, or made of such."""

    def inner(value: object) -> bool:
        match value:
            case dict():
                return all("\\" not in json.dumps(name) and inner(one) for name, one in value.items())
            case list():
                return all(map(inner, value))
            case str():
                return "\\" not in json.dumps(value)
            case float():
                return False
            case int():
                return abs(value) < 2**53
        return True

    return isinstance(value, dict) and inner(value) and depth(value) <= 8


def is_list(value: object, rule: Any, least: int, most: int) -> bool:
    return (
        isinstance(value, list)
        and least <= len(value) <= most
        and all(isinstance(item, str) and rule(item) for item in value)
        and len(set(value)) == len(value)
    )


def is_key_id(text):
    return len(text) == 43 and set(text) <= set(B64URL)


def is_cnf(value):
    return (
        isinstance(value, dict)
        and len(value) == 1
        and set(value) <= {"jkt", "x5t#S256"}
        and all(isinstance(v, str) and len(v) == 43 and set(v) <= set(B64URL) for v in value.values())
    )


def naive(payload: bytes) -> dict[str, Any] | None:
    """What a payload says, read slowly; None if it is not exactly one of ours."""
    try:
        c = json.loads(payload.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(c, dict) or not set(c) >= REQUIRED or set(c) - REQUIRED - OPTIONAL:
        return None
    # The one spelling: names sorted, no spaces, no name twice. Within cnf and act, names are in the order in which they came.
    if json.dumps({name: c[name] for name in sorted(c)}, separators=(",", ":")).encode() != payload:
        return None
    times = [c["nbf"], c["iat"], c["exp"], c["idx"]]
    if not all(type(time) is int and 1 <= time < 2**53 for time in times):
        return None
    kinds = [kind for kind in ("user", "workload") if kind in c]
    holds = (
        is_issuer(c["iss"])
        and all(is_name(c[name]) for name in ("aud", "env", "partner", "realm"))
        and (is_principal(c["client_id"]) or is_name(c["client_id"]))
        and is_opaque(c["jti"])
        and ("run" not in c or is_opaque(c["run"]))
        and ("test" not in c or ("run" in c and is_name(c["test"])))
        and kinds
        and all(is_name(c[kind]) for kind in kinds)
        and (
            len(kinds) == 1
            or (is_plain(c.get("act")) and c["act"].get("sub") == f"{c['partner']}/workload/{c['workload']}")
        )
        and c["sub"] == f"{c['partner']}/{kinds[0]}/{c[kinds[0]]}"
        and is_list(c["models"], is_model, 1, 16)
        and c["scope"] == " ".join(f"model:{model}" for model in c["models"])
        and is_list(c["labels"], is_label, 0, 16)
        and all(one < other for one, other in pairwise(c["labels"]))
        and is_list(c["parents"], is_opaque, 0, 8)
        and ("parent_models" not in c or (c["parents"] and is_list(c["parent_models"], is_model, 1, 128)))
        and ("parent_keys" not in c or (c["parents"] and is_list(c["parent_keys"], is_key_id, 1, 8)))
        and ("cnf" not in c or is_cnf(c["cnf"]))
        and ("act" not in c or is_plain(c["act"]))
        and c["nbf"] <= c["iat"] < c["exp"] <= c["iat"] + 7 * 86_400
    )
    return c if holds else None


def said(claims: Claims) -> dict[str, Any]:
    named = {name: getattr(claims, name) for name in Claims.__slots__}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in named.items() if value is not None
    }


def agree(payload: bytes) -> bool:
    """Compare both readers; tell whether they accept."""
    expected = naive(payload)
    try:
        found = decode_claims(payload)
    except Malformed:
        assert expected is None, f"only the slow reader accepts {payload!r}"
        return False
    assert expected is not None, f"only the fast reader accepts {payload!r}"
    assert said(found) == expected
    assert encode_claims(found) == payload
    # What the constructor would say of it.
    assert replace(found) == found
    return True


TEXTS = [
    *("", "a", "7", "a" * 128, "a" * 129, "a" * 127 + "-", "." + "a" * 9, "a.", "a..b", "a.b", "-a", "a-", "_a", "a_b"),
    *("A", "aB", "a b", " a", "a ", "a/b", "\u0430cme", "a\u200db", "a@b", "a@b@c", "@a", "a@", "a@b..c", "a..b@c"),
    *(
        "a=b",
        "a=b=c",
        "=b",
        "a=",
        "a=b..c",
        "a..b=c",
        "A=b",
        "a=\u00fc",
        "a,b",
        "a]",
        "a}",
        'a"b',
        "a\\b",
        "a\nb",
        "a\x00",
    ),
    *("a\x7f", "spiffe://a/b", "spiffe://a", "spiffe://a/", "spiffe://a/./b", "spiffe://a/..", "spiffe://a/...", "*"),
    *("spiffe://a/.b", "spiffe://a/..b", "spiffe://a/b/.", "spiffe://a//b", "spiffe://a..b/c", "spiffe://A/b"),
    *(
        "spiffe://a/B_~",
        "spiffe://-a/b",
        "spiffe://a-/b",
        "spiffe://a:1/b",
        "spiffe://u@a/b",
        "spiffe://a/b?c",
        "Spiffe://a/b",
    ),
    *(
        "spiffe://" + "a" * 254 + "/b",
        "spiffe://" + "a" * 255 + "/b",
        "spiffe://a/" + "b" * 501,
        "spiffe://a/" + "b" * 502,
    ),
    *(
        "https://a",
        "https://a:1",
        "https://a:65536",
        "https://a:123456",
        "https://a:",
        "https://a/",
        "https://a/b/c",
        "http://a",
    ),
    *(
        "https://a/b/",
        "https://A",
        "https://",
        "https://a?b",
        "https://a/~b",
        "https://a//b",
        "https://a/b#c",
        "HTTPS://a",
    ),
    *(
        "abcdefg",
        "abcdefgh",
        "a" * 64,
        "a" * 65,
        "A_-9" * 4,
        "abcdefg.",
        "abcdefg=",
        "model:a",
        "null",
        "a-run-of-tests",
    ),
]
INTEGERS = [
    *(
        0,
        1,
        -1,
        5,
        NOW,
        NOW - 1,
        NOW + 1,
        NOW - 5,
        NOW + 600,
        NOW + MAX_LIFETIME_S,
        NOW + MAX_LIFETIME_S + 1,
        NOW - MAX_LIFETIME_S,
    ),
    *(2**53 - 1, 2**53, 2**53 - 2, 10**15, 10**16, 10**30),
]
OTHERS: list[Any] = [
    None,
    True,
    False,
    1.0,
    1.5,
    1e30,
    [],
    {},
    [[]],
    {"a": {}},
    "5",
    str(NOW),
    [1],
    ["a", 1],
    {"a": 1.5},
    {"a": 2**53},
]


def nested(chance: random.Random) -> object:
    value: object = chance.choice(
        [1, "a", True, None, -5, 2**53 - 1, -(2**53), "{", "}}", "[[", "a\x7f", "\u00fc", 0.5, [], {}]
    )
    for _ in range(chance.choice([1, 1, 2, 3, 7, 8, 9])):
        value = {chance.choice("abc"): value, "z": 1} if chance.random() < 0.7 else [value]
    return value


def changed(chance: random.Random) -> dict[str, Any]:
    """The claims with some of them changed for what nearly is, or just is, right."""
    c: dict[str, Any] = said(RICH)
    for name in OPTIONAL:
        if chance.random() < 0.5:
            c.pop(name, None)
    if "user" not in c and chance.random() < 0.9:
        c["workload"] = "nightly"
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        name = chance.choice(sorted(REQUIRED | OPTIONAL))
        match chance.randrange(8):
            case 0:
                c[name] = chance.choice(OTHERS)
            case 1:
                c.pop(name, None)
            case 2 if name in c:
                c[name] = c.get(chance.choice(sorted(c)))
            case 3 if chance.random() < 0.3:
                c[chance.choice(["admin", "Aud", "aud ", "", "user_", "zzz"])] = "a"
            case _:
                if name in ("exp", "iat", "nbf", "idx"):
                    c[name] = chance.choice(INTEGERS)
                elif name in LISTS:
                    c[name] = chance.choices(TEXTS, k=chance.choice((0, 1, 1, 2, 2, 8, 9, 16, 17)))
                    if name == "labels" and chance.random() < 0.5:
                        c[name].sort()
                    if chance.random() < 0.3:
                        c[name] = [LISTS[name].format(n) for n in range(chance.choice((0, 1, 8, 9, 16, 17, 128, 129)))]
                elif name == "cnf" and chance.random() < 0.7:
                    c[name] = chance.choice(CNFS)
                elif name in ("cnf", "act"):
                    c[name] = nested(chance)
                else:
                    c[name] = chance.choice(TEXTS)
    # Mostly consistent, or nothing but this would ever be judged.
    if chance.random() < 0.9:
        kind = "user" if "user" in c else "workload"
        c["sub"] = f"{c.get('partner')}/{kind}/{c.get(kind)}"
        if kind == "user" and "workload" in c and chance.random() < 0.8:
            c["act"] = {"sub": f"{c.get('partner')}/workload/{c['workload']}"}
        if isinstance(c.get("models"), list):
            c["scope"] = " ".join(f"model:{model}" for model in c["models"])
    return c


@pytest.mark.parametrize("seed", [1, 2])
def test_p7_t11_both_readers_judge_changed_claims_alike(seed):
    print("seed", seed)
    chance = random.Random(seed)
    accepted = 0
    for _ in range(12_000):
        c = changed(chance)
        accepted += agree(json.dumps({name: c[name] for name in sorted(c)}, separators=(",", ":")).encode())
    assert 1_000 < accepted < 8_000, "a test in which all or nothing is accepted shows nothing"


@pytest.mark.parametrize("seed", [1, 2])
def test_p7_t6_both_readers_judge_changed_spellings_alike(seed):
    print("seed", seed)
    chance = random.Random(seed)
    payload = encode_claims(RICH)
    pieces = [
        b'"',
        b'","',
        b",",
        b":",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\\u0061",
        b" ",
        b"\n",
        b"null",
        b"0",
        b"-",
        b".",
        b"e1",
        b"..",
        b"@",
        b"=",
        b"\x7f",
    ]
    accepted = 0
    for _ in range(12_000):
        data = bytearray(payload)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            at = chance.randrange(len(data))
            match chance.randrange(6):
                case 0:
                    data[at] = chance.choice(payload)
                case 1:
                    data[at:at] = chance.choice(pieces)
                case 2:
                    del data[at : at + chance.choice((1, 1, 2, 5, 30))]
                case 3:
                    other = chance.randrange(len(data))
                    data[at:at] = data[other : other + chance.randrange(1, 60)]
                case 4:
                    data[at] ^= 1 << chance.randrange(8)
                case _:
                    data[at] = chance.choice(b"abcz059")
        accepted += agree(bytes(data))
    assert accepted > 200, "a test in which nothing is accepted shows nothing"


def test_each_near_miss_in_each_claim_is_judged_alike():
    """One by one and without chance: each text, number and other thing in the place of each claim."""
    base = said(RICH)
    for name in sorted(REQUIRED | OPTIONAL):
        for value in [*TEXTS, *INTEGERS, *OTHERS, *([one] for one in TEXTS)]:
            c = {**base, name: value}
            if name == "workload" and value != "nightly":
                del c["user"]
            kind = "user" if "user" in c else "workload"
            if name != "sub":
                c["sub"] = f"{c['partner']}/{kind}/{c[kind]}"
            if name != "scope" and isinstance(c["models"], list):
                c["scope"] = " ".join(f"model:{model}" for model in c["models"])
            agree(json.dumps({name: c[name] for name in sorted(c)}, separators=(",", ":")).encode())


def test_p7_the_constructor_judges_each_near_miss_as_the_reader_does():
    """What cannot be read cannot be made, and so is never signed."""
    base = said(RICH)
    numbers, lists = ("exp", "iat", "nbf", "idx"), LISTS
    made = 0
    for name in sorted((REQUIRED | OPTIONAL) - {"cnf", "act"}):
        for value in INTEGERS if name in numbers else [[one] for one in TEXTS] if name in lists else TEXTS:
            c = {**base, name: value}
            if name == "workload" and value != "nightly":
                del c["user"]
            kind = "user" if "user" in c else "workload"
            if name != "sub":
                c["sub"] = f"{c['partner']}/{kind}/{c[kind]}"
            if name != "scope":
                c["scope"] = " ".join(f"model:{model}" for model in c["models"])
            is_right = (
                naive(json.dumps({name: c[name] for name in sorted(c)}, separators=(",", ":")).encode()) is not None
            )
            fields = {name: tuple(one) if isinstance(one, list) else one for name, one in c.items()}
            try:
                claims = Claims(**{**dict.fromkeys(OPTIONAL), **fields})
            except Malformed:
                assert not is_right, (name, value)
                continue
            assert is_right, (name, value)
            assert said(claims) == c
            made += 1
    assert made > 100


_any_name = st.text(LOWER + "._-", min_size=1, max_size=128).filter(is_name) | st.sampled_from(["a", "a" * 128])
_any_opaque = st.text(LETTERS + "_-", min_size=8, max_size=64)
_any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(string.printable[:95].replace("\\", "").replace('"', ""), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_any_opaque, inner, max_size=3),
    max_leaves=8,
)
_any_object = st.dictionaries(_any_name, _any_json, max_size=4).filter(lambda value: depth(value) <= 8)


_any_cnf = st.builds(
    lambda name, value: {name: value},
    st.sampled_from(["jkt", "x5t#S256"]),
    st.text(B64URL, min_size=43, max_size=43),
)


@st.composite
def any_claims(draw: st.DrawFn) -> Claims:
    partner, who, kind = draw(_any_name), draw(_any_name), draw(st.sampled_from(["user", "workload"]))
    actor = draw(st.none() | _any_name) if kind == "user" else None
    models = draw(
        st.lists(_any_name | st.builds("{}@{}".format, _any_name, _any_name), min_size=1, max_size=16, unique=True)
    )
    times = sorted(draw(st.lists(st.integers(1, 2**53 - 1 - MAX_LIFETIME_S), min_size=2, max_size=2)))
    run = draw(st.none() | _any_opaque)
    parents = tuple(draw(st.lists(_any_opaque, max_size=8, unique=True)))
    key_ids = st.lists(st.text(B64URL, min_size=43, max_size=43), min_size=1, max_size=8, unique=True)
    return Claims(
        iss=draw(st.sampled_from([text for text in TEXTS if is_issuer(text)])),
        sub=f"{partner}/{kind}/{who}",
        aud=draw(_any_name),
        client_id=draw(st.sampled_from([text for text in TEXTS if is_principal(text)])),
        iat=times[1],
        nbf=times[0],
        exp=times[1] + draw(st.integers(1, MAX_LIFETIME_S)),
        jti=draw(_any_opaque),
        scope=" ".join(f"model:{model}" for model in models),
        realm=draw(_any_name),
        partner=partner,
        user=who if kind == "user" else None,
        workload=who if kind == "workload" else actor,
        run=run,
        test=draw(st.none() | _any_name) if run else None,
        models=tuple(models),
        env=draw(_any_name),
        labels=tuple(sorted(draw(st.sets(st.builds("{}={}".format, _any_name, _any_name), max_size=16)))),
        parents=parents,
        parent_models=tuple(draw(st.lists(_any_name, min_size=1, max_size=20, unique=True))) if parents else None,
        parent_keys=tuple(draw(key_ids)) if parents and draw(st.booleans()) else None,
        idx=draw(st.integers(1, 2**53 - 1)),
        cnf=draw(st.none() | _any_cnf),
        act=draw(st.none() | _any_object) if actor is None else {"sub": f"{partner}/workload/{actor}"},
    )


@settings(max_examples=250, deadline=None, derandomize=True)
@given(any_claims())
def test_all_claims_come_back_as_they_went(claims):
    data = encode_claims(claims)
    assert decode_claims(data) == claims
    assert agree(data)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(any_claims(), st.integers(-2, 2**54) | st.sampled_from([0, 1, 2**53 - 1, 2**53]))
def test_claims_at_another_index_are_the_same_claims_otherwise(claims, idx):
    if not 1 <= idx < 2**53:
        with pytest.raises(Malformed, match="idx"):
            numbered(claims, idx)
    else:
        assert numbered(claims, idx) == replace(claims, idx=idx)
    for edge in (1, 2**53 - 1):
        assert numbered(claims, edge).idx == edge


def test_t6_t11_the_last_instant_is_the_last_whole_number_that_every_reader_knows():
    last = 2**53 - 1
    claims = KEYS.claims(iat=last - 600, exp=last)
    assert decode_claims(encode_claims(claims)) == claims
    beyond = encode_claims(claims).replace(str(last).encode(), str(last + 1).encode())
    with pytest.raises(Malformed):
        decode_claims(beyond)
    with pytest.raises(Malformed):
        KEYS.claims(iat=last - 600, exp=last + 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": "globex/user/bob"},
        {"user": None},
        {"workload": "bob"},
        {"test": "case-7"},
        {"scope": "model:oracle"},
        {"models": ()},
        {"models": ("mythos", "mythos"), "scope": "model:mythos model:mythos"},
        {"labels": ("b=c", "a=b")},
        {"labels": ("a=b", "a=b")},
        {"parents": ("parent-0001", "parent-0001")},
        {"parents": tuple(f"parent-{number:04}" for number in range(9))},
        {"parent_models": ("mythos",)},
        {"parent_keys": ("k" * 43,)},
        {"parents": ("parent-0001",), "parent_models": ()},
        {"parents": ("parent-0001",), "parent_keys": ("short",)},
        {"parents": ("parent-0001",), "parent_keys": ("k" * 43, "k" * 43)},
        {"nbf": NOW + 1},
        {"nbf": 0},
        {"exp": NOW},
        {"exp": NOW + MAX_LIFETIME_S + 1},
        {"idx": 0},
        {"idx": 2**53},
        {"idx": True},
        {"idx": 1.0},
        {"exp": float(NOW + 600)},
        {"jti": "short"},
        {"run": "a run of tests"},
        {"client_id": "Acme"},
        {"client_id": "spiffe://acme"},
        {"user": None, "workload": None},
        # RFC 8693 §4.1: with two subjects the outermost actor is the workload that acts.
        {"user": "bob", "workload": "ci", "sub": "acme/user/bob"},
        {"user": "bob", "workload": "ci", "sub": "acme/user/bob", "act": {"sub": "acme/workload/other"}},
        {"user": "bob", "workload": "ci", "sub": "acme/user/bob", "act": {"sub": "globex/workload/ci"}},
        {"user": "bob", "workload": "ci", "sub": "acme/workload/ci", "act": {"sub": "acme/workload/ci"}},
        {"iss": "http://evaluation.example.org"},
        {"cnf": {}},
        {"cnf": {"jkt": "a" * 42}},
        {"cnf": {"jkt": "a" * 44}},
        {"cnf": {"jkt": "=" * 43}},
        {"cnf": {"jkt": ["a" * 43]}},
        {"cnf": {"JKT": "a" * 43}},
        {"cnf": {"jkt": "a" * 43, "x5t#S256": "a" * 43}},
        {"cnf": {"jwk": {"kty": "EC"}}},
        {"cnf": {1: "a"}},
        {"act": {"a": 1.5}},
        {"act": {"a": "\u00fc"}},
        {"act": {1: "a"}},
        {"act": {"a": ("b",)}},
        {"act": ["a"]},
        {"act": {"a": Exception}},
    ],
    ids=str,
)
def test_p7_claims_that_break_a_rule_cannot_be_made(changes):
    with pytest.raises(Malformed):
        KEYS.claims(**changes)
