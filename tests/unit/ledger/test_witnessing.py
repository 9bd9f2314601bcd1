"""P10: a witness goes on only from what it saw last; each answer is the one that the specification says."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.errors import NotProven
from broker.ledger.checkpoint import Checkpoint, LogKeys, sign_checkpoint
from broker.ledger.entry import leaf_hash
from broker.ledger.merkle import EMPTY_ROOT, Frontier, prove_consistency
from broker.ledger.note import KeyKind, Note, VerifierKey
from broker.ledger.witnessing import Accepted, AddCheckpoint, Turned, judge, origin_of, parse_request
from tests.unit.ledger.test_merkle import FORTY, TREE

PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
KEY = VerifierKey("ledger.example/eval", KeyKind.NOTE, PRIVATE.public_key().public_bytes_raw())
LOG = LogKeys(KEY.name, (KEY,))


def root(size):
    return Frontier().extended([leaf_hash(leaf) for leaf in FORTY[:size]]).root()


def signed(size, *, origin=KEY.name, of=None, by=PRIVATE):
    key = VerifierKey(origin, KeyKind.NOTE, by.public_key().public_bytes_raw())
    return str(sign_checkpoint(Checkpoint(origin, size, of or root(size)), key, by.sign)).encode()


def request(old, new, **options):
    proof = prove_consistency(old, new, TREE.read) if old <= new else ()
    return AddCheckpoint(old, proof, signed(new, **options))


def last(size):
    return Checkpoint(KEY.name, size, root(size)) if size else None


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 1), (0, 40), (1, 1), (1, 40), (7, 8), (8, 9), (40, 40)])
def test_a_checkpoint_that_goes_on_is_accepted(old, new):
    verdict = judge(request(old, new), LOG, last(old))
    assert isinstance(verdict, Accepted)
    assert (verdict.checkpoint.size, verdict.checkpoint.root) == (new, root(new))


def turned(ask, seen, status, size=0):
    verdict = judge(ask, LOG, seen)
    assert isinstance(verdict, Turned), verdict
    assert (verdict.status, verdict.size) == (status, size)
    assert verdict.why


def test_403_for_what_the_log_did_not_sign():
    other = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)
    turned(request(3, 5, by=other), last(3), 403)
    wrong = signed(5).replace(base64.b64encode(root(5)), base64.b64encode(root(6)))
    turned(AddCheckpoint(3, prove_consistency(3, 5, TREE.read), wrong), last(3), 403)
    turned(request(3, 5, origin="ledger.example/other"), last(3), 403)


def test_400_for_an_old_size_beyond_the_checkpoint():
    turned(request(6, 5), last(6), 400)


@pytest.mark.parametrize(("old", "new", "seen"), [(0, 5, 3), (3, 5, 4), (3, 5, 0), (3, 5, 9), (5, 5, 9), (0, 5, 5)])
def test_409_with_the_size_that_was_seen_last(old, new, seen):
    turned(request(old, new), last(seen), 409, seen)


def test_409_for_another_tree_of_the_same_size():
    turned(AddCheckpoint(5, (), signed(5, of=root(6))), last(5), 409, 5)
    turned(AddCheckpoint(0, (), signed(0, of=root(6))), None, 409, 0)


def test_422_for_a_proof_that_does_not_hold():
    good = request(3, 7)
    for proof in ((), good.proof[:-1], (*good.proof, root(1)), tuple(reversed(good.proof))):
        turned(AddCheckpoint(3, proof, good.checkpoint), last(3), 422)
    # A fork: another tree of that size.
    turned(AddCheckpoint(3, good.proof, signed(7, of=root(8))), last(3), 422)
    # From nothing and from the same there is nothing to prove.
    turned(AddCheckpoint(0, (root(1),), signed(7)), None, 422)
    turned(AddCheckpoint(7, (root(1),), signed(7)), last(7), 422)


def test_the_root_of_nothing_is_known():
    assert root(0) == EMPTY_ROOT


@pytest.mark.parametrize(("old", "new"), [(0, 1), (3, 40), (40, 40)])
def test_a_request_comes_back_as_it_went(old, new):
    ask = request(old, new)
    assert parse_request(ask.to_bytes()) == ask
    assert origin_of(ask) == KEY.name


def altered(old, new):
    return request(3, 7).to_bytes().replace(old, new, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        altered(b"old 3", b"old 03"),
        altered(b"old 3", b"old -3"),
        altered(b"old 3", b"old  3"),
        altered(b"old 3", b"new 3"),
        altered(b"old 3\n", b""),
        altered(b"old 3\n", b"old 3\nAAAA\n"),
        altered(b"old 3\n", b"old 3\n" + (b"A" * 43 + b"=\n") * 64),
        altered(b"\n\n", b"\n"),
        altered(b"\n\n", b"\n\n\n"),
        altered(b"old", b"\xffld"),
        request(3, 7).to_bytes().partition(b"\n\n")[0] + b"\n\n",
        b"x" * 200_000,
    ],
)
def test_what_is_no_request_is_refused(data):
    with pytest.raises(NotProven):
        ask = parse_request(data)
        origin_of(ask)


def test_only_the_log_s_own_signature_makes_a_checkpoint():
    note = sign_checkpoint(Checkpoint(KEY.name, 5, root(5)), KEY, PRIVATE.sign)
    assert isinstance(judge(AddCheckpoint(0, (), str(note).encode()), LOG, None), Accepted)
    turned(AddCheckpoint(0, (), str(Note(note.text, ())).encode() + b"\xe2\x80\x94 a AAAAAAA=\n"), None, 403)
