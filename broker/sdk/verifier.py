"""The verifier: accepts or refuses tokens offline, by what the feed has brought."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from broker.errors import ConfigInvalid, Malformed, NotAllowed, ReceiptsUnkept, Rejected, Revoked, Stale, Untrusted
from broker.sdk.answering import Answers
from broker.sdk.feed import Connection, Feed
from broker.sdk.following import Follower, Step, Trusted, nothing_trusted
from broker.sdk.forking import follow_forks
from broker.sdk.holding import Holding
from broker.sdk.identity import Identity, endpoint_list
from broker.sdk.noting import Noting, must_be_hash
from broker.sdk.receipting import DEFAULT_SPOOL_BYTES, ReceiptPace, Receipts
from broker.sdk.remembered import Remembered
from broker.sdk.spending import Spending
from broker.sdk.stream import Pace
from broker.sdk.uses import NS_PER_S, Proof, Use, Uses
from broker.token.binding import Shown
from broker.token.claims import Claims
from broker.token.keys import RealmTrust, parse_trust
from broker.token.lease import BrokerTime
from broker.token.revocation import Facts
from broker.token.verification import (
    SignedToken,
    Time,
    check_alive,
    check_signature,
    check_use,
    checked_model,
    facts_for,
)

# A token for `name` covers every `name@instance`, and whoever names them shall not fill the memory.
MAX_MODELS_PER_TOKEN = 32
MAX_CACHED_TOKENS = 16_384
DRAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class VerifierState:
    """How a verifier is, at one instant."""

    realm: str
    incarnation: str
    head: int
    revocations: int
    keys: int
    fresh_for_s: float
    uses: int
    endpoint: str
    problem: str
    receipts_waiting: int = 0
    """Receipts that the broker has not acknowledged."""

    @property
    def is_fresh(self) -> bool:
        """Whether it may accept."""
        return self.fresh_for_s > 0


class _Asked:
    """One token for one model: found alive when the matcher was at (epoch, generation)."""

    __slots__ = ("alive_at", "facts", "proof")

    def __init__(self, facts: Facts, proof: Proof) -> None:
        self.facts = facts
        self.proof = proof
        self.alive_at = (-1, -1)


class _Seen:
    """A token whose signature was found good. Holds no verdict: that is made at each use."""

    __slots__ = ("asked", "signed")

    def __init__(self, signed: SignedToken) -> None:
        self.signed = signed
        self.asked: dict[str, _Asked] = {}


class Verifier:
    """Verifies the tokens of one realm. For any number of threads and event loops.

    Closed by default: before the first frame, without a lease, in a forked child until its own
    connection stands, and after `close`, every verification raises `Stale` (P7).

    A fork interrupts the parent's connection for some milliseconds; the lease bridges them. The child's
    connection is its own, and is begun by the child's first verification. Where a process has other gRPC
    channels or servers at the time of a fork, gRPC does not work in the child, which then stays closed:
    fork first.
    """

    def __init__(
        self,
        connection: Connection,
        trust: RealmTrust,
        *,
        remembered: Remembered | None = None,
        max_lease_s: float | None = None,
        cached_tokens: int = MAX_CACHED_TOKENS,
        make_receipts: Callable[[Callable[[], None]], Receipts] | None = None,
    ) -> None:
        self._connection = connection
        self._boottime_ns = connection.outside.boottime_ns
        self._trust = trust
        self._remembered = remembered
        self._max_lease_ms = None if max_lease_s is None else int(max_lease_s * 1000)
        self._half = max(1, cached_tokens // 2)
        mark = remembered.load() if remembered is not None else None
        self._follower = Follower(trust, mark=mark, max_lease_ms=self._max_lease_ms)
        self._spending = Spending(self._earliest_s)
        self._holding = Holding(self._now)
        self._make_receipts = make_receipts or partial(Receipts, None, trust.realm)
        self._receipts, self._noting = self._new_receipts()
        self._uses = Uses(
            self._accept,
            lambda: self._follower.state,
            connection.outside,
            admit=self._admit,
            noting=self._noting,
        )
        self._feed = Feed(connection, self._follower, remembered, self._on_step, Answers(self._uses), self._receipts)
        self._young: dict[str, _Seen] = {}
        self._old: dict[str, _Seen] = {}
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._is_closed = False
        self._is_orphan = False
        self._was_running = False
        follow_forks(self)

    @classmethod
    def connect(
        cls,
        endpoint: str | Sequence[str],
        *,
        realm: str,
        trust: str | Path | RealmTrust,
        identity: Identity | None = None,
        state_dir: str | Path | None = None,
        max_lease_s: float | None = None,
        pace: Pace | None = None,
        receipt_pace: ReceiptPace | None = None,
        max_spool_bytes: int = DEFAULT_SPOOL_BYTES,
    ) -> Self:
        """Return a verifier that connects in the background. `wait_fresh` waits until it may accept.

        Args:
            endpoint: `host:port`, or several, as a sequence or with commas; one at a time is listened to.
            realm: The realm whose tokens are accepted.
            trust: What to pin: the path of a trust file, or the realm's part of one.
            identity: The verifier's certificate. Without one, TLS without a client certificate.
            state_dir: Where to keep how far it is, so that it never goes back, not even by a restart, and
                receipts until the broker has them: where the realm demands receipts, nothing is accepted
                without.
            max_lease_s: Shortens the realm's freshness lease; never lengthens it.
            pace: Intervals, where the defaults do not fit.
            receipt_pace: Intervals of receipts.
            max_spool_bytes: How much disk receipts may take; beyond it, nothing is accepted.

        Raises:
            ConfigInvalid: The trust file, the identity or the folder is unusable.
            StoreCorrupt: What the folder holds is damaged.
        """
        if max_lease_s is not None and not max_lease_s > 0:
            raise ConfigInvalid("max_lease_s", ("must be more than 0",))
        pinned = _pinned(trust, realm)
        if identity is not None:
            identity.credentials()
        connection = Connection(endpoint_list(endpoint), realm, identity, pace or Pace())
        remembered = None if state_dir is None else Remembered(state_dir, realm)
        folder = None if state_dir is None else Path(state_dir)
        receipts = partial(Receipts, folder, realm, pace=receipt_pace, max_bytes=max_spool_bytes)
        verifier = cls(connection, pinned, remembered=remembered, max_lease_s=max_lease_s, make_receipts=receipts)
        verifier._feed.start()
        return verifier

    @property
    def realm(self) -> str:
        """The realm whose tokens are accepted."""
        return self._trust.realm

    def verify(self, token: str, model: str, *, proof: Shown | None = None, request_hash: bytes | None = None) -> Proof:
        """Accept `token` for a use of `model` now, or refuse. Never waits for anybody, and does no I/O but one.

        Where the realm demands receipts, one is written to a file first; not to the disk itself, but so
        that it survives this process. `request_hash` is for it: the SHA-256 of what the token came with.

        A bound token needs its `proof`: the client certificate of the connection, or the DPoP proof of the
        request, which is good for one call.

        The signature is looked up when this very text was seen before. Everything else, revocation,
        expiry and lease, is judged each time, and the clock is read after all that takes time.

        Raises:
            Malformed, Untrusted, WrongRealm, Expired, NotYetValid: 401, get a new token.
            NotHolder: 401, the token is bound and its proof is missing or wrong.
            NotAllowed, Revoked, UsedUp: 403, stop.
            Stale: 503, nothing can be judged.
            ReceiptsUnkept: 503, the realm demands receipts, and they cannot be kept.
            Invalid: `request_hash` is no SHA-256.
        """
        must_be_hash(request_hash)
        before = self._follower.state
        if not before.receipts:
            return self._admitted(token, model, proof)
        try:
            accepted = self._admitted(token, model, proof)
            self._noting.accepted(accepted.claims, model, before, request_hash)
        except Rejected as refused:
            self._noting.denied(refused, token, model, before)
            raise
        return accepted

    def _admitted(self, token: str, model: str, shown: Shown | None) -> Proof:
        accepted = self._accept(token, model)
        claims = accepted.claims
        # What costs nothing where a token is neither bound nor may be used only so often.
        if claims.cnf is not None or claims.uses is not None or shown is not None:
            self._admit(token, claims, shown)
        return accepted

    def _admit(self, token: str, claims: Claims, shown: Shown | None) -> None:
        """Step 9, and the count of uses: once for each use, after all that is judged again while it lasts."""
        # 9. It is bound to nothing, or to what is shown. First: who does not hold a token cannot use it up.
        if claims.cnf is not None or shown is not None:
            self._holding.check(token, claims, shown)
        self._spending.spend(claims)

    def _accept(self, token: str, model: str) -> Proof:
        if not isinstance(token, str):
            raise Malformed("a token is a text")
        if not isinstance(model, str):
            raise NotAllowed("no usable model was asked for", hint="pass the model that will be called")
        while True:
            state = self._follower.state
            if state.time is None:
                raise self._stale()
            proof = self._verdict(token, model, state, state.time)
            if proof is not None:
                return proof

    def _verdict(self, token: str, model: str, state: Trusted, time: BrokerTime) -> Proof | None:
        """Accept by `state`, or refuse; None when the state moved meanwhile."""
        seen = self._young.get(token)
        if seen is None:
            seen = self._look(token, state)
        asked = known = seen.asked.get(model)
        if asked is None:
            facts = facts_for(seen.signed, checked_model(model))
            asked = _Asked(facts, Proof(seen.signed.claims, seen.signed.kid, model))
        # Read before the matcher is asked: what is added meanwhile is noticed at the end.
        generation = state.matcher.generation
        compared_with = (state.epoch, generation)
        dead = None if asked.alive_at == compared_with else _death(asked, seen.signed, state)
        now_ns = self._boottime_ns()
        check_use(
            seen.signed,
            model,
            trust=self._trust,
            keys=state.keys,
            time=Time(time.earliest_ms(now_ns), time.latest_ms(now_ns)),
        )
        if dead is not None:
            raise dead
        # 11. The lease that was earned by what was compared with, and by nothing newer (P5).
        latest = self._follower.state
        if self._is_closed or now_ns > state.accept_until_ns:
            if self._is_closed or latest is state:
                raise self._stale()
            return None
        if latest.epoch != state.epoch or state.matcher.generation != generation:
            return None
        asked.alive_at = compared_with
        if known is None and len(seen.asked) < MAX_MODELS_PER_TOKEN:
            seen.asked[model] = asked
        return asked.proof

    def use(self, token: str, model: str, *, proof: Shown | None = None, request_hash: bytes | None = None) -> Use:
        """Return a use to hold in `with` or `async with`, for what lasts. Raises there what `verify` raises."""
        must_be_hash(request_hash)
        return Use(self._uses, token, model, shown=proof, request_hash=request_hash)

    def state(self) -> VerifierState:
        """Return how the verifier is."""
        state = self._follower.state
        return VerifierState(
            realm=self._trust.realm,
            incarnation=state.incarnation,
            head=state.head,
            revocations=len(state.matcher),
            keys=len(state.keys),
            fresh_for_s=max(0.0, (state.accept_until_ns - self._boottime_ns()) / NS_PER_S),
            uses=len(self._uses),
            endpoint=self._feed.endpoint,
            problem=self._feed.problem or self._receipts.problem,
            receipts_waiting=self._receipts.waiting,
        )

    def _may_accept(self) -> bool:
        return self.state().is_fresh and not self._receipts.problem

    def wait_fresh(self, timeout_s: float) -> None:
        """Return once the verifier may accept. Raises Stale or ReceiptsUnkept when the time is over."""
        self._begin_if_orphan()
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_closed or self._may_accept(), timeout_s):
                raise self._not_fresh(timeout_s)
        if self._is_closed:
            raise self._stale()

    async def wait_fresh_async(self, timeout_s: float) -> None:
        """As `wait_fresh`, for asyncio."""
        self._begin_if_orphan()
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop may be closed already
                loop.call_soon_threadsafe(woken.set)

        with self._changed:
            self._wakers.append(wake)
        try:
            async with asyncio.timeout(timeout_s):
                while not (self._is_closed or self._may_accept()):
                    await woken.wait()
                    woken.clear()
        except TimeoutError:
            raise self._not_fresh(timeout_s) from None
        finally:
            with self._changed:
                if wake in self._wakers:
                    self._wakers.remove(wake)
        if self._is_closed:
            raise self._stale()

    def close(self) -> None:
        """End the connection, cancel all uses, and refuse from now on."""
        holds_lease = self.state().is_fresh
        self._is_closed = True
        self._uses.close(self._stale())
        # Nothing is accepted from here on. What the broker does not take now stays in the folder.
        self._receipts.close(drain_s=DRAIN_S)
        # So the broker may be told: revocations need not wait for the lease.
        self._feed.stop(leave=holds_lease)
        self._follower.state = nothing_trusted()
        self._young, self._old = {}, {}
        self._wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _new_receipts(self) -> tuple[Receipts, Noting]:
        receipts = self._make_receipts(self._wake)
        return receipts, Noting(receipts, lambda: self._follower.state, self._claims_of, self._boottime_ns)

    def _claims_of(self, token: object) -> Claims | None:
        """Return what a token says whose signature was found good, by a key that is still trusted."""
        seen = self._young.get(token) if isinstance(token, str) else None
        return None if seen is None or seen.signed.kid not in self._follower.state.keys else seen.signed.claims

    def _look(self, token: str, state: Trusted) -> _Seen:
        seen = self._old.get(token)
        if seen is None:
            try:
                seen = _Seen(check_signature(token, state.keys))
            except Untrusted as unknown:
                # A verifier that hears nothing may not know the newest key: no reason to blame the token.
                if self._boottime_ns() > state.accept_until_ns:
                    raise self._stale() from unknown
                raise
        # Two halves instead of a list by age: one look-up in the common case, and no lock.
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[token] = seen
        return seen

    def _on_step(self, step: Step) -> None:
        self._receipts.follow(self._follower.state)
        if step.has_contents and self._uses.is_holding:
            self._uses.recheck()
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
            for wake in self._wakers:
                wake()

    def _now(self) -> Time | None:
        time, now_ns = self._follower.state.time, self._boottime_ns()
        return None if time is None else Time(time.earliest_ms(now_ns), time.latest_ms(now_ns))

    def _earliest_s(self) -> float | None:
        now = self._now()
        return None if now is None else now.earliest_ms / 1000

    def _stale(self) -> Stale:
        if self._is_closed:
            return Stale("the verifier is closed", hint="make a new one")
        self._begin_if_orphan()
        return Stale("the verifier has not heard from the broker for a freshness lease")

    def _not_fresh(self, timeout_s: float) -> Rejected:
        if self.state().is_fresh and self._receipts.problem:
            return ReceiptsUnkept(self._receipts.problem)
        why = self._feed.problem or "no frame extended the lease"
        return Stale(f"the verifier is not fresh after {timeout_s:g} s: {why}")

    def _begin_if_orphan(self) -> None:
        if self._is_orphan and not self._is_closed:
            self._is_orphan = False
            self._feed.start()

    def before_fork(self) -> None:
        """As `Forking`."""
        # gRPC's threads do not live on in a child; without any, it can begin anew there.
        self._was_running = self._feed.is_running
        self._feed.stop(timeout_s=2.0)

    def after_fork_in_parent(self) -> None:
        """As `Forking`."""
        if self._was_running and not self._is_closed:
            self._feed.start()

    def after_fork_in_child(self) -> None:
        """As `Forking`."""
        # Locks may be held by threads that are no more, and what was in force goes stale unseen: all is made anew.
        # Only the mark stays, so that the child does not go back behind its parent.
        self._follower = Follower(self._trust, mark=self._follower.mark, max_lease_ms=self._max_lease_ms)
        self._receipts.forget_after_fork()
        self._receipts, self._noting = self._new_receipts()
        self._uses.forget_after_fork(self._noting)
        self._spending.forget_after_fork()
        self._holding.forget_after_fork()
        self._feed = Feed(
            self._connection, self._follower, self._remembered, self._on_step, Answers(self._uses), self._receipts
        )
        self._young, self._old = {}, {}
        self._changed = threading.Condition()
        self._wakers = []
        self._is_orphan = True


def _death(asked: _Asked, signed: SignedToken, state: Trusted) -> Revoked | None:
    try:
        check_alive(asked.facts, signed.claims.idx, state.matcher)
    except Revoked as dead:
        return dead
    return None


def _pinned(trust: str | Path | RealmTrust, realm: str) -> RealmTrust:
    if isinstance(trust, RealmTrust):
        found: RealmTrust | None = trust if trust.realm == realm else None
    else:
        try:
            found = parse_trust(Path(trust).read_text("utf-8")).get(realm)
        except OSError as bad:
            raise ConfigInvalid("trust", (f"{trust}: {bad.strerror or 'cannot be read'}",)) from bad
        except (Malformed, UnicodeDecodeError) as bad:
            raise ConfigInvalid("trust", (f"{trust}: is not a trust file: {bad}",)) from bad
    if found is None:
        raise ConfigInvalid("realm", (f"the trust file says nothing of realm {realm!r}",))
    return found
