"""P10: notes and checkpoints are read in one form only, and hold only by keys that were pinned."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import Invalid, NotProven
from broker.ledger.checkpoint import (
    Checkpoint,
    LogKeys,
    open_checkpoint,
    parse_checkpoint,
    parse_size,
    sign_checkpoint,
    with_cosignatures,
)
from broker.ledger.note import (
    MAX_SIGNATURES,
    KeyKind,
    Note,
    NoteSignature,
    VerifierKey,
    check_note,
    cosign_note,
    parse_note,
    parse_signatures,
    parse_vkey,
    sign_note,
)

KNOWN = json.loads((Path(__file__).parents[2] / "vectors" / "notes.json").read_text("ascii"))
ROOT = bytes(range(32))
AT = 1_790_000_000


class Signer:
    """A key and its public half."""

    def __init__(self, name, seed, kind=KeyKind.NOTE):
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.key = VerifierKey(name, kind, self.private.public_key().public_bytes_raw())

    def sign(self, message):
        return self.private.sign(message)


LOG = Signer("ledger.example/eval", 1)
OTHER = Signer("ledger.example/other", 2)
WITNESS = Signer("witness.example/w1", 3, KeyKind.COSIGNATURE)
SECOND = Signer("witness.example/w2", 4, KeyKind.COSIGNATURE)
CHECKPOINT = Checkpoint(LOG.key.name, 7, ROOT)
NOTE = sign_checkpoint(CHECKPOINT, LOG.key, LOG.sign)
KEYS = LogKeys(LOG.key.name, (LOG.key,))


def opened(note, keys=KEYS):
    return open_checkpoint(str(note).encode(), keys)


def cosigned(note, *witnesses):
    for witness in witnesses:
        note = Note(note.text, (*note.signatures, cosign_note(note.text, witness.key, witness.sign, AT)))
    return note


@pytest.mark.parametrize("vector", KNOWN["checkpoints"], ids=lambda one: str(one["size"]))
def test_checkpoints_of_a_log_that_all_know_are_read_and_hold(vector):
    key = parse_vkey(KNOWN["vkey"])
    assert str(key) == KNOWN["vkey"]
    signed = open_checkpoint(vector["note"].encode(), LogKeys(KNOWN["origin"], (key,)))
    assert signed.checkpoint == Checkpoint(KNOWN["origin"], vector["size"], base64.b64decode(vector["root"]))
    assert str(signed.note) == vector["note"]
    with pytest.raises(NotProven, match="wrong"):
        open_checkpoint(vector["note"].replace("6", "7", 1).encode(), LogKeys(KNOWN["origin"], (key,)))


def test_our_checkpoint_has_just_this_text():
    assert CHECKPOINT.text == f"ledger.example/eval\n7\n{base64.b64encode(ROOT).decode()}\n"
    assert str(NOTE).startswith(CHECKPOINT.text + "\n\u2014 ledger.example/eval ")
    assert parse_note(str(NOTE).encode()) == NOTE
    assert opened(NOTE).checkpoint == CHECKPOINT


@pytest.mark.parametrize("at", range(len(str(NOTE).encode())))
def test_p10_no_byte_of_a_checkpoint_can_be_changed(at):
    data = bytearray(str(NOTE).encode())
    data[at] ^= 1
    with pytest.raises(NotProven):
        open_checkpoint(bytes(data), KEYS)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(alphabet="a\n\u2014 +AB=", max_size=40) | st.binary(max_size=60))
def test_whatever_is_read_as_a_note_is_spelled_the_same_again(data):
    raw = data.encode() if isinstance(data, str) else data
    try:
        note = parse_note(raw)
    except NotProven:
        return
    assert str(note).encode() == raw


TEXT = "hello\n"
LINE = str(sign_note(TEXT, LOG.key, LOG.sign))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n",
        TEXT,
        f"{TEXT}\n",
        f"{TEXT}{LINE}",
        f"{TEXT}\n{LINE[:-1]}",
        f"{TEXT}\n{LINE}\n",
        f"{TEXT}\n{LINE}x\n",
        f"{TEXT}\n{LINE}".replace("\u2014", "-"),
        f"{TEXT}\n{LINE}".replace("\u2014 ", "\u2014"),
        f"{TEXT}\n{LINE}".replace("\u2014 ", "\u2014  "),
        f"{TEXT}\n{LINE}".replace("\u2014 ledger.example/eval", "\u2014 a+b"),
        f"{TEXT}\n{LINE}".replace("\u2014 ledger.example/eval", "\u2014 a\u00a0b"),
        f"{TEXT}\n{LINE}".replace("\u2014 ledger.example/eval", "\u2014 a\u2028b"),
        f"{TEXT}\n{LINE}".replace("\u2014 ledger.example/eval ", "\u2014 "),
        f"{TEXT}\n{LINE}".replace("\n\u2014", "\r\n\u2014"),
        f"a\tb\n\n{LINE}",
        f"a\x00b\n\n{LINE}",
        f"{TEXT}\n{LINE}".replace("\n", "\n ", 1),
        f"{TEXT}\n{LINE.rstrip()}=\n",
        f"{TEXT}\n\u2014 name AAAA\n",
        f"{TEXT}\n\u2014 name AAA\n",
        f"{TEXT}\n\u2014 name AAAAB===\n",
        f"{TEXT}\n\u2014 name ____\n",
        b"\xff\n\n" + LINE.encode(),
        TEXT + "\n" + LINE * (MAX_SIGNATURES + 1),
        "a" * 70_000 + "\n\n" + LINE,
    ],
)
def test_what_is_no_note_is_refused(data):
    with pytest.raises(NotProven):
        check_note(parse_note(data if isinstance(data, bytes) else data.encode()), (LOG.key,))


def test_a_text_may_hold_empty_lines_and_even_signature_lines():
    text = f"a\n\n{LINE}\n\nb\n"
    note = Note(text, (sign_note(text, LOG.key, LOG.sign),))
    assert parse_note(str(note).encode()) == note
    assert check_note(note, (LOG.key,)) == (LOG.key,)


def test_sixteen_signatures_and_more_are_read():
    note = Note(TEXT, tuple(NoteSignature(f"n{n}", b"abcd", b"x" * 64) for n in range(MAX_SIGNATURES)))
    assert len(parse_note(str(note).encode()).signatures) == MAX_SIGNATURES >= 16


def test_a_note_with_two_signatures_of_which_one_is_bad_is_refused():
    bad = NoteSignature(LOG.key.name, LOG.key.key_id, b"\x00" * 64)
    good = sign_note(TEXT, OTHER.key, OTHER.sign)
    for signatures in ((bad, good), (good, bad)):
        with pytest.raises(NotProven, match=LOG.key.name):
            check_note(Note(TEXT, signatures), (LOG.key, OTHER.key))
        # Of an unknown key it says nothing.
        assert check_note(Note(TEXT, signatures), (OTHER.key,)) == (OTHER.key,)


def test_unknown_keys_sign_nothing_even_with_a_known_name_or_id():
    impostor = Signer(LOG.key.name, 9)
    signature = sign_note(TEXT, impostor.key, impostor.sign)
    with pytest.raises(NotProven, match="not signed by"):
        check_note(Note(TEXT, (signature,)), (LOG.key,))
    with pytest.raises(NotProven, match="not signed by"):
        check_note(Note(TEXT, (NoteSignature("else", LOG.key.key_id, signature.blob),)), (LOG.key,))
    with pytest.raises(NotProven, match="not signed by anybody"):
        check_note(Note(TEXT, (signature,)), ())


def test_names_are_compared_as_they_are():
    kelvin = Signer("\u212aeeper", 5)
    with pytest.raises(NotProven):
        check_note(Note(TEXT, (sign_note(TEXT, kelvin.key, kelvin.sign),)), (Signer("Keeper", 5).key,))


def test_a_cosignature_is_no_signature_and_the_other_way_round():
    """One key, two kinds: neither may stand for the other."""
    as_note = Signer("both.example", 6)
    as_witness = Signer("both.example", 6, KeyKind.COSIGNATURE)
    assert as_note.key.key_id != as_witness.key.key_id
    plain = sign_note(TEXT, as_note.key, as_note.sign)
    timed = cosign_note(TEXT, as_witness.key, as_witness.sign, AT)
    assert timed.at == AT
    assert check_note(Note(TEXT, (timed,)), (as_witness.key,)) == (as_witness.key,)
    for signature, key in ((plain, as_witness.key), (timed, as_note.key)):
        with pytest.raises(NotProven):
            check_note(Note(TEXT, (signature,)), (key,))
        forged = NoteSignature(key.name, key.key_id, signature.blob)
        with pytest.raises(NotProven, match="wrong"):
            check_note(Note(TEXT, (forged,)), (key,))


def test_a_cosignature_holds_for_its_own_time_only():
    made = cosign_note(TEXT, WITNESS.key, WITNESS.sign, AT)
    later = NoteSignature(made.name, made.key_id, (AT + 1).to_bytes(8, "big") + made.blob[8:])
    for wrong in (
        later,
        NoteSignature(made.name, made.key_id, b"\xff" * 72),
        NoteSignature(made.name, made.key_id, b"x"),
    ):
        with pytest.raises(NotProven, match="wrong"):
            check_note(Note(TEXT, (wrong,)), (WITNESS.key,))


def test_a_key_store_that_returns_a_wrong_signature_is_found_out():
    for make in (lambda: sign_note(TEXT, LOG.key, OTHER.sign), lambda: cosign_note(TEXT, WITNESS.key, OTHER.sign, AT)):
        with pytest.raises(NotProven, match="that was made"):
            make()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000",
        "+00000000+AQ==",
        str(LOG.key).replace(LOG.key.key_id.hex(), "00000000"),
        str(LOG.key).replace(LOG.key.key_id.hex(), LOG.key.key_id.hex().upper() + "0"),
        str(LOG.key) + "=",
        str(LOG.key).replace("ledger", "led ger"),
        f"n+00000000+{base64.b64encode(bytes([2]) + bytes(32)).decode()}",
        f"n+00000000+{base64.b64encode(bytes([1]) + bytes(31)).decode()}",
        f"n+00000000+{base64.b64encode(b'').decode()}",
    ],
)
def test_what_is_no_key_is_refused_with_what_is_wrong(text):
    with pytest.raises(Invalid, match="vkey"):
        parse_vkey(text)


def test_a_key_of_another_length_is_none():
    with pytest.raises(Invalid, match="not an Ed25519 key"):
        VerifierKey("name", KeyKind.NOTE, bytes(31))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n",
        "origin\n7\n",
        f"origin\n7\n{base64.b64encode(ROOT).decode()}",
        f"\n7\n{base64.b64encode(ROOT).decode()}\n",
        f"origin\n07\n{base64.b64encode(ROOT).decode()}\n",
        f"origin\n+7\n{base64.b64encode(ROOT).decode()}\n",
        f"origin\n-7\n{base64.b64encode(ROOT).decode()}\n",
        f"origin\n7.0\n{base64.b64encode(ROOT).decode()}\n",
        f"origin\n\u0667\n{base64.b64encode(ROOT).decode()}\n",
        f"origin\n{2**63}\n{base64.b64encode(ROOT).decode()}\n",
        f"origin\n{'9' * 5000}\n{base64.b64encode(ROOT).decode()}\n",
        f"origin\n7\n{base64.b64encode(ROOT[:-1]).decode()}\n",
        f"origin\n7\n{base64.urlsafe_b64encode(bytes([255] * 32)).decode()}\n",
        f"origin\n7\n{base64.b64encode(ROOT).decode()}\n\nextension\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text):
    with pytest.raises(NotProven):
        parse_checkpoint(text)


def test_sizes_have_one_spelling():
    assert [parse_size(text) for text in ("0", "1", str(2**63 - 1))] == [0, 1, 2**63 - 1]


def test_extension_lines_of_others_are_kept():
    text = CHECKPOINT.text + "more\n"
    assert parse_checkpoint(text).extensions == ("more",)
    assert parse_checkpoint(text).text == text


def test_a_checkpoint_of_another_log_is_refused_by_name():
    theirs = sign_checkpoint(Checkpoint(OTHER.key.name, 7, ROOT), OTHER.key, OTHER.sign)
    with pytest.raises(NotProven, match=r"of the log ledger\.example/other, not of ledger\.example/eval"):
        opened(theirs)
    # Signed by the other log's key under our origin.
    with pytest.raises(NotProven, match="not signed by"):
        opened(Note(NOTE.text, (sign_note(NOTE.text, OTHER.key, OTHER.sign),)))


def test_a_witness_alone_does_not_make_a_checkpoint():
    keys = LogKeys(LOG.key.name, (LOG.key,), (WITNESS.key,), 1)
    alone = Note(NOTE.text, (cosign_note(NOTE.text, WITNESS.key, WITNESS.sign, AT),))
    with pytest.raises(NotProven, match=r"not signed by ledger\.example/eval"):
        opened(alone, keys)
    assert opened(cosigned(NOTE, WITNESS), keys).cosigners == (WITNESS.key,)


def test_a_quorum_counts_witnesses_and_not_signatures():
    keys = LogKeys(LOG.key.name, (LOG.key,), (WITNESS.key, SECOND.key), 2)
    with pytest.raises(NotProven, match="1 of the 2 witnesses"):
        opened(cosigned(NOTE, WITNESS, WITNESS), keys)
    assert len(opened(cosigned(NOTE, WITNESS, SECOND), keys).cosigners) == 2
    with pytest.raises(Invalid, match="quorum"):
        LogKeys(LOG.key.name, (LOG.key,), (WITNESS.key,), 2)
    with pytest.raises(Invalid):
        LogKeys(LOG.key.name, ())
    with pytest.raises(Invalid):
        LogKeys(LOG.key.name, (WITNESS.key,))
    with pytest.raises(Invalid):
        LogKeys(LOG.key.name, (LOG.key,), (LOG.key,))


def test_of_a_witness_s_answer_only_its_own_checked_signature_is_taken():
    own = cosign_note(NOTE.text, WITNESS.key, WITNESS.sign, AT)
    other = cosign_note(NOTE.text, SECOND.key, SECOND.sign, AT)
    answer = parse_signatures(str(other) + str(own))
    taken = with_cosignatures(NOTE, answer, WITNESS.key)
    assert taken.signatures == (*NOTE.signatures, own)
    newer = cosign_note(NOTE.text, WITNESS.key, WITNESS.sign, AT + 1)
    assert with_cosignatures(taken, (newer,), WITNESS.key).signatures == (*NOTE.signatures, newer)
    for answer in ((other,), (), (NoteSignature(own.name, own.key_id, own.blob[:-1] + b"\x00"),)):
        with pytest.raises(NotProven):
            with_cosignatures(NOTE, answer, WITNESS.key)


def test_an_origin_that_is_no_name_cannot_be_signed():
    with pytest.raises(Invalid, match="origin"):
        sign_checkpoint(Checkpoint("two words", 1, ROOT), LOG.key, LOG.sign)
    for origin in ("", "a\nb"):
        with pytest.raises(Invalid):
            Checkpoint(origin, 1, ROOT)
    with pytest.raises(Invalid):
        Checkpoint("a", -1, ROOT)
