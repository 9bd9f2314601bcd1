"""What is approved has one spelling, and a statement over it is nothing else, nor anything else a statement (B15, T12)."""

import hashlib
import json
from dataclasses import fields, replace
from datetime import timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import Failure, Invalid, Malformed, Rejected, Untrusted
from broker.token.approval import (
    APPROVAL_TYP,
    ApprovalRequest,
    ApprovalStatement,
    Decision,
    Wanted,
    check_statement,
    decode_request,
    encode_request,
    plain_statement,
    request_hash,
    statement_signing_input,
)
from broker.token.claims import TOKEN_TYP, decode_claims, encode_claims
from broker.token.completion import COMPLETION_TYP
from broker.token.jws import assemble, b64url, parse_jws, signing_input, unb64url
from broker.token.keys import CERTIFICATE_TYP, P256_ORDER, Purpose, check_certificate, thumbprint
from broker.token.verification import check_signature
from tests.asked import AT, Person, asked
from tests.realm_keys import RealmKeys, sign
from tests.unit.token.made import models, names, opaque

ALICE, MALLORY = Person("alice"), Person("mallory")
DOCUMENT = encode_request(asked())
HASH = request_hash(DOCUMENT)

requests = st.builds(
    lambda chosen, user, workload, **rest: asked(
        models=tuple(sorted(chosen)), user=user, workload=workload if user is not None else workload or "ci", **rest
    ),
    chosen=st.sets(models, min_size=1, max_size=16),
    user=st.none() | names,
    workload=st.none() | names,
    id=opaque,
    nonce=opaque,
    created_at=st.integers(0, 10**12).map(lambda ms: AT + timedelta(milliseconds=ms)),
    purpose=st.sampled_from(Wanted),
    realm=names,
    partner=names,
    environment=names,
    grant=names,
    person=st.none() | names,
    requester=names | names.map(lambda name: f"spiffe://x/{name}"),
    lifetime_s=st.integers(1, 7 * 86_400),
    needed=st.integers(1, 16),
)


def test_a_request_s_bytes_are_these():
    """Read by people's programs for years: the spelling never changes."""
    assert DOCUMENT == (
        b'{"binding":"none","created_at":"2026-11-23T12:00:00.250Z","delegation":0,"environment":"acme-ci",'
        b'"grant":"acme-restricted","group":"board","id":"AAAAAAAAAAAAAAAAAAAAAA","lifetime_s":600,"login_s":900,'
        b'"models":["mythos"],"needed":2,"nonce":"nnnnnnnnnnnnnnnnnnnnnn","partner":"acme","person":null,'
        b'"purpose":"token","realm":"evaluation","requester":"spiffe://acme.example/ci","user":"bob",'
        b'"valid_s":7200,"window_s":3600,"workload":"ci"}'
    )
    assert hashlib.sha256(DOCUMENT).hexdigest() == HASH


@settings(max_examples=300, deadline=None, derandomize=True)
@given(requests)
def test_b15_a_request_comes_back_as_it_went_and_has_one_spelling(request_):
    data = encode_request(request_)
    assert decode_request(data) == request_
    assert json.loads(data)["models"] == sorted(request_.models)
    assert json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode("ascii") == data


@settings(max_examples=300, deadline=None, derandomize=True)
@given(requests, requests)
def test_b15_two_requests_that_differ_anywhere_have_different_hashes(one, other):
    assert (one == other) == (request_hash(encode_request(one)) == request_hash(encode_request(other)))
    # Even when all else is the same, what makes each unique is the broker's own randomness.
    twin = replace(one, id="another-id-of-the-broker")
    assert request_hash(encode_request(twin)) != request_hash(encode_request(one))


def respelled(**changed: Any) -> bytes:
    return json.dumps({**json.loads(DOCUMENT), **changed}, sort_keys=True, separators=(",", ":")).encode()


BAD_REQUESTS = {
    "nothing": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "another object": b"{}",
    "a name too many": respelled(more=1),
    "a name too few": DOCUMENT.replace(b',"workload":"ci"', b""),
    "a name twice": DOCUMENT.replace(b'"workload":"ci"', b'"workload":"ci","workload":"ci"'),
    "spaces": DOCUMENT.replace(b",", b", "),
    "another order": DOCUMENT.replace(b'"user":"bob","valid_s":7200', b'"valid_s":7200,"user":"bob"'),
    "an escape": DOCUMENT.replace(b'"bob"', b'"b\\u006fb"'),
    "a newline after it": DOCUMENT + b"\n",
    "a byte order mark": b"\xef\xbb\xbf" + DOCUMENT,
    "models not sorted": respelled(models=["mythos", "fable"]),
    "a model twice": respelled(models=["mythos", "mythos"]),
    "no model": respelled(models=[]),
    "a model that is a text": respelled(models="mythos"),
    "a model that is none": respelled(models=[1]),
    "zero approvals": respelled(needed=0),
    "a number that is true": respelled(needed=True),
    "a number that is a text": respelled(lifetime_s="600"),
    "a fraction": DOCUMENT.replace(b'"lifetime_s":600', b'"lifetime_s":600.0'),
    "a lifetime of years": respelled(lifetime_s=10**9),
    "neither user nor workload": respelled(user=None, workload=None),
    "a user that is none": respelled(user=1),
    "upper case": respelled(partner="ACME"),
    "another purpose": respelled(purpose="admin"),
    "a purpose that is none": respelled(purpose=None),
    "an instant without milliseconds": respelled(created_at="2026-11-23T12:00:00Z"),
    "an instant elsewhere": respelled(created_at="2026-11-23T13:00:00.250+01:00"),
    "an instant that is none": respelled(created_at="2026-02-30T12:00:00.250Z"),
    "an instant that is a number": respelled(created_at=1),
    "too long": respelled(grant="a" * 9000),
    "nested deeply": b"[" * 100 + b"]" * 100,
}


@pytest.mark.parametrize("name", sorted(BAD_REQUESTS))
def test_b15_nothing_but_the_one_spelling_is_read(name):
    with pytest.raises(Malformed):
        decode_request(BAD_REQUESTS[name])


def test_an_instant_has_whole_milliseconds_and_a_zone():
    with pytest.raises(Invalid, match="created_at"):
        asked(created_at=AT.replace(tzinfo=None))
    with pytest.raises(Invalid, match="created_at"):
        asked(created_at=AT.replace(microsecond=250_001))
    elsewhere = asked(created_at=AT.astimezone(timezone(timedelta(hours=5))))
    assert encode_request(elsewhere) == DOCUMENT


@pytest.mark.parametrize("field", [field.name for field in fields(ApprovalRequest)])
def test_each_part_of_a_request_is_part_of_what_is_signed(field):
    value = getattr(asked(), field)
    if isinstance(value, int):
        other: Any = value + 1
    elif field == "created_at":
        other = value + timedelta(milliseconds=1)
    elif field == "purpose":
        other = Wanted.RUN
    else:
        other = ("oracle",) if field == "models" else "another-one"
    assert request_hash(encode_request(replace(asked(), **{field: other}))) != HASH


# Statements.


def test_a_statement_says_what_its_approver_signed():
    text = ALICE.says(HASH, iat=1_800_000_000)
    assert check_statement(text, ALICE.jwk) == ApprovalStatement(HASH, Decision.APPROVE, "alice", 1_800_000_000)
    assert unb64url(text.split(".")[1]) == (
        b'{"decision":"approve","iat":1800000000,"request":"%s","sub":"alice"}' % HASH.encode()
    )
    denied = ALICE.says(HASH, Decision.DENY)
    assert check_statement(denied, ALICE.jwk).decision is Decision.DENY


def test_b15_a_statement_by_another_key_is_nobody_s():
    with pytest.raises(Untrusted):
        check_statement(ALICE.says(HASH), MALLORY.jwk)
    # Mallory names Alice's key, and signs with her own.
    message = statement_signing_input(ALICE.jwk, ApprovalStatement(HASH, Decision.APPROVE, "alice", 1))
    with pytest.raises(Untrusted):
        check_statement(assemble(message, sign(MALLORY.private, message)), ALICE.jwk)


def test_t5_a_statement_that_names_another_key_than_signed_it_is_nobody_s():
    message = statement_signing_input(MALLORY.jwk, ApprovalStatement(HASH, Decision.APPROVE, "alice", 1))
    with pytest.raises(Untrusted):
        check_statement(assemble(message, sign(ALICE.private, message)), ALICE.jwk)


def payload(**changed: Any) -> bytes:
    claims = {"decision": "approve", "iat": 1, "request": HASH, "sub": "alice", **changed}
    return json.dumps(claims, sort_keys=True, separators=(",", ":")).encode()


BAD_PAYLOADS = {
    "nothing": b"",
    "a list": b"[]",
    "a claim too many": payload(exp=2),
    "a claim too few": payload().replace(b',"sub":"alice"', b""),
    "a claim twice": payload().replace(b'"iat":1', b'"iat":1,"iat":1'),
    "spaces": payload().replace(b",", b", "),
    "another order": b'{"iat":1,"decision":"approve","request":"%s","sub":"alice"}' % HASH.encode(),
    "another decision": payload(decision="approved"),
    "upper case": payload(decision="APPROVE"),
    "a decision that is none": payload(decision=None),
    "a list of decisions": payload(decision=["approve"]),
    "a short hash": payload(request=HASH[:-1]),
    "a hash in upper case": payload(request=HASH.upper()),
    "a hash that is a list": payload(request=[HASH]),
    "a time that is a text": payload(iat="1"),
    "a time that is true": payload(iat=True),
    "a fraction": payload().replace(b'"iat":1', b'"iat":1.5'),
    "no time": payload(iat=0),
    "nobody": payload(sub=""),
    "somebody odd": payload(sub="Alice"),
    "nobody at all": payload(sub=None),
}


@pytest.mark.parametrize("name", sorted(BAD_PAYLOADS))
def test_nothing_but_a_statement_s_one_spelling_is_read(name):
    message = signing_input(typ=APPROVAL_TYP, kid=thumbprint(ALICE.jwk), payload=BAD_PAYLOADS[name])
    with pytest.raises(Malformed):
        check_statement(assemble(message, sign(ALICE.private, message)), ALICE.jwk)
    # Signed right, the good one is read.
    message = signing_input(typ=APPROVAL_TYP, kid=thumbprint(ALICE.jwk), payload=payload())
    assert check_statement(assemble(message, sign(ALICE.private, message)), ALICE.jwk).iat == 1


def test_a_statement_altered_anywhere_is_refused():
    text = ALICE.says(HASH)
    for position in range(len(text)):
        altered = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
        with pytest.raises(Rejected):
            check_statement(altered, ALICE.jwk)
    head, body, signature = text.split(".")
    raw = unb64url(signature)
    twin = raw[:32] + (P256_ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    for bad in (f"{head}.{body}.{b64url(twin)}", f"{head}.{body}.", f"{head}.{body}", f"{text}.x", text + "=", ""):
        with pytest.raises(Rejected):
            check_statement(bad, ALICE.jwk)


@pytest.mark.parametrize("key", [{}, {**ALICE.jwk, "d": "x"}, {**ALICE.jwk, "crv": "P-384"}, None])
def test_a_key_that_is_none_signs_nothing(key):
    with pytest.raises(Malformed):
        check_statement(ALICE.says(HASH), key)


# Cross-JWT confusion (T12): each kind of ours presented as each other.

KEYS = RealmKeys("evaluation")
KINDS = (TOKEN_TYP, CERTIFICATE_TYP, COMPLETION_TYP, "dpop+jwt", "secevent+jwt", "wpt+jwt", "jwt", "run-proof+jwt")


@pytest.mark.parametrize("typ", KINDS)
def test_t12_no_other_kind_of_jwt_passes_for_an_approval_though_the_same_key_signed_it(typ):
    message = signing_input(typ=typ, kid=thumbprint(ALICE.jwk), payload=payload())
    with pytest.raises(Malformed, match="typ"):
        check_statement(assemble(message, sign(ALICE.private, message)), ALICE.jwk)


def test_t12_a_token_or_a_certificate_of_ours_passes_for_no_approval():
    claims = encode_claims(KEYS.claims())
    for typ, body in ((TOKEN_TYP, claims), (APPROVAL_TYP, claims)):
        message = signing_input(typ=typ, kid=thumbprint(ALICE.jwk), payload=body)
        with pytest.raises(Malformed):
            check_statement(assemble(message, sign(ALICE.private, message)), ALICE.jwk)
    with pytest.raises(Rejected):
        check_statement(KEYS.token.certificate, ALICE.jwk)


def test_t12_an_approval_passes_for_no_token_and_no_certificate_though_the_realm_s_keys_signed_it():
    approver = Person("alice")
    approver.private = KEYS.token.private
    text = approver.says(HASH)
    with pytest.raises(Malformed):
        parse_jws(text, typ=TOKEN_TYP)
    key = check_certificate(KEYS.token.certificate, KEYS.trust, Purpose.TOKEN)
    with pytest.raises(Failure):
        check_signature(parse_jws(text, typ=TOKEN_TYP), key)
    with pytest.raises(Malformed):
        decode_claims(parse_jws(text, typ=APPROVAL_TYP).payload)
    approver.private = KEYS.root
    with pytest.raises(Malformed):
        check_certificate(approver.says(HASH), KEYS.trust, Purpose.TOKEN)


def test_p12_what_records_keep_of_a_statement_is_whole_and_looks_like_no_token():
    text = ALICE.says(HASH, iat=7)
    kept = plain_statement(text, ALICE.jwk)
    spelled = json.dumps(kept)
    assert "eyJ" not in spelled
    # A stranger can check it again from what is kept.
    message = signing_input(typ=APPROVAL_TYP, kid=thumbprint(kept["key"]), payload=kept["payload"].encode())
    again = assemble(message, bytes.fromhex(kept["signature"]))
    assert again == text
    assert check_statement(again, kept["key"]).iat == 7
