"""P10: a proof file shows that one entry is in the log, and nothing that is not."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.errors import NotProven
from broker.ledger.checkpoint import Checkpoint, LogKeys, sign_checkpoint
from broker.ledger.entry import leaf_hash
from broker.ledger.merkle import Frontier, prove_inclusion
from broker.ledger.note import KeyKind, VerifierKey
from broker.ledger.proof import TlogProof, check_proof, parse_proof

PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
KEY = VerifierKey("ledger.example/eval", KeyKind.NOTE, PRIVATE.public_key().public_bytes_raw())
LOG = LogKeys(KEY.name, (KEY,))
ENTRIES = [b"entry %d" % n for n in range(21)]
NODES = {(0, index): leaf_hash(entry) for index, entry in enumerate(ENTRIES)}
FRONTIER = Frontier().extended(
    [leaf_hash(entry) for entry in ENTRIES], lambda height, index, found: NODES.__setitem__((height, index), found)
)
CHECKPOINT = str(sign_checkpoint(Checkpoint(KEY.name, 21, FRONTIER.root()), KEY, PRIVATE.sign)).encode()


def proof_of(index, extra=None):
    path = prove_inclusion(index, 21, lambda height, at: NODES[height, at])
    return TlogProof(index, path, CHECKPOINT, extra)


@pytest.mark.parametrize("index", range(21))
@pytest.mark.parametrize("extra", [None, b"", b"what it is about"])
def test_a_proof_comes_back_as_it_went_and_holds(index, extra):
    proof = proof_of(index, extra)
    data = proof.to_bytes()
    assert parse_proof(data) == proof
    assert check_proof(parse_proof(data), ENTRIES[index], LOG).checkpoint.size == 21


def test_a_proof_looks_like_this():
    lines = proof_of(20, b"hi").to_bytes().decode().split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra aGk=", "index 20"]
    assert lines[5:7] == ["", "ledger.example/eval"] or lines[4:6] == ["", "ledger.example/eval"]


def test_p10_no_byte_of_a_proof_can_be_changed():
    data = proof_of(5).to_bytes()
    for at in range(len(data)):
        wrong = bytearray(data)
        wrong[at] ^= 1
        with pytest.raises(NotProven):
            check_proof(parse_proof(bytes(wrong)), ENTRIES[5], LOG)


def test_p10_a_proof_is_of_no_other_entry():
    for index, entry in enumerate(ENTRIES):
        if index != 5:
            with pytest.raises(NotProven, match="entry 5 is not in the tree"):
                check_proof(proof_of(5), entry, LOG)


def altered(old, new):
    return proof_of(5).to_bytes().replace(old, new, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        altered(b"@v1", b"@v2"),
        altered(b"c2sp.org", b" c2sp.org"),
        altered(b"index 5", b"index 05"),
        altered(b"index 5", b"index +5"),
        altered(b"index 5", b"index  5"),
        altered(b"index 5", b"index 21"),
        altered(b"index 5\n", b""),
        altered(b"index 5", b"extra !\nindex 5"),
        altered(b"index 5", b"index 5\nextra aGk="),
        altered(b"index 5", b"extra aGk=\nextra aGk=\nindex 5"),
        altered(b"\n\n", b"\n"),
        altered(b"\n\n", b"\n\n\n"),
        altered(b"\n\n", b"\nAAAA\n\n"),
        altered(b"\n", b"\r\n"),
        altered(b"index 5\n", b"index 5\n" + b"A" * 44 + b"\n"),
        proof_of(5).to_bytes().partition(b"\n\n")[0],
        proof_of(5).to_bytes() + b"\n",
        b"c2sp.org/tlog-proof@v1\nindex 5\n" + (b"A" * 43 + b"=\n") * 65 + b"\n" + CHECKPOINT,
        b"\xff" + proof_of(5).to_bytes(),
        b"x" * 1_000_000,
    ],
)
def test_what_is_no_proof_is_refused(data):
    with pytest.raises(NotProven):
        check_proof(parse_proof(data), ENTRIES[5], LOG)
