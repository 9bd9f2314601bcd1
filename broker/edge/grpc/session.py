"""One verifier's stream of the feed, whatever carries it: what it says goes in, what it is to hear comes out."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from broker.domain.policy import Role
from broker.edge.grpc.hub import FeedHub
from broker.edge.grpc.questions import MAX_USES
from broker.edge.grpc.receiving import Receiving, Sending, must_keep_receipts
from broker.errors import Forbidden, Invalid
from broker.service.calling import Caller
from broker.service.keep_receipts import Source
from broker.service.policies import Policies
from broker.service.ports import Clock
from broker.v1 import feed_pb2

log = logging.getLogger("broker.feed")

NONCE_BYTES = 16
# Of what a verifier says, so much is read.
MAX_CUTS = 1024
MAX_SPOKEN = 16
MAX_TEXT = 64
NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Desk:
    """What all sessions share."""

    hub: FeedHub
    policies: Policies
    clock: Clock
    receiving: Receiving | None = None


class Session:
    """Begun by a hello; `close` it when its stream ends. One event loop owns it.

    `wake` is called when `next` has more to give. The principal is judged as long as the session lasts, not once.
    """

    __slots__ = ("_caller", "_desk", "_is_left", "_sending", "_version", "listener", "subscriber")

    def __init__(
        self,
        desk: Desk,
        first: feed_pb2.ListenRequest | None,
        caller: Callable[[], Caller],
        certificate: bytes,
        address: str,
        wake: Callable[[], None],
    ) -> None:
        """Take a name and begin to listen.

        Args:
            desk: What all sessions share.
            first: What the verifier said first.
            caller: Who calls, by the policy as it is now; raises Failure.
            certificate: SHA-256 of the caller's.
            address: Where it calls from, as gRPC spells it.
            wake: Called when there is more to send.

        Raises:
            Failure: It may not listen, or did not say hello.
        """
        admitted = _admitted(caller)
        if first is None or first.WhichOneof("message") != "hello":
            raise Invalid("message", "is not a hello", hint="begin the stream with one")
        hello = first.hello
        if admitted.realm != hello.realm:
            raise Forbidden(
                f"{admitted.principal} may not listen in this realm",
                hint="ask for the realm that the policy gives to this verifier",
            )
        in_force = desk.policies.current()
        realm = in_force.policy.realms.get(hello.realm)
        if realm is None:
            raise Forbidden("the policy has no such realm", hint="ask an admin")
        must_keep_receipts(realm, hello.speaks)
        # Two with one name would answer for each other; so the name is taken before anything is sent.
        desk.hub.names.claim(realm.name, admitted.principal, certificate)
        self._desk = desk
        self._caller = caller
        self._version = in_force.version
        self._is_left = False
        self.listener = desk.hub.listeners.join(
            verifier=admitted.principal,
            realm=realm.name,
            version=_plain(hello.version),
            address=address,
            lease_ms=realm.lease_ms,
            now_ns=desk.clock.boottime_ns(),
        )
        self.subscriber = desk.hub.subscribe(realm.name, self.listener, frozenset(hello.speaks[:MAX_SPOKEN]), wake)
        self._sending = Sending(Source(admitted.principal, realm.name), self.subscriber)
        desk.hub.on_coming_or_going(self.listener)

    @property
    def realm(self) -> str:
        """Its realm."""
        return self.subscriber.realm

    def close(self) -> None:
        """Forget it. It still counts until its lease must have run out."""
        hub = self._desk.hub
        hub.unsubscribe(self.subscriber)
        hub.names.release(self.realm, self.listener.verifier)
        hub.listeners.leave(self.listener, self._desk.clock.boottime_ns())
        hub.on_coming_or_going(self.listener)

    def needs_snapshot(self) -> bool:
        """Return whether it gets nothing more until `bring` is called. Frames that a snapshot will replace go."""
        if self.subscriber.position is not None or self.subscriber.backlog:
            return False
        self.subscriber.drop_frames()
        return True

    def bring(self, messages: Iterable[bytes], head: int) -> None:
        """Send a snapshot, made after `needs_snapshot` said so; `head` is where the verifier is then."""
        self.subscriber.backlog.extend(messages)
        self.subscriber.position = head

    def next(self) -> bytes | None:
        """Take the next message to send; None: there is none, or a snapshot is needed. Raises Failure: it is over."""
        subscriber = self.subscriber
        if self._desk.policies.current().version != self._version:
            self._judge()
        if subscriber.echoes:
            return self._answer(subscriber.echoes.popleft())
        if subscriber.kept:
            return subscriber.kept.pop(next(iter(subscriber.kept)))
        if subscriber.backlog:
            return subscriber.backlog.popleft()
        while subscriber.position is not None and subscriber.queue:
            message = subscriber.next_message()
            if message is not None:
                return message
        return None

    def take(self, request: feed_pb2.ListenRequest) -> bool:
        """Take what the verifier said; return False when that was its last word. Raises Failure: it is over."""
        kind = request.WhichOneof("message")
        if kind == "ack":
            self._acknowledge(request.ack)
        elif kind == "leave":
            self._desk.hub.listeners.give_up(self.listener, self._desk.clock.boottime_ns())
            return False
        elif self._desk.receiving is None or not self._desk.receiving.took(self._sending, request):
            self._take(kind, request)
        return True

    def _take(self, kind: str | None, request: feed_pb2.ListenRequest) -> None:
        subscriber = self.subscriber
        match kind:
            case "echo":
                if len(request.echo.nonce) != NONCE_BYTES:
                    raise Invalid("echo.nonce", f"has {len(request.echo.nonce)} bytes", hint="use 16 random ones")
                # One at a time: a newer question replaces one that was not answered yet.
                subscriber.echoes.clear()
                subscriber.echoes.append(request.echo)
                subscriber.wake()
            case "nack":
                self.listener.last_nack = _plain(request.nack.reason)
                log.warning(
                    "a verifier refused a frame",
                    extra={"fields": {"verifier": self.listener.verifier, "reason": _plain(request.nack.reason)}},
                )
                subscriber.position = None
                subscriber.wake()
            case "survey":
                self._desk.hub.questions.answer(self.listener, request.survey)
            case "probe":
                self._desk.hub.questions.reported(self.listener, request.probe)
            case _:
                raise Invalid(
                    "message", "is none of what may follow a hello", hint="send an echo, an ack, a nack or leave"
                )

    def _acknowledge(self, ack: feed_pb2.Ack) -> None:
        hub, listener = self._desk.hub, self.listener
        head = hub.publisher.head
        if head is None or ack.incarnation != head.incarnation:
            return
        now_ns = self._desk.clock.boottime_ns()
        listener.uses = min(ack.uses, MAX_USES)
        # What it says can shorten the lease that it may have, never lengthen it.
        fresh_ms = min(ack.fresh_for_ms or listener.lease_ms, listener.lease_ms)
        listener.fresh_until_ns = now_ns + fresh_ms * NS_PER_MS
        # Before the head: a completion that this acknowledgement settles has to count them.
        for cut in ack.cuts[:MAX_CUTS]:
            if cut.uses and cut.index < head.size:
                hub.on_cuts(listener, cut.index, min(cut.uses, MAX_USES))
        # Nobody can have applied what was not published.
        hub.listeners.acknowledge(listener, min(ack.head, head.size), now_ns)

    def _answer(self, echo: feed_pb2.Echo) -> bytes:
        return self._desk.hub.publisher.answer_echo(
            self.realm,
            nonce=echo.nonce,
            verifier_clock_ns=echo.verifier_clock_ns,
            verifier=self.listener.verifier,
        )

    def _judge(self) -> None:
        in_force = self._desk.policies.current()
        if _admitted(self._caller).realm != self.realm:
            raise Forbidden("this verifier is no longer of this realm", hint="ask an admin")
        must_keep_receipts(in_force.policy.realms.get(self.realm), self.subscriber.speaks)
        self._version = in_force.version


def _admitted(caller: Callable[[], Caller]) -> Caller:
    found = caller()
    found.must_be(Role.VERIFIER)
    return found


def _plain(text: str) -> str:
    """Return what a stranger sent, short and in one line."""
    if not text[:MAX_TEXT].isprintable():
        return ""
    # Cut once more: an escape is longer than what it stands for, and the roster keeps no more than that.
    return text[:MAX_TEXT].encode("ascii", "backslashreplace").decode("ascii")[:MAX_TEXT]
