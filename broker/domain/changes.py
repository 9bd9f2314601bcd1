"""One change between two policies, in words."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"))
# More names than anybody reads are counted.
MOST_NAMED = 12


class Direction(StrEnum):
    """What a change does: lets somebody do more or asks less of them, the opposite, or neither."""

    MORE = "more"
    LESS = "less"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Change:
    """What changes, in one sentence. `subject` is the kind of thing that it is about, as the policy file calls it."""

    direction: Direction
    subject: str
    text: str


def more(subject: str, text: str) -> Change:
    """Return a change that lets somebody do more."""
    return Change(Direction.MORE, subject, text)


def less(subject: str, text: str) -> Change:
    """Return a change that lets somebody do less."""
    return Change(Direction.LESS, subject, text)


def other(subject: str, text: str) -> Change:
    """Return a change that does neither."""
    return Change(Direction.OTHER, subject, text)


def listed(names: Iterable[str]) -> str:
    """Return `a, b and c`, sorted; of many, the first and how many more."""
    ordered = sorted(names)
    if len(ordered) > MOST_NAMED:
        return f"{', '.join(ordered[:MOST_NAMED])} and {len(ordered) - MOST_NAMED} more"
    return ordered[0] if len(ordered) == 1 else f"{', '.join(ordered[:-1])} and {ordered[-1]}"


def span(seconds: int) -> str:
    """Return `90s`, `10m`, `1h` or `7d`, as the policy file writes it."""
    for size, unit in _UNITS:
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def bound(value: int | None) -> str:
    """Return a limit; None is none."""
    return "no limit" if value is None else str(value)
