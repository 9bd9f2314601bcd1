"""The order rules: an entry is judged by all that came before it, and the first that contradicts it is named."""

from collections import Counter
from collections.abc import Mapping

from broker.audit.fields import members_of, number_of, text_of
from broker.audit.keys import take_certified
from broker.audit.past import Look, Past
from broker.audit.receipts import ReceiptRules, take_alarm
from broker.audit.restored import take_restored
from broker.audit.revoked import REVOKING, Document, take_completed, take_reinstated, take_revoked
from broker.audit.runs import take_approval, take_kept, take_opened
from broker.audit.tokens import take_minted, take_resigned
from broker.audit.wrong import Rule, must, wrong
from broker.errors import StoreCorrupt
from broker.ledger.entry import Entry, Kind, decode_entry
from broker.token.keys import RealmTrust


class Rules:
    """Takes a log's entries in their order, from the first on.

    Args:
        trust: What is pinned, by realm.
        look: Returns an entry that was taken before.
        document: Returns a completion.
    """

    def __init__(self, trust: Mapping[str, RealmTrust], look: Look, document: Document) -> None:
        self._trust = trust
        self._look = look
        self._document = document
        self._past = Past()
        self._receipts = ReceiptRules(self._past, self._found)
        self.size = 0
        self.kinds: Counter[str] = Counter()

    @property
    def incarnation(self) -> str:
        """The log's own name, once its first entry was taken."""
        return self._past.incarnation

    def take(self, data: bytes) -> Entry:
        """Judge the next entry, by its exact bytes; return it. Raises NotProven: it names the entry and the rule."""
        try:
            entry = decode_entry(data)
        except StoreCorrupt as bad:
            raise wrong(f"entry {self.size}", Rule.FORM, bad.message) from bad
        must(entry.index == self.size, entry, Rule.FORM, f"stands at place {self.size}")
        is_first = entry.kind is Kind.LEDGER_CREATED
        must(is_first == (entry.index == 0), entry, Rule.BEGINNING, "a log begins with its creation, once")
        self._receipts.before(entry)
        self._judge(entry)
        self.size += 1
        self.kinds[entry.kind.value] += 1
        return entry

    def _judge(self, entry: Entry) -> None:  # noqa: C901, PLR0912 - one line for each kind
        past = self._past
        match entry.kind:
            case Kind.LEDGER_CREATED:
                past.incarnation = text_of(entry, "incarnation")
            case Kind.LEDGER_RESTORED:
                take_restored(past, entry)
            case Kind.POLICY_APPLIED:
                text_of(entry, "sha256")
                past.policies += 1
            case Kind.KEY_CERTIFIED:
                take_certified(past, entry, self._trust)
            case Kind.TOKEN_MINTED | Kind.CANARY_MINTED:
                take_minted(past, entry, self._realm(entry))
            case Kind.TOKEN_RESIGNED:
                first = self._found(_index(members_of(entry, "claims").get("idx")))
                take_resigned(past, entry, first, self._realm(entry))
            case Kind.REVOKED | Kind.RUN_CLOSED | Kind.RUN_LAPSED:
                take_revoked(past, entry)
            case Kind.REINSTATED:
                take_reinstated(past, entry)
            case Kind.RUN_OPENED:
                take_opened(past, entry)
            case Kind.RUN_KEPT:
                take_kept(past, entry)
            case Kind.REVOCATION_COMPLETED:
                index = number_of(entry, "revocation")
                take_completed(past, entry, self._found(index), self._document(index), self._trust)
            case (
                Kind.APPROVAL_REQUESTED
                | Kind.APPROVAL_GIVEN
                | Kind.APPROVAL_DENIED
                | Kind.APPROVAL_WITHDRAWN
                | Kind.APPROVAL_SPENT
            ):
                take_approval(past, entry)
            case Kind.RECEIPT_KEY_ENROLLED:
                self._receipts.take_key(entry)
            case Kind.RECEIPTS_KEPT:
                self._receipts.take_batch(entry)
            case Kind.RECEIPTS_ALARMED:
                take_alarm(entry)
            case Kind.DRILLED:
                revocation = self._found(number_of(entry, "revocation"))
                is_revoked = revocation is not None and revocation.kind in REVOKING
                must(is_revoked, entry, Rule.COMPLETION, "it drilled a revocation that was not made")
            case Kind.DRILLS_SCHEDULED | Kind.VERIFIER_FORGOTTEN:
                text_of(entry, "realm")

    def _realm(self, entry: Entry) -> RealmTrust | None:
        return self._trust.get(str(members_of(entry, "claims").get("realm")))

    def _found(self, index: int) -> Entry | None:
        return decode_entry(self._look(index)) if 0 <= index < self.size else None


def _index(value: object) -> int:
    return value if type(value) is int else -1
