"""Reading what an entry's body has, of the types that it must have."""

from collections.abc import Mapping
from typing import Any

from broker.audit.wrong import Rule, wrong_entry
from broker.errors import Invalid
from broker.ledger.entry import Entry
from broker.token.revocation import Dimension, Selector


def text_of(entry: Entry, name: str) -> str:
    """Return a text. Raises NotProven: it has none."""
    value = entry.body.get(name)
    if not isinstance(value, str):
        raise wrong_entry(entry, Rule.FORM, f"{entry.kind.value} must say {name!r}, a text")
    return value


def number_of(entry: Entry, name: str) -> int:
    """Return a whole number. Raises NotProven: it has none."""
    value = entry.body.get(name)
    # `True` is an int.
    if type(value) is not int or value < 0:
        raise wrong_entry(entry, Rule.FORM, f"{entry.kind.value} must say {name!r}, a number")
    return value


def members_of(entry: Entry, name: str) -> Mapping[str, Any]:
    """Return an object. Raises NotProven: it has none."""
    value = entry.body.get(name)
    if not isinstance(value, Mapping):
        raise wrong_entry(entry, Rule.FORM, f"{entry.kind.value} must say {name!r}, an object")
    return value


def texts_of(entry: Entry, name: str) -> tuple[str, ...]:
    """Return a list of texts. Raises NotProven: it has none."""
    value = entry.body.get(name)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise wrong_entry(entry, Rule.FORM, f"{entry.kind.value} must say {name!r}, a list of texts")
    return tuple(value)


def selector_of(entry: Entry) -> Selector:
    """Return what a revocation selects. Raises NotProven: no selector could be this."""
    named = members_of(entry, "selector")
    try:
        return Selector(tuple(sorted((Dimension[name.upper()], value) for name, value in named.items())))
    except (Invalid, KeyError, TypeError) as bad:
        raise wrong_entry(entry, Rule.REVOCATION, "what it selects is no selector") from bad
