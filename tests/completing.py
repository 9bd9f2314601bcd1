"""Asking for completions, and a verifier that never answers."""

import queue
from contextlib import contextmanager

import grpc

from broker.v1 import feed_pb2, feed_pb2_grpc
from broker.v1 import revocations_pb2 as pb


def document(complete):
    return "".join(f"{statement}\n" for statement in complete.statements)


def ask(served, index, *, wait=True, name="admin", timeout=30):
    request = pb.GetRevocationRequest(index=index, wait=wait)
    return [answer.event for answer in served.revocations(name).GetRevocation(request, timeout=timeout)]


@contextmanager
def silent_verifier(served, name="gateway", realm="evaluation"):
    """Listens, and never says that it has applied anything: it may hold a lease, as far as the broker can know."""
    channel = grpc.secure_channel(served.endpoint, served.identity(name).credentials())
    hello = feed_pb2.ListenRequest(hello=feed_pb2.Hello(realm=realm, version="silent"))
    requests = queue.SimpleQueue()
    requests.put(hello)
    call = feed_pb2_grpc.FeedServiceStub(channel).Listen(iter(requests.get, None))
    next(call)
    try:
        yield call
    finally:
        requests.put(None)
        call.cancel()
        channel.close()
