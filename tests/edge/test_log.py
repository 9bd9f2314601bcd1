"""P10: a running broker publishes its ledger as a log that others can read, prove and check, and goes back for nobody."""

import base64
import json
import shutil
import ssl
import subprocess
import threading
import urllib.error
import urllib.request

import grpc
import pytest
from tlog_scales.backend import LocalBackend
from tlog_scales.reader import TilesReader
from tlog_scales.signing import Vkey

from broker.adapters.local_root import LocalRoot
from broker.adapters.memory_signer import make_memory_key
from broker.errors import SignerUnavailable
from broker.key_home import KeyHome
from broker.ledger.checkpoint import LogKeys, open_checkpoint
from broker.ledger.entry import decode_entry, leaf_hash
from broker.ledger.merkle import check_consistency
from broker.ledger.note import parse_vkey
from broker.ledger.proof import check_proof, parse_proof
from broker.ledger.tiles import tiles_of
from broker.sdk.failures import failure_of
from broker.token.keys import parse_log_trust, parse_trust
from broker.v1 import ledger_pb2, status_pb2, tokens_pb2
from tests.embedded import Embedded
from tests.served import BROKER, Served, request_id, wait_until
from tests.waiting import eventually

SHOWN = '[ledger]\nname = "ledger.example/eval"\npublish_entries = true\n'


class LogServed(Served):
    """A broker that shows its entries, and hands its checkpoints to a command."""

    ledger_settings = SHOWN

    def __init__(self, folder, **options):
        super().__init__(folder, **options)
        self._config += self.ledger_settings

    def get(self, path):
        """Return status, headers and body of an HTTP answer."""
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        try:
            with urllib.request.urlopen(
                f"https://127.0.0.1:{self.http_port}/{path}", context=context, timeout=20
            ) as got:
                return got.status, got.headers, got.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.headers, refused.read()

    def log_keys(self):
        trust = parse_log_trust(self.status().GetTrust(status_pb2.GetTrustRequest(), timeout=10).document)
        return LogKeys(trust.origin, tuple(parse_vkey(key) for key in trust.keys))

    def published(self, size):
        """Wait for a served checkpoint of at least `size` entries."""

        def found():
            status, _, data = self.get("checkpoint")
            if status != 200:
                return None
            checkpoint = open_checkpoint(data, self.log_keys()).checkpoint
            return checkpoint if checkpoint.size >= size else None

        return wait_until(found, 30)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with LogServed(tmp_path_factory.mktemp("served")) as served:
        yield served


def copied(served, folder, size):
    """Fetch the log as files, as a mirror would."""
    (folder / "checkpoint").write_bytes(served.get("checkpoint")[2])
    for tile in tiles_of(size):
        status, headers, data = served.get(tile.path)
        assert status == 200, tile.path
        assert headers["Content-Type"] == "application/octet-stream"
        assert "immutable" in headers["Cache-Control"]
        path = folder / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_p10_an_independent_implementation_reads_the_whole_log_over_http(served, tmp_path):
    minted = [served.mint() for _ in range(3)]
    request = [served.spec()] * 300
    served.tokens().MintBatch(tokens_pb2.MintBatchRequest(request_id=request_id(), specs=request), timeout=30)
    size = served.published(minted[-1].index + 301).size
    copied(served, tmp_path, size)
    reader = TilesReader(LocalBackend(tmp_path))
    checkpoint = reader.get_checkpoint()
    checkpoint.verify(Vkey.from_string(str(served.log_keys().keys[0])))
    assert reader.calculate_root_hash() == checkpoint.root_hash
    for token in minted:
        entry = reader.get_entry(token.index)
        assert decode_entry(entry).body["claims"]["jti"] == token.id
        reader.get_inclusion_proof(token.index, size).check(leaf_hash(entry), checkpoint.root_hash)


def test_a_checkpoint_comes_within_a_moment_and_is_not_kept_by_caches(served):
    index = served.mint().index
    assert served.published(index + 1).origin.startswith("ledger.example/eval/")
    _, headers, _ = served.get("checkpoint")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Cache-Control"] == "public, max-age=1"


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/x999/999",
        "tile/0/000.p/256",
        "tile/0/0",
        "tile/64/000",
        "tile/7/000",
        "tile/entries/x001/000",
        "tile/",
        "tile/../checkpoint",
        "tile/0/%2e%2e/000",
        "tile/0/000.p/0",
    ],
)
def test_what_is_no_tile_of_the_log_is_not_found_and_not_remembered(served, path):
    status, headers, data = served.get(path)
    assert status == 404
    if data.startswith(b"{"):
        assert headers["Cache-Control"] == "no-store"
        assert json.loads(data)["error_description"]


def test_a_tile_that_no_checkpoint_covers_is_not_served(served):
    size = served.published(1).size
    assert served.get(f"tile/0/000.p/{min(size, 255)}")[0] in (200, 404)
    assert served.get("tile/0/x009/000")[0] == 404


def test_each_entry_is_proven_by_rpc_and_the_proof_stands_alone(served):
    token = served.mint()
    answer = served.ledger().ProveInclusion(ledger_pb2.ProveInclusionRequest(index=token.index), timeout=20)
    proof = parse_proof(answer.proof)
    assert check_proof(proof, answer.entry, served.log_keys()).checkpoint.size == answer.size > token.index
    assert decode_entry(answer.entry).body["claims"]["jti"] == token.id


def test_consistency_is_proven_by_rpc(served):
    first = served.ledger().GetCheckpoint(ledger_pb2.GetCheckpointRequest(fresh=True), timeout=20)
    served.mint()
    second = served.ledger().GetCheckpoint(ledger_pb2.GetCheckpointRequest(fresh=True), timeout=20)
    old, new = (open_checkpoint(one.checkpoint, served.log_keys()).checkpoint for one in (first, second))
    request = ledger_pb2.ProveConsistencyRequest(old_size=old.size, new_size=new.size)
    answer = served.ledger().ProveConsistency(request, timeout=20)
    check_consistency(old.size, old.root, new.size, new.root, list(answer.hashes))
    empty = served.ledger().ProveConsistency(ledger_pb2.ProveConsistencyRequest(old_size=0), timeout=20)
    assert not empty.hashes
    assert open_checkpoint(empty.checkpoint, served.log_keys()).checkpoint.size == empty.new_size


def test_entries_come_in_their_exact_bytes_and_in_bounded_answers(served):
    answer = served.ledger().GetEntries(ledger_pb2.GetEntriesRequest(start=0, limit=3), timeout=20)
    assert [decode_entry(entry).index for entry in answer.entries] == [0, 1, 2]
    beyond = served.ledger().GetEntries(ledger_pb2.GetEntriesRequest(start=answer.size + 50, limit=1000), timeout=20)
    assert not beyond.entries


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda ledger: ledger.GetEntries(ledger_pb2.GetEntriesRequest(start=0)), "INVALID"),
        (lambda ledger: ledger.GetEntries(ledger_pb2.GetEntriesRequest(start=0, limit=1001)), "INVALID"),
        (lambda ledger: ledger.GetEntries(ledger_pb2.GetEntriesRequest(start=2**64 - 1, limit=1)), "INVALID"),
        (lambda ledger: ledger.ProveInclusion(ledger_pb2.ProveInclusionRequest(index=2**64 - 1)), "INVALID"),
        (lambda ledger: ledger.ProveInclusion(ledger_pb2.ProveInclusionRequest(index=2**40)), "NOT_FOUND"),
        (lambda ledger: ledger.ProveConsistency(ledger_pb2.ProveConsistencyRequest(old_size=2**40)), "NOT_FOUND"),
        (
            lambda ledger: ledger.ProveConsistency(ledger_pb2.ProveConsistencyRequest(old_size=3, new_size=2)),
            "INVALID",
        ),
    ],
)
def test_what_cannot_be_proven_is_refused_with_what_to_do(served, call, reason):
    with pytest.raises(grpc.RpcError) as refused:
        call(served.ledger())
    failure = failure_of(refused.value)
    assert failure.reason == reason


def test_a_fresh_checkpoint_is_for_those_who_watch(served):
    with pytest.raises(grpc.RpcError) as refused:
        served.ledger("acme").GetCheckpoint(ledger_pb2.GetCheckpointRequest(fresh=True))
    assert failure_of(refused.value).reason == "FORBIDDEN"


def test_the_trust_file_names_the_log_for_strangers_and_not_for_a_verifier(served):
    document = served.status().GetTrust(status_pb2.GetTrustRequest(), timeout=10).document
    assert set(parse_trust(document)) == {"evaluation", "research"}
    assert parse_log_trust(document) is not None
    assert parse_log_trust(served.trust().read_text()) is None


def test_the_commands_show_and_prove(served, tmp_path):
    papers = served.papers["auditor"]

    def run(*words):
        options = ["--endpoint", served.endpoint, "--ca", served.authority.ca]
        identity = ["--cert", papers.certificate, "--cert-key", papers.key]
        done = subprocess.run(
            [BROKER, *words, *options, *identity],
            capture_output=True,
            timeout=60,
            check=False,
            env={"HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = json.loads(run("audit", "checkpoint", "--fresh", "-o", "json"))
    assert open_checkpoint(shown["checkpoint"].encode(), served.log_keys()).checkpoint.size == shown["size"]
    assert run("audit", "checkpoint").startswith(b"ledger.example/eval/")
    run("audit", "prove", "0", "--export", tmp_path / "0.tlog-proof")
    proof = parse_proof((tmp_path / "0.tlog-proof").read_bytes())
    assert check_proof(proof, proof.extra, served.log_keys())
    told = json.loads(run("audit", "prove", "1", "-o", "json"))
    assert check_proof(parse_proof(told["proof"].encode()), base64.b64decode(told["entry"]), served.log_keys())


class Hidden(LogServed):
    ledger_settings = '[ledger]\ncheckpoint_command = ["sh", "-c", "cat >> \\"$0\\"", "FOLDER/told"]\n'

    def __init__(self, folder, **options):
        super().__init__(folder, **options)
        self._config = self._config.replace("FOLDER", str(folder))


def refusal_to_start(served):
    config = served.folder / "broker.toml"
    done = subprocess.run(
        [BROKER, "serve", "--config", config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(served.folder)},
    )
    assert done.returncode == 1
    return done.stderr


def test_p10_a_ledger_that_was_rolled_back_forked_or_replaced_is_not_served(tmp_path):
    with Hidden(tmp_path) as served:
        folder = tmp_path / "data"
        file = folder / "checkpoint"
        size = served.published(served.mint().index + 1).size
        # Who used what is nobody's business; the tree is everybody's.
        assert served.get("tile/entries/000.p/1")[0] == 403
        assert served.get("tile/0/000.p/1")[0] == 200
        served.kill()
        backup = tmp_path / "backup"
        backup.mkdir()
        for part in folder.glob("ledger.db*"):
            shutil.copy(part, backup)
        served.start()
        served.published(size + 1)
        eventually(
            lambda: open_checkpoint(file.read_bytes(), served.log_keys()).checkpoint.size > size,
            "the file is written",
            within_s=30,
        )
        told = tmp_path / "told"
        eventually(
            lambda: told.exists() and told.read_text().count("credential-broker/") >= 2,
            "the command is run",
            within_s=30,
        )
        served.kill()
        kept = file.read_bytes()

        def put(source):
            for part in folder.glob("ledger.db*"):
                part.unlink()
            for part in source.glob("ledger.db*"):
                shutil.copy(part, folder)

        now = tmp_path / "now"
        now.mkdir()
        for part in folder.glob("ledger.db*"):
            shutil.copy(part, now)
        put(backup)
        stderr = refusal_to_start(served)
        assert "rolled back or truncated" in stderr
        assert str(file) in stderr
        assert "put the newest copy" in stderr
        # Nothing was written, so the newest copy still fits.
        put(tmp_path / "none")
        assert "is of the ledger" in refusal_to_start(served)
        put(now)
        file.write_bytes(b"garbage")
        assert "is no checkpoint" in refusal_to_start(served)
        file.write_bytes(kept)
        served.start()
        served.mint()


class Hanging:
    """A CheckpointSigner whose home does not answer."""

    def __init__(self):
        self.over = threading.Event()

    def public_keys(self):
        return (bytes(31) + b"\x01",)

    def sign(self, message):
        del message
        self.over.wait(60)
        raise SignerUnavailable("away")


def test_p10_no_mint_and_no_revocation_waits_for_a_checkpoint(tmp_path):
    """A key store that hangs in the middle of a signature."""
    signer = Hanging()

    def home(_clock, _meter):
        return KeyHome(LocalRoot(tmp_path / "keys", b"a passphrase"), signer, make_memory_key, signs_in_memory=True)

    with Embedded(tmp_path, open_home=home) as served:
        try:
            verifier = served.verifier()
            tokens = [served.mint() for _ in range(5)]
            served.until_accepted(verifier, tokens[0].token)
            served.revoke(wait=True, token=tokens[0].id)
            assert served.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).minting
            verifier.close()
        finally:
            signer.over.set()
