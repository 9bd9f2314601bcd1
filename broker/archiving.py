"""`broker archive`, put together: a store, and the folder that bodies of its old entries go to."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker.adapters.clock import SystemClock
from broker.adapters.entry_archive import EntryArchive
from broker.adapters.sql.archiving import Moved, move_bodies
from broker.adapters.sql.opening import LOOK_AT_LAST
from broker.adapters.sql.store import KEEP_REQUESTS
from broker.backups import must_exist
from broker.config import load_settings
from broker.errors import ConfigInvalid, Failure, Invalid
from broker.running import failed, store_url

EXIT_DONE = 0
# A token lives up to 7 days, and a request is answered again for 8: what they need is read too often to be away.
YOUNGEST = KEEP_REQUESTS


def run_archive(*, config: Path, before: datetime) -> int:
    """Move the bodies of entries that were written before `before`; return the exit code."""
    try:
        moved = _archive(config, before)
    except Failure as failure:
        return failed(failure)
    if moved.start == moved.stop:
        sys.stdout.write(f"nothing to move: entries below {moved.stop} are in the archive, and no others may go yet\n")
    else:
        sys.stdout.write(f"moved entries {moved.start} to {moved.stop - 1} of ledger {moved.incarnation}\n")
        sys.stdout.write("keep the archive as long as the ledger: no backup has what is in it\n")
    return EXIT_DONE


def _archive(config: Path, before: datetime) -> Moved:
    settings = load_settings(config)
    if settings.ledger.archive is None:
        raise ConfigInvalid(str(config), ("ledger.archive: is missing, and says where to; brokers need it, too",))
    oldest = SystemClock().now() - YOUNGEST
    if before > oldest + timedelta(minutes=1):
        raise Invalid(
            "--before",
            f"{before.astimezone(UTC).isoformat(timespec='seconds')} is less than {YOUNGEST.days} days ago",
            hint="younger entries are needed at hand",
        )
    url = store_url(settings)
    must_exist(url)
    return move_bodies(url, EntryArchive(settings.ledger.archive), before=before, keep_last=LOOK_AT_LAST)
