"""Bytes pinned for ever: what was once good stays good, and what is refused stays refused for the same reason."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from broker.errors import Failure, Malformed
from broker.ledger.entry import Entry, Kind, decode_entry, encode_entry, leaf_hash
from broker.token.binding import check_holder
from broker.token.claims import TOKEN_TYP, Claims, encode_claims
from broker.token.jws import assemble, b64url, parse_jws, signing_input, unb64url
from broker.token.keys import (
    Purpose,
    check_certificate,
    compact_certificate,
    load_jwk,
    parse_trust,
    plain_certificate,
    public_jwk,
    render_trust,
    respelled,
    thumbprint,
    thumbprint_of,
    verify_es256,
)
from broker.token.revocation import Dimension, Selector
from broker.token.verification import Time, check_signature, check_use, checked_model

FOLDER = Path(__file__).parents[2] / "vectors"
READ = {path.stem: json.loads(path.read_text("ascii")) for path in FOLDER.glob("*.json")}
TOKENS, CERTIFICATES, TRUSTS = READ["tokens"], READ["certificates"], READ["trust_files"]
TRUST = parse_trust(json.dumps(TOKENS["trust"]))["evaluation"]
KEY = check_certificate(TOKENS["certificate"], TRUST, Purpose.TOKEN)
UNIT = Path(__file__).parents[1]
READERS = (
    *(UNIT / "token" / name for name in ("test_vectors.py", "test_oracles.py", "test_completion.py")),
    *(UNIT / "ledger" / name for name in ("test_merkle.py", "test_note.py")),
)
EVALUATION = parse_trust(json.dumps(CERTIFICATES["trust"]))["evaluation"]


def named(vectors: list[dict[str, Any]]) -> dict[str, Any]:
    return {"argvalues": vectors, "ids": [f"{one.get('id', '')} {one['name']}".strip() for one in vectors]}


def accept(vector: dict[str, Any]) -> Claims:
    """The whole path of a token, at the time that the vector names."""
    keys = {KEY.kid: KEY}
    time = Time(*(vector.get(name, TOKENS[name]) for name in ("earliest_ms", "latest_ms")))
    signed = check_signature(vector["token"], keys)
    check_use(signed, checked_model(vector["model"]), trust=TRUST, keys=keys, time=time)
    seconds = {"earliest_s": time.earliest_ms // 1000, "latest_s": time.latest_ms // 1000}
    check_holder(vector["token"], signed.claims.cnf, None, **seconds, remember=lambda _: None)
    return signed.claims


@pytest.mark.parametrize("vector", **named(TOKENS["good"]))
def test_a_good_token_stays_good_and_keeps_its_spelling(vector):
    claims = accept(vector)
    payload = vector["payload"].encode("ascii")
    assert encode_claims(claims) == payload
    said = {name: getattr(claims, name) for name in Claims.__slots__ if getattr(claims, name) is not None}
    assert json.loads(json.dumps(said)) == json.loads(payload)
    message = signing_input(typ=TOKEN_TYP, kid=KEY.kid, payload=payload)
    assert assemble(message, parse_jws(vector["token"], typ=TOKEN_TYP).signature) == vector["token"]


@pytest.mark.parametrize("vector", **named(TOKENS["bad"]))
def test_p7_a_bad_token_stays_refused_for_its_reason(vector):
    with pytest.raises(Failure) as caught:
        accept(vector)
    assert caught.value.reason == vector["reason"]
    assert len(vector["token"]) < 50 or vector["token"] not in str(caught.value)


def test_every_class_of_token_attack_has_a_vector():
    # T14 is about the answer and not the token: see test_jws_attacks.
    assert {f"T{number}" for number in range(1, 14)} <= {one["id"] for one in TOKENS["bad"]}


@pytest.mark.parametrize("vector", **named(CERTIFICATES["good"]))
def test_a_good_certificate_stays_good(vector):
    key = check_certificate(vector["certificate"], EVALUATION, Purpose(vector["purpose"]))
    assert (key.kid, key.purpose, key.realm) == (vector["kid"], vector["purpose"], "evaluation")
    assert (key.not_before, key.signs_until, key.expires) == tuple(
        vector[name] for name in ("not_before", "signs_until", "expires")
    )
    assert thumbprint(public_jwk(key.public_key)) == vector["kid"]


@pytest.mark.parametrize("vector", **named(CERTIFICATES["good"]))
def test_p12_a_certificate_is_kept_in_plain_and_comes_back_as_it_was(vector):
    plain = plain_certificate(vector["certificate"])
    assert compact_certificate(plain) == vector["certificate"]
    # In a record nothing looks like a piece of a token.
    assert not any(part in json.dumps(plain) for part in vector["certificate"].split("."))


@pytest.mark.parametrize("vector", **named(CERTIFICATES["bad"]))
def test_p8_p9_a_bad_certificate_stays_refused_for_its_reason(vector):
    with pytest.raises(Failure) as caught:
        check_certificate(vector["certificate"], EVALUATION, Purpose(vector["purpose"]))
    assert caught.value.reason == vector["reason"]


@pytest.mark.parametrize("vector", **named(TRUSTS["good"]))
def test_a_good_trust_file_stays_good(vector):
    trusts = parse_trust(vector["document"])
    said = {
        name: {"issuer": one.issuer, "audience": one.audience, "roots": [thumbprint(jwk) for jwk in one.roots]}
        for name, one in trusts.items()
    }
    assert said == vector["realms"]
    assert parse_trust(render_trust(trusts.values())) == trusts


@pytest.mark.parametrize("vector", **named(TRUSTS["bad"]))
def test_p7_p8_a_bad_trust_file_stays_refused(vector):
    with pytest.raises(Malformed) as caught:
        parse_trust(vector["document"])
    assert caught.value.reason == vector["reason"]


@pytest.mark.parametrize("vector", READ["thumbprints"]["thumbprints"], ids=lambda vector: vector["source"])
def test_a_thumbprint_is_that_of_the_rfcs(vector):
    jwk = vector["jwk"]
    assert thumbprint_of({name: jwk[name] for name in vector["required"]}) == vector["thumbprint"]
    if jwk["kty"] == "EC":
        # Whatever else a key carries and in whatever order, its name is the same.
        assert thumbprint({"use": "sig", **dict(reversed(jwk.items())), "kid": "x"}) == vector["thumbprint"]
        assert public_jwk(load_jwk(jwk)) == jwk


@pytest.mark.parametrize("vector", **named(READ["signatures"]["signatures"]))
def test_t9_a_signature_is_accepted_in_one_spelling(vector):
    key, message = load_jwk(READ["signatures"]["jwk"]), READ["signatures"]["message"].encode()
    signature = unb64url(vector["signature"])
    assert verify_es256(key, signature, message) is vector["accepted"]
    assert b64url(respelled(signature)) == vector["respelled"]
    assert not verify_es256(key, signature, message + b"x")


@pytest.mark.parametrize("vector", READ["leaf_hashes"]["leaves"], ids=lambda vector: vector["data"] or "empty")
def test_p10_a_leaf_hash_is_that_of_rfc_6962(vector):
    assert leaf_hash(bytes.fromhex(vector["data"])).hex() == vector["hash"]


@pytest.mark.parametrize("vector", **named(READ["ledger_entries"]["entries"]))
def test_p10_a_ledger_entry_has_these_bytes(vector):
    at = datetime.fromisoformat(vector["at"])
    entry = Entry(vector["index"], Kind(vector["kind"]), at, vector["by"], vector["body"])
    data = vector["bytes"].encode("ascii")
    assert encode_entry(entry) == data
    assert decode_entry(data) == entry
    assert leaf_hash(data).hex() == vector["leaf"]


def test_every_kind_of_entry_has_a_vector():
    assert {one["kind"] for one in READ["ledger_entries"]["entries"]} == set(Kind)


@pytest.mark.parametrize("vector", READ["selectors"]["selectors"], ids=lambda vector: " ".join(vector["named"]))
def test_a_selector_has_this_text(vector):
    selector = Selector.of(**vector["named"])
    assert selector.to_text() == vector["text"]
    assert Selector.from_text(vector["text"]) == selector


def test_every_dimension_has_a_vector():
    alone = {name for one in READ["selectors"]["selectors"] if len(one["named"]) == 1 for name in one["named"]}
    assert alone == {dimension.name.lower() for dimension in Dimension}


def test_each_file_of_vectors_says_what_made_it_and_is_read():
    text = "".join(reader.read_text("utf-8") for reader in READERS)
    for stem, document in READ.items():
        assert document["made_by"]
        assert f'READ["{stem}"]' in text or f'"{stem}.json"' in text, f"{stem}.json is read by no test"
