"""Receipt keys on SQL: guards and effects within the append's transaction, and the ReceiptBook port."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import assert_never

from sqlalchemy import Connection, bindparam, insert, select, update

from broker.adapters.sql.bodies import Bodies
from broker.adapters.sql.schema import ledger, receipt_keys
from broker.errors import ReceiptsOutOfOrder, RequestReused
from broker.service.receipt_ports import (
    ReceiptKeyEnrolled,
    ReceiptKeyIsNew,
    ReceiptKeyRecord,
    ReceiptsFollow,
    ReceiptsWritten,
)

Reading = Callable[[], AbstractContextManager[Connection]]

# Made once: building a statement costs more than running it, and these run for each batch.
_THROUGH = select(receipt_keys.c.through).where(receipt_keys.c.kid == bindparam("wanted"))
_MOVE = update(receipt_keys).where(receipt_keys.c.kid == bindparam("wanted")).values(through=bindparam("until"))
_KEY = select(receipt_keys).where(receipt_keys.c.kid == bindparam("wanted"))
_ENTRIES = select(ledger.c.idx, ledger.c.entry).where(ledger.c.idx.in_(bindparam("indices", expanding=True)))


def check_receipts(connection: Connection, guard: ReceiptKeyIsNew | ReceiptsFollow) -> None:
    """Raise what the guard says unless it holds now."""
    through: int | None = connection.execute(_THROUGH, {"wanted": guard.kid}).scalar()
    match guard:
        case ReceiptKeyIsNew():
            if through is not None:
                raise RequestReused("this receipt key is enrolled already")
        case ReceiptsFollow(after=after):
            if through != after:
                raise ReceiptsOutOfOrder(f"this key's receipts are written up to {through}, not {after}")
        case _:
            assert_never(guard)


def apply_receipts(connection: Connection, effect: ReceiptKeyEnrolled | ReceiptsWritten, indices: range) -> None:
    """Change the state as of the write's indices."""
    match effect:
        case ReceiptKeyEnrolled(kid, realm, verifier, point):
            row = {"kid": kid, "realm": realm, "verifier": verifier, "point": point, "idx": indices.start, "through": 0}
            connection.execute(insert(receipt_keys), row)
        case ReceiptsWritten(kid, through):
            connection.execute(_MOVE, {"wanted": kid, "until": through})
        case _:
            assert_never(effect)


class SqlReceiptBook:
    """Reads what `ReceiptKeyEnrolled` and `ReceiptsWritten` wrote."""

    def __init__(self, reading: Reading, bodies: Bodies) -> None:
        self._reading = reading
        self._bodies = bodies

    def receipt_key(self, kid: str) -> ReceiptKeyRecord | None:
        """As the port says."""
        with self._reading() as connection:
            row = connection.execute(_KEY, {"wanted": kid}).first()
        if row is None:
            return None
        return ReceiptKeyRecord(row.kid, row.realm, row.verifier, bytes(row.point), row.idx, row.through)

    def entries_at(self, indices: Collection[int]) -> Mapping[int, bytes]:
        """As the port says."""
        if not indices:
            return {}
        with self._reading() as connection:
            rows = connection.execute(_ENTRIES, {"indices": list(indices)}).all()
            return self._bodies.at(connection, rows)
