"""What backing up and restoring need of the outside world."""

from broker.errors import Failure


class BackupRefused(Failure):
    """A backup is none, is not whole, or may not be restored there. Nothing was changed."""

    reason = "STORE_CORRUPT"
    default_hint = "take another backup; they are made by: broker backup"
