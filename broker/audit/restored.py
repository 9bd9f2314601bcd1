"""The rule of a ledger that was restored from a backup: it says of which, and is another one from there on."""

from broker.audit.fields import number_of, text_of
from broker.audit.past import Past
from broker.audit.wrong import Rule, must
from broker.ledger.entry import Entry


def take_restored(past: Past, entry: Entry) -> None:
    """Take an entry of kind ledger-restored."""
    before, after = text_of(entry, "from"), text_of(entry, "incarnation")
    must(before == past.incarnation, entry, Rule.BEGINNING, f"it goes on from {before}, which this log was not")
    must(after != before, entry, Rule.BEGINNING, "it was restored to what it was")
    must(number_of(entry, "size") == entry.index, entry, Rule.BEGINNING, "it says another number of entries")
    must(text_of(entry, "reason"), entry, Rule.BEGINNING, "nobody said why")
    past.incarnation = after
    past.runs.clear()
    for asked in past.approvals.values():
        # What is lost may have spent it, as it may have ended the runs.
        asked.ended = asked.ended or "void since the ledger was restored"
