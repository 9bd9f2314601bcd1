"""A canary is seen alive and then dead by every verifier, or the drill says which one did not."""

import json
import os
import re
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing

import grpc
import pytest

from broker.errors import NotAllowed, Revoked
from broker.ledger.entry import Kind, decode_entry
from broker.v1 import drills_pb2, revocations_pb2, status_pb2
from tests.scripted_verifier import ScriptedVerifier
from tests.served import POLICY, PRINCIPALS, Served, request_id, settled_head
from tests.waiting import eventually

GATEWAY = PRINCIPALS["gateway"]
FRONTEND = "spiffe://lab.example/frontend"
THIRD = "spiffe://lab.example/third"
DRILLED = POLICY + "".join(f'  - {{id: "{uri}", role: verifier, realm: evaluation}}\n' for uri in (FRONTEND, THIRD))


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served"), policy=DRILLED) as served:
        served.papers["frontend"] = served.authority.client(FRONTEND, name="frontend")
        served.papers["third"] = served.authority.client(THIRD, name="third")
        yield served


@pytest.fixture
def own_broker(tmp_path):
    (tmp_path / "served").mkdir()
    with Served(tmp_path / "served", policy=DRILLED) as served:
        served.papers["frontend"] = served.authority.client(FRONTEND, name="frontend")
        yield served


@pytest.fixture(autouse=True)
def nobody_is_left(request):
    """A verifier of one test must not be drilled in the next."""
    yield
    if "broker" in request.fixturenames:
        served = request.getfixturevalue("broker")
        eventually(lambda: not listening(served), "all have gone", within_s=30)


def listening(served, realm="evaluation"):
    status = served.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10)
    return next(one.verifiers for one in status.realms if one.realm == realm)


def scripted(served, name="gateway", **options):
    verifier = ScriptedVerifier(served.endpoint, served.identity(name), **options)
    eventually(lambda: verifier.head, "it listens")
    return verifier


def drill(served, realm="evaluation", rid=None, name="admin"):
    request = drills_pb2.DrillRequest(request_id=rid or request_id(), realm=realm)
    return list(served.drills(name).Drill(request, timeout=60))


def result_of(served, **options):
    *_, last = drill(served, **options)
    return last.result


def refused(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def outcomes(result):
    return {one.verifier: one.outcome for one in result.verifiers}


def entries(served):
    """The ledger's entries, as the store of a running broker has them."""
    path = next((served.folder / "data").glob("*.db"))
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        return [decode_entry(row[0]) for row in store.execute("SELECT entry FROM ledger ORDER BY idx")]


def problems(served):
    return [
        text
        for text in served.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).problems
        if "drill" in text
    ]


def metric(served, name):
    context = ssl.create_default_context(cafile=str(served.authority.ca))
    papers = served.papers["admin"]
    context.load_cert_chain(papers.certificate, papers.key)
    with urllib.request.urlopen(f"https://127.0.0.1:{served.http_port}/metrics", context=context) as answer:
        text = answer.read().decode()
    return {
        label: float(value)
        for label, value in re.findall(rf'^{name}{{realm="([a-z]+)"}} ([0-9.e+-]+)$', text, re.MULTILINE)
    }


def test_p5_every_verifier_sees_the_canary_alive_and_then_dead_and_is_timed(broker):
    with broker.verifier() as _, broker.verifier(name="frontend") as _:
        before = metric(broker, "broker_time_to_deny_seconds_count").get("evaluation", 0)
        begun, ended = drill(broker)
        assert (begun.begun.realm, begun.begun.verifiers) == ("evaluation", 2)
        result = ended.result
        assert result.passed
        assert result.canary == begun.begun.canary
        assert outcomes(result) == {GATEWAY: "denied", FRONTEND: "denied"}
        assert {one.verdict for one in result.verifiers} == {"REVOKED"}
        times = [one.time_to_deny.ToNanoseconds() for one in result.verifiers]
        assert times == sorted(times, reverse=True)
        assert times[-1] > 0
        assert times[0] < result.bound.ToNanoseconds() == 3e9
        assert metric(broker, "broker_time_to_deny_seconds_count")["evaluation"] == before + 2
        assert metric(broker, "broker_drill_failures") == {"evaluation": 0}
        listed = broker.status().ListVerifiers(status_pb2.ListVerifiersRequest(), timeout=10).verifiers
        assert {one.last_drill.outcome for one in listed} == {"denied"}
        assert {one.last_drill.time_to_deny.ToNanoseconds() for one in listed} == set(times)
        assert problems(broker) == []


def test_p1_the_ledger_tells_of_the_canary_its_revocation_and_what_was_found(own_broker):
    with own_broker.verifier():
        result = result_of(own_broker)
    by_index = {entry.index: entry for entry in entries(own_broker)}
    drilled = by_index[result.index]
    assert drilled.kind is Kind.DRILLED
    assert drilled.by == PRINCIPALS["admin"]
    assert (drilled.body["canary"], drilled.body["revocation"]) == (result.canary, result.revocation)
    assert (drilled.body["passed"], drilled.body["verifiers"], drilled.body["denied"]) == (True, 1, 1)
    revoked = by_index[result.revocation]
    assert revoked.kind is Kind.REVOKED
    assert revoked.body["selector"] == {"realm": "evaluation", "token": result.canary}
    [minted] = [entry for entry in by_index.values() if entry.kind is Kind.CANARY_MINTED]
    assert minted.index < revoked.index < drilled.index
    assert minted.body["claims"]["models"] == ["broker-drill-canary"]
    assert minted.body["claims"]["jti"] == result.canary
    assert minted.body["claims"]["exp"] - minted.body["claims"]["iat"] <= 60


def test_a_canary_opens_no_model_but_its_own_and_nothing_once_it_is_revoked(broker):
    with broker.verifier() as verifier, scripted(broker, "frontend") as seen:
        told = []

        def try_it():
            eventually(lambda: seen.canaries, "the canary is on its way", within_s=20)
            for model in ("mythos", "oracle", "mythos@eu-1"):
                try:
                    verifier.verify(seen.canaries[0], model=model)
                except (NotAllowed, Revoked) as no:
                    told.append(no.reason)

        trying = threading.Thread(target=try_it)
        trying.start()
        assert result_of(broker).passed
        trying.join(20)
        # Also while it lived.
        assert told == ["NOT_ALLOWED"] * 3
        with pytest.raises(Revoked):
            verifier.verify(seen.canaries[0], model="broker-drill-canary")


def test_p6_a_silent_verifier_is_named_and_alarms_until_a_drill_passes(broker):
    with broker.verifier(), scripted(broker, "frontend", is_silent=True):
        result = result_of(broker)
        assert not result.passed
        assert outcomes(result) == {FRONTEND: "silent", GATEWAY: "denied"}
        # Those that failed come first.
        assert result.verifiers[0].verifier == FRONTEND
        assert not result.verifiers[0].HasField("time_to_deny")
        [problem] = problems(broker)
        assert f"silent: {FRONTEND}" in problem
        assert GATEWAY not in problem
        assert metric(broker, "broker_drill_failures") == {"evaluation": 1}
        warned = [json.loads(line) for line in broker.log.read_text().splitlines() if "a drill failed" in line]
        assert FRONTEND in warned[-1]["detail"]
    eventually(lambda: not listening(broker), "both have gone")
    with broker.verifier():
        assert result_of(broker).passed
    assert problems(broker) == []
    assert metric(broker, "broker_drill_failures") == {"evaluation": 0}


def test_p6_a_verifier_that_goes_on_accepting_is_named(broker):
    with scripted(broker, is_deaf=True):
        result = result_of(broker)
        assert not result.passed
        assert outcomes(result) == {GATEWAY: "accepting"}
        assert result.verifiers[0].verdict == "ACCEPTED"
        assert f"accepting: {GATEWAY}" in problems(broker)[0]


def test_p6_a_verifier_that_refuses_a_living_canary_is_named(broker):
    with scripted(broker, refusals=1000, refuses_with="WRONG_REALM"):
        result = result_of(broker)
        assert outcomes(result) == {GATEWAY: "refused"}
        assert result.verifiers[0].verdict == "WRONG_REALM"


def test_a_verifier_that_was_behind_is_shown_the_canary_again(broker):
    with scripted(broker, refusals=2) as verifier:
        assert outcomes(result_of(broker)) == {GATEWAY: "denied"}
        assert len(verifier.asked) == 3


def test_b_an_old_verifier_that_knows_no_canaries_is_sent_none_and_is_called_silent(broker):
    with scripted(broker, speaks=()) as verifier:
        assert outcomes(result_of(broker)) == {GATEWAY: "silent"}
        assert verifier.asked == []
        assert not verifier.over.is_set()


def test_a_verifier_that_leaves_during_a_drill_fails_nothing(broker):
    with broker.verifier(), scripted(broker, "frontend", is_silent=True) as leaver:
        found = []
        drilling = threading.Thread(target=lambda: found.append(result_of(broker)))
        drilling.start()
        eventually(lambda: leaver.asked, "it is asked")
        leaver.leave()
        drilling.join(30)
        assert found[0].passed
        assert outcomes(found[0]) == {GATEWAY: "denied"}


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


def test_p6_a_stopped_process_is_named_as_silent_and_the_others_are_timed(broker):
    papers = broker.papers["third"]
    process = subprocess.Popen(
        [sys.executable, "-c", VERIFIER, broker.endpoint, broker.trust(), papers.certificate, papers.key, papers.ca],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "fresh\n"
        with broker.verifier():
            os.kill(process.pid, signal.SIGSTOP)
            result = result_of(broker)
            assert outcomes(result) == {THIRD: "silent", GATEWAY: "denied"}
            assert f"silent: {THIRD}" in problems(broker)[0]
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_b_a_drill_where_nobody_listens_or_of_no_realm_is_refused_clearly(own_broker):
    size = settled_head(own_broker.status())
    code, details = refused(lambda: drill(own_broker))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "no verifier listens in realm evaluation" in details
    code, details = refused(lambda: drill(own_broker, realm=""))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "in any realm" in details
    code, details = refused(lambda: drill(own_broker, realm="nowhere"))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "evaluation, research" in details
    code, details = refused(lambda: drill(own_broker, realm="No Realm"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert settled_head(own_broker.status()) == size


def test_p8_without_a_realm_each_realm_that_has_verifiers_is_drilled_by_itself(broker):
    with broker.verifier(), scripted(broker, "gateway-research", realm="research") as other:
        events = drill(broker, realm="")
        results = [event.result for event in events if event.HasField("result")]
        assert {result.realm: result.passed for result in results} == {"evaluation": True, "research": True}
        assert {result.realm: len(result.verifiers) for result in results} == {"evaluation": 1, "research": 1}
        assert len(other.canaries) == 1
        assert len({result.canary for result in results}) == 2
    eventually(lambda: not listening(broker, "research"), "it has gone")


def test_b_a_second_drill_in_the_realm_is_refused_while_the_first_is_under_way(broker):
    with scripted(broker, is_silent=True) as verifier:
        drilling = threading.Thread(target=lambda: drill(broker))
        drilling.start()
        eventually(lambda: verifier.asked, "the first is under way")
        code, details = refused(lambda: drill(broker))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "under way" in details
        verifier.leave()
        drilling.join(30)


def test_a_repeated_request_gets_the_first_answer_and_drills_nothing(broker):
    with scripted(broker) as verifier:
        rid = request_id()
        first = result_of(broker, rid=rid)
        again = result_of(broker, rid=rid)
        assert again == first
        assert len(verifier.canaries) == 1
        code, _ = refused(lambda: drill(broker, rid=rid, realm=""))
        assert code is grpc.StatusCode.ALREADY_EXISTS


def test_a_drill_goes_on_and_is_recorded_when_who_asked_hangs_up(broker):
    with scripted(broker, is_silent=True) as verifier:
        call = broker.drills().Drill(drills_pb2.DrillRequest(request_id=request_id(), realm="evaluation"), timeout=60)
        canary = next(call).begun.canary
        call.cancel()
        verifier.leave()
        eventually(lambda: past(broker)[0].canary == canary, "it is recorded", within_s=30)


def past(served, realm="evaluation", limit=0, name="admin"):
    return list(
        served.drills(name).ListDrills(drills_pb2.ListDrillsRequest(realm=realm, limit=limit), timeout=10).drills
    )


def test_past_drills_are_listed_newest_first_and_an_alarm_outlives_the_broker(own_broker):
    with own_broker.verifier():
        first = result_of(own_broker)
    eventually(lambda: not listening(own_broker), "it has gone")
    with scripted(own_broker, is_deaf=True):
        second = result_of(own_broker)
    assert past(own_broker) == [second, first]
    assert past(own_broker, name="auditor", limit=1) == [second]
    assert past(own_broker, realm="research") == []
    own_broker.kill()
    own_broker.start()
    assert past(own_broker) == [second, first]
    eventually(lambda: problems(own_broker), "the alarm stands")
    assert f"accepting: {GATEWAY}" in problems(own_broker)[0]


def schedule(served, seconds, realm="evaluation"):
    request = drills_pb2.ScheduleDrillsRequest(request_id=request_id(), realm=realm)
    request.every.seconds = seconds
    return served.drills().ScheduleDrills(request, timeout=10).index


def schedules(served):
    found = served.drills().ListDrills(drills_pb2.ListDrillsRequest(), timeout=10).schedules
    return {one.realm: one.every.seconds for one in found}


def test_a_schedule_drills_by_itself_also_after_a_restart_until_it_is_ended(own_broker):
    schedule(own_broker, 10)
    # A realm without verifiers is skipped silently.
    schedule(own_broker, 10, realm="research")
    assert schedules(own_broker) == {"evaluation": 10, "research": 10}
    with own_broker.verifier():
        eventually(lambda: past(own_broker), "a first drill", within_s=40)
        [first] = past(own_broker)
        assert (first.by, first.passed) == ("broker", True)
        own_broker.kill()
        own_broker.start()
        assert schedules(own_broker) == {"evaluation": 10, "research": 10}
        eventually(lambda: len(past(own_broker)) > 1, "a second one, of the next process", within_s=40)
    assert past(own_broker, realm="research") == []
    assert problems(own_broker) == []
    schedule(own_broker, 0)
    schedule(own_broker, 0, realm="research")
    assert schedules(own_broker) == {}


@pytest.mark.parametrize("seconds", [9, -10, 31 * 86_400 + 1])
def test_p7_a_schedule_out_of_its_bounds_is_refused(broker, seconds):
    code, details = refused(lambda: schedule(broker, seconds))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "10 s to 31 days" in details


def test_p7_a_schedule_for_no_realm_is_refused(broker):
    assert refused(lambda: schedule(broker, 10, realm="nowhere"))[0] is grpc.StatusCode.NOT_FOUND
    assert refused(lambda: schedule(broker, 0, realm="nowhere"))[0] is grpc.StatusCode.NOT_FOUND


def test_p12_no_canary_is_in_the_log(broker):
    with scripted(broker) as verifier:
        result_of(broker)
    log = broker.log.read_text()
    assert verifier.canaries[0] not in log
    assert verifier.canaries[0].rpartition(".")[2][:16] not in log


def preview(served, **selector):
    request = revocations_pb2.RevokeRequest(request_id=request_id(), reason="a test", dry_run=True)
    for name, value in selector.items():
        setattr(request.selector, name, value)
    [answer] = served.revocations().Revoke(request, timeout=30)
    return answer.preview


def test_a_survey_sums_what_the_verifiers_concerned_say_and_names_the_silent(broker):
    with (
        scripted(broker, uses=3) as first,
        scripted(broker, "frontend", uses=4),
        scripted(broker, "third", is_silent=True),
        scripted(broker, "gateway-research", realm="research", uses=5) as other,
    ):
        shown = preview(broker, partner="acme", realm="evaluation")
        assert shown.uses == 7
        assert list(shown.silent) == [THIRD]
        [survey] = first.surveys
        assert list(survey.values) == ["evaluation", "acme"]
        assert other.surveys == []
        assert preview(broker, partner="acme").uses == 12
    eventually(lambda: not listening(broker, "research"), "it has gone")


def test_p8_a_survey_is_not_answered_by_who_was_not_asked_nor_twice(broker):
    with scripted(broker, is_silent=True) as verifier, scripted(broker, "frontend", speaks=()) as other:
        shown = []
        asking = threading.Thread(target=lambda: shown.append(preview(broker, partner="acme")))
        asking.start()
        eventually(lambda: verifier.surveys, "it is asked")
        name = verifier.surveys[0].id
        other.say(survey={"id": name, "uses": 100})
        verifier.say(survey={"id": name, "uses": 2**32 - 1})
        verifier.say(survey={"id": name, "uses": 2**32 - 1})
        asking.join(30)
        assert shown[0].uses == 10_000_000
        assert list(shown[0].silent) == [FRONTEND]
