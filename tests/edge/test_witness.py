"""P10: `broker witness`, a process of its own, cosigns what grows, and a broker that was rolled back does not start."""

import os
import shutil
import signal
import subprocess

import pytest
from tlog_scales.signing import Vkey
from tlog_scales.tlog import Checkpoint as TheirCheckpoint

from broker.https import Reach, ask
from broker.ledger.checkpoint import LogKeys, open_checkpoint
from broker.ledger.merkle import prove_consistency
from broker.ledger.note import parse_note, parse_vkey
from broker.ledger.witnessing import AddCheckpoint
from broker.token.keys import parse_log_trust
from broker.v1 import ledger_pb2, status_pb2
from tests.edge.test_log import LogServed, refusal_to_start
from tests.mounts import fill, small_disk
from tests.served import BROKER, wait_until
from tests.unit.service.test_checkpoints import World

NAME = "witness.example/w1"


class Witness:
    """A `broker witness` process; `kill` and `start` as often as needed."""

    def __init__(self, folder, authority, *logs):
        self.folder = folder
        self.authority = authority
        self.papers = authority.server()
        self.logs = logs
        self.port = 0
        self.process = None
        self.start()

    def start(self):
        words = ["--name", NAME, "--data", self.folder, "--listen", f"127.0.0.1:{self.port}"]
        papers = ["--cert", self.papers.certificate, "--cert-key", self.papers.key]
        logs = [word for log in self.logs for word in ("--log", log)]
        self.process = subprocess.Popen(
            [BROKER, "witness", *words, *papers, *logs],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
        )
        line = self.process.stdout.readline()
        assert "witness is ready" in line
        self.process.stdout.close()
        self.port = int(line.split()[5].rstrip(","))
        self.key = parse_vkey(line.split()[-1])

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    @property
    def url(self):
        return f"https://127.0.0.1:{self.port}"

    def post(self, data, path="add-checkpoint"):
        return ask(f"{self.url}/{path}", Reach(None, self.authority.ca), body=data, timeout_s=20)


@pytest.fixture
def world(tmp_path):
    """A log in this process."""
    from tests.stores import append

    world = World()
    append(world.ledger, 4)
    return world


@pytest.fixture
def witness(tmp_path, world):
    from tests.authority import Authority

    folder = tmp_path / "witness"
    folder.mkdir()
    witness = Witness(folder, Authority(tmp_path / "ca"), str(world.publish.keys().keys[0]))
    yield witness
    witness.kill()


def test_each_answer_of_a_witness_is_the_specification_s(world, witness):
    from tests.stores import append

    first = world.publish.publish()
    answer = witness.post(AddCheckpoint(0, (), first.note.encode()).to_bytes())
    assert answer.status == 200
    cosigned = first.note.encode() + answer.body
    keys = LogKeys(world.publish.origin, world.publish.keys().keys, (witness.key,), 1)
    assert open_checkpoint(cosigned, keys).cosigners == (witness.key,)
    theirs = TheirCheckpoint.from_text(cosigned.decode())
    theirs.verify(Vkey.from_string(str(witness.key)))

    conflict = witness.post(AddCheckpoint(0, (), first.note.encode()).to_bytes())
    assert (conflict.status, conflict.body) == (409, b"5\n")
    again = witness.post(AddCheckpoint(5, (), first.note.encode()).to_bytes())
    assert again.status == 200

    append(world.ledger, 3)
    second = world.publish.publish()
    path = prove_consistency(5, 8, lambda height, index: world_node(world, height, index))
    assert witness.post(AddCheckpoint(5, path[:-1], second.note.encode()).to_bytes()).status == 422
    assert witness.post(AddCheckpoint(9, (), second.note.encode()).to_bytes()).status == 400
    stranger = World()
    stranger.take(world.disk)
    stranger.publish = type(world.publish)(
        world.ledger.tree, stranger.ledger.checkpoints, stranger.key, world.publish._clock, name="unknown.example"
    )
    world.disk.checkpoints.clear()
    unknown = stranger.publish.publish().note.encode()
    assert witness.post(AddCheckpoint(0, (), unknown).to_bytes()).status == 404
    forged = second.note.replace("\n8\n", "\n9\n", 1).encode()
    assert witness.post(AddCheckpoint(5, (), forged).to_bytes()).status == 403
    for garbage in (b"", b"garbage", b"old 5\n\n", b"x" * 300_000):
        assert witness.post(garbage).status in (400, 413)
    # What it keeps outlives it.
    witness.kill()
    witness.start()
    assert witness.post(AddCheckpoint(0, (), first.note.encode()).to_bytes()).body == b"5\n"
    good = witness.post(AddCheckpoint(5, path, second.note.encode()).to_bytes())
    assert good.status == 200


def world_node(world, height, index):
    from broker.ledger.tiles import TileNodes

    return TileNodes(world.ledger.tree.tile)(height, index)


def test_p10_a_witness_whose_disk_is_full_signs_nothing_tells_no_path_and_goes_on_with_space(world, tmp_path):
    from tests.authority import Authority

    with small_disk(tmp_path / "disk", mib=2) as disk:
        witness = Witness(disk, Authority(tmp_path / "ca"), str(world.publish.keys().keys[0]))
        try:
            first = AddCheckpoint(0, (), world.publish.publish().note.encode()).to_bytes()
            ballast = fill(disk)
            refused = witness.post(first)
            assert refused.status == 503
            assert str(disk) not in refused.body.decode()
            assert b"not signed; ask again" in refused.body
            ballast.unlink()
            assert witness.post(first).status == 200
        finally:
            witness.kill()


def test_a_second_witness_on_the_same_folder_does_not_start(witness):
    done = subprocess.run(
        [
            BROKER, "witness", "--name", NAME, "--data", witness.folder, "--listen", "127.0.0.1:0",
            "--cert", witness.papers.certificate, "--cert-key", witness.papers.key, "--log", witness.logs[0],
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "another" in done.stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--cert": "/none.pem"}, "no certificate"),
        ({"--log": "garbage"}, "vkey"),
        ({"--name": "two words"}, "name"),
        ({"--listen": "127.0.0.1:99999"}, "cannot be bound"),
    ],
)
def test_p7_a_witness_that_cannot_work_says_why_and_does_not_start(witness, tmp_path, change, told):
    options = {
        "--name": NAME, "--data": tmp_path / "other", "--listen": "127.0.0.1:0",
        "--cert": witness.papers.certificate, "--cert-key": witness.papers.key, "--log": witness.logs[0],
    } | change  # fmt: skip
    words = [word for pair in options.items() for word in pair]
    done = subprocess.run([BROKER, "witness", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


class Watched(LogServed):
    """A broker that is told of witnesses once there are any."""

    ledger_settings = ""

    def tell_of(self, witness):
        self._config += (
            f'[ledger]\nwitness_ca_file = "{self.authority.ca}"\n'
            f'[[ledger.witnesses]]\nurl = "{witness.url}"\nkey = "{witness.key}"\n'
        )

    def log_trust(self):
        return parse_log_trust(self.status().GetTrust(status_pb2.GetTrustRequest(), timeout=10).document)

    def problems(self):
        return " ".join(self.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).problems)

    def cosigned(self, index, quorum=1):
        """Wait for a served checkpoint that covers the entry and that the witness signed, or did not."""
        trust = self.log_trust()
        keys = LogKeys(
            trust.origin,
            tuple(parse_vkey(key) for key in trust.keys),
            tuple(parse_vkey(key) for key in trust.witnesses),
        )

        def found():
            signed = open_checkpoint(self.get("checkpoint")[2], keys)
            return signed.checkpoint.size > index and len(signed.cosigners) == quorum

        return wait_until(found, 60)


def test_p10_a_broker_is_watched_and_cannot_go_back_unseen(tmp_path):
    with Watched(tmp_path) as served:
        [vkey] = served.log_trust().keys
        folder = tmp_path / "witness"
        folder.mkdir()
        witness = Witness(folder, served.authority, vkey)
        try:
            served.kill()
            served.tell_of(witness)
            served.start()
            assert served.log_trust().witnesses == (str(witness.key),)
            served.cosigned(served.mint().index)
            answer = served.ledger().GetCheckpoint(ledger_pb2.GetCheckpointRequest(), timeout=10)
            assert NAME in answer.signed_by
            # The proof of an entry carries the witness's word, too.
            proof = served.ledger().ProveInclusion(ledger_pb2.ProveInclusionRequest(index=0), timeout=10).proof
            assert NAME.encode() in proof

            witness.kill()
            token = served.mint()
            served.cosigned(token.index, quorum=0)
            wait_until(lambda: NAME in served.problems(), 30)
            assert served.mint().index > token.index

            witness.start()
            served.cosigned(served.mint().index)
            wait_until(lambda: NAME not in served.problems(), 30)

            backup = tmp_path / "backup"
            shutil.copytree(tmp_path / "data", backup)
            served.kill()
            shutil.rmtree(backup)
            shutil.copytree(tmp_path / "data", backup)
            served.start()
            served.cosigned(served.mint().index)
            served.kill()
            # All that the broker's own machine keeps goes back, and nothing on it tells.
            shutil.rmtree(tmp_path / "data")
            shutil.copytree(backup, tmp_path / "data")
            stderr = refusal_to_start(served)
            assert "rolled back or truncated" in stderr
            assert NAME in stderr
            assert parse_note(witness_last(witness, served)).signatures
        finally:
            witness.kill()


def witness_last(witness, served):
    from broker.adapters.witness_store import hashed

    [kept] = [file for file in witness.folder.glob("*.checkpoint") if len(file.stem) == len(hashed(""))]
    return kept.read_bytes()
