"""Rules of revocations, of blocks, and of the completions that prove them in force."""

import hashlib
from collections.abc import Callable, Mapping

from broker.audit.fields import number_of, selector_of, text_of, texts_of
from broker.audit.past import Past
from broker.audit.runs import take_ended
from broker.audit.wrong import Rule, must, wrong, wrong_entry
from broker.errors import Malformed, Untrusted
from broker.ledger.entry import Entry, Kind
from broker.token.completion import Statement, check_completions
from broker.token.keys import Purpose, RealmTrust
from broker.token.revocation import Dimension

REVOKING = frozenset({Kind.REVOKED, Kind.RUN_CLOSED, Kind.RUN_LAPSED})

Document = Callable[[int], bytes | None]
"""Returns the completion of the revocation at an index, or None: there is none."""


def completion_name(index: int) -> str:
    """Return the file of an export that holds a completion."""
    return f"completions/{index}.jws"


def take_revoked(past: Past, entry: Entry) -> None:
    """Take an entry of a kind that revokes."""
    selector = selector_of(entry)
    must(text_of(entry, "reason"), entry, Rule.REVOCATION, "nobody said why")
    blocks = entry.body.get("blocks")
    if entry.kind is Kind.REVOKED:
        must(blocks is selector.is_blocking, entry, Rule.REVOCATION, "it does not say rightly whether it blocks")
    else:
        must(selector.names_only(Dimension.RUN), entry, Rule.REVOCATION, "the end of a run revokes that run alone")
        take_ended(past, entry, selector.get(Dimension.RUN))
    past.revocations.add(entry.index, selector)
    if blocks:
        past.blocks[selector] = entry.index
    token = selector.get(Dimension.TOKEN)
    if token is not None and set(selector.dimensions) <= {Dimension.REALM, Dimension.TOKEN}:
        past.revoked_tokens.add(token)


def take_reinstated(past: Past, entry: Entry) -> None:
    """Take an entry of kind reinstated."""
    selector = selector_of(entry)
    must(text_of(entry, "reason"), entry, Rule.REVOCATION, "nobody said why")
    must(selector in past.blocks, entry, Rule.REVOCATION, f"there was no block on {selector} to lift")
    del past.blocks[selector]


def take_completed(
    past: Past, entry: Entry, revocation: Entry | None, document: bytes | None, trust: Mapping[str, RealmTrust]
) -> None:
    """Take an entry of kind revocation-completed. `revocation` is the entry that it names."""
    index = number_of(entry, "revocation")
    if revocation is None or revocation.kind not in REVOKING:
        raise wrong_entry(entry, Rule.COMPLETION, f"it completes entry {index}, which revokes nothing")
    must(index not in past.completed, entry, Rule.COMPLETION, f"revocation {index} was completed before")
    past.completed.add(index)
    where = completion_name(index)
    if document is None:
        raise wrong(where, Rule.COMPLETION, f"is missing: entry {entry.index} tells of it")
    if hashlib.sha256(document).hexdigest() != text_of(entry, "sha256"):
        raise wrong(where, Rule.COMPLETION, f"is not the completion that entry {entry.index} tells of")
    if not texts_of(entry, "realms"):
        must(not document, entry, Rule.COMPLETION, "a completion for no realm states nothing")
        return
    try:
        statements = check_completions(document.decode("utf-8", "replace"), trust)
    except (Malformed, Untrusted) as bad:
        raise wrong(where, Rule.COMPLETION, bad.message) from bad
    for statement in statements:
        _must_tell_of(past, entry, revocation, statement)
    _must_add_up(past, entry, statements)


def _must_tell_of(past: Past, entry: Entry, revocation: Entry, statement: Statement) -> None:
    """Raise unless the statement is about this revocation, in each word."""
    selector = selector_of(revocation)
    # Of many single tokens, a statement names their realm alone.
    kept = selector.conditions if statement.entries == 1 else ((Dimension.REALM, selector.get(Dimension.REALM)),)
    said = {
        "incarnation": (statement.incarnation, past.incarnation),
        "index": (statement.index, revocation.index),
        "entries": (statement.entries, number_of(entry, "entries")),
        "selector": (
            dict(statement.selector),
            {dimension.name.lower(): value for dimension, value in kept},
        ),
        "reason": (statement.reason, text_of(revocation, "reason")),
        "by": (statement.by, revocation.by),
        "blocks": (statement.blocks, bool(revocation.body.get("blocks", False))),
        "committed_at": (statement.committed_at, revocation.at),
        "realms": (statement.realms, texts_of(entry, "realms")),
    }
    for name, (stated, recorded) in said.items():
        if stated != recorded:
            raise wrong(
                completion_name(revocation.index), Rule.COMPLETION, f"says another {name} than entry {revocation.index}"
            )
    if statement.by == revocation.by and statement.iat < int(revocation.at.timestamp()) - _CLOCK_SET_BACK_S:
        raise wrong(completion_name(revocation.index), Rule.COMPLETION, "was signed before the revocation was made")


def _must_add_up(past: Past, entry: Entry, statements: tuple[Statement, ...]) -> None:
    counts = {
        "listening": sum(one.listening for one in statements),
        "acknowledged": sum(one.acknowledged for one in statements),
        "lapsed": sum(one.lapsed for one in statements),
        "left": sum(one.left for one in statements),
        "uses_cut": sum(one.uses_cut for one in statements),
    }
    for name, count in counts.items():
        must(number_of(entry, name) == count, entry, Rule.COMPLETION, f"it counts {name} otherwise than was signed")
    for kid in texts_of(entry, "kids"):
        keys = past.certificates.get(kid, [])
        is_one = any(key.purpose is Purpose.COMPLETION for key in keys)
        must(is_one, entry, Rule.CERTIFICATE, f"no key {kid} was certified for completions before")


# Clocks are set back; a day is no clock that was set right.
_CLOCK_SET_BACK_S = 86_400
