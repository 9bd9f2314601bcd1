"""LedgerService."""

import asyncio

from grpc.aio import ServicerContext

from broker.domain.policy import Role
from broker.edge.grpc.outermost import CALLER
from broker.errors import Invalid, NotFound
from broker.ledger.merkle import MAX_SIZE
from broker.ledger.note import parse_note
from broker.service.checkpoints import ProveEntries, PublishCheckpoints
from broker.service.ports import Ledger
from broker.v1 import ledger_pb2 as pb
from broker.v1 import ledger_pb2_grpc

MAX_ENTRIES = 1_000
# Clients take no message above 4 MiB.
MAX_ANSWER_BYTES = 2 << 20


class LedgerService(ledger_pb2_grpc.LedgerServiceServicer):
    """Shows and proves what is recorded."""

    def __init__(self, ledger: Ledger, publish: PublishCheckpoints, prove: ProveEntries) -> None:
        self._ledger = ledger
        self._publish = publish
        self._prove = prove

    async def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: ServicerContext
    ) -> pb.GetCheckpointResponse:
        """Return a checkpoint."""
        del context
        if request.fresh:
            CALLER.get().must_be(Role.ADMIN, Role.AUDITOR)
            record = await asyncio.to_thread(self._publish.publish)
        else:
            served = await asyncio.to_thread(self._publish.served)
            if served is None:
                raise NotFound(
                    "no checkpoint is published yet", hint="retry in a second; see the problems in: broker status"
                )
            record = served
        names = [signature.name for signature in parse_note(record.note.encode()).signatures]
        return pb.GetCheckpointResponse(checkpoint=record.note.encode(), size=record.size, signed_by=names)

    async def ProveInclusion(
        self, request: pb.ProveInclusionRequest, context: ServicerContext
    ) -> pb.ProveInclusionResponse:
        """Prove that an entry is in the log."""
        del context
        CALLER.get().must_be(Role.ADMIN, Role.AUDITOR)
        index = _in_range("index", request.index)
        proof, entry, size = await asyncio.to_thread(self._prove.inclusion, index)
        return pb.ProveInclusionResponse(proof=proof.to_bytes(), entry=entry, size=size)

    async def ProveConsistency(
        self, request: pb.ProveConsistencyRequest, context: ServicerContext
    ) -> pb.ProveConsistencyResponse:
        """Prove that one tree goes on from another."""
        del context
        CALLER.get().must_be(Role.ADMIN, Role.AUDITOR)
        new_size = _in_range("new_size", request.new_size) if request.HasField("new_size") else None
        old_size = _in_range("old_size", request.old_size)
        proven = await asyncio.to_thread(self._prove.consistency, old_size, new_size)
        return pb.ProveConsistencyResponse(
            hashes=proven.hashes,
            new_size=proven.new_size,
            checkpoint=b"" if proven.record is None else proven.record.note.encode(),
        )

    async def GetEntries(self, request: pb.GetEntriesRequest, context: ServicerContext) -> pb.GetEntriesResponse:
        """Return entries."""
        del context
        CALLER.get().must_be(Role.ADMIN, Role.AUDITOR)
        if not 1 <= request.limit <= MAX_ENTRIES:
            raise Invalid("limit", "is not 1 to 1000", hint="ask for the next ones after these")
        start = _in_range("start", request.start)
        return await asyncio.to_thread(self._entries, start, request.limit)

    def _entries(self, start: int, limit: int) -> pb.GetEntriesResponse:
        answer = pb.GetEntriesResponse(size=self._ledger.head().size)
        room = MAX_ANSWER_BYTES
        for entry in self._ledger.entries(start, start + limit):
            room -= len(entry)
            if room < 0:
                break
            answer.entries.append(entry)
        return answer


def _in_range(field: str, value: int) -> int:
    # A store's integers are signed.
    if value >= MAX_SIZE:
        raise Invalid(field, "is larger than any ledger", hint="see the head in: broker status")
    return value
