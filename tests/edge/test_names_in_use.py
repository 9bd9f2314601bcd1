"""A verifier's name belongs to one certificate at a time, as long as somebody listens with it."""

import os
import signal
import subprocess
import sys

import grpc
import pytest

from broker.errors import Stale
from broker.sdk import Identity, Verifier
from broker.v1 import status_pb2
from tests.scripted_verifier import ScriptedVerifier
from tests.served import PRINCIPALS, Served
from tests.waiting import eventually

GATEWAY = PRINCIPALS["gateway"]


@pytest.fixture(scope="module", params=[False, True], ids=["grpc-door", "feed-door"])
def broker(request, tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served"), with_feed_door=request.param) as served:
        yield served


@pytest.fixture(scope="module")
def double(broker):
    """The papers of another one that goes by the gateway's name."""
    papers = broker.authority.client(GATEWAY, name="double")
    return Identity(certificate=papers.certificate, key=papers.key, ca=papers.ca)


@pytest.fixture(autouse=True)
def nobody_is_left(broker):
    yield
    eventually(lambda: not listening(broker), "all have gone", within_s=30)


def listening(broker):
    listed = broker.status().ListVerifiers(status_pb2.ListVerifiersRequest(), timeout=10).verifiers
    return [one for one in listed if one.state != "lapsed"]


def test_t_another_certificate_with_the_same_name_is_refused_and_told_why(broker, double):
    with ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")) as first:
        eventually(lambda: first.head, "the first one listens")
        with ScriptedVerifier(broker.listen_endpoint, double) as second:
            assert second.over.wait(10)
            assert second.error.code() is grpc.StatusCode.ALREADY_EXISTS
            assert "another certificate" in second.error.details()
            assert "name of its own" in second.error.details()
            assert second.head == 0
        # The first one is not hurt by it.
        before = first.head
        broker.revoke(token="A" * 22)
        eventually(lambda: first.head > before, "the first one goes on")
        assert len(listening(broker)) == 1


def test_replicas_that_share_a_certificate_listen_side_by_side_and_each_counts(broker):
    with (
        ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")) as first,
        ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")) as second,
    ):
        eventually(lambda: first.head and second.head, "both listen")
        assert [one.verifier for one in listening(broker)] == [GATEWAY, GATEWAY]


def test_a_name_is_free_when_the_last_of_its_streams_has_ended(broker, double):
    with ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")) as first:
        with ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")) as second:
            eventually(lambda: first.head and second.head, "both listen")
        eventually(lambda: len(listening(broker)) == 1, "one has gone")
        with ScriptedVerifier(broker.listen_endpoint, double) as third:
            assert third.over.wait(10)
            assert third.error.code() is grpc.StatusCode.ALREADY_EXISTS
    eventually(lambda: not listening(broker), "both have gone")
    with ScriptedVerifier(broker.listen_endpoint, double) as fourth:
        eventually(lambda: fourth.head, "the other certificate has the name now")


def test_p8_a_name_in_one_realm_does_not_take_it_in_another(broker):
    with (
        ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")) as first,
        ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway-research"), realm="research") as second,
    ):
        eventually(lambda: first.head and second.head, "both listen")


def test_a_refused_verifier_of_the_sdk_says_so_and_is_let_in_later(broker, double):
    with ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")) as first:
        eventually(lambda: first.head, "the first one listens")
        verifier = Verifier.connect(broker.listen_endpoint, realm="evaluation", trust=broker.trust(), identity=double)
        with pytest.raises(Stale, match="another certificate"):
            verifier.wait_fresh(1)
    try:
        verifier.wait_fresh(20)
    finally:
        verifier.close()


VERIFIER = """
import sys
from broker.sdk import Identity, Verifier
endpoint, trust, certificate, key, ca = sys.argv[1:]
verifier = Verifier.connect(
    endpoint, realm="evaluation", trust=trust, identity=Identity(certificate=certificate, key=key, ca=ca)
)
verifier.wait_fresh(30)
print("fresh", flush=True)
sys.stdin.read()
"""


def test_a_stopped_process_does_not_keep_its_name_for_ever(broker, double):
    papers = broker.papers["gateway"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            VERIFIER,
            broker.listen_endpoint,
            broker.trust(),
            papers.certificate,
            papers.key,
            papers.ca,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "fresh\n"
        os.kill(process.pid, signal.SIGSTOP)
        with ScriptedVerifier(broker.listen_endpoint, double) as refused:
            assert refused.over.wait(10)
            assert refused.error.code() is grpc.StatusCode.ALREADY_EXISTS
        # Its kernel still answers for it; only a ping over HTTP/2 tells that nobody is there.
        heir = Verifier.connect(broker.listen_endpoint, realm="evaluation", trust=broker.trust(), identity=double)
        try:
            heir.wait_fresh(40)
        finally:
            heir.close()
    finally:
        process.kill()
        process.communicate(timeout=10)
