"""`broker archive` while a broker serves: what was moved is shown, proven and exported as before, or named."""

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from broker import stranger
from broker.adapters.entry_archive import EntryArchive
from broker.adapters.sql.archiving import move_bodies
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.ledger.tiles import Tile
from broker.sdk.failures import failure_of
from broker.service.ports import Write
from broker.service.tree_ports import CheckpointRecord
from broker.v1 import audit_pb2, ledger_pb2, status_pb2, tokens_pb2
from tests.served import ADMIN, BROKER, Served, request_id, settled_head
from tests.stores import Home

NOW = datetime.now(UTC)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Served]:
    archive = f'[ledger]\narchive = "{tmp_path / "archive"}"'
    with Served(tmp_path / "served", store=archive) as served:
        yield served


def archive(broker: Served, before: str) -> subprocess.CompletedProcess[str]:
    command = [BROKER, "archive", "--before", before, "--config", str(broker.folder / "broker.toml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def url_of(broker: Served) -> str:
    return f"sqlite:///{broker.folder / 'data' / 'ledger.db'}"


def mint(broker: Served, count: int) -> list[tokens_pb2.MintedToken]:
    request = tokens_pb2.MintBatchRequest(request_id=request_id(), specs=[broker.spec()] * count)
    return list(broker.tokens().MintBatch(request, timeout=30).tokens)


def entries(broker: Served, start: int, limit: int) -> list[bytes]:
    request = ledger_pb2.GetEntriesRequest(start=start, limit=limit)
    return list(broker.ledger().GetEntries(request, timeout=20).entries)


def test_what_was_moved_is_read_exported_and_checked_as_before_and_named_when_it_is_away(
    broker: Served, tmp_path: Path
) -> None:
    tokens = [one for _ in range(3) for one in mint(broker, 300)]
    settled_head(broker.status())
    broker.ledger().GetCheckpoint(ledger_pb2.GetCheckpointRequest(fresh=True), timeout=10)
    before = entries(broker, 0, 1000)
    moved = move_bodies(url_of(broker), EntryArchive(tmp_path / "archive"), before=NOW + timedelta(days=1), keep_last=0)
    assert moved.stop >= 768
    assert entries(broker, 0, 1000) == before
    asked = audit_pb2.QueryRequest(token=tokens[0].id)
    [event] = broker.audit().Query(asked, timeout=10).events
    assert event.index < moved.stop
    # Whoever trusts nobody gets the whole log.
    papers = broker.papers["auditor"]
    flags = ("--endpoint", broker.endpoint, "--ca", papers.ca, "--cert", papers.certificate, "--cert-key", papers.key)
    command = [BROKER, "audit", "export", tmp_path / "export", *flags]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    trust = broker.status().GetTrust(status_pb2.GetTrustRequest(), timeout=10).document
    assert stranger.verify(tmp_path / "export", trust, None, ())["kinds"]["token-minted"] == len(tokens)
    # Away: reading says so, and everything else goes on.
    (tmp_path / "archive").rename(tmp_path / "away")
    broker.kill()
    broker.start()
    with pytest.raises(grpc.RpcError) as caught:
        entries(broker, 10, 5)
    failure = failure_of(caught.value)
    assert failure.reason == "ARCHIVE_UNAVAILABLE"
    assert "entries 0 to 255 were moved to the archive" in failure.message
    assert "ledger.archive" in failure.hint
    assert mint(broker, 1)
    assert broker.revoke(partner="globex", wait=True)
    (tmp_path / "away").rename(tmp_path / "archive")
    assert entries(broker, 0, 1000)[: len(before)] == before
    # Changed: named, and never shown.
    path = next((tmp_path / "archive").iterdir()) / Tile(None, 1).path
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(bytes(data))
    broker.kill()
    broker.start()
    with pytest.raises(grpc.RpcError) as caught:
        entries(broker, 256, 1)
    assert f"{path} is not what was moved there" in failure_of(caught.value).message
    assert len(entries(broker, 512, 10)) == 10


def test_the_command_moves_what_is_old_and_says_what_it_did(tmp_path: Path, broker: Served) -> None:
    broker.kill()
    home = Home("sqlite", url_of(broker))
    store = home.open(is_sole=True)

    def old(index: int) -> bytes:
        return encode_entry(Entry(index, Kind.TOKEN_MINTED, NOW - timedelta(days=30), ADMIN, {"index": index}))

    for _ in range(14):
        store.append(Write([old] * 500)).result(20)
    store.checkpoints.keep(CheckpointRecord(store.head().size, "a note", NOW, True))
    # Its first entries, those of the policy and the keys, are of now.
    home.sql("UPDATE head SET archived = 256")
    home.close()
    told = archive(broker, "9d")
    assert told.returncode == 0, told.stderr
    assert "moved entries 256 to 1791 of ledger" in told.stdout
    assert len(list((tmp_path / "archive").rglob("00[1-6]"))) == 6
    again = archive(broker, "9d")
    assert (again.returncode, again.stderr) == (0, "")
    assert "nothing to move: entries below 1792 are in the archive" in again.stdout


def test_what_is_younger_than_tokens_live_is_never_moved(broker: Served) -> None:
    told = archive(broker, "7d")
    assert told.returncode == 1
    assert "--before" in told.stderr
    assert "less than 8 days ago" in told.stderr


def test_without_a_place_to_move_to_it_says_which_setting_is_missing(broker: Served) -> None:
    config = broker.folder / "broker.toml"
    config.write_text(config.read_text().replace("archive =", "# archive ="))
    told = archive(broker, "9d")
    assert told.returncode == 1
    assert "ledger.archive: is missing" in told.stderr


def test_a_store_that_is_not_there_is_not_made(broker: Served) -> None:
    broker.kill()
    for file in (broker.folder / "data").glob("ledger.db*"):
        file.unlink()
    told = archive(broker, "9d")
    assert told.returncode == 1
    assert "there is no store at" in told.stderr
    assert not (broker.folder / "data" / "ledger.db").exists()
