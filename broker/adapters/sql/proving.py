"""Guards and effects of completions, drills and the roster, within the append's transaction."""

import json
import zlib
from typing import assert_never

from sqlalchemy import Connection, delete, insert, select, update

from broker.adapters.sql.schema import completions, drill_schedules, drills, verifiers
from broker.errors import NotFound, StoreCorrupt
from broker.service.proof_ports import Completed, CompletionAwaited, DrillRecorded, DrillsScheduled, VerifierForgotten

# A document says about as much of each of ten thousand verifiers; a damaged one must not fill the memory.
MAX_DOCUMENT_BYTES = 64 << 20

Proof = CompletionAwaited | Completed | VerifierForgotten | DrillRecorded | DrillsScheduled


def must_be_due(connection: Connection, revocation: int) -> None:
    """Raise NotFound unless the completion of this revocation is awaited."""
    row = connection.execute(select(completions.c.entry_idx).where(completions.c.revocation == revocation)).first()
    if row is None or row.entry_idx is not None:
        raise NotFound(f"no completion of revocation {revocation} is awaited")


def apply_proof(connection: Connection, effect: Proof, indices: range) -> None:
    """Change the state as of the write's indices."""
    match effect:
        case CompletionAwaited(realms, lease_ms):
            connection.execute(
                insert(completions).values(
                    revocation=indices[-1], first_idx=indices.start, realms=json.dumps(realms), lease_ms=lease_ms
                )
            )
        case Completed(revocation, document):
            connection.execute(
                update(completions)
                .where(completions.c.revocation == revocation)
                .values(entry_idx=indices.start, document=packed(document))
            )
        case VerifierForgotten(verifier, realm):
            connection.execute(delete(verifiers).where(verifiers.c.verifier == verifier, verifiers.c.realm == realm))
        case DrillRecorded(realm, document):
            connection.execute(insert(drills).values(idx=indices.start, realm=realm, document=packed(document)))
        case DrillsScheduled(realm, every_s):
            connection.execute(delete(drill_schedules).where(drill_schedules.c.realm == realm))
            if every_s > 0:
                connection.execute(insert(drill_schedules).values(realm=realm, every_s=every_s))
        case _:
            assert_never(effect)


def packed(document: bytes) -> bytes:
    """Return a document as it is kept: compressed, for it names thousands of verifiers that are alike."""
    return zlib.compress(document)


def unpacked(kept: bytes) -> bytes:
    """Return the document. Raises StoreCorrupt."""
    reader = zlib.decompressobj()
    try:
        document = reader.decompress(kept, MAX_DOCUMENT_BYTES)
    except zlib.error as damaged:
        raise StoreCorrupt("a kept document cannot be read") from damaged
    if not reader.eof or reader.unused_data:
        raise StoreCorrupt("a kept document is not whole")
    return document
