"""AuditService."""

import asyncio
import hashlib
import re
from datetime import UTC

from grpc.aio import ServicerContext

from broker.audit.events import facet
from broker.domain.policy import Role
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import timestamp
from broker.errors import Invalid
from broker.ledger.merkle import MAX_SIZE
from broker.service.asking import Questions, Told, checked_decision, checked_kind, milliseconds
from broker.service.question_ports import Ref, Wanted
from broker.token.identifiers import client_id, identifier, model_name, opaque_id
from broker.v1 import audit_pb2 as pb
from broker.v1 import audit_pb2_grpc

DEFAULT_PAGE, MAX_PAGE = 100, 1_000
_TOKEN = re.compile(r"([0-9]{1,19})\.([0-9]{1,10})\.([0-9a-f]{16})", re.ASCII)
_RULES = {
    **dict.fromkeys(("realm", "partner", "user", "workload", "environment", "test"), identifier),
    "run": opaque_id,
    "token": opaque_id,
    "model": model_name,
    "by": client_id,
    "decision": lambda _field, text: checked_decision(text),
    "kind": lambda _field, text: checked_kind(text),
}


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """Answers questions about the past."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions

    async def Query(self, request: pb.QueryRequest, context: ServicerContext) -> pb.QueryResponse:
        """Return what happened, by filters."""
        del context
        CALLER.get().must_be(Role.ADMIN, Role.AUDITOR)
        wanted = _wanted(request)
        if request.page_size > MAX_PAGE:
            raise Invalid("page_size", f"is {request.page_size}", hint=f"ask for at most {MAX_PAGE}, and go on")
        after = _after(request.page_token, wanted) if request.page_token else None
        answer = await asyncio.to_thread(self._questions.query, wanted, after, request.page_size or DEFAULT_PAGE)
        return pb.QueryResponse(
            events=map(_event, answer.told),
            next_page_token="" if answer.after is None else _page_token(answer.after, wanted),
            size=answer.size,
        )

    async def Trail(self, request: pb.TrailRequest, context: ServicerContext) -> pb.TrailResponse:
        """Tell a story."""
        del context
        CALLER.get().must_be(Role.ADMIN, Role.AUDITOR)
        what = request.WhichOneof("what")
        if what is None:
            raise Invalid("what", "names neither a token nor a run", hint="name one of them")
        named = {what: opaque_id(what, getattr(request, what))}
        answer = await asyncio.to_thread(lambda: self._questions.trail(**named))
        return pb.TrailResponse(events=map(_event, answer.told), truncated=answer.after is not None, size=answer.size)

    async def AfterRevocation(
        self, request: pb.AfterRevocationRequest, context: ServicerContext
    ) -> pb.AfterRevocationResponse:
        """List what was accepted after a revocation."""
        del context
        CALLER.get().must_be(Role.ADMIN, Role.AUDITOR)
        if request.index >= MAX_SIZE:
            raise Invalid("index", "is larger than any ledger", hint="see: broker audit query --decision revoked")
        found = await asyncio.to_thread(self._questions.after_revocation, request.index)
        return pb.AfterRevocationResponse(
            events=map(_event, found.told),
            truncated=found.is_truncated,
            before_in_force=found.before_in_force,
            in_force_at=None if found.in_force_at is None else timestamp(found.in_force_at),
            verifiers=[
                pb.VerifierTold(
                    verifier=one.verifier, keeps_receipts=one.keeps_receipts, stopped=one.stopped, head=one.head
                )
                for one in found.verifiers
            ],
            proven=found.is_proven,
            size=found.size,
        )


def _wanted(request: pb.QueryRequest) -> Wanted:
    facets = [
        facet(name, rule(name, getattr(request, name))) for name, rule in _RULES.items() if getattr(request, name)
    ]
    times = {}
    for name, to in (("from", "from_ms"), ("until", "until_ms")):
        if request.HasField(name):
            try:
                times[to] = milliseconds(getattr(request, name).ToDatetime(tzinfo=UTC))
            except (ValueError, OverflowError) as bad:
                raise Invalid(name, "is no instant", hint="use RFC 3339") from bad
    if times.get("until_ms", MAX_SIZE) <= times.get("from_ms", -1):
        raise Invalid("until", "is not after from", hint="swap them")
    return Wanted(frozenset(facets), **times)


def _event(told: Told) -> pb.AuditEvent:
    return pb.AuditEvent(
        index=told.index,
        line=told.line,
        at=timestamp(told.at),
        kind=told.kind,
        by=told.by,
        decision=told.decision,
        realm=told.realm,
        partner=told.partner,
        user=told.user,
        workload=told.workload,
        environment=told.environment,
        run=told.run,
        test=told.test,
        models=told.models,
        token=told.token,
        grant=told.grant,
        reason=told.reason,
        head=told.head,
        count=told.count,
        role=told.role,
    )


def _page_token(after: Ref, wanted: Wanted) -> str:
    return f"{after[0]}.{after[1]}.{_digest(wanted)}"


def _after(text: str, wanted: Wanted) -> Ref:
    named = _TOKEN.fullmatch(text)
    if named is None or int(named[1]) >= MAX_SIZE or int(named[2]) > 1 << 31:
        raise Invalid("page_token", "is none", hint="use the one of the answer before")
    if named[3] != _digest(wanted):
        raise Invalid("page_token", "is of other filters", hint="repeat the filters of the question before")
    return int(named[1]), int(named[2])


def _digest(wanted: Wanted) -> str:
    told = "\n".join((*sorted(wanted.facets), str(wanted.from_ms), str(wanted.until_ms)))
    return hashlib.sha256(told.encode()).hexdigest()[:16]
