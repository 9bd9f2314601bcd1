"""The real broker and the real verifier, put together from the simulation's parts."""

import asyncio
import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from broker.adapters.policy_file import load_policy
from broker.domain.asking import Ask
from broker.edge.grpc.completions import Completions
from broker.edge.grpc.feed import FeedService
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.noting import Noting
from broker.edge.grpc.outermost import CALLER
from broker.edge.grpc.revocations import RevocationService
from broker.errors import Rejected
from broker.sdk.feed import Connection
from broker.sdk.following import Step
from broker.sdk.outside import Outside
from broker.sdk.stream import Pace
from broker.sdk.uses import Use
from broker.sdk.verifier import Verifier
from broker.service.calling import Caller, CertificateProof, identify
from broker.service.complete import Complete
from broker.service.hits import FindHits
from broker.service.listening import Listeners
from broker.service.metering import Unmetered
from broker.service.mint import Mint, Minted
from broker.service.policies import Policies
from broker.service.publish import Publisher
from broker.service.revoke import Reinstate, Revocations, Revoke, RevokeTokens
from broker.service.roster import RosterKeeper
from broker.v1 import revocations_pb2
from tests.simulation.jobs import SimExecutor
from tests.simulation.loop import SimLoop
from tests.simulation.network import Context, Network
from tests.simulation.nodes import Machine, Node
from tests.simulation.outside import (
    ADMIN,
    Database,
    SimClock,
    SimRemembered,
    SimSigner,
    SimStore,
    StateFolder,
    harness,
    trust_of,
)

parse = functools.lru_cache(maxsize=64)(load_policy)
Note = Callable[..., None]
"""Adds to the history: a kind of event, and what it says."""


class BrokerProcess:
    """One broker process, from its start to its end."""

    def __init__(
        self, loop: SimLoop, name: str, machine: Machine, database: Database, *, boot: str, is_new: bool, is_sole: bool
    ) -> None:
        node = self.node = Node(loop, name, machine)
        self.hub: FeedHub | None = None
        self._loop = loop
        self.clock = SimClock(node)
        self.store = SimStore(database, node, self.clock, self._wake)
        self.policies = Policies(self.store, parse, self.clock)
        self.signer = SimSigner()
        self.policies.watch(lambda in_force: self.signer.forget(in_force.revoked_keys))
        self.signer.forget(self.policies.current().revoked_keys)
        self.publisher = Publisher(self.store, self.policies, self.signer, self.clock, boot=boot)
        self._is_new, self._is_sole = is_new, is_sole
        self._ids = 0
        self._boot = boot
        database.stores.append(self.store)
        node.call(self._begin)

    def _wake(self) -> None:
        if self.hub is not None:
            self.hub.wake()

    def _begin(self) -> None:
        clock, meter = self.clock, Unmetered()
        self.listeners = Listeners(started_ns=None if self._is_new else clock.boottime_ns(), is_sole=self._is_sole)
        hub = self.hub = FeedHub(self.publisher, self.policies, self.listeners, clock, meter)
        self.feed = FeedService(hub, self.policies, clock, self._caller, lambda context: context.principal.encode())
        store, policies = self.store, self.policies
        find_hits = FindHits(store, policies)
        completions = Completions(
            hub,
            Complete(store, store, policies, self.signer, clock),
            find_hits,
            store,
            store,
            store,
            policies,
            clock,
            meter,
            is_sole=self._is_sole,
        )
        self.noting = Noting(RosterKeeper(store, self.listeners, clock), hub)
        revocations = Revocations(clock, timedelta(seconds=86_400))
        revoke = Revoke(store, policies, revocations, meter)
        self.revocations = RevocationService(
            revoke,
            RevokeTokens(store, revocations, revoke, meter),
            Reinstate(store, policies, clock),
            find_hits,
            completions,
            store,
            store,
            policies,
            hub,
            clock,
        )
        self.mint = Mint(self.store, self.policies, self.signer, clock, new_id=self._new_id, meter=meter)
        self.mint._elsewhere = SimExecutor(self._loop)
        for part in (hub, completions, self.noting):
            self.node.spawn(part.run())

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self._boot}-{self._ids:06}".ljust(22, "x")

    def _caller(self, context: Context) -> Caller:
        return identify(CertificateProof(context.principal), self.policies.current(), frozenset({ADMIN}))

    def listen(self, requests: Any, context: Context) -> Any:
        """Serve one stream of the feed."""
        return self.feed.listen(requests, context)

    @property
    def is_serving(self) -> bool:
        """Whether it has read the store."""
        return self.hub is not None and self.publisher.head is not None

    async def minted(self, ask: Ask, request: Any) -> list[Minted]:
        """Mint as TokenService does."""
        caller = identify(CertificateProof(harness(ask.partner)), self.policies.current(), frozenset())
        reserved = await asyncio.wrap_future(self.mint.reserve(caller, [ask], request), loop=self._loop)
        return await asyncio.to_thread(self.mint.finish, reserved)

    async def revoked(self, request: Any, note: Callable[[Any], None]) -> None:
        """Revoke, or ask how far it is, as an admin's call does; `note` gets each event."""
        CALLER.set(identify(CertificateProof(ADMIN), self.policies.current(), frozenset({ADMIN})))
        match request:
            case revocations_pb2.RevokeRequest():
                async for event in self.revocations.Revoke(request, None):
                    note(event)
            case revocations_pb2.RevokeTokensRequest():
                async for tokens_response in self.revocations.RevokeTokens(request, None):
                    note(tokens_response.event)
            case _:
                async for response in self.revocations.GetRevocation(request, None):
                    note(response.event)

    async def reinstated(self, request: revocations_pb2.ReinstateRequest) -> revocations_pb2.ReinstateResponse:
        """Reinstate as an admin's call does."""
        CALLER.set(identify(CertificateProof(ADMIN), self.policies.current(), frozenset({ADMIN})))
        return await self.revocations.Reinstate(request, None)


class VerifierProcess:
    """One process that verifies, from its start to its end."""

    def __init__(
        self,
        loop: SimLoop,
        name: str,
        machine: Machine,
        network: Network,
        folder: StateFolder | None,
        *,
        realm: str,
        principal: str,
        endpoints: tuple[str, ...],
        random: Any,
        note: Note,
    ) -> None:
        node = self.node = Node(loop, name, machine)
        self.realm = realm
        self._note = note
        outside = Outside(
            boottime_ns=machine.boottime_ns,
            monotonic_s=machine.monotonic_s,
            random_bytes=random.randbytes,
            fraction=random.random,
        )
        connection = Connection(
            endpoints,
            realm,
            None,
            Pace(
                backoff_most_s=2.0,
                first_frame_s=5.0,
                # As everybody's, or so often that echoes meet more of the faults.
                echo_every_s=random.choice((Pace().echo_every_s, 4.0)),
                persist_every_s=5.0,
            ),
            outside,
            network.opener(name, principal),
        )
        remembered = None if folder is None else SimRemembered(folder, node, realm)
        self.verifier = Verifier(connection, trust_of(realm), remembered=remembered)
        on_step = self.verifier._on_step
        self.verifier._feed._on_step = lambda step: self._stepped(step, on_step)
        # The thread that watches the uses is a task here.
        self.verifier._uses._thread = NO_THREAD
        self.held: list[Use] = []
        node.spawn(self.verifier._feed.run())
        node.spawn(self._watch_uses())

    def _stepped(self, step: Step, on_step: Callable[[Step], None]) -> None:
        on_step(step)
        self._note("step", self, step)

    def decide(self, token: str, model: str) -> str:
        """Return `accepted` or the reason for the refusal. Called on the node."""
        try:
            self.verifier.verify(token, model)
        except Rejected as why:
            return type(why).__name__
        return "accepted"

    def hold(self, token: str, model: str) -> Use | None:
        """Begin a use that lasts, if the token is accepted."""
        use = self.verifier.use(token, model)
        try:
            use.__enter__()
        except Rejected:
            return None
        self.held.append(use)
        return use

    def leave(self) -> None:
        """Close, as a process does that ends in peace."""
        self.verifier.close()

    async def _watch_uses(self) -> None:
        uses = self.verifier._uses
        while True:
            await asyncio.sleep(uses._rest_s() or 0.25)
            if uses._held and uses._left_s() <= 0:
                uses.recheck()


NO_THREAD: Any = object()
