"""A verifier of the test's own: listens as the SDK does, and answers questions as the test wants."""

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import grpc

from broker.sdk import Identity
from broker.token.jws import parse_jws, strict_json
from broker.v1 import feed_pb2, feed_pb2_grpc

Say = Callable[[feed_pb2.ListenRequest], None]


class ScriptedVerifier:
    """One stream. It acknowledges each frame, and judges a canary by the revocations in the frames.

    `refusals`: so often it refuses a canary first. `is_silent`: it answers nothing. `is_deaf`: it does not notice
    that a canary is revoked.
    """

    def __init__(
        self,
        endpoint: str,
        identity: Identity,
        *,
        realm: str = "evaluation",
        speaks: tuple[str, ...] = ("probe", "survey"),
        refusals: int = 0,
        refuses_with: str = "UNTRUSTED",
        is_silent: bool = False,
        is_deaf: bool = False,
        uses: int = 0,
        fresh_for_ms: int = 0,
        version: str = "scripted",
    ) -> None:
        self.refusals = refusals
        self.refuses_with = refuses_with
        self.is_silent = is_silent
        self.is_deaf = is_deaf
        self.uses = uses
        self.fresh_for_ms = fresh_for_ms
        self.asked: list[str] = []
        self.canaries: list[str] = []
        self.surveys: list[feed_pb2.Survey] = []
        self.kept: list[feed_pb2.ReceiptsKept] = []
        self.demand = 0
        self.error: grpc.RpcError | None = None
        self.head = 0
        self.incarnation = ""
        self._held: dict[str, str] = {}
        self._out: SimpleQueue[feed_pb2.ListenRequest | None] = SimpleQueue()
        self._channel = grpc.secure_channel(endpoint, identity.credentials())
        self.say(hello=feed_pb2.Hello(realm=realm, version=version, speaks=speaks))
        self._call: Any = feed_pb2_grpc.FeedServiceStub(self._channel).Listen(iter(self._out.get, None))
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> "ScriptedVerifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, **message: Any) -> None:
        self._out.put(feed_pb2.ListenRequest(**message))

    def acknowledge(self, **fields: Any) -> None:
        self.say(
            ack=feed_pb2.Ack(
                **{
                    "head": self.head,
                    "incarnation": self.incarnation,
                    "uses": self.uses,
                    "fresh_for_ms": self.fresh_for_ms,
                    **fields,
                }
            )
        )

    def leave(self) -> None:
        """End by its own word: it accepts nothing any more."""
        self.say(leave=feed_pb2.Leave())

    def close(self) -> None:
        self._out.put(None)
        self._call.cancel()
        self._thread.join(10)
        self._channel.close()

    def _read(self) -> None:
        try:
            for message in self._call:
                self._take(message)
        except grpc.RpcError as error:
            self.error = error
        finally:
            self.over.set()

    def _take(self, message: feed_pb2.ListenResponse) -> None:
        match message.WhichOneof("message"):
            case "frame":
                self._apply(feed_pb2.FrameBody.FromString(message.frame.body))
            case "probe":
                self.asked.append(message.probe.id)
                self._judge(message.probe)
            case "receipts_kept":
                self.kept.append(feed_pb2.ReceiptsKept.FromString(message.receipts_kept.body))
            case "survey":
                self.surveys.append(message.survey)
                if not self.is_silent:
                    self.say(survey=feed_pb2.SurveyReport(id=message.survey.id, uses=self.uses))

    def _apply(self, body: feed_pb2.FrameBody) -> None:
        self.head, self.incarnation = body.head, body.incarnation
        self.demand = body.receipts
        if not self.is_silent:
            self.acknowledge()
        named = {value for revocation in body.revocations for value in revocation.values}
        for token in [token for token in self._held if token in named and not self.is_deaf]:
            self.report(self._held.pop(token), "REVOKED", ended=True)

    def _judge(self, probe: feed_pb2.Probe) -> None:
        self.canaries.append(probe.token)
        if self.is_silent:
            return
        if self.refusals > 0:
            self.refusals -= 1
            self.report(probe.id, self.refuses_with)
            return
        claims: Any = strict_json(parse_jws(probe.token, typ="at+jwt").payload)
        self._held[claims["jti"]] = probe.id
        self.report(probe.id, "ACCEPTED")

    def report(self, probe: str, verdict: str, *, ended: bool = False) -> None:
        with suppress(ValueError):
            self.say(probe=feed_pb2.ProbeReport(id=probe, verdict=verdict, ended=ended))
