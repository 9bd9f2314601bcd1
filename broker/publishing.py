"""Put the log together: what publishes checkpoints, proves entries, and finds at the start that the past is gone."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from broker.adapters.checkpoint_destinations import CheckpointCommand, CheckpointFile
from broker.adapters.sql import SqlLedger
from broker.edge.grpc.checkpointing import Checkpointing
from broker.edge.grpc.ledger import LedgerService
from broker.edge.http.log import LogPages
from broker.errors import Failure, LedgerForked, Malformed, SignerUnavailable
from broker.service.checkpoints import ProveEntries, PublishCheckpoints, must_go_on_from, read_kept
from broker.service.ports import Clock
from broker.service.tree_ports import CheckpointSigner, Witness
from broker.service.witnessing import CollectCosignatures
from broker.token.jws import parse_jws, strict_json
from broker.token.keys import LogTrust
from broker.token.restoration import MAX_RESTORATION_BYTES, RESTORATION_TYP


@dataclass(frozen=True, slots=True)
class LogParts:
    """How the log is published. `file`: where its newest checkpoint is kept beside the store."""

    signer: CheckpointSigner
    name: str = "credential-broker"
    publishes_entries: bool = False
    file: Path | None = None
    command: tuple[str, ...] = ()
    witnesses: tuple[Witness, ...] = ()


class Log:
    """The log of one broker process."""

    def __init__(self, ledger: SqlLedger, parts: LogParts, clock: Clock, on_fatal: Callable[[Failure], None]) -> None:
        """Refuse a ledger that is not what was published.

        Raises:
            LedgerForked: It was rolled back, truncated or changed, or is another one.
            ConfigInvalid: The checkpoint file is none.
        """
        self._ledger = ledger
        self._file = CheckpointFile(parts.file) if parts.file is not None else None
        self.publish = PublishCheckpoints(
            ledger.tree,
            ledger.checkpoints,
            parts.signer,
            clock,
            name=parts.name,
            witnesses=[witness.key for witness in parts.witnesses],
        )
        collect = (
            CollectCosignatures(ledger.tree, ledger.checkpoints, self.publish, parts.witnesses, clock)
            if parts.witnesses
            else None
        )
        self._must_go_on()
        if collect is not None:
            collect.must_agree()
        destinations = (
            *((self._file,) if self._file is not None else ()),
            *((CheckpointCommand(parts.command),) if parts.command else ()),
        )
        self._checkpointing = Checkpointing(self.publish, collect, destinations, on_fatal)
        self.run, self.close = self._checkpointing.run, self._checkpointing.close
        self.service = LedgerService(ledger, self.publish, ProveEntries(ledger, ledger.tree, self.publish))
        self.pages = LogPages(ledger, ledger.tree, self.publish, parts.publishes_entries)

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps checkpoints from being published or passed on."""
        return self._checkpointing.problems

    def trust(self) -> LogTrust | None:
        """Return what strangers pin to check the log, or None: the key cannot be asked for now."""
        try:
            keys = self.publish.keys()
        except SignerUnavailable:
            return None
        return LogTrust(keys.origin, tuple(str(key) for key in keys.keys), tuple(str(key) for key in keys.witnesses))

    def _must_go_on(self) -> None:
        tree, head = self._ledger.tree, self._ledger.tree.head()
        kept = self._ledger.checkpoints.newest()
        if kept is not None:
            must_go_on_from(read_kept(kept), tree, head, where="the newest checkpoint in the store")
        published = self._file.read() if self._file is not None else None
        if self._file is None or published is None:
            return
        where = f"the last published checkpoint, {self._file.path},"
        hint = (
            "stop the broker and put the newest copy of its store back; only to go on from an older one on purpose, "
            f"with a record of why, move {self._file.path} away"
        )
        if not published.origin.endswith(f"/{head.incarnation}"):
            before = published.origin.rpartition("/")[2]
            if self._says_to_be_restored(before, head.incarnation):
                # Not checked against the roots, so a person decides: it is believed for the advice alone.
                hint = (
                    "the store says to be restored from a backup of that ledger, and the restore was stopped before "
                    f"its last step; if you know that to be so, end it: mv {self._file.path} {self._file.path}.{before}"
                )
            raise LedgerForked(f"{where} is of the ledger {published.origin}, not of {head.incarnation}", hint=hint)
        try:
            must_go_on_from(published, tree, head, where=where)
        except LedgerForked as forked:
            raise LedgerForked(forked.message, hint=hint) from forked

    def _says_to_be_restored(self, before: str, after: str) -> bool:
        for documents in self._ledger.restorations().values():
            with suppress(Malformed, AttributeError):
                claims = strict_json(
                    parse_jws(documents[-1], typ=RESTORATION_TYP, max_bytes=MAX_RESTORATION_BYTES).payload
                )
                if (claims.get("before"), claims.get("after")) == (before, after):
                    return True
        return False
