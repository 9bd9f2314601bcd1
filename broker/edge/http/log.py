"""The log over HTTP, in the layout of c2sp.org/tlog-tiles: a checkpoint that moves, and tiles that never change."""

import asyncio
import json
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import Failure, Invalid, NotFound
from broker.ledger.tiles import Tile, encode_bundle, encode_hashes, parse_tile_path
from broker.service.checkpoints import PublishCheckpoints
from broker.service.ports import Ledger
from broker.service.tree_ports import Tree

# Anybody may ask: no more of them at once than leave the store to others.
AT_ONCE = 4
FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}
FOR_A_MOMENT = {"Cache-Control": "public, max-age=1"}
NOT_AT_ALL = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class LogPages:
    """What the pages read. Entries tell who used what: they are shown to anybody only if `publishes_entries`."""

    ledger: Ledger
    tree: Tree
    publish: PublishCheckpoints
    publishes_entries: bool

    def routes(self) -> list[Route]:
        """Return the pages."""
        turn = asyncio.Semaphore(AT_ONCE)

        async def checkpoint(_request: Request) -> Response:
            async with turn:
                return await asyncio.to_thread(self._checkpoint)

        async def tile(request: Request) -> Response:
            async with turn:
                return await asyncio.to_thread(self._tile, f"tile/{request.path_params['rest']}")

        return [Route("/checkpoint", checkpoint), Route("/tile/{rest:path}", tile)]

    def _checkpoint(self) -> Response:
        try:
            record = self.publish.served()
        except Failure as failure:
            return _refused(503, failure)
        if record is None:
            return _refused(404, NotFound("no checkpoint is published yet"))
        return Response(record.note.encode(), media_type="text/plain; charset=utf-8", headers=FOR_A_MOMENT)

    def _tile(self, path: str) -> Response:
        try:
            tile = parse_tile_path(path)
        except Invalid as bad:
            return _refused(404, bad)
        if tile.level is None and not self.publishes_entries:
            return _refused(
                403, NotFound("this broker shows its entries to auditors only: see LedgerService.GetEntries")
            )
        try:
            served = self.publish.served()
            # What no checkpoint covers is not published, although it will never be different.
            if served is None or not tile.is_in(served.size):
                return _refused(404, NotFound("no checkpoint covers this tile yet"))
            data = self._contents(tile)
        except Failure as failure:
            return _refused(503, failure)
        return Response(data, media_type="application/octet-stream", headers=FOR_EVER)

    def _contents(self, tile: Tile) -> bytes:
        if tile.level is None:
            return encode_bundle(self.ledger.entries(tile.start, tile.start + tile.width))
        return encode_hashes(self.tree.tile(tile.level, tile.index)[: tile.width])


def _refused(status: int, failure: Failure) -> Response:
    return Response(
        json.dumps({"error": failure.reason.lower(), "error_description": failure.message}),
        status,
        media_type="application/json",
        headers=NOT_AT_ALL,
    )
