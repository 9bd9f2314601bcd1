"""Receipts over a real broker's door: what the policy demands is told, what is sent is written once and answered."""

import json
from collections.abc import Iterator

import grpc
import pytest

from broker.ledger.entry import Entry, Kind, decode_entry
from broker.v1 import feed_pb2, status_pb2
from tests.receipting import ReceiptKey, accepted
from tests.scripted_verifier import ScriptedVerifier
from tests.served import POLICY, Served, wait_until
from tests.stores import Home

DEMANDING = POLICY.replace("heartbeat: 1s}", "heartbeat: 1s, receipts: each}", 1)


@pytest.fixture(scope="module", params=[False, True], ids=["grpc-door", "feed-door"])
def broker(request, tmp_path_factory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("served"), policy=DEMANDING, with_feed_door=request.param) as served:
        yield served


def listening(
    broker: Served, name: str = "gateway", realm: str = "evaluation", speaks=("receipts",)
) -> ScriptedVerifier:
    return ScriptedVerifier(broker.listen_endpoint, broker.identity(name), realm=realm, speaks=speaks)


def enroll(verifier: ScriptedVerifier, key: ReceiptKey) -> feed_pb2.ReceiptsKept:
    told = len(verifier.kept)
    verifier.say(enroll=feed_pb2.EnrollKey(public_key=key.point, signature=key.proof()))
    wait_until(lambda: len(verifier.kept) > told)
    return verifier.kept[-1]


def send(verifier: ScriptedVerifier, body: bytes, signature: bytes) -> feed_pb2.ReceiptsKept:
    told = len(verifier.kept)
    verifier.say(receipts=feed_pb2.SignedReceipts(body=body, signature=signature))
    wait_until(lambda: len(verifier.kept) > told)
    return verifier.kept[-1]


def entries(broker: Served, kind: Kind) -> list[Entry]:
    home = Home("sqlite", f"sqlite:///{broker.folder / 'data' / 'ledger.db'}")
    found = [decode_entry(bytes(row[0])) for row in home.sql("SELECT entry FROM ledger ORDER BY idx")]
    return [entry for entry in found if entry.kind is kind]


def test_the_frames_say_what_the_policy_demands_and_another_realm_demands_nothing(broker):
    with listening(broker) as one, listening(broker, "gateway-research", "research") as other:
        wait_until(lambda: one.head and other.head)
        assert one.demand == feed_pb2.RECEIPT_DEMAND_EACH
        assert other.demand == feed_pb2.RECEIPT_DEMAND_UNSPECIFIED


def test_p7_who_never_heard_of_receipts_may_not_listen_where_they_are_demanded(broker):
    with listening(broker, speaks=("probe",)) as old:
        assert old.over.wait(10)
        assert old.error is not None
        assert old.error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "receipts" in old.error.details()


def test_p7_a_policy_that_begins_to_demand_receipts_ends_the_streams_of_those_who_cannot(broker):
    with listening(broker, "gateway-research", "research", speaks=()) as old:
        wait_until(lambda: old.head)
        broker.apply(DEMANDING.replace("audience: models.research,", "audience: models.research, receipts: summed,"))
        assert old.over.wait(10)
        assert old.error is not None
        assert old.error.code() is grpc.StatusCode.PERMISSION_DENIED
        broker.apply(DEMANDING)


def test_receipts_are_durable_when_they_are_acknowledged_and_written_once(broker):
    token, key = broker.mint(), ReceiptKey()
    with listening(broker) as verifier:
        assert enroll(verifier, key).through == 0
        batch = key.batch([accepted(token.id, token.index, number) for number in (1, 2)])
        first = send(verifier, *batch)
        assert (first.realm, first.key, first.through, first.refusal) == ("evaluation", key.kid, 2, "")
        again = send(verifier, *batch)
        assert (again.through, again.refusal) == (2, "RECEIPTS_OUT_OF_ORDER")
    # Killed right after the answer: what it said is so.
    broker.kill()
    [kept] = [one for one in entries(broker, Kind.RECEIPTS_KEPT) if one.body["batch"]["kid"] == key.kid]
    assert kept.by == "spiffe://lab.example/gateway"
    broker.start()
    with listening(broker) as verifier:
        assert enroll(verifier, key).through == 2
    [enrolled] = [one for one in entries(broker, Kind.RECEIPT_KEY_ENROLLED) if one.body["kid"] == key.kid]
    assert enrolled.by == "spiffe://lab.example/gateway"


def test_a_bad_batch_ends_no_stream_and_an_alarm_is_told_in_status_and_metrics(broker):
    token, key = broker.mint(), ReceiptKey()
    with listening(broker) as verifier:
        enroll(verifier, key)
        assert send(verifier, b"nonsense", b"x").refusal == "RECEIPTS_REFUSED"
        body, signature = key.batch([accepted("never-minted", 1, 1), accepted(token.id, token.index, 2)])
        assert send(verifier, body, key.sign(b"another")).refusal == "RECEIPTS_REFUSED"
        assert send(verifier, body, signature).through == 2
        assert not verifier.over.is_set()
        before = verifier.head
        broker.revoke(token=token.id)
        wait_until(lambda: verifier.head > before)
    problems = {one["problem"] for entry in entries(broker, Kind.RECEIPTS_ALARMED) for one in entry.body["problems"]}
    assert {"wrong signature", "token not in the ledger"} <= problems
    status = broker.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10)
    assert any("receipts are alarming" in problem for problem in status.problems)
    # Alarms are for people; minting goes on.
    assert status.minting


def test_p8_a_verifier_of_another_realm_cannot_send_what_it_took(broker):
    token, key = broker.mint(), ReceiptKey()
    with listening(broker) as verifier, listening(broker, "gateway-research", "research") as thief:
        enroll(verifier, key)
        batch = key.batch([accepted(token.id, token.index)])
        assert send(thief, *batch).refusal == "RECEIPTS_REFUSED"
        thief.say(enroll=feed_pb2.EnrollKey(public_key=key.point, signature=key.proof()))
        wait_until(lambda: len(thief.kept) > 1)
        assert thief.kept[-1].refusal == "RECEIPTS_REFUSED"
        assert send(verifier, *batch).through == 1


def test_a_batch_that_is_too_large_ends_only_the_stream_that_it_came_on(broker):
    with listening(broker) as good, listening(broker) as bad:
        wait_until(lambda: good.head and bad.head)
        bad.say(receipts=feed_pb2.SignedReceipts(body=bytes(60_000), signature=bytes(64)))
        assert bad.over.wait(10)
        assert bad.error is not None
        assert bad.error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert enroll(good, ReceiptKey()).refusal == ""


def test_who_sends_without_waiting_for_answers_delays_nobody_and_fills_no_memory(broker):
    key = ReceiptKey()
    with listening(broker) as flooding, listening(broker) as other:
        enroll(flooding, key)
        wait_until(lambda: other.head)
        junk = feed_pb2.SignedReceipts(body=json.dumps("x" * 40_000).encode(), signature=bytes(64))
        for _ in range(300):
            flooding.say(receipts=junk)
        [committed, *_] = broker.revoke(wait=True, token="a-token-that-never-was")
        assert committed.committed.index
        wait_until(lambda: other.head > committed.committed.index)
        assert not flooding.over.is_set()
