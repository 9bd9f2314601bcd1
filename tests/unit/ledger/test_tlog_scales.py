"""P10: tlog-scales, another's implementation of the same specifications, accepts what we publish, and we what it does."""

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tlog_scales.backend import LocalBackend
from tlog_scales.reader import TilesReader
from tlog_scales.signing import PlainEd25519Signer, Vkey
from tlog_scales.tlog import Checkpoint as TheirCheckpoint
from tlog_scales.writer import TilesWriter

from broker.ledger.checkpoint import Checkpoint, LogKeys, open_checkpoint, sign_checkpoint
from broker.ledger.entry import leaf_hash
from broker.ledger.merkle import Frontier, check_consistency, check_inclusion, prove_consistency, prove_inclusion
from broker.ledger.note import KeyKind, Note, VerifierKey, cosign_note, parse_vkey
from broker.ledger.tiles import Tile, TileNodes, encode_bundle, encode_hashes, tiles_of

PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
WITNESS = Ed25519PrivateKey.from_private_bytes(b"\x08" * 32)
KEY = VerifierKey("ledger.example/eval", KeyKind.NOTE, PRIVATE.public_key().public_bytes_raw())
WITNESS_KEY = VerifierKey("witness.example/w1", KeyKind.COSIGNATURE, WITNESS.public_key().public_bytes_raw())
ENTRIES = [b'{"entry":%d}' % n for n in range(700)]
SIZES = (1, 2, 255, 256, 257, 600, 700)


def publish(folder, size):
    """Write the log as files, as the HTTP door serves it."""
    levels = {0: [leaf_hash(entry) for entry in ENTRIES[:size]]}

    def keep(height, index, found):
        del index
        if height % 8 == 0:
            levels.setdefault(height // 8, []).append(found)

    frontier = Frontier().extended(levels[0], keep)
    for tile in tiles_of(size):
        path = folder / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = slice(tile.start, tile.start + tile.width)
        path.write_bytes(
            encode_bundle(ENTRIES[:size][part]) if tile.level is None else encode_hashes(levels[tile.level][part])
        )
    note = sign_checkpoint(Checkpoint(KEY.name, size, frontier.root()), KEY, PRIVATE.sign)
    cosigned = Note(note.text, (*note.signatures, cosign_note(note.text, WITNESS_KEY, WITNESS.sign, 1_790_000_000)))
    (folder / "checkpoint").write_bytes(str(cosigned).encode())
    return levels, frontier


@pytest.mark.parametrize("size", SIZES)
def test_their_reader_finds_our_log_whole(tmp_path, size):
    levels, _ = publish(tmp_path, size)
    reader = TilesReader(LocalBackend(tmp_path))
    found = reader.get_checkpoint()
    found.verify(Vkey.from_string(str(KEY)))
    found.verify(Vkey.from_string(str(WITNESS_KEY)))
    assert reader.calculate_root_hash() == found.root_hash

    def ours(level, index):
        return levels[level][index * 256 : index * 256 + 256]

    for index in {0, size // 2, size - 1}:
        assert reader.get_entry(index) == ENTRIES[index]
        theirs = reader.get_inclusion_proof(index, size)
        theirs.check(leaf_hash(ENTRIES[index]), found.root_hash)
        assert tuple(theirs.node_hashes) == prove_inclusion(index, size, TileNodes(ours))
    for old in {1, size // 2 + 1, size}:
        proof = reader.get_consistency_proof(old, size)
        old_root = Frontier().extended(levels[0][:old]).root()
        proof.check(old_root, found.root_hash)
        assert tuple(proof.node_hashes) == prove_consistency(old, size, TileNodes(ours))


def test_their_reader_refuses_our_log_when_a_byte_of_its_checkpoint_is_changed(tmp_path):
    publish(tmp_path, 5)
    file = tmp_path / "checkpoint"
    file.write_bytes(file.read_bytes().replace(b"\n5\n", b"\n4\n", 1))
    with pytest.raises(InvalidSignature):
        TilesReader(LocalBackend(tmp_path)).get_checkpoint().verify(Vkey.from_string(str(KEY)))


@pytest.mark.parametrize("size", SIZES)
def test_we_accept_their_log(tmp_path, size):
    writer = TilesWriter.create(tmp_path / "log", "ledger.example/theirs")
    for entry in ENTRIES[:size]:
        writer.add_leaf(entry)
    signer = PlainEd25519Signer("ledger.example/theirs", PRIVATE)
    writer.commit([signer])
    key = parse_vkey(signer.vkey.serialize())
    assert str(key) == signer.vkey.serialize()
    checkpoint = open_checkpoint((tmp_path / "log" / "checkpoint").read_bytes(), LogKeys(key.name, (key,))).checkpoint
    assert checkpoint.root == Frontier().extended([leaf_hash(entry) for entry in ENTRIES[:size]]).root()
    for tile in tiles_of(size):
        assert (tmp_path / "log" / tile.path).is_file()
    for index in {0, size - 1}:
        path = writer.reader.get_inclusion_proof(index, size).node_hashes
        check_inclusion(index, size, leaf_hash(ENTRIES[index]), path, checkpoint.root)
    old_root = Frontier().extended([leaf_hash(ENTRIES[0])]).root()
    path = writer.reader.get_consistency_proof(1, size).node_hashes
    check_consistency(1, old_root, size, checkpoint.root, path)


def test_their_paths_are_ours(tmp_path):
    publish(tmp_path, 3)
    assert (tmp_path / Tile(0, 0, 3).path).is_file()
    assert TheirCheckpoint.from_text((tmp_path / "checkpoint").read_text()).size == 3
