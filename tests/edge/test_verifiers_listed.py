"""Who listens is listed, and whoever listened stays listed, across restarts, until an admin forgets it."""

import json
import sqlite3
from contextlib import closing

import grpc
import pytest

from broker.v1 import status_pb2
from tests.scripted_verifier import ScriptedVerifier
from tests.served import POLICY, PRINCIPALS, Served, request_id
from tests.waiting import eventually

GATEWAY = PRINCIPALS["gateway"]


BOTH_DOORS = pytest.mark.parametrize("broker", [False, True], ids=["grpc-door", "feed-door"], indirect=True)


@pytest.fixture
def broker(request, tmp_path):
    (tmp_path / "served").mkdir()
    with Served(tmp_path / "served", with_feed_door=getattr(request, "param", False)) as served:
        yield served


def listed(broker, realm="", name="admin"):
    return list(broker.status(name).ListVerifiers(status_pb2.ListVerifiersRequest(realm=realm), timeout=10).verifiers)


def the_one(broker):
    [one] = listed(broker)
    return one


def forget(broker, verifier=GATEWAY, realm="evaluation", reason="it was taken down", rid=None):
    request = status_pb2.ForgetVerifierRequest(
        request_id=rid or request_id(), verifier=verifier, realm=realm, reason=reason
    )
    return broker.status().ForgetVerifier(request, timeout=10)


def refused(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def is_state(broker, state):
    return lambda: [one.state for one in listed(broker)] == [state]


@BOTH_DOORS
def test_a_verifier_is_listed_with_what_it_said_and_what_the_broker_knows(broker):
    assert listed(broker) == []
    with broker.verifier() as verifier:
        token = broker.mint().token
        broker.until_accepted(verifier, token)
        with verifier.use(token, model="mythos"), verifier.use(token, model="mythos@eu-1"):
            eventually(lambda: the_one(broker).uses == 2, "its uses are known")
            one = the_one(broker)
            assert (one.verifier, one.realm, one.state) == (GATEWAY, "evaluation", "fresh")
            assert one.version
            assert one.address.startswith("ipv4:127.0.0.1:")
            # The realm's lease is 3 s.
            assert 0 < one.fresh_for.ToNanoseconds() <= 3e9
            assert one.seen_at.ToNanoseconds() > 0
            assert not one.HasField("last_drill")
            eventually(lambda: the_one(broker).behind == 0, "it keeps up")
        eventually(lambda: the_one(broker).uses == 0, "its uses are over")
    assert listed(broker, realm="research") == []


@BOTH_DOORS
def test_b_a_verifier_that_vanished_stays_listed_as_lapsed_also_after_a_restart_until_it_is_forgotten(broker):
    with ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")) as verifier:
        eventually(is_state(broker, "fresh"), "it listens")
        head = the_one(broker).head
        assert head
        assert verifier.incarnation
    eventually(is_state(broker, "lapsed"), "it has gone")
    gone = the_one(broker)
    assert (gone.verifier, gone.version) == (GATEWAY, "scripted")
    assert (gone.fresh_for.ToNanoseconds(), gone.uses) == (0, 0)
    # The roster is written about once a second.
    eventually(lambda: on_roster(broker) == [(GATEWAY, 0)], "it is noted")
    broker.kill()
    broker.start()
    again = the_one(broker)
    assert (again.verifier, again.state, again.version) == (GATEWAY, "lapsed", "scripted")
    assert again.head >= head
    assert again.seen_at.ToNanoseconds() <= gone.seen_at.ToNanoseconds() + 1e6
    rid = request_id()
    index = forget(broker, rid=rid).index
    assert listed(broker) == []
    assert forget(broker, rid=rid).index == index
    code, details = refused(lambda: forget(broker))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "broker verifiers" in details
    broker.kill()
    broker.start()
    assert listed(broker) == []


def test_b_a_verifier_that_listened_to_a_broker_that_was_killed_is_listed_by_the_next(broker):
    with ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")):
        eventually(is_state(broker, "fresh"), "it listens")
        eventually(lambda: on_roster(broker), "it is noted")
        broker.kill()
    broker.start()
    # It is the only broker, and nobody listens to it.
    assert [(one.verifier, one.state) for one in listed(broker)] == [(GATEWAY, "lapsed")]


def store_of(broker):
    return next((broker.folder / "data").glob("*.db"))


def on_roster(broker):
    with closing(sqlite3.connect(f"file:{store_of(broker)}?mode=ro", uri=True)) as store:
        return store.execute("SELECT verifier, is_present FROM verifiers").fetchall()


@BOTH_DOORS
def test_b_a_broker_that_ends_says_that_nobody_listens_to_it_any_more(broker):
    verifier = ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway"))
    with verifier:
        eventually(lambda: on_roster(broker) == [(GATEWAY, 1)], "it is noted")
        broker.process.terminate()
        broker.process.wait(10)
    assert on_roster(broker) == [(GATEWAY, 0)]


def test_a_verifier_that_listens_cannot_be_forgotten(broker):
    with ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")):
        eventually(is_state(broker, "fresh"), "it listens")
        code, details = refused(lambda: forget(broker))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "is listening" in details
    eventually(is_state(broker, "lapsed"), "it has gone")
    forget(broker)
    assert listed(broker) == []


def test_a_forgotten_verifier_that_comes_back_is_listed_again(broker):
    with ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")):
        eventually(is_state(broker, "fresh"), "it listens")
    eventually(is_state(broker, "lapsed"), "it has gone")
    forget(broker)
    with ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")):
        eventually(is_state(broker, "fresh"), "it is back")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"verifier": "spiffe://lab.example/nobody"}, grpc.StatusCode.NOT_FOUND),
        ({"realm": "research"}, grpc.StatusCode.NOT_FOUND),
        ({"verifier": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"verifier": "gateway"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"realm": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"realm": "../evaluation"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"reason": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"reason": "x" * 501}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"rid": "short"}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_p7_forgetting_nobody_or_nonsense_is_refused_and_writes_nothing(module_broker, changes, code):
    size = module_broker.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).head
    assert refused(lambda: forget(module_broker, **changes))[0] is code
    assert module_broker.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).head == size


@pytest.fixture(scope="module")
def module_broker(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served")) as served:
        with ScriptedVerifier(served.endpoint, served.identity("gateway")):
            eventually(is_state(served, "fresh"), "it listens")
        eventually(is_state(served, "lapsed"), "it has gone")
        yield served


@BOTH_DOORS
def test_what_a_verifier_says_of_itself_cannot_lengthen_its_lease_nor_spoil_the_list(broker):
    with ScriptedVerifier(
        broker.listen_endpoint, broker.identity("gateway"), uses=2**32 - 1, fresh_for_ms=2**32 - 1
    ) as verifier:
        eventually(lambda: verifier.head and the_one(broker).uses, "it has said so")
        one = the_one(broker)
        assert one.uses == 10_000_000
        assert one.fresh_for.ToNanoseconds() <= 3e9
        cuts = [{"index": 2**63, "uses": 1}, {"index": 0, "uses": 0}] * 2000
        verifier.acknowledge(cuts=cuts, head=2**63)
        verifier.fresh_for_ms = 1
        eventually(lambda: the_one(broker).fresh_for.ToNanoseconds() <= 1e6, "what it says may shorten it")
        assert the_one(broker).head <= broker.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).head


def test_t_a_version_with_control_characters_is_not_listed(broker):
    with ScriptedVerifier(
        broker.listen_endpoint, broker.identity("gateway"), version="1.0\n\x1b[31mforged"
    ) as verifier:
        eventually(lambda: verifier.head, "it listens")
        assert the_one(broker).version == ""


def test_t_a_version_whose_escapes_are_longer_than_the_roster_keeps_is_cut(broker):
    with ScriptedVerifier(
        broker.listen_endpoint, broker.identity("gateway"), version="\N{GRINNING FACE}" * 64
    ) as verifier:
        eventually(lambda: verifier.head, "it listens")
        assert the_one(broker).version == (r"\U0001f600" * 7)[:64]


@BOTH_DOORS
def test_a_verifier_whose_principal_left_the_policy_stays_listed_and_can_be_forgotten(broker):
    with ScriptedVerifier(broker.listen_endpoint, broker.identity("gateway")) as verifier:
        eventually(is_state(broker, "fresh"), "it listens")
        document = "".join(line for line in POLICY.splitlines(keepends=True) if 'lab.example/gateway"' not in line)
        broker.apply(document)
        assert verifier.over.wait(10)
    eventually(is_state(broker, "lapsed"), "it has gone")
    forget(broker)
    assert listed(broker) == []


def test_a_store_that_takes_no_notes_hurts_no_verifier(broker):
    """A trigger refuses each write to the roster, as a store out of order would."""
    with closing(sqlite3.connect(store_of(broker))) as store, store:
        store.execute("CREATE TRIGGER refuse BEFORE INSERT ON verifiers BEGIN SELECT RAISE(ABORT, 'no'); END")
    with broker.verifier() as verifier:
        token = broker.mint().token
        broker.until_accepted(verifier, token)
        eventually(lambda: "cannot note who listens" in broker.log.read_text(), "it was tried")
        eventually(is_state(broker, "fresh"), "it is listed all the same")
    with closing(sqlite3.connect(store_of(broker))) as store, store:
        store.execute("DROP TRIGGER refuse")
    eventually(lambda: on_roster(broker) == [(GATEWAY, 0)], "it is noted once the store is well")
    # Once, however often it failed.
    told = [json.loads(line) for line in broker.log.read_text().splitlines() if "cannot note" in line]
    assert len(told) == 1
