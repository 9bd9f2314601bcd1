"""The completion's file: a stranger believes each byte of it, or nothing (P6, P8, P9, B14)."""

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import Failure, Malformed, Rejected, Untrusted
from broker.token.claims import TOKEN_TYP
from broker.token.completion import (
    COMPLETION_TYP,
    MAX_COMPLETION_BYTES,
    MAX_DOCUMENT_BYTES,
    STATES,
    Statement,
    VerifierStop,
    check_completion,
    check_completions,
    completion_signing_input,
    in_order,
    statement_payload,
)
from broker.token.jws import MAX_TOKEN_BYTES, assemble, b64url, parse_jws, unb64url
from broker.token.keys import P256_ORDER, Purpose, check_certificate, parse_trust, public_jwk
from broker.token.revocation import Dimension, Selector
from broker.token.verification import check_signature
from tests.realm_keys import CertifiedKey, RealmKeys, sign
from tests.unit.token.made import labels, models, names, opaque

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "completions.json").read_text("ascii"))
PINNED = parse_trust(json.dumps(VECTORS["trust"]))
EVALUATION, PRODUCTION = RealmKeys("evaluation"), RealmKeys("production")
REALMS = {keys.realm: keys for keys in (EVALUATION, PRODUCTION)}
KEYS = {realm: keys.certified(Purpose.COMPLETION) for realm, keys in REALMS.items()}
TRUST = {realm: keys.trust for realm, keys in REALMS.items()}
AT = datetime(2027, 1, 15, 7, 59, 58, 250_000, UTC)


def stop(verifier: str, after_ms: int = 12, *, realm: str = "evaluation", **more: Any) -> VerifierStop:
    return VerifierStop(
        f"spiffe://example.org/{verifier}", realm, **{"state": "acknowledged", "uses_cut": 0, **more}, after_ms=after_ms
    )


def statement(*stops: VerifierStop, realm: str = "evaluation", **changed: Any) -> Statement:
    keys = REALMS[realm]
    ordered = in_order(stops)
    took_ms = max([changed.get("waited_ms", 0), *(one.after_ms for one in ordered)])
    filled: dict[str, Any] = {
        "iss": keys.trust.issuer,
        "iat": keys.now_s,
        "realm": realm,
        "realms": (realm,),
        "incarnation": "0123456789abcdef0123456789abcdef",
        "index": 4711,
        "entries": 1,
        "selector": (("partner", "acme"),),
        "reason": 'contract "ended"',
        "by": "spiffe://example.org/admin",
        "blocks": True,
        "committed_at": AT,
        "in_force_at": AT + timedelta(milliseconds=took_ms),
        "waited_ms": 0,
        "verifiers": ordered,
        "tokens": 3,
        "uses_cut": sum(one.uses_cut for one in ordered),
        "certificate": KEYS[realm].certificate,
    }
    return Statement(**{**filled, **changed})


def signed(made: Statement | bytes, by: CertifiedKey | None = None) -> str:
    key = by or KEYS[made.realm if isinstance(made, Statement) else "evaluation"]
    payload = made if isinstance(made, bytes) else statement_payload(made)
    message = completion_signing_input(key.kid, payload)
    return assemble(message, sign(key.private, message))


BOTH = ("evaluation", "production")
FIRST = statement(stop("slow", 5000, state="lapsed"), stop("a", uses_cut=2), stop("b", 800, state="left"), realms=BOTH)
SECOND = statement(stop("only", 7, realm="production"), realm="production", realms=BOTH)
LINES = (signed(FIRST), signed(SECOND))
GOOD = "".join(f"{line}\n" for line in LINES)


def refused(document: str, trust: Any = TRUST) -> Rejected:
    with pytest.raises((Malformed, Untrusted)) as caught:
        check_completions(document, trust)
    return caught.value


def test_what_was_signed_is_what_is_read():
    assert check_completions(GOOD, TRUST) == (FIRST, SECOND)
    assert check_completion(LINES[1], TRUST) == SECOND
    assert (FIRST.listening, FIRST.acknowledged, FIRST.lapsed, FIRST.left) == (3, 1, 1, 1)
    assert FIRST.slowest == stop("slow", 5000, state="lapsed")
    assert FIRST.took_ms == 5000


def test_pyjwt_verifies_it_with_the_key_that_the_root_certified():
    for line, made in zip(LINES, (FIRST, SECOND), strict=True):
        key = check_certificate(made.certificate, TRUST[made.realm], Purpose.COMPLETION)
        jwk = {**public_jwk(key.public_key), "kid": key.kid, "alg": "ES256", "use": "sig"}
        header = jwt.get_unverified_header(line)
        assert header == {"alg": "ES256", "kid": key.kid, "typ": COMPLETION_TYP}
        claims = jwt.decode(
            line,
            jwt.PyJWKSet.from_dict({"keys": [jwk]})[header["kid"]],
            algorithms=["ES256"],
            options={"verify_iat": False},
        )
        assert claims == json.loads(statement_payload(made))
        assert claims["slowest"]["verifier"] == made.verifiers[0].verifier
        assert claims["committed_at"] == "2027-01-15T07:59:58.250Z"


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda vector: vector["name"])
def test_a_good_file_stays_good_and_keeps_its_bytes(vector):
    found = check_completions(vector["document"], PINNED)
    assert [one.index for one in found] == vector["indices"]
    assert [one.realm for one in found] == vector["realms"]
    assert [one.took_ms for one in found] == vector["took_ms"]
    assert [one.slowest and one.slowest.verifier for one in found] == vector["slowest"]
    assert [statement_payload(one).decode() for one in found] == vector["payloads"]
    again = []
    for one, line in zip(found, vector["document"].splitlines(), strict=True):
        jws = parse_jws(line, typ=COMPLETION_TYP)
        again.append(assemble(completion_signing_input(jws.kid, statement_payload(one)), jws.signature))
    assert "".join(f"{line}\n" for line in again) == vector["document"]


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["name"])
def test_p6_p8_p9_a_bad_file_stays_refused_for_its_reason(vector):
    with pytest.raises(Failure) as caught:
        check_completions(vector["document"], PINNED)
    assert caught.value.reason == vector["reason"]
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("part", range(8))
def test_b14_not_one_byte_of_the_file_can_be_another(part):
    """Each position, with its neighbours in the alphabet, a bit, a line's end, the other line's byte, and nothing."""
    for at in range(part, len(GOOD), 8):
        here = GOOD[at]
        others = {chr(ord(here) ^ 1), chr(ord(here) ^ 4), "A", "-", "\n", ".", "\x00", "\u017f", GOOD[at - 1]} - {here}
        for other in others:
            refused(f"{GOOD[:at]}{other}{GOOD[at + 1 :]}")
        refused(GOOD[:at] + GOOD[at + 1 :])
        refused(f"{GOOD[:at]}{here}{GOOD[at:]}")


@pytest.mark.parametrize(
    "character", [" ", "\t", "\r", "\n", "\x0b", "\x0c", "\x85", "\u2028", "\ufeff", "=", ".", "A"]
)
def test_b14_nothing_can_be_put_in(character):
    ends = [0, len(LINES[0]), len(LINES[0]) + 1, len(GOOD) - 1, len(GOOD)]
    dots = [at for at, one in enumerate(GOOD) if one == "."]
    for at in (*ends, *dots, *(dot + 1 for dot in dots), *range(0, len(GOOD), 61)):
        refused(GOOD[:at] + character + GOOD[at:])


def test_b14_the_file_cannot_be_cut_off_anywhere():
    for end in range(len(GOOD)):
        refused(GOOD[:end])
    for start in range(1, len(GOOD), 7):
        refused(GOOD[start:])


@pytest.mark.parametrize(
    "lines",
    [
        (1, 0),
        (0,),
        (1,),
        (0, 0),
        (1, 1),
        (0, 1, 1),
        (0, 0, 1),
        (0, 1, 0, 1),
    ],
    ids=str,
)
def test_p8_there_is_one_line_for_each_realm_in_its_place(lines):
    refused("".join(f"{LINES[number]}\n" for number in lines))


@pytest.mark.parametrize(
    "changed",
    [
        {"index": 4712},
        {"incarnation": "fedcba98"},
        {"reason": "another"},
        {"by": "spiffe://example.org/other"},
        {"by": "broker"},
        {"selector": (("partner", "globex"),)},
        {"selector": (("environment", "ci"), ("partner", "acme"))},
        {"realms": ("evaluation", "production", "research")},
        {"committed_at": AT + timedelta(milliseconds=1), "in_force_at": AT + timedelta(milliseconds=8)},
    ],
    ids=" ".join,
)
def test_p6_the_lines_tell_of_one_revocation(changed):
    other = signed(replace(SECOND, **changed))
    assert check_completion(other, TRUST).realm == "production"
    assert refused(f"{LINES[0]}\n{other}\n").message.startswith(("line 2: tells of another", "there must be one line"))


def test_p9_only_a_key_for_completions_signs_them():
    for purpose in (Purpose.TOKEN, Purpose.FEED):
        key = EVALUATION.certified(purpose)
        assert type(refused(signed(statement(certificate=key.certificate), key) + "\n")) is Untrusted
        # Its certificate beside a key that may, and the other way round.
        assert type(refused(signed(statement(certificate=key.certificate)) + "\n")) is Untrusted
        assert type(refused(signed(statement(), key) + "\n")) is Untrusted


def test_t5_the_header_names_the_key_of_the_certificate():
    key = KEYS["evaluation"]
    message = completion_signing_input(KEYS["production"].kid, statement_payload(statement()))
    assert type(refused(assemble(message, sign(key.private, message)) + "\n")) is Untrusted


def test_t6_another_spelling_is_refused_as_that():
    payload = statement_payload(statement()).replace(b":1,", b": 1,", 1)
    assert "one spelling" in refused(signed(payload) + "\n").message


def test_p8_no_other_realms_key_signs_for_this_one():
    other = KEYS["production"]
    for made in (statement(certificate=other.certificate), statement()):
        assert type(refused(signed(made, other) + "\n")) is Untrusted
    # A realm of the same name, of another root.
    stranger = RealmKeys("evaluation").certified(Purpose.COMPLETION)
    assert type(refused(signed(statement(certificate=stranger.certificate), stranger) + "\n")) is Untrusted
    assert type(refused(GOOD, {"evaluation": TRUST["evaluation"]})) is Untrusted
    assert type(refused(GOOD, {})) is Untrusted
    swapped = {"evaluation": TRUST["production"], "production": TRUST["evaluation"]}
    assert type(refused(GOOD, swapped)) is Untrusted


@pytest.mark.parametrize(("seconds", "is_good"), [(-61, False), (-60, True), (0, True), (60, True), (61, False)])
def test_p9_a_key_vouches_for_what_it_signed_in_its_time(seconds, is_good):
    now = EVALUATION.now_s
    key = EVALUATION.certified(Purpose.COMPLETION, not_before=now - 60, signs_until=now + 60, expires=now + 600)
    line = signed(statement(iat=now + seconds, certificate=key.certificate), key)
    if is_good:
        assert check_completion(line, TRUST).iat == now + seconds
    else:
        assert type(refused(line + "\n")) is Untrusted


def test_t9_a_signature_has_one_spelling():
    jws = parse_jws(LINES[0], typ=COMPLETION_TYP)
    r, s = jws.signature[:32], int.from_bytes(jws.signature[32:], "big")
    twin = assemble(jws.signing_input, r + (P256_ORDER - s).to_bytes(32, "big"))
    with pytest.raises(Untrusted):
        check_completion(twin, TRUST)


def test_t12_a_completion_is_no_token_and_a_token_no_completion():
    held = {
        KEYS["evaluation"].kid: check_certificate(
            KEYS["evaluation"].certificate, TRUST["evaluation"], Purpose.COMPLETION
        )
    }
    with pytest.raises(Malformed):
        check_signature(LINES[0], held)
    for other in (EVALUATION.mint(), EVALUATION.mint(by=KEYS["evaluation"]), KEYS["evaluation"].certificate):
        assert type(refused(other + "\n")) is Malformed


def test_t10_a_token_is_no_longer_than_before_though_a_completion_may_be():
    many = statement(*(stop(f"verifier-{number}") for number in range(100)))
    line = signed(many)
    assert len(line) > MAX_TOKEN_BYTES
    assert check_completion(line, TRUST) == many
    for parse in (lambda text: parse_jws(text, typ=TOKEN_TYP), lambda text: check_signature(text, {})):
        with pytest.raises(Malformed, match=f"longer than {MAX_TOKEN_BYTES}"):
            parse(line)
    with pytest.raises(Malformed, match=f"longer than {MAX_TOKEN_BYTES}"):
        check_certificate(line, TRUST["evaluation"], Purpose.COMPLETION)


def test_ten_thousand_verifiers_fit_and_what_is_longer_than_a_file_can_be_is_not_read():
    made = statement(*(stop(f"verifier/region-{number % 7}/gateway-{number:05}", number) for number in range(10_000)))
    line = signed(made)
    assert MAX_TOKEN_BYTES < len(line) < MAX_COMPLETION_BYTES
    [found] = check_completions(line + "\n", TRUST)
    assert found == made
    assert (found.listening, found.took_ms) == (10_000, 9_999)
    assert found.slowest is not None
    assert found.slowest.verifier.endswith("gateway-09999")
    with pytest.raises(Malformed, match="longer than"):
        check_completion("A" * (MAX_COMPLETION_BYTES + 1), TRUST)
    assert refused("A" * MAX_DOCUMENT_BYTES + "\n").message.startswith("longer than")


def test_verifiers_of_one_name_count_each_and_ties_are_by_name():
    one = statement(stop("b"), stop("a"), stop("a", state="lapsed"), stop("a"))
    [found] = check_completions(signed(one) + "\n", TRUST)
    assert [stop.verifier[-1] for stop in found.verifiers] == ["a", "a", "a", "b"]
    assert found.listening == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: replace(FIRST, verifiers=FIRST.verifiers[::-1]),
        lambda: replace(FIRST, uses_cut=3),
        lambda: replace(FIRST, in_force_at=AT + timedelta(milliseconds=4999)),
        lambda: replace(FIRST, in_force_at=AT + timedelta(milliseconds=5001)),
        lambda: replace(FIRST, waited_ms=5001),
        lambda: replace(FIRST, committed_at=AT.replace(tzinfo=None), in_force_at=AT.replace(tzinfo=None)),
        lambda: replace(FIRST, committed_at=AT + timedelta(microseconds=1)),
        lambda: replace(
            FIRST,
            committed_at=AT + timedelta(microseconds=1),
            in_force_at=FIRST.in_force_at + timedelta(microseconds=1),
        ),
        lambda: replace(FIRST, realm="production"),
        lambda: replace(FIRST, realms=("production", "evaluation")),
        lambda: replace(FIRST, realms=("evaluation", "evaluation", "production")),
        lambda: replace(FIRST, realms=("Evaluation", "evaluation")),
        lambda: replace(FIRST, selector=(("realm", "research"),)),
        lambda: replace(FIRST, selector=(("partner", "acme"), ("environment", "ci"))),
        lambda: replace(FIRST, selector=(("PARTNER", "acme"),)),
        lambda: replace(FIRST, selector=(("partner", "acme"), ("partner", "acme"))),
        lambda: replace(FIRST, selector=(("partner", "ACME"),)),
        lambda: replace(FIRST, blocks=False),
        lambda: replace(FIRST, entries=2),
        lambda: replace(FIRST, entries=0),
        lambda: replace(FIRST, index=0),
        lambda: replace(FIRST, index=True),
        lambda: replace(FIRST, index=4711.0),
        lambda: replace(FIRST, tokens="3"),
        lambda: replace(FIRST, tokens=""),
        lambda: replace(FIRST, incarnation=""),
        lambda: replace(FIRST, incarnation="a b"),
        lambda: replace(FIRST, reason="x" * 501),
        lambda: replace(FIRST, reason="\ud800"),
        lambda: replace(FIRST, reason=7),
        lambda: replace(FIRST, by="admin"),
        lambda: replace(FIRST.verifiers[0], state="gone"),
        lambda: replace(FIRST.verifiers[0], after_ms=-1),
        lambda: replace(FIRST.verifiers[0], after_ms=1.5),
        lambda: replace(FIRST.verifiers[0], uses_cut=2**53),
        lambda: replace(FIRST.verifiers[0], verifier="gateway"),
        lambda: replace(FIRST.verifiers[0], verifier=None),
    ],
)
def test_p6_a_statement_that_contradicts_itself_cannot_be_made(make):
    with pytest.raises(Malformed):
        make()


def test_a_statement_can_be_later_than_its_signature_since_clocks_are_set_back():
    """`iat` is judged against the key alone: a completion must be possible whatever a wall clock did meanwhile."""
    assert check_completion(signed(statement(stop("a"), iat=EVALUATION.now_s - 3599)), TRUST)


SELECTED = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("partner", "user", "workload", "environment", "test"), names),
        **dict.fromkeys(("run", "token", "parent"), opaque),
        "realm": st.just("evaluation"),
        "model": models,
        "label": labels,
        "key": st.text("abcXYZ019_-", min_size=43, max_size=43),
    },
).filter(bool)
STOPS = st.builds(
    VerifierStop,
    verifier=st.builds("spiffe://example.org/{}".format, names),
    realm=st.just("evaluation"),
    state=st.sampled_from(STATES),
    after_ms=st.integers(0, 2**31),
    uses_cut=st.integers(0, 1000),
)
REASONS = st.text(st.characters(exclude_categories=("C", "Zl", "Zp", "Zs")), min_size=1, max_size=500).filter(
    str.isprintable
)


@st.composite
def statements(draw: st.DrawFn) -> Statement:
    named = draw(SELECTED)
    selector = Selector.of(**named)
    is_batch = draw(st.booleans()) and selector.names_only(Dimension.REALM)
    entries = draw(st.integers(1, 10_000)) if is_batch else 1
    realms = {"evaluation"} if "realm" in named else {"evaluation", *draw(st.sets(names, max_size=3))}
    return statement(
        *draw(st.lists(STOPS, max_size=8)),
        realms=tuple(sorted(realms)),
        index=draw(st.integers(entries, 2**53 - 1)),
        entries=entries,
        selector=tuple(sorted(named.items())),
        blocks=selector.is_blocking and not is_batch,
        reason=draw(REASONS),
        by=draw(st.just("broker") | st.builds("spiffe://example.org/{}".format, names)),
        waited_ms=draw(st.integers(0, 2**31)),
        tokens=draw(st.none() | st.integers(0, 2**53 - 1)),
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(statements())
def test_whatever_can_be_stated_comes_back_as_it_was(made):
    assert check_completion(signed(made), TRUST) == made


@settings(max_examples=60, deadline=None, derandomize=True)
@given(statements(), st.randoms(use_true_random=False))
def test_p7_what_a_key_signed_by_mistake_is_read_in_one_spelling_or_not_at_all(made, chance):
    """Truly signed payloads, altered before they were signed, raise only what is ours."""
    from tests.unit.token.test_fuzz import bytes_of

    changed = bytes_of(chance, statement_payload(made))
    try:
        found = check_completion(signed(changed), TRUST)
    except (Malformed, Untrusted):
        return
    assert statement_payload(found) == changed


@pytest.mark.parametrize("seed", range(4))
def test_p7_values_of_every_other_kind_are_refused_and_raise_nothing_else(seed):
    chance = random.Random(seed)
    claims = json.loads(statement_payload(FIRST))
    odd: list[Any] = [
        None,
        True,
        False,
        0,
        1,
        -1,
        2**63,
        0.5,
        "",
        "x\n",
        [],
        {},
        [None],
        {"a": 1},
        [[]],
        [{}],
        "\ud800",
    ]
    for name in claims:
        for value in odd:
            if value == claims[name] and type(value) is type(claims[name]):
                continue
            payload = _spelled({**claims, name: value})
            is_count = type(value) is int and 0 <= value < 2**53
            if (name == "tokens" and (value is None or is_count)) or (
                name in {"index", "waited_ms"} and is_count and value
            ):
                continue  # the broker's own word, which nothing contradicts
            with pytest.raises((Malformed, Untrusted)):
                check_completion(signed(payload), TRUST)
            inner = chance.choice(["after_ms", "realm", "state", "uses_cut", "verifier"])
            broken = [*claims["verifiers"][:2], {**claims["verifiers"][2], inner: value}]
            is_faster = inner == "after_ms" and type(value) is int and 0 <= value <= 12
            if not is_faster and broken != claims["verifiers"]:
                with pytest.raises((Malformed, Untrusted)):
                    check_completion(signed(_spelled({**claims, "verifiers": broken})), TRUST)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"{}",
        b"{" * 100_000,
        b"[" * 100_000,
        b'{"iat":' + b"9" * 100_000 + b"}",
        b'{"iat":NaN}',
        b'{"iat":1e999}',
        b"\xff",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"selector":{"cls":"x"}}',
    ],
    ids=lambda payload: repr(payload[:20]),
)
def test_t6_json_of_another_kind_is_refused_cleanly(payload):
    for text in (signed(payload), signed(payload[:1000])):
        with pytest.raises(Malformed):
            check_completion(text, TRUST)


@pytest.mark.parametrize("name", ["cls", "self", "__class__", "Partner", "partner ", ""])
def test_a_selector_of_names_that_are_none_is_refused_cleanly(name):
    claims = {**json.loads(statement_payload(FIRST)), "selector": {name: "acme"}}
    with pytest.raises(Malformed):
        check_completion(signed(_spelled(claims)), TRUST)


def test_p12_a_refusal_repeats_nothing_of_the_file():
    secret = "a-name-from-afar-" * 20
    claims = {**json.loads(statement_payload(FIRST)), "realm": secret}
    said = refused(signed(_spelled(claims)) + "\n").message
    assert secret not in said
    assert len(said) < 400


def test_t3_a_header_with_its_own_key_is_not_obeyed():
    key = EVALUATION.certified(Purpose.COMPLETION)
    jwk = public_jwk(key.private.public_key())
    header = json.dumps({"alg": "ES256", "jwk": jwk, "kid": key.kid, "typ": COMPLETION_TYP}, separators=(",", ":"))
    message = f"{b64url(header.encode())}.{b64url(statement_payload(statement()))}".encode()
    with pytest.raises(Malformed):
        check_completion(assemble(message, sign(key.private, message)), TRUST)
    assert unb64url(LINES[0].split(".")[0]).startswith(b'{"alg":"ES256","kid":"')


def _spelled(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
