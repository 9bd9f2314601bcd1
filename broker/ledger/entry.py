"""A ledger entry and the one spelling of its bytes, which are hashed and kept for ever."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from broker.errors import Invalid, StoreCorrupt

# C2SP tlog-tiles: an entry's length is a 16-bit number.
MAX_ENTRY_BYTES = 65_535
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, check_circular=False, allow_nan=False
)


class Kind(StrEnum):
    """What happened."""

    LEDGER_CREATED = "ledger-created"
    LEDGER_RESTORED = "ledger-restored"
    POLICY_APPLIED = "policy-applied"
    TOKEN_MINTED = "token-minted"  # noqa: S105 - a word, not a secret
    TOKEN_RESIGNED = "token-resigned"  # noqa: S105 - a word, not a secret
    REVOKED = "revoked"
    REINSTATED = "reinstated"
    RUN_OPENED = "run-opened"
    RUN_KEPT = "run-kept"
    RUN_CLOSED = "run-closed"
    RUN_LAPSED = "run-lapsed"
    KEY_CERTIFIED = "key-certified"
    REVOCATION_COMPLETED = "revocation-completed"
    CANARY_MINTED = "canary-minted"
    DRILLED = "drilled"
    DRILLS_SCHEDULED = "drills-scheduled"
    VERIFIER_FORGOTTEN = "verifier-forgotten"
    APPROVAL_REQUESTED = "approval-requested"
    APPROVAL_GIVEN = "approval-given"
    APPROVAL_DENIED = "approval-denied"
    APPROVAL_WITHDRAWN = "approval-withdrawn"
    APPROVAL_SPENT = "approval-spent"
    RECEIPT_KEY_ENROLLED = "receipt-key-enrolled"
    RECEIPTS_KEPT = "receipts-kept"
    RECEIPTS_ALARMED = "receipts-alarmed"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened: at `index`, `at` an aware instant, `by` a principal, the rest in `body` (JSON).

    Raises:
        Invalid: A field has another type, or `at` has no zone.
    """

    index: int
    kind: Kind
    at: datetime
    by: str
    body: Mapping[str, object]

    def __post_init__(self) -> None:
        # What is read back has the types that JSON gave it; `1.0` and `[]` are spelled as they came.
        if type(self.index) is not int or self.index < 0:
            raise Invalid("entry.index", "is not a position in the ledger")
        if not isinstance(self.by, str) or not isinstance(self.body, Mapping):
            raise Invalid("entry", "needs a principal and a body")
        # An instant without a zone would be taken for local time.
        if self.at.utcoffset() is None:
            raise Invalid("entry.at", "has no zone")


def encode_entry(entry: Entry, *, spelled: Mapping[str, str] | None = None) -> bytes:
    """Return the entry's bytes: ASCII JSON, names sorted, no spaces; milliseconds of UTC.

    Args:
        entry: What happened.
        spelled: More members of the body, each as JSON in that same spelling, so that nobody spells it twice.

    Raises:
        Invalid: Longer than 65,535 bytes, or with something in the body that JSON has not.
    """
    try:
        at = entry.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        body = _ENCODER.encode(entry.body) if spelled is None else _joined(entry.body, spelled)
    except (ValueError, TypeError, OverflowError, RecursionError) as bad:
        raise Invalid("entry", "cannot be spelled as plain JSON in UTC") from bad
    by = _ENCODER.encode(entry.by)
    text = f'{{"at":"{at}","body":{body},"by":{by},"index":{entry.index},"kind":"{entry.kind.value}"}}'
    data = text.encode("ascii")
    if len(data) > MAX_ENTRY_BYTES:
        raise Invalid("entry", f"would have {len(data)} bytes", hint=f"at most {MAX_ENTRY_BYTES} fit in the ledger")
    return data


def _joined(body: Mapping[str, object], spelled: Mapping[str, str]) -> str:
    members = {**{name: _ENCODER.encode(value) for name, value in body.items()}, **spelled}
    return "{" + ",".join(f"{_ENCODER.encode(name)}:{members[name]}" for name in sorted(members)) + "}"


def decode_entry(data: bytes) -> Entry:
    """Read what `encode_entry` wrote. Raises StoreCorrupt for any other bytes."""
    try:
        fields = json.loads(data.decode("ascii"))
        entry = Entry(
            fields["index"], Kind(fields["kind"]), datetime.fromisoformat(fields["at"]), fields["by"], fields["body"]
        )
        is_same = encode_entry(entry) == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Invalid) as bad:
        raise StoreCorrupt("a ledger entry cannot be read") from bad
    if not is_same:
        raise StoreCorrupt(f"ledger entry {entry.index} is not in its one spelling")
    return entry


def leaf_hash(data: bytes) -> bytes:
    """Return the Merkle leaf hash of an entry (RFC 6962 §2.1)."""
    return hashlib.sha256(b"\x00" + data).digest()
