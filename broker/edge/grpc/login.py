"""The login door: callers without a certificate, each proven by one bearer token of a provider of the policy."""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import replace

from grpc.aio import ServicerContext

from broker.edge.grpc.callers import peer_address
from broker.edge.grpc.run_proofs import RunProofs
from broker.errors import IssuerUnavailable, Unauthenticated
from broker.service.calling import IdentityProof, RunProof
from broker.service.identities import Identities

AUTHORIZATION = "authorization"
# Longer than a provider is given to answer, twice: it is asked where its keys are, and then for them.
WAIT_S = 5.0
# One spelling. RFC 6750 lets the scheme be spelled in any case; nobody who is honest needs that here.
_BEARER = re.compile(r"Bearer ([A-Za-z0-9_.-]+)", re.ASCII)
_HINT = "send exactly one metadata entry `authorization: Bearer TOKEN`"


class LoginDoor:
    """Reads who calls from the call's metadata. One event loop owns it."""

    def __init__(self, identities: Identities, run_proofs: RunProofs) -> None:
        self._identities = identities
        self._run_proofs = run_proofs

    async def proof(self, context: ServicerContext, method: str, request: object) -> IdentityProof | RunProof:
        """Return what the caller's token proves, or without one the proof of a run's key, and from where it calls.

        Raises:
            Unauthenticated, IssuerUnavailable, Overloaded: As `Identities.prove`, or there is not exactly one token.
            RunProofRefused: As `RunProofs.caller`.
        """
        metadata = context.invocation_metadata() or ()
        if not any(key == AUTHORIZATION for key, _ in metadata):
            of_run = await self._run_proofs.caller(context, method, request)
            if of_run is not None:
                return of_run
        proof = await self.prove(bearer_of(metadata))
        return replace(proof, network=peer_address(context.peer()))

    async def prove(self, token: str) -> IdentityProof:
        """Return what a token proves. Raises as `proof`."""
        proving = self._identities.prove(token)
        if proving.done():
            return proving.result()
        try:
            async with asyncio.timeout(WAIT_S):
                return await asyncio.wrap_future(proving)
        except TimeoutError:
            raise IssuerUnavailable("the identity provider did not answer in time") from None


def bearer_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the token of the one authorization there is.

    Raises:
        Unauthenticated: There is none, more than one, or one that is not a bearer token: none is tried (B18).
    """
    values = [value for key, value in metadata if key == AUTHORIZATION]
    if len(values) != 1:
        how_many = "no identity token was" if not values else f"{len(values)} authorizations were"
        raise Unauthenticated(f"{how_many} sent", hint=_HINT)
    match = _BEARER.fullmatch(values[0]) if isinstance(values[0], str) else None
    if match is None:
        raise Unauthenticated("the authorization is not one bearer token", hint=_HINT)
    return match[1]


def must_not_authorize(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Refuse an authorization beside a certificate: a call has one identity. Raises Unauthenticated."""
    if any(key == AUTHORIZATION for key, _ in metadata):
        raise Unauthenticated(
            "a certificate and an authorization were sent, which are two identities",
            hint="send identity tokens to the login door, and no authorization here",
        )
