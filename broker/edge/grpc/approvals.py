"""ApprovalService."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from grpc.aio import ServicerContext

from broker.domain.approval import Standing
from broker.domain.policy import Role
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.translate import limit, request_key, seconds, timestamp
from broker.edge.grpc.watching import Watching
from broker.errors import Invalid, Malformed
from broker.service.approving import ASKERS, READERS, VOTERS, Approving, Shown, Wish
from broker.service.calling import Caller, CertificateProof
from broker.service.voting import Signed, Voting
from broker.token.approval import Decision, Wanted
from broker.token.claims import MAX_MODELS
from broker.token.identifiers import identifier, model_name, opaque_id
from broker.token.jws import strict_json
from broker.token.keys import Jwk, load_jwk, public_jwk
from broker.v1 import approvals_pb2 as pb
from broker.v1 import approvals_pb2_grpc

MAX_KEY_CHARS = 1000
_WANTED = {pb.APPROVAL_PURPOSE_RUN: Wanted.RUN, pb.APPROVAL_PURPOSE_TOKEN: Wanted.TOKEN}


class ApprovalService(approvals_pb2_grpc.ApprovalServiceServicer):
    """Asks for, shows, gives and takes back approvals."""

    def __init__(self, approving: Approving, voting: Voting, watching: Watching) -> None:
        self._approving = approving
        self._voting = voting
        self._watching = watching

    async def RequestApproval(
        self, request: pb.RequestApprovalRequest, context: ServicerContext
    ) -> pb.RequestApprovalResponse:
        """Ask for one."""
        del context
        caller = CALLER.get()
        caller.must_be(*ASKERS)
        key = request_key(caller, request)
        user, workload = request.user or None, request.workload or None
        if user is None and workload is None:
            user, workload = caller.user, caller.workload
        if request.purpose not in _WANTED:
            raise Invalid("purpose", "is neither a run nor a token", hint="say which of the two it is for")
        models = tuple(model_name("models", model) for model in request.models)
        if not 1 <= len(models) <= MAX_MODELS or len(set(models)) != len(models):
            raise Invalid("models", f"{len(models)} given", hint=f"name 1 to {MAX_MODELS} different models")
        wish = Wish(
            _WANTED[request.purpose],
            identifier("realm", request.realm),
            identifier("partner", request.partner),
            user,
            workload,
            models,
            seconds("lifetime", request.lifetime) if request.HasField("lifetime") else None,
        )
        shown = await asyncio.to_thread(self._approving.request, caller, wish, key)
        return pb.RequestApprovalResponse(approval=_message(shown, caller))

    async def GetApproval(self, request: pb.GetApprovalRequest, context: ServicerContext) -> pb.GetApprovalResponse:
        """Tell how one stands."""
        del context
        caller = CALLER.get()
        caller.must_be(*READERS)
        shown = await asyncio.to_thread(self._approving.get, caller, opaque_id("approval", request.approval))
        return pb.GetApprovalResponse(approval=_message(shown, caller), principal=caller.principal)

    async def ListApprovals(
        self, request: pb.ListApprovalsRequest, context: ServicerContext
    ) -> pb.ListApprovalsResponse:
        """List them."""
        del context
        caller = CALLER.get()
        caller.must_be(*READERS)
        partner = identifier("partner", request.partner) if request.partner else None
        shown = await asyncio.to_thread(self._approving.listed, caller, partner, limit(request.limit))
        wanted = [one for one in shown if not request.waiting or one.judged.standing is Standing.WAITING]
        return pb.ListApprovalsResponse(approvals=[_message(one, caller) for one in wanted])

    async def WatchApproval(
        self, request: pb.WatchApprovalRequest, context: ServicerContext
    ) -> AsyncIterator[pb.WatchApprovalResponse]:
        """Tell how it stands, and whenever that changes."""
        del context
        caller = CALLER.get()
        caller.must_be(*READERS)
        async for shown in self._watching.watch(caller, opaque_id("approval", request.approval)):
            yield pb.WatchApprovalResponse(approval=_message(shown, caller))

    async def Approve(self, request: pb.ApproveRequest, context: ServicerContext) -> pb.ApproveResponse:
        """Say yes."""
        return pb.ApproveResponse(approval=await self._voted(request, context, Decision.APPROVE))

    async def Deny(self, request: pb.DenyRequest, context: ServicerContext) -> pb.DenyResponse:
        """Say no."""
        return pb.DenyResponse(approval=await self._voted(request, context, Decision.DENY))

    async def Withdraw(self, request: pb.WithdrawRequest, context: ServicerContext) -> pb.WithdrawResponse:
        """Take it back."""
        del context
        caller = CALLER.get()
        caller.must_be(*ASKERS)
        key = request_key(caller, request)
        shown = await asyncio.to_thread(self._approving.withdraw, caller, opaque_id("approval", request.approval), key)
        self._watching.wake()
        return pb.WithdrawResponse(approval=_message(shown, caller))

    async def _voted(
        self, request: pb.ApproveRequest | pb.DenyRequest, context: ServicerContext, decision: Decision
    ) -> pb.Approval:
        caller = CALLER.get()
        caller.must_be(*VOTERS)
        key = request_key(caller, request)
        approval = opaque_id("approval", request.approval)
        by_certificate = isinstance(caller.proof, CertificateProof)
        if by_certificate and request.key:
            raise Invalid("key", "is given beside a client certificate", hint="leave it out: the certificate's counts")
        jwk = _certificate_key(context) if by_certificate else _given_key(request.key)
        signed = Signed(request.statement, jwk)
        shown = await asyncio.to_thread(self._voting, caller, approval, decision, signed, key)
        self._watching.wake()
        return _message(shown, caller)


def _certificate_key(context: ServicerContext) -> Jwk:
    """Return the key of the client certificate that the TLS layer has verified. Raises Invalid."""
    pems = list(context.auth_context().get("x509_pem_cert") or ())
    key = x509.load_pem_x509_certificate(pems[0]).public_key() if len(pems) == 1 else None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid("certificate", "has no key on P-256", hint="approve with a certificate whose key is EC P-256")
    return public_jwk(key)


def _given_key(text: str) -> Jwk:
    """Return the key that a login names. Raises Invalid."""
    try:
        jwk = strict_json(text[:MAX_KEY_CHARS].encode("utf-8", "surrogatepass"))
        load_jwk(jwk)
    except Malformed as bad:
        raise Invalid("key", "is not a public P-256 key", hint="send its JWK: crv, kty, x and y") from bad
    found: Jwk = jwk
    return found


def _message(shown: Shown, caller: Caller) -> pb.Approval:
    # Who decides about a partner is nobody's business there: whoever knows them can press them.
    is_told = caller.role not in (Role.HARNESS, Role.PARTNER_ADMIN)
    record, judged = shown.record, shown.judged
    ended = record.approval.ended
    counted = {vote.person for vote in judged.counted}
    message = pb.Approval(
        id=record.approval.request.id,
        request=record.document,
        state=_STATES[judged.standing],
        why=judged.why,
        votes=[
            pb.ApprovalVote(
                person=vote.person if is_told else "",
                principal=vote.principal if is_told else "",
                approves=vote.decision is Decision.APPROVE,
                at=timestamp(vote.at),
                counts=vote.person in counted,
            )
            for vote in record.approval.votes
        ],
        spent_on=ended.on if ended is not None else "",
        index=record.index,
    )
    if judged.until is not None:
        message.until.CopyFrom(timestamp(judged.until))
    return message


_STATES: Mapping[Standing, Any] = {
    standing: pb.ApprovalState.Value(f"APPROVAL_STATE_{standing.name}") for standing in Standing
}
