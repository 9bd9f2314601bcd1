"""Who listens, and who ever did: by this broker's streams and by the roster; until an admin forgets who is gone."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.domain.policy import Policy, Role
from broker.errors import Invalid, NotFound, PolicyMoved
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.service.calling import Caller
from broker.service.listening import Listener, Listeners
from broker.service.policies import Policies
from broker.service.ports import Clock, Ledger, RequestKey, Write
from broker.service.proof_ports import Roster, Sighting, VerifierForgotten
from broker.service.revoke import checked_reason
from broker.service.roster import RosterKeeper
from broker.token.identifiers import identifier, principal_uri

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
FRESH = "fresh"
LAPSED = "lapsed"
# Other brokers note their listeners about once a second, by clocks of their own.
ELSEWHERE = timedelta(seconds=5)
# A policy version that never is.
NEVER = -1


@dataclass(frozen=True, slots=True)
class Listed:
    """A verifier as it is listed. `fresh_for_ns`: how long it may accept if it hears nothing more; 0 when lapsed."""

    verifier: str
    realm: str
    version: str
    address: str
    head: int
    state: str
    silent_ns: int
    fresh_for_ns: int
    uses: int
    last_nack: str
    seen_at: datetime
    is_listening: bool


class ListVerifiers:
    """Lists who listens to this broker, and whoever the roster knows. One event loop owns it."""

    def __init__(
        self, keeper: RosterKeeper, listeners: Listeners, policies: Policies, clock: Clock, *, is_sole: bool
    ) -> None:
        self._keeper = keeper
        self._listeners = listeners
        self._policies = policies
        self._clock = clock
        self._is_sole = is_sole

    def __call__(self, known: Sequence[Sighting], realm: str | None) -> Sequence[Listed]:
        """Return each live stream, and a line for each other verifier of `known`, the roster; by name, then realm."""
        now, now_ns = self._clock.now(), self._clock.boottime_ns()
        live = [one for one in self._listeners.present(now_ns, realm) if one.left_ns is None]
        lines = [_live(one, now, now_ns) for one in live]
        named = {(one.verifier, one.realm) for one in live}
        # Who has just left is on its way to the roster.
        for sighting in (*self._keeper.gone(), *known):
            name = (sighting.verifier, sighting.realm)
            if name not in named and realm in (None, sighting.realm):
                named.add(name)
                lines.append(self._absent(sighting, now))
        return sorted(lines, key=lambda line: (line.verifier, line.realm))

    def _absent(self, sighting: Sighting, now: datetime) -> Listed:
        policy = self._policies.current().policy
        silent, lease = _silent(sighting, now), _lease(sighting, policy)
        is_elsewhere = not self._is_sole and listens_still(sighting, policy, now)
        return Listed(
            sighting.verifier,
            sighting.realm,
            sighting.version,
            sighting.address,
            sighting.head,
            FRESH if is_elsewhere else LAPSED,
            _ns(silent),
            max(0, _ns(lease - silent)) if is_elsewhere else 0,
            0,
            "",
            sighting.seen_at,
            is_elsewhere,
        )


def listens_still(sighting: Sighting, policy: Policy, now: datetime) -> bool:
    """Tell whether whom a broker saw listens to it still, as far as its notes tell."""
    # A broker that was killed did not say so: what it noted last holds no longer than a lease.
    return sighting.is_present and _silent(sighting, now) <= _lease(sighting, policy) + ELSEWHERE


def _silent(sighting: Sighting, now: datetime) -> timedelta:
    return max(timedelta(), now - sighting.seen_at)


def _lease(sighting: Sighting, policy: Policy) -> timedelta:
    realm = policy.realms.get(sighting.realm)
    return timedelta(milliseconds=realm.lease_ms) if realm is not None else timedelta()


class ForgetVerifier:
    """Takes a verifier that is gone off the roster."""

    def __init__(self, ledger: Ledger, keeper: RosterKeeper, list_verifiers: ListVerifiers, clock: Clock) -> None:
        self._ledger = ledger
        self._keeper = keeper
        self._list_verifiers = list_verifiers
        self._clock = clock

    async def __call__(
        self, caller: Caller, verifier: str, realm: str, roster: Roster, *, reason: str, request: RequestKey
    ) -> int:
        """Forget it, and return the entry's index. In the loop.

        Raises:
            Whatever `prepare` and `commit` raise.
        """
        async with self._keeper.turn:
            known = await asyncio.to_thread(roster.known, None)
            write = self.prepare(caller, verifier, realm, known, reason=reason, request=request)
            index = await asyncio.to_thread(self.commit, write)
            self.done(verifier, realm)
        return index

    def prepare(
        self, caller: Caller, verifier: str, realm: str, known: Sequence[Sighting], *, reason: str, request: RequestKey
    ) -> Write:
        """Return what forgets it. In the loop.

        Raises:
            Forbidden, Invalid: Refused; it listens, or a field is malformed.
        """
        caller.must_be(Role.ADMIN, Role.OPERATOR)
        principal_uri("verifier", verifier)
        identifier("realm", realm)
        text = checked_reason(reason)
        lines = [line for line in self._list_verifiers(known, realm) if line.verifier == verifier]
        if any(line.is_listening for line in lines):
            raise Invalid(
                "verifier", "is listening", hint="stop it first; or take it out of the policy, which ends its stream"
            )
        at = self._clock.now()
        body = {"verifier": verifier, "realm": realm, "reason": text, "request": request.request_id}
        return Write(
            [lambda index: encode_entry(Entry(index, Kind.VERIFIER_FORGOTTEN, at, caller.principal, body))],
            request=request,
            # Who is unknown cannot be forgotten, except again by the same request, which is recognised first.
            expecting=None if lines else NEVER,
            effects=(VerifierForgotten(verifier, realm),),
        )

    def commit(self, write: Write) -> int:
        """Forget it, and return the entry's index. Blocks.

        Raises:
            NotFound: Nobody of this name ever listened in this realm, or it was forgotten before.
            Whatever `Ledger.append` raises.
        """
        try:
            return self._ledger.append(write).result().indices.start
        except PolicyMoved as unknown:
            raise NotFound("no verifier of this name is known in this realm", hint="see: broker verifiers") from unknown

    def done(self, verifier: str, realm: str) -> None:
        """Keep it from coming back by a note of its leaving that is still due. In the loop."""
        self._keeper.forget(verifier, realm)


def _live(listener: Listener, now: datetime, now_ns: int) -> Listed:
    heard_ns = listener.acknowledged_ns or listener.joined_ns
    silent_ns = max(0, now_ns - heard_ns)
    state = listener.state(now_ns)
    until_ns = listener.fresh_until_ns if listener.fresh_until_ns is not None else now_ns
    return Listed(
        listener.verifier,
        listener.realm,
        listener.version,
        listener.address,
        listener.head,
        state,
        silent_ns,
        max(0, until_ns - now_ns) if state == FRESH else 0,
        listener.uses,
        listener.last_nack,
        now - timedelta(microseconds=silent_ns // NS_PER_US),
        True,
    )


def _ns(span: timedelta) -> int:
    return span // timedelta(microseconds=1) * NS_PER_US
