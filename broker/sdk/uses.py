"""What lasts: accepted uses that are held, and cancelled when the token would no longer be accepted."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from broker.errors import Rejected, Revoked, Stale
from broker.sdk.following import NEVER_NS, Trusted
from broker.sdk.noting import Noted, Noting
from broker.sdk.outside import OUTSIDE, Outside
from broker.token.binding import Shown
from broker.token.claims import Claims

log = logging.getLogger("broker.sdk")

NS_PER_S = 1_000_000_000
MS_PER_S = 1000
# A timer does not count while the machine sleeps; so it is never set for longer.
LONGEST_REST_S = 0.25


@dataclass(frozen=True, slots=True)
class Proof:
    """A token was accepted for one use of `model`. Says nothing about the next use."""

    claims: Claims
    kid: str
    model: str


Verify = Callable[[str, str], Proof]
Admit = Callable[[str, Claims, Shown | None], None]
"""Called with an accepted token, its claims, and what came with it to show that it is its sender's; or raises."""


class Use:
    """One use that lasts: a stream, a session. Begins in `with` or `async with`, which raise as `verify` does.

    It is cancelled by a matching revocation, the token's end, or a lapsed lease, and stays cancelled.
    """

    def __init__(
        self,
        uses: "Uses",
        token: str,
        model: str,
        *,
        shown: Shown | None = None,
        is_canary: bool = False,
        request_hash: bytes | None = None,
    ) -> None:
        self._uses = uses
        self._shown = shown
        # What its receipt tells.
        self._request_hash = request_hash
        self._noted: Noted | None = None
        self._calls = 0
        self._size = 0
        # A drill's own use: it is cut as any other, and counted nowhere.
        self.is_canary = is_canary
        self._token = token
        self._model = model
        self._proof: Proof | None = None
        self._reason: Rejected | None = None
        self._cancelled = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._wakers: list[Callable[[], object]] = []

    @property
    def proof(self) -> Proof:
        """What was accepted; only after it began."""
        if self._proof is None:
            raise RuntimeError("a use begins with `with` or `async with`")
        return self._proof

    @property
    def begun(self) -> Proof | None:
        """What was accepted, or None: it has not begun."""
        return self._proof

    @property
    def counts(self) -> bool:
        """Whether it has begun and is somebody's: what the broker is told of."""
        return self._proof is not None and not self.is_canary

    @property
    def cancelled(self) -> threading.Event:
        """Set when the use must end."""
        return self._cancelled

    @property
    def reason(self) -> Rejected | None:
        """Why it must end; None while it may go on."""
        return self._reason

    def check(self) -> Proof:
        """Judge it now, as `verify` would. Raises the reason if it was cancelled before.

        That the token is its sender's was shown when it began; a proof is good for one time only.
        """
        if self._reason is not None:
            raise self._reason
        # Before it has begun, nothing was shown.
        _ = self.proof
        return self._uses.verify(self._token, self._model)

    def count(self, *, calls: int = 1, size: int = 0) -> None:
        """Add to what its receipt will tell: calls that were made, bytes that were carried. From any thread."""
        with self._uses.counting:
            self._calls += calls
            self._size += size

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Call `callback` once when the use is cancelled; at once if it was. It runs in another thread."""
        if not self._uses.attach(self._callbacks, callback, self):
            callback()

    async def wait_cancelled(self) -> Rejected:
        """Return the reason once the use is cancelled."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop may be closed already
                loop.call_soon_threadsafe(woken.set)

        if self._uses.attach(self._wakers, wake, self):
            try:
                await woken.wait()
            finally:
                self._uses.detach(self._wakers, wake)
        return self._reason or Stale("the use was cancelled")

    def __enter__(self) -> Self:
        self._proof = None
        self._calls = self._size = 0
        self._uses.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._uses.end(self)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._uses.end(self)


class Uses:
    """All uses of one verifier. Judged anew by `recheck` after each frame, and by a timer at the nearest end."""

    def __init__(
        self,
        verify: Verify,
        state: Callable[[], Trusted],
        outside: Outside = OUTSIDE,
        *,
        admit: Admit = lambda _token, _claims, _shown: None,
        noting: Noting | None = None,
    ) -> None:
        self.verify = verify
        self.counting = threading.Lock()
        self._noting = noting
        # Once, as it begins: being judged again is no further use, and needs no further proof.
        self._admit = admit
        self._outside = outside
        self._state = state
        self._held: set[Use] = set()
        # Of those held, how many have begun and are no canaries; and how many ever were held.
        self._running = 0
        self._began = 0
        # Running uses that revocations cut, by the revocation's index, since the broker was last told.
        self._cuts: dict[int, int] = {}
        self._nearest_exp_s: int | None = None
        self._due: deque[Callable[[], object]] = deque()
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return self._running

    @property
    def is_holding(self) -> bool:
        """Whether there is anything to judge."""
        return bool(self._held)

    def held(self) -> Sequence[Use]:
        """Return the uses that run, without canaries."""
        with self._changed:
            return [use for use in self._held if use.counts]

    def take_cuts(self, most: int) -> Sequence[tuple[int, int]]:
        """Return which revocations cut how many uses, the first `most` of them, and forget these."""
        if not self._cuts:
            return ()
        with self._changed:
            indices = sorted(self._cuts)[:most]
            return [(index, self._cuts.pop(index)) for index in indices]

    def put_cuts_back(self, cuts: Sequence[tuple[int, int]]) -> None:
        """Remember again what could not be told."""
        with self._changed:
            for index, uses in cuts:
                self._cuts[index] = self._cuts.get(index, 0) + uses

    def begin(self, use: Use) -> Proof:
        """Verify and hold `use`. Held first: a revocation in between finds it."""
        with self._changed:
            if self._is_closed:
                raise Stale("the verifier is closed", hint="make a new one")
            self._held.add(use)
            self._began += 1
        before = self._state()
        try:
            proof = self.verify(use._token, use._model)  # noqa: SLF001 - the two classes are one mechanism under one lock
            self._admit(use._token, proof.claims, use._shown)  # noqa: SLF001 - as above
            self._note(use, proof, before)
            with self._changed:
                if use.reason is not None:
                    # Cancelled in between: it never ran, so it is refused and was not cut.
                    raise use.reason
                exp = proof.claims.exp
                self._nearest_exp_s = exp if self._nearest_exp_s is None else min(exp, self._nearest_exp_s)
                if self._thread is None:
                    thread = threading.Thread(target=self._watch, name="broker-uses", daemon=True)
                    thread.start()
                    self._thread = thread
                use._proof = proof  # noqa: SLF001 - as above
                self._running += use.counts
                self._changed.notify_all()
        except BaseException as refused:
            self.end(use)
            if self._noting is not None and isinstance(refused, Rejected) and not use.is_canary:
                self._noting.denied(refused, use._token, use._model, before)  # noqa: SLF001 - as above
            raise
        return proof

    def _note(self, use: Use, proof: Proof, before: Trusted) -> None:
        """Note its receipt; that of a drill is of nobody."""
        if self._noting is not None and not use.is_canary:
            request_hash = use._request_hash  # noqa: SLF001 - as in begin
            use._noted = self._noting.accepted(proof.claims, proof.model, before, request_hash)  # noqa: SLF001 - as in begin

    def end(self, use: Use) -> None:
        """Let go of `use`; its callbacks will not be called."""
        with self._changed:
            self._let_go(use)
            use._callbacks.clear()  # noqa: SLF001 - as in begin
            noted, use._noted = use._noted, None  # noqa: SLF001 - as in begin
        if noted is not None and self._noting is not None:
            why = use.reason.reason if use.reason is not None else ""
            self._noting.ended(noted, why, use._calls, use._size)  # noqa: SLF001 - as in begin

    def attach(self, to: list[Callable[[], object]], call: Callable[[], object], use: Use) -> bool:
        """Add a callback of `use`; return False when it was cancelled already."""
        with self._changed:
            if use.reason is not None:
                return False
            to.append(call)
            return True

    def attach_waker(self, use: Use, wake: Callable[[], object]) -> bool:
        """Have `wake` called by the thread that cancels `use`, at once; return False when it was cancelled already."""
        return self.attach(use._wakers, wake, use)  # noqa: SLF001 - as in begin

    def detach(self, of: list[Callable[[], object]], call: Callable[[], object]) -> None:
        """Remove a callback, if it is still there."""
        with self._changed:
            if call in of:
                of.remove(call)

    def recheck(self) -> None:
        """Judge all uses now and cancel those that would be refused."""
        with self._changed:
            held, began = tuple(self._held), self._began
        nearest: int | None = None
        for use in held:
            try:
                exp = self.verify(use._token, use._model).claims.exp  # noqa: SLF001 - as in begin
            except Rejected as why:
                self._cancel(use, why)
            else:
                nearest = exp if nearest is None else min(exp, nearest)
        with self._changed:
            # One that began meanwhile may end before all of these.
            if self._began == began:
                self._nearest_exp_s = nearest

    def close(self, why: Rejected) -> None:
        """Cancel all uses and end the thread. None can begin any more."""
        with self._changed:
            self._is_closed = True
            held = tuple(self._held)
        for use in held:
            self._cancel(use, why)
        with self._changed:
            self._changed.notify_all()

    def forget_after_fork(self, noting: Noting | None = None) -> None:
        """In a child: the locks may be held by threads that are no more; every use is over."""
        self._changed = threading.Condition()
        self.counting = threading.Lock()
        self._noting = noting
        self._thread = None
        self._due.clear()
        for use in self._held:
            use._reason = Stale("the process was forked", hint="begin the use anew")  # noqa: SLF001 - as in begin
            use._cancelled = threading.Event()  # noqa: SLF001 - as in begin
            use._cancelled.set()  # noqa: SLF001 - as in begin
            use._callbacks, use._wakers = [], []  # noqa: SLF001 - as in begin
            # Its receipt is the parent's.
            use._noted = None  # noqa: SLF001 - as in begin
        self._held = set()
        self._running = 0
        self._cuts = {}
        self._nearest_exp_s = None

    def _let_go(self, use: Use) -> None:
        if use in self._held:
            self._held.discard(use)
            self._running -= use.counts

    def _cancel(self, use: Use, why: Rejected) -> None:
        with self._changed:
            if use.reason is not None or use not in self._held:
                return
            self._let_go(use)
            if isinstance(why, Revoked) and use.counts:
                self._cuts[why.index] = self._cuts.get(why.index, 0) + 1
            use._reason = why  # noqa: SLF001 - as in begin
            use._cancelled.set()  # noqa: SLF001 - as in begin
            for wake in use._wakers:  # noqa: SLF001 - as in begin
                wake()
            # Strangers' code runs in a thread of its own, so that it cannot hold up the feed.
            self._due.extend(use._callbacks)  # noqa: SLF001 - as in begin
            self._changed.notify_all()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if not self._due:
                    if self._is_closed:
                        return
                    self._changed.wait(self._rest_s())
                due = list(self._due)
                self._due.clear()
            for callback in due:
                try:
                    callback()
                except Exception:  # a stranger's defect must not keep other uses alive
                    log.exception("a callback of a cancelled use failed")
            if self._held and self._left_s() <= 0:
                self.recheck()

    def _rest_s(self) -> float | None:
        return max(0.001, min(LONGEST_REST_S, self._left_s())) if self._held else None

    def _left_s(self) -> float:
        """Return the time until some use must end, as far as is known."""
        state = self._state()
        now_ns = self._outside.boottime_ns()
        left_s = (state.accept_until_ns - now_ns) / NS_PER_S if state.accept_until_ns != NEVER_NS else 0.0
        if state.time is not None and self._nearest_exp_s is not None:
            left_s = min(left_s, self._nearest_exp_s - state.time.latest_ms(now_ns) / MS_PER_S)
        return left_s
