"""What people do in a run: mint, use tokens, revoke, reinstate."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from broker.domain.asking import Ask
from broker.edge.grpc.translate import selector_message
from broker.errors import Failure
from broker.service.ports import RequestKey
from broker.token.claims import TOKEN_TYP, decode_claims
from broker.token.jws import parse_jws
from broker.token.keys import Purpose
from broker.token.revocation import Selector
from broker.v1 import revocations_pb2
from tests.simulation.nodes import NS_PER_S
from tests.simulation.outside import (
    PARTNERS,
    harness,
    keys_of,
)
from tests.simulation.processes import BrokerProcess, VerifierProcess
from tests.simulation.validators import Token
from tests.simulation.world import MS, Place, World

MODELS = ("mythos", "oracle")
USERS = ("alice", "bob")


@dataclass(slots=True)
class _Asked:
    """A revocation that an admin wants, until somebody answers."""

    request: revocations_pb2.RevokeRequest | revocations_pb2.RevokeTokensRequest
    attempts: int = 0
    index: int | None = None
    is_complete: bool = False


class People(World):
    """Harnesses, admins, and those who use tokens."""

    def ask(
        self,
        make: Callable[[BrokerProcess], Any],
        done: Callable[[Any], None],
        failed: Callable[[Failure | None], None],
    ) -> None:
        """Call some broker; without an answer in 12 s the call has failed with None."""
        process = self.random.choice(self.brokers).process
        delay_ns = int(self.random.random() * 20 * MS)
        is_open = [True]

        def answer(call: Callable[..., None], *what: Any) -> None:
            if is_open[0]:
                is_open[0] = False
                call(*what)

        async def serve(process: BrokerProcess) -> None:
            try:
                result = await make(process)
            except Failure as failure:
                self.at(delay_ns, lambda failure=failure: answer(failed, failure))
            else:
                self.at(delay_ns, lambda: answer(done, result))

        if process is not None and process.is_serving:
            self.at(
                delay_ns, lambda: process.node.is_dead or process.node.call(lambda: process.node.spawn(serve(process)))
            )
        self.at(12 * NS_PER_S, lambda: answer(failed, None))

    def _request_key(self, principal: str) -> RequestKey:
        self._requests += 1
        name = f"request-{self._requests:012}"
        return RequestKey(principal, name, hashlib.sha256(name.encode()).digest())

    def mint(self) -> None:
        """A harness asks for a token."""
        random, asked_ns = self.random, self.loop.now_ns
        partner = random.choice(tuple(PARTNERS))
        ask = Ask(
            random.choice(tuple(self.leases)), partner, random.choice(USERS), None, (random.choice(MODELS),), "ci"
        )
        key = self._request_key(harness(partner))
        before = self.database.disk.incarnation

        def done(minted: Any) -> None:
            for one in minted:
                jws, disk = parse_jws(one.token, typ=TOKEN_TYP), self.database.disk
                is_here = one.id.encode() in b"".join(disk.entries[one.index : one.index + 1])
                incarnation = disk.incarnation if is_here else before
                token = Token(one.token, decode_claims(jws.payload), jws.kid, incarnation)
                self.history.add("harness", "minted", one.index)
                self._count("minted")
                self.tokens.append(token)
                self.check.minted(token, asked_ns)

        def failed(failure: Failure | None) -> None:
            self.history.add("harness", "denied", failure.reason if failure is not None else "")
            self._count(f"denied {failure.reason if failure is not None else ''}")

        self.ask(lambda process: process.minted(ask, key), done, failed)

    def decide(self) -> None:
        """A request reaches a verifier."""
        random = self.random
        place = random.choice(self.places)
        process = place.process
        mine = [token for token in self.tokens if token.claims.realm == place.realm]
        if process is None or process.node.is_dead or not mine:
            return
        token = random.choice(mine[-8:] if random.random() < 0.7 else mine)
        holds = random.random() < 0.1
        process.node.call(lambda: self._decide(place, process, token, holds=holds))

    def _decide(self, place: Place, process: VerifierProcess, token: Token, *, holds: bool) -> None:
        model = token.claims.models[0]
        if holds:
            verdict = "accepted" if process.hold(token.text, model) is not None else "refused"
        else:
            verdict = process.decide(token.text, model)
        self.history.add(process.node.name, "decided", token.claims.idx, verdict)
        self._count(f"verdict {verdict}")
        if verdict == "accepted":
            self.check.accepted(process, place.lineage, token)
        elif verdict == "Revoked":
            self.check.refused_as_revoked(process, place.lineage, token)

    def _selector(self) -> Selector:
        random = self.random
        partner, realm = random.choice(tuple(PARTNERS)), random.choice(tuple(self.leases))
        kind = random.random()
        if kind < 0.35 and self.tokens:
            return Selector.of(token=random.choice(self.tokens[-6:]).claims.jti)
        if kind < 0.45:
            return Selector.of(partner=partner)
        if kind < 0.55:
            return Selector.of(partner=partner, user=random.choice(USERS))
        if kind < 0.65:
            return Selector.of(realm=realm, partner=partner)
        if kind < 0.72:
            return Selector.of(realm=realm, model=random.choice(MODELS))
        if kind < 0.79:
            return Selector.of(user=random.choice(USERS), model=random.choice(MODELS))
        if kind < 0.85:
            return Selector.of(label=f"jurisdiction={random.choice(('us', 'eu'))}")
        if kind < 0.90:
            return Selector.of(realm=realm)
        if kind < 0.92:
            return Selector.of(key=keys_of(realm, random.choice((Purpose.TOKEN, Purpose.FEED)))[0].kid)
        return Selector.of(partner=partner, model=random.choice(MODELS))

    def revoke(self, selector: Selector | None = None, *, is_waited_for: bool | None = None) -> None:
        """An admin revokes."""
        wanted = selector or self._selector()
        self._requests += 1
        asked = _Asked(
            revocations_pb2.RevokeRequest(
                request_id=f"request-{self._requests:012}",
                selector=selector_message(wanted),
                reason="a simulation",
                wait=self.random.random() < 0.8 if is_waited_for is None else is_waited_for,
                whole_realm=True,
            )
        )
        self._ask_revoke(asked)
        if wanted.is_blocking and self.random.random() < 0.85:
            self.at(int(self.random.uniform(0.5, 8) * NS_PER_S), lambda: self.reinstate(wanted))

    def _ask_revoke(self, asked: _Asked) -> None:
        asked.attempts += 1
        incarnation = self.database.disk.incarnation

        def hear(event: Any) -> None:
            if event.HasField("committed"):
                index = asked.index = event.committed.index
                self.at(MS, lambda: self._returned(incarnation, index))
            elif event.HasField("complete"):
                asked.is_complete = True
                self.history.add("admin", "complete", asked.index)
                self._count("complete")

        def failed(failure: Failure | None) -> None:
            self.history.add("admin", "failed", failure.reason if failure is not None else "")
            if incarnation != self.database.disk.incarnation or asked.attempts >= 6 or self.is_quiet:
                return
            # Without an answer the same is asked again; with an index, the way to look is by index.
            if asked.index is not None and asked.request.wait and not asked.is_complete:
                again = revocations_pb2.GetRevocationRequest(index=asked.index, wait=True)
                self.at(NS_PER_S // 2, lambda: self.ask(lambda process: process.revoked(again, hear), done, failed))
            elif asked.index is None:
                self.at(NS_PER_S // 2, lambda: self._ask_revoke(asked))

        def done(_: object) -> None:
            pass

        self.ask(lambda process: process.revoked(asked.request, hear), done, failed)

    def _returned(self, incarnation: str, index: int) -> None:
        self.history.add("admin", "revoked", index)
        self._count("revoked")
        if incarnation == self.database.disk.incarnation:
            self.check.returned(incarnation, index)

    def reinstate(self, selector: Selector) -> None:
        """An admin lifts a block."""
        self._requests += 1
        request = revocations_pb2.ReinstateRequest(
            request_id=f"request-{self._requests:012}", selector=selector_message(selector), reason="a simulation"
        )

        def again(_: object) -> None:
            if not self.is_quiet:
                self.at(NS_PER_S, lambda: self.reinstate(selector))

        self.ask(
            lambda process: process.reinstated(request),
            lambda response: self.history.add("admin", "reinstated", response.index),
            again,
        )

    def storm(self) -> None:
        """Many single tokens are revoked at once, in one batch or one after the other."""
        if self.random.random() < 0.5:
            self._requests += 1
            tokens = [token.claims.jti for token in self.tokens[-4:]]
            batch = revocations_pb2.RevokeTokensRequest(
                request_id=f"request-{self._requests:012}",
                realm=self.random.choice(tuple(self.leases)),
                tokens=tokens + [f"batch-{self._requests}-{number}".ljust(22, "x") for number in range(20)],
                reason="a simulation",
                wait=True,
            )
            asked = _Asked(batch)
            self._ask_revoke(asked)
            return
        for number in range(self.random.choice((12, 12, 80))):
            selector = Selector.of(token=f"storm-{self._requests}-{number}".ljust(22, "x"))
            self.at(
                number * 9 * MS, lambda selector=selector: self.is_quiet or self.revoke(selector, is_waited_for=False)
            )
