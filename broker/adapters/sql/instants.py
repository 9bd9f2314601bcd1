"""Instants as the tables keep them."""

from datetime import UTC, datetime


def ms(at: datetime) -> int:
    """Return an aware instant as Unix milliseconds."""
    return int(at.timestamp() * 1000)


def instant(at_ms: int) -> datetime:
    """Return Unix milliseconds as an aware instant."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)
