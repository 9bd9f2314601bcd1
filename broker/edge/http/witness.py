"""A witness's door (c2sp.org/tlog-witness): add-checkpoint, and the last checkpoint of each log."""

import asyncio
import logging
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from broker.errors import Failure, NotProven
from broker.ledger.note import NoteSignature
from broker.ledger.witnessing import MAX_REQUEST_BYTES, SIZE_TYPE, AddCheckpoint, Turned, origin_of, parse_request

log = logging.getLogger("broker.witness")

CONFLICT = 409


class Keeper(Protocol):
    """Judges, keeps and signs in one step."""

    def add(self, request: AddCheckpoint, origin: str) -> NoteSignature | Turned:
        """Return the signature, or why there is none. Raises StoreUnavailable."""

    def knows(self, name: str) -> bool:
        """Tell whether a known log has this hashed origin."""

    def last(self, name: str) -> bytes | None:
        """Return the note kept last, or None."""


def make_witness_app(keeper: Keeper) -> Starlette:
    """Return the ASGI application."""

    async def add_checkpoint(request: Request) -> Response:
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > MAX_REQUEST_BYTES:
                return _said(413, "a request is not that long")
        return await asyncio.to_thread(_add, keeper, data)

    async def checkpoint(request: Request) -> Response:
        name = request.path_params["name"]
        found = await asyncio.to_thread(keeper.last, name) if keeper.knows(name) else None
        if found is None:
            return _said(404, "no checkpoint of such a log was seen")
        return Response(found, media_type="text/plain; charset=utf-8", headers={"Cache-Control": "max-age=1"})

    return Starlette(
        routes=[Route("/add-checkpoint", add_checkpoint, methods=["POST"]), Route("/{name}/checkpoint", checkpoint)]
    )


def _add(keeper: Keeper, data: bytes) -> Response:
    try:
        request = parse_request(data)
        origin = origin_of(request)
    except NotProven as bad:
        return _said(400, bad.message)
    try:
        verdict = keeper.add(request, origin)
    except Failure as failure:
        log.warning("a checkpoint was not cosigned", extra={"fields": {"origin": origin, "detail": failure.message}})
        # Which file and why is for those whose it is.
        return _said(503, "it could not be kept, so it was not signed; ask again")
    if isinstance(verdict, NoteSignature):
        return Response(str(verdict).encode(), media_type="text/plain; charset=utf-8")
    log.warning(
        "a checkpoint is refused", extra={"fields": {"origin": origin, "status": verdict.status, "why": verdict.why}}
    )
    if verdict.status == CONFLICT:
        return Response(f"{verdict.size}\n".encode(), CONFLICT, media_type=SIZE_TYPE)
    return _said(verdict.status, verdict.why)


def _said(status: int, why: str) -> Response:
    return PlainTextResponse(f"{why}\n", status)
