"""A backup is restored as a new incarnation: announced, recorded, followed by verifiers, with all of before dead."""

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from broker import stranger
from broker.adapters.sql.copying import load
from broker.errors import NotProven, Rejected
from broker.ledger.entry import decode_entry
from broker.sdk import Verifier
from broker.sdk.failures import failure_of
from broker.v1 import ledger_pb2, revocations_pb2, selector_pb2, status_pb2, tokens_pb2
from tests.postgresql import PostgreSql
from tests.served import ADMIN, BROKER, POLICY, Served, request_id, settled_head, wait_until

pytest_plugins = ["tests.fixtures_stores"]

EACH = POLICY.replace("heartbeat: 1s}", "heartbeat: 1s, receipts: each}", 1)


def backup(broker: Served, folder: Path) -> subprocess.CompletedProcess[str]:
    return run("backup", str(folder), "--config", str(broker.folder / "broker.toml"))


def restore(broker: Served, folder: Path) -> subprocess.CompletedProcess[str]:
    config = str(broker.folder / "broker.toml")
    return run("restore", str(folder), "--config", config, "--by", ADMIN, "--reason", "the disk failed")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BROKER, *arguments], capture_output=True, text=True, timeout=120, check=False)


def done(found: subprocess.CompletedProcess[str]) -> str:
    assert found.returncode == 0, found.stderr
    return found.stdout


def status(broker: Served) -> Any:
    return broker.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10)


def lose(broker: Served) -> None:
    """Take the store away, as a disk does; what lies beside it stays."""
    for file in (broker.folder / "data").glob("ledger.db*"):
        file.unlink()


def reinstate(broker: Served, realm: str) -> None:
    request = revocations_pb2.ReinstateRequest(
        request_id=request_id(), selector=selector_pb2.Selector(realm=realm), reason="looked at"
    )
    assert broker.revocations().Reinstate(request, timeout=10).lifted


def is_dead(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token, "mythos")
    except Rejected:
        return True
    return False


def reason_of(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return failure_of(caught.value).reason


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "served", policy=EACH) as served:
        yield served


def test_a_restored_ledger_is_another_one_that_verifiers_follow_and_nothing_of_before_lives(
    broker: Served, tmp_path: Path
) -> None:
    with broker.verifier(state_dir=tmp_path / "state") as verifier:
        before = broker.mint()
        broker.until_accepted(verifier, before.token)
        was = status(broker)
        saved = done(backup(broker, tmp_path / "saved"))
        assert was.incarnation in saved
        # What the backup does not know of: a token, and a revocation of a partner.
        lost = broker.mint()
        broker.until_accepted(verifier, lost.token)
        broker.revoke(partner="globex", wait=True)
        size = settled_head(broker.status())
        # The checkpoint beside the store tells of them, a second later.
        file = broker.folder / "data" / "checkpoint"
        wait_until(lambda: int(file.read_text().splitlines()[1]) >= size)
        broker.kill()
        lose(broker)
        told = done(restore(broker, tmp_path / "saved"))
        assert "lost: at least entries" in told
        assert "broker reinstate --realm evaluation" in told
        broker.start()
        now = status(broker)
        assert now.incarnation != was.incarnation
        assert now.incarnation in told
        # It follows by itself, without a restart and without losing its folder.
        wait_until(lambda: verifier.state().incarnation == now.incarnation, 30)
        verifier.wait_fresh(20)
        assert is_dead(verifier, before.token)
        assert is_dead(verifier, lost.token)
        assert reason_of(broker.mint) == "BLOCKED"
        # Nobody knows any more that globex was revoked: so nobody mints, until an admin has looked.
        assert reason_of(lambda: broker.mint("globex", partner="globex", user="bob")) == "BLOCKED"
        reinstate(broker, "evaluation")
        fresh = broker.mint()
        broker.until_accepted(verifier, fresh.token)
        assert is_dead(verifier, before.token)
        assert is_dead(verifier, lost.token)
        # Receipts go on, as those of the ledger that is.
        wait_until(lambda: not verifier.state().receipts_waiting, 20)
    # What was kept in the folder is enough; a folder of the ledger that was leads there, too.
    with broker.verifier(state_dir=tmp_path / "state") as again:
        broker.until_accepted(again, fresh.token)
    entries = broker.ledger("auditor").GetEntries(ledger_pb2.GetEntriesRequest(start=0, limit=200), timeout=10).entries
    [restored] = [one for one in map(decode_entry, entries) if one.kind == "ledger-restored"]
    assert restored.by == ADMIN
    assert restored.body["from"] == was.incarnation
    assert restored.body["incarnation"] == now.incarnation
    assert restored.body["size"] == restored.index
    assert restored.body["reason"] == "the disk failed"
    assert int(str(restored.body["published"])) > restored.index


def test_a_verifier_that_slept_through_it_follows_and_one_that_has_another_ledger_does_not(
    broker: Served, tmp_path: Path
) -> None:
    with broker.verifier(state_dir=tmp_path / "state") as verifier:
        kept = verifier.state().incarnation
    done(backup(broker, tmp_path / "saved"))
    broker.kill()
    shutil.copytree(tmp_path / "state", tmp_path / "elsewhere")
    for turn in range(2):
        lose(broker)
        done(restore(broker, tmp_path / "saved"))
        broker.start()
        with broker.verifier(state_dir=tmp_path / ("state" if turn == 0 else "elsewhere")) as verifier:
            assert verifier.state().incarnation == status(broker).incarnation != kept
        broker.kill()
    # Two restores of one backup are two ledgers: from one of them no way leads to the other.
    broker.start()
    trust = broker.trust("evaluation")
    with Verifier.connect(
        broker.endpoint, realm="evaluation", trust=trust, identity=broker.identity("gateway"),
        state_dir=tmp_path / "state",
    ) as parted:  # fmt: skip
        wait_until(lambda: "this is another ledger" in parted.state().problem)
        assert not parted.state().is_fresh


def test_a_stranger_checks_a_restored_log_and_one_that_lies_about_it_is_found(broker: Served, tmp_path: Path) -> None:
    broker.mint()
    done(backup(broker, tmp_path / "saved"))
    old_trust = broker.status().GetTrust(status_pb2.GetTrustRequest(), timeout=10).document
    broker.kill()
    lose(broker)
    done(restore(broker, tmp_path / "saved"))
    broker.start()
    papers = broker.papers["auditor"]
    export = tmp_path / "export"
    flags = ("--ca", papers.ca, "--cert", papers.certificate, "--cert-key", papers.key)
    done(run("audit", "export", str(export), "--endpoint", broker.endpoint, *map(str, flags)))
    trust = broker.status().GetTrust(status_pb2.GetTrustRequest(), timeout=10).document
    found = stranger.verify(export, trust, None, ())
    assert found["incarnation"] == status(broker).incarnation
    assert found["kinds"]["ledger-restored"] == 1
    with pytest.raises(NotProven, match="of the log"):
        stranger.verify(export, old_trust, None, ())


@pytest.mark.parametrize("change", ["a byte", "cut", "no note", "another's note", "a line"])
def test_a_backup_that_was_changed_is_refused_and_nothing_is_made(broker: Served, tmp_path: Path, change: str) -> None:
    saved = tmp_path / "saved"
    done(backup(broker, saved))
    broker.kill()
    lose(broker)
    file, note = saved / "ledger.jsonl.gz", saved / "note"
    match change:
        case "a byte":
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        case "cut":
            file.write_bytes(file.read_bytes()[:-20])
        case "no note":
            note.unlink()
        case "another's note":
            note.write_text(note.read_text().replace("broker backup v1", "broker access report v1"))
        case _:
            lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
            blocks = next(i for i, line in enumerate(lines) if b'"table":"policies"' in line)
            file.write_bytes(gzip.compress(b"".join(lines[: blocks + 1] + lines[blocks + 2 :])))
    found = restore(broker, saved)
    assert (found.returncode, found.stdout) == (1, "")
    assert "Traceback" not in found.stderr
    assert not (broker.folder / "data" / "ledger.db").exists()


def test_a_store_that_holds_a_ledger_is_never_written_over(broker: Served, tmp_path: Path) -> None:
    done(backup(broker, tmp_path / "saved"))
    found = restore(broker, tmp_path / "saved")
    assert found.returncode == 1
    assert "in use" in found.stderr or "another broker" in found.stderr
    incarnation = status(broker).incarnation
    broker.kill()
    found = restore(broker, tmp_path / "saved")
    assert found.returncode == 1
    assert "has a ledger of" in found.stderr
    broker.start()
    assert status(broker).incarnation == incarnation
    found = backup(broker, tmp_path / "saved")
    assert found.returncode == 1
    assert "is there already" in found.stderr


def test_a_restore_that_was_killed_is_served_by_nobody_and_begun_anew(broker: Served, tmp_path: Path) -> None:
    for _ in range(200):
        broker.mint()
    done(backup(broker, tmp_path / "saved"))
    broker.kill()
    config = str(broker.folder / "broker.toml")
    for after_s in (0.3, 0.6, 0.9, 1.2, 1.5, 1.8):
        lose(broker)
        command = [BROKER, "restore", tmp_path / "saved", "--config", config, "--by", ADMIN, "--reason", "x"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(after_s)
            except subprocess.TimeoutExpired:
                process.kill()
        is_done = process.returncode == 0
        found = restore(broker, tmp_path / "saved")
        if is_done:
            assert "has a ledger of" in found.stderr
        else:
            # Killed before or after it was anybody's ledger.
            assert found.returncode == 0 or "has a ledger of" in found.stderr, found.stderr
        broker.start()
        assert reason_of(broker.mint) == "BLOCKED"
        broker.kill()


def test_a_backup_that_was_killed_is_there_whole_or_not_at_all_and_the_broker_serves_on(
    broker: Served, tmp_path: Path
) -> None:
    for _ in range(4):
        broker.tokens().MintBatch(
            tokens_pb2.MintBatchRequest(request_id=request_id(), specs=[broker.spec()] * 500), timeout=30
        )
    config = str(broker.folder / "broker.toml")
    whole = []
    for turn in range(12):
        folder = tmp_path / f"saved-{turn}"
        command = [BROKER, "backup", folder, "--config", config]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            # From the moment on that something is written, under whatever name.
            wait_until(lambda: process.poll() is not None or list(tmp_path.glob(f"*{folder.name}*/*")))  # noqa: B023
            try:
                process.wait(0.01 * turn)
            except subprocess.TimeoutExpired:
                process.kill()
        assert broker.mint().token
        if folder.exists():
            assert sorted(one.name for one in folder.iterdir()) == ["ledger.jsonl.gz", "note"]
            whole.append(folder)
        else:
            # The same name is free, and what was left behind is in nobody's way.
            done(backup(broker, folder))
    assert len(whole) < 12
    broker.kill()
    lose(broker)
    done(restore(broker, tmp_path / "saved-11"))
    broker.start()
    assert status(broker).head > 2_000


def test_a_half_restored_store_is_refused_by_a_broker(broker: Served, tmp_path: Path) -> None:
    done(backup(broker, tmp_path / "saved"))
    broker.kill()
    lose(broker)
    url = f"sqlite:///{broker.folder / 'data' / 'ledger.db'}"
    load(url, gzip.decompress((tmp_path / "saved" / "ledger.jsonl.gz").read_bytes()).splitlines(keepends=True))
    found = run("serve", "--config", str(broker.folder / "broker.toml"))
    assert found.returncode == 1
    assert "run again: broker restore" in found.stderr
    assert "finish that" in backup(broker, tmp_path / "other").stderr
    done(restore(broker, tmp_path / "saved"))
    broker.start()
    assert status(broker).head > 0


def test_a_ledger_moves_to_postgresql_and_to_another_database_by_backups(
    broker: Served, postgresql: PostgreSql, tmp_path: Path
) -> None:
    seen = [status(broker).incarnation]
    with broker.verifier(state_dir=tmp_path / "state") as verifier:
        size = status(broker).head
        done(backup(broker, tmp_path / "saved-0"))
        databases = [postgresql.new_database() for _ in range(2)]
        for turn, name in enumerate(databases):
            broker.kill()
            broker.store(f'url = "{postgresql.url(name)}"')
            done(restore(broker, tmp_path / f"saved-{turn}"))
            broker.start()
            seen.append(status(broker).incarnation)
            wait_until(lambda: verifier.state().incarnation == seen[-1], 30)
            verifier.wait_fresh(20)
            reinstate(broker, "evaluation")
            broker.until_accepted(verifier, broker.mint().token)
            assert status(broker).head > size
            done(backup(broker, tmp_path / f"saved-{turn + 1}"))
        assert len(set(seen)) == 3
        broker.kill()
        found = restore(broker, tmp_path / "saved-2")
        assert "has a ledger of" in found.stderr
    for name in databases:
        postgresql.drop_database(name)


def test_a_restore_that_was_killed_before_its_last_step_says_how_to_end_it(broker: Served, tmp_path: Path) -> None:
    before = status(broker).incarnation
    file = broker.folder / "data" / "checkpoint"
    wait_until(file.exists)
    done(backup(broker, tmp_path / "saved"))
    broker.kill()
    lose(broker)
    done(restore(broker, tmp_path / "saved"))
    moved = file.with_name(f"checkpoint.{before}")
    moved.rename(file)
    found = run("serve", "--config", str(broker.folder / "broker.toml"))
    assert found.returncode == 1
    assert f"mv {file} {moved}" in found.stderr
    file.rename(moved)
    broker.start()
    assert status(broker).incarnation != before
    broker.kill()
    # Of a ledger that it was not restored from, nothing of the kind is said.
    file.write_text(moved.read_text().replace(before, "ab" * 16))
    found = run("serve", "--config", str(broker.folder / "broker.toml"))
    assert found.returncode == 1
    assert "put the newest copy of its store back" in found.stderr
