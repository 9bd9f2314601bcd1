"""What vouches for a report: the log's key over its hash, in a note that can be no checkpoint."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from broker.errors import NotProven
from broker.ledger.checkpoint import LogKeys
from broker.ledger.note import check_note, parse_note

# With blanks: no checkpoint's origin, which is the name of a key, has one.
_FIRST = "broker access report v1"
_LINES = 4
_ESCAPED = str.maketrans({one: f"\\u{ord(one):04x}" for one in "<>&"})


def encode_report(report: Mapping[str, object]) -> bytes:
    """Return a report's one spelling: ASCII, without anything that ends a script element of a page it is put in."""
    spelled = json.dumps(report, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return spelled.translate(_ESCAPED).encode("ascii")


def vouched(origin: str, document: bytes, made_at: str) -> str:
    """Return the text that is signed for a document."""
    return f"{_FIRST}\n{origin}\n{hashlib.sha256(document).hexdigest()}\n{made_at}\n"


def open_report(document: bytes, note: bytes, log: LogKeys) -> Mapping[str, Any]:
    """Return what a report says, once it is known to be the log's own.

    Raises:
        NotProven: It was changed, is another log's, or is not signed by a pinned key.
    """
    signed = parse_note(note)
    lines = signed.text.split("\n")[:-1]
    if len(lines) != _LINES or lines[0] != _FIRST:
        raise NotProven("the signature is not of an access report")
    if lines[1] != log.origin:
        raise NotProven(f"the report is of the ledger {lines[1]}, not of {log.origin}")
    check_note(signed, log.keys)
    if hashlib.sha256(document).hexdigest() != lines[2]:
        raise NotProven("the report is not the one that was signed: it was changed")
    # Signed by whom is trusted: what they signed is what they encoded.
    report = json.loads(document)
    if not isinstance(report, dict) or report.get("made_at") != lines[3]:
        raise NotProven("the report was not made when its signature says")
    return report
