"""P5, P11: no file handle is left, or somebody holds connections and says nothing: who is connected is served on."""

import resource
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from broker.errors import Failure, Revoked
from broker.sdk.failures import failure_of
from broker.v1 import revocations_pb2, selector_pb2, tokens_pb2
from tests.served import Served, request_id
from tests.waiting import eventually

HALF_OPEN = 30


def handles(broker: Served) -> int:
    assert broker.process is not None
    return sum(1 for _ in Path(f"/proc/{broker.process.pid}/fd").iterdir())


def half_open(port: int, stack: ExitStack) -> list[socket.socket]:
    """Connect and say nothing."""
    return [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(HALF_OPEN)]


@pytest.mark.parametrize("with_feed_door", [False, True], ids=["grpc-door", "feed-door"])
def test_p5_without_a_free_file_handle_a_revocation_is_made_and_all_goes_on_when_there_are_some(
    tmp_path: Path, with_feed_door: bool
) -> None:
    with Served(tmp_path, with_feed_door=with_feed_door) as broker, broker.verifier() as verifier:
        minting, revoking = broker.tokens(), broker.revocations()
        mint = tokens_pb2.MintRequest(request_id=request_id(), spec=broker.spec())
        token = minting.Mint(mint, timeout=10).token.token
        list(revoking.Revoke(_revoke(user="nobody"), timeout=10))
        broker.until_accepted(verifier, token)
        assert broker.process is not None
        before = resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE)
        with ExitStack() as stack:
            resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, (handles(broker) + 4, before[1]))
            half_open(broker.port, stack)
            half_open(broker.http_port, stack)
            if with_feed_door:
                half_open(broker.feed_port, stack)
                eventually(lambda: "no handles are left" in broker.log.read_text(), "it is out of handles")
            assert verifier.verify(token, "mythos")
            for number in range(20):
                list(revoking.Revoke(_revoke(user=f"user-{number}"), timeout=20))
            refused: list[Failure] = []
            for _ in range(20):
                again = tokens_pb2.MintRequest(request_id=request_id(), spec=broker.spec())
                try:
                    minting.Mint(again, timeout=20)
                except grpc.RpcError as failed:
                    refused.append(failure_of(failed))
            assert all(failure.retry_after_s is not None for failure in refused)
            [*_, last] = revoking.Revoke(_revoke(partner="acme", wait=True), timeout=30)
            assert last.complete.verifiers
            with pytest.raises(Revoked):
                verifier.verify(token, "mythos")
        resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, before)
        broker.reinstate(partner="acme")
        assert broker.mint().token
        # Said now and then, not for each that waits, and not as fast as it can be said.
        assert broker.log.read_text().count("socket.accept() out of system resource") < 200
        # Whoever comes now gets in.
        with broker.verifier("research", "gateway-research") as newcomer:
            assert newcomer.state().is_fresh
        assert broker.process.poll() is None
        assert "Traceback" not in broker.log.read_text()


def _revoke(*, wait: bool = False, **selector: str) -> revocations_pb2.RevokeRequest:
    return revocations_pb2.RevokeRequest(
        request_id=request_id(), selector=selector_pb2.Selector(**selector), reason="a test", wait=wait
    )


def test_b13_whoever_connects_and_asks_nothing_is_sent_away_from_every_door(tmp_path: Path) -> None:
    """Handles are few: held by strangers, a verifier could not come back."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    unchecked.set_alpn_protocols(["h2"])
    plain = ssl.create_default_context()
    plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
    with (
        Served(tmp_path, identity="", with_feed_door=True) as broker,
        ExitStack() as stack,
        broker.verifier() as verifier,
    ):
        known = ssl.create_default_context(cafile=str(broker.authority.ca))
        known.load_cert_chain(broker.papers["gateway"].certificate, broker.papers["gateway"].key)
        known.set_alpn_protocols(["h2"])
        token = broker.mint().token
        before = handles(broker)
        half_open(broker.port, stack)
        half_open(broker.login_port, stack)
        half_open(broker.feed_port, stack)
        for port, context, words in (
            (broker.login_port, unchecked, b""),
            (broker.http_port, plain, b""),
            (broker.http_port, plain, b"GET /healthz HT"),
            # Those have a certificate.
            (broker.feed_port, known, b""),
            (broker.feed_port, known, b"PRI * HTTP/2.0"),
        ):
            for held in half_open(port, stack):
                stack.enter_context(context.wrap_socket(held, server_hostname="localhost")).sendall(words)
        eventually(lambda: handles(broker) >= before + 8 * HALF_OPEN - 5, "they are connected")
        eventually(lambda: handles(broker) < before + HALF_OPEN // 2, "they are sent away", within_s=90)
        # Who has something to say is not.
        assert verifier.verify(token, "mythos")
        assert broker.mint().token


def test_a_broker_takes_as_many_handles_as_it_may_have(tmp_path: Path) -> None:
    few, most = 64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    broker = Served(tmp_path)
    broker.prefix = ("prlimit", f"--nofile={few}:{most}")
    with broker:
        assert broker.process is not None
        assert resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE) == (most, most)
