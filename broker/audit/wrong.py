"""How it is said that something in a log is wrong: where, by which rule, and what."""

from enum import StrEnum

from broker.errors import NotProven
from broker.ledger.entry import Entry


class Rule(StrEnum):
    """What must hold. The words are stable: scripts may depend on them."""

    LAYOUT = "layout"  # an export has exactly the files of its size
    SIGNATURE = "signature"  # the checkpoint is signed by the log, and by witnesses
    TREE = "tree"  # the entries are those of the tree that was signed
    ROLLBACK = "rollback"  # a log never gets shorter
    FORK = "fork"  # a log goes on from what it was
    FORM = "form"  # each entry is in its one spelling, at its place, with what its kind has
    BEGINNING = "beginning"  # a log begins with its incarnation, once
    CERTIFICATE = "certificate"  # a pinned root certified each key, for one realm and one purpose
    POLICY = "policy"  # nothing is granted before there is a policy
    TOKEN = "token"  # noqa: S105 - a word, not a secret; each token is what its entry says, by a key in its time
    BLOCKED = "blocked"  # nothing is granted while a block is in force
    PARENT = "parent"  # a token dies with what it was derived from
    RUN = "run"  # a token of a run comes while the run is open
    APPROVAL = "approval"  # what needs approval was approved, by the people who signed
    REVOCATION = "revocation"  # a revocation says what it revokes; a block is lifted once it is there
    COMPLETION = "completion"  # a completion is signed, and tells of the revocation that it names
    RECEIPT = "receipt"  # receipts are signed by an enrolled key, in their order, of tokens that there are
    USE = "use"  # a verifier that has applied a revocation accepts nothing that it kills


def wrong(where: str, rule: Rule, problem: str, *, hint: str = "") -> NotProven:
    """Return the error: `where` is a file of an export, or `entry N`."""
    metadata = {"where": where, "rule": rule.value}
    return NotProven(f"{where}: {problem} (rule {rule.value})", hint=hint, metadata=metadata)


def wrong_entry(entry: Entry, rule: Rule, problem: str) -> NotProven:
    """Return the error of an entry that contradicts what came before it."""
    return wrong(f"entry {entry.index}", rule, problem, hint=_CONTRADICTION)


def must(holds: object, entry: Entry, rule: Rule, problem: str) -> None:
    """Raise NotProven unless it holds."""
    if not holds:
        raise wrong_entry(entry, rule, problem)


_CONTRADICTION = "the log's key signed this all the same: whoever keeps the log did, or let happen, what it says"
