"""`broker backup` and `broker restore`, put together: a store, the key that vouches for its log, and a folder."""

import gzip
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker.adapters.checkpoint_destinations import CheckpointFile
from broker.adapters.clock import SystemClock
from broker.adapters.metrics import PrometheusMeter
from broker.adapters.policy_file import load_policy
from broker.adapters.sql import open_store
from broker.adapters.sql.copying import dump, finish, load, said_of
from broker.adapters.sql.engine import DataFolder
from broker.config import Settings, load_settings
from broker.domain.policy import EMPTY_POLICY
from broker.errors import Failure, NotProven, StoreUnavailable
from broker.key_home import KeyHome, open_key_home
from broker.ledger.backup_note import BackupTold, open_backup_note, sign_backup
from broker.running import CHECKPOINT_FILE, failed, store_url
from broker.service.backup_ports import BackupRefused
from broker.service.restoring import Restore
from broker.service.revoke import Revocations, checked_reason
from broker.token.claims import MAX_LIFETIME_S
from broker.token.identifiers import principal_uri

LEDGER, NOTE = "ledger.jsonl.gz", "note"
_CHUNK = 1 << 20
EXIT_DONE = 0


def run_backup(*, config: Path, folder: Path) -> int:
    """Write a backup to a new folder, while a broker serves or not; return the exit code."""
    try:
        _back_up(load_settings(config), folder)
    except Failure as failure:
        return failed(failure)
    except OSError as bad:
        return failed(StoreUnavailable(f"{folder}: {bad.strerror or bad}", hint="nothing was written; try again"))
    return EXIT_DONE


def run_restore(*, config: Path, folder: Path, by: str, reason: str) -> int:
    """Make the store out of a backup, as a new incarnation of the ledger; return the exit code."""
    try:
        principal_uri("by", by)
        _restore(load_settings(config), folder, by, checked_reason(reason))
    except Failure as failure:
        return failed(failure)
    except OSError as bad:
        return failed(StoreUnavailable(f"{folder}: {bad.strerror or bad}", hint="run it again"))
    return EXIT_DONE


def _back_up(settings: Settings, folder: Path) -> None:
    url, clock = store_url(settings), SystemClock()
    must_exist(url)
    if folder.exists():
        raise BackupRefused(f"{folder} is there already", hint="name a new folder")
    home = open_key_home(settings, clock, PrometheusMeter())
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(mode=0o700, parents=True)
    try:
        at = clock.now()
        # What vouches for it is asked first: without, nothing needs to be read.
        [public, *_] = home.checkpoints.public_keys()
        said = _write(partial / LEDGER, dump(url, at))
        told = BackupTold(f"{settings.ledger.name}/{said.incarnation}", _sha256(partial / LEDGER), _instant(at))
        _synced(partial / NOTE, str(sign_backup(told, public, home.checkpoints.sign)).encode())
        partial.rename(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        home.close()
    sys.stdout.write(f"backed up {said.size} entries of ledger {said.incarnation} to {folder}\n")
    sys.stdout.write("keep the root keys, or Vault, and the passphrase by other ways: they are not in it\n")


def _restore(settings: Settings, folder: Path, by: str, reason: str) -> None:
    url, clock = store_url(settings), SystemClock()
    if url.startswith("sqlite"):
        settings.server.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = DataFolder(settings.server.data_dir)
    home: KeyHome | None = None
    try:
        home = open_key_home(settings, clock, PrometheusMeter())
        before = _checked(folder, home, settings.ledger.name)
        load(url, _lines(folder / LEDGER))
        after = secrets.token_hex(16)
        ledger = open_store(url, clock, is_sole=True)
        try:
            record = ledger.policy()
            policy = load_policy(record.document) if record.document else EMPTY_POLICY
            revocations = Revocations(clock, timedelta(seconds=MAX_LIFETIME_S))
            file = CheckpointFile(settings.ledger.checkpoint_file or settings.server.data_dir / CHECKPOINT_FILE)
            published = _published(file, before)
            made = Restore(ledger, ledger.tree, home.root, revocations)(
                policy, before=before, after=after, by=by, reason=reason, published=published
            )
        finally:
            ledger.close()
        # Only now is it anybody's ledger: what was killed before is begun anew.
        finish(url, after, made.index, made.documents, made.at)
        if file.path.exists():
            file.path.rename(file.path.with_name(f"{file.path.name}.{before}"))
    finally:
        if home is not None:
            home.close()
        lock.release()
    _tell(before, after, made.size, published, sorted(policy.realms))


def _tell(before: str, after: str, size: int, published: int | None, realms: list[str]) -> None:
    say = sys.stdout.write
    say(f"restored {size} entries of ledger {before}; it is ledger {after} from here on\n")
    if published is not None and published > size:
        say(f"lost: at least entries {size} to {published - 1}, which were published before\n")
    say("all tokens, runs and approvals of before are dead, and nothing is minted: what was revoked or applied since\n")
    say("the backup is not known here, and the policy is that of the backup.\n")
    say("start the broker, apply and revoke again what must be, and open each realm:\n")
    for realm in realms:
        say(f'  broker reinstate --realm {realm} --reason "..."\n')
    say("its log is another one: give strangers a new trust file (broker trust), and witnesses its new key\n")


def must_exist(url: str) -> None:
    """Raise BackupRefused if `url` names a SQLite file that is not there: opening it would make one."""
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite") and not path.exists():
        raise BackupRefused(f"there is no store at {path}", hint="see store and server.data_dir in the configuration")


@dataclass(frozen=True, slots=True)
class _Said:
    incarnation: str
    size: int


def _write(path: Path, lines: Iterator[bytes]) -> _Said:
    said: _Said | None = None
    with path.open("xb") as file:
        # Without name and time: the same ledger makes the same file.
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
            for line in lines:
                said = said or _Said(*said_of(line))
                packed.write(line)
        file.flush()
        os.fsync(file.fileno())
    assert said is not None  # noqa: S101 - its first line says it
    return said


def _checked(folder: Path, home: KeyHome, name: str) -> str:
    """Return the incarnation of a backup that the log's own key vouches for, whole."""
    try:
        note = (folder / NOTE).read_bytes()
    except OSError as bad:
        raise BackupRefused(f"{folder / NOTE} cannot be read: {bad.strerror}", hint="name a backup's folder") from bad
    try:
        told = open_backup_note(note, tuple(home.checkpoints.public_keys()))
    except NotProven as bad:
        raise BackupRefused(f"{folder / NOTE}: {bad.message}", hint="it must be made with this ledger's key") from bad
    log, _, incarnation = told.origin.rpartition("/")
    if log != name:
        raise BackupRefused(f"it is a backup of {told.origin}, and ledger.name is {name}")
    if _sha256(folder / LEDGER) != told.sha256:
        raise BackupRefused(f"{folder / LEDGER} is not the file that was signed: it was changed or cut")
    return incarnation


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as packed:
            yield from packed
    except (EOFError, gzip.BadGzipFile) as bad:
        raise BackupRefused(f"{path} is damaged") from bad


def _published(file: CheckpointFile, before: str) -> int | None:
    found = file.read()
    return found.size if found is not None and found.origin.endswith(f"/{before}") else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                digest.update(data)
    except OSError as bad:
        raise BackupRefused(f"{path} cannot be read: {bad.strerror}") from bad
    return digest.hexdigest()


def _synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
