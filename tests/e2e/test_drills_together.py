"""Two brokers on one PostgreSQL: a drill is of all verifiers, whatever the broker that they listen to."""

import os
import signal

import grpc
import pytest

from broker.v1 import drills_pb2
from tests.e2e.test_completion_several import listed, two
from tests.edge.test_drills import (
    DRILLED,
    FRONTEND,
    GATEWAY,
    THIRD,
    drill,
    outcomes,
    past,
    problems,
    refused,
    result_of,
    schedule,
    scripted,
)
from tests.served import request_id
from tests.waiting import eventually

pytest_plugins = ["tests.fixtures_stores"]


@pytest.fixture
def brokers(postgresql, tmp_path):
    database = postgresql.new_database()
    with two(tmp_path, f'url = "{postgresql.url(database)}"', DRILLED) as pair:
        # Papers of both: they share them.
        pair[0].papers["frontend"] = pair[0].authority.client(FRONTEND, name="frontend")
        pair[0].papers["third"] = pair[0].authority.client(THIRD, name="third")
        yield pair
    postgresql.drop_database(database)


def all_known(served, count):
    eventually(lambda: sum(one.state == "fresh" for one in listed(served)) == count, "all are known to all brokers")


def test_p6_verifiers_of_every_broker_see_the_canary_alive_and_then_dead_and_are_timed(brokers):
    here, there = brokers
    with here.verifier(), there.verifier(name="frontend"), scripted(there, "third", refusals=1) as third:
        all_known(here, 3)
        begun, result = (getattr(event, event.WhichOneof("event")) for event in drill(here))
        assert begun.verifiers == 3
        assert outcomes(result) == {GATEWAY: "denied", FRONTEND: "denied", THIRD: "denied"}
        assert result.passed
        assert {one.verdict for one in result.verifiers} == {"REVOKED"}
        for one in result.verifiers:
            assert 0 < one.time_to_deny.ToMilliseconds() < 5_000
        # The same canary, twice since it was refused once.
        assert len(third.canaries) == 2
        assert len(set(third.canaries)) == 1
    assert past(there) == [result]
    assert past(here) == [result]


def test_p6_a_realm_can_be_drilled_where_none_of_its_verifiers_listens(brokers):
    here, there = brokers
    assert refused(lambda: drill(here))[0] is grpc.StatusCode.NOT_FOUND
    with there.verifier():
        all_known(here, 1)
        assert outcomes(result_of(here)) == {GATEWAY: "denied"}
    # It left with a word, so there is nobody left.
    eventually(lambda: all(one.state == "lapsed" for one in listed(here)), "it has gone")
    assert refused(lambda: drill(here))[0] is grpc.StatusCode.NOT_FOUND


def test_p6_who_fails_at_another_broker_is_named(brokers):
    here, there = brokers
    with (
        scripted(here) as good,
        scripted(there, "frontend", is_deaf=True),
        scripted(there, "third", is_silent=True),
    ):
        all_known(here, 3)
        result = result_of(here)
        assert outcomes(result) == {GATEWAY: "denied", FRONTEND: "accepting", THIRD: "silent"}
        assert len(good.canaries) == 1
        assert f"accepting: {FRONTEND}" in problems(here)[0]
        assert f"silent: {THIRD}" in problems(here)[0]


def test_p6_the_verifiers_of_a_broker_that_hangs_are_named_as_silent(brokers):
    here, there = brokers
    with here.verifier(), scripted(there, "frontend"):
        all_known(here, 2)
        os.kill(there.process.pid, signal.SIGSTOP)
        try:
            result = result_of(here)
        finally:
            os.kill(there.process.pid, signal.SIGCONT)
        assert outcomes(result) == {GATEWAY: "denied", FRONTEND: "silent"}
        # It wakes up to a drill that is over, and to the next one.
        eventually(lambda: result_of(here).passed, "all is well", within_s=60)


def test_a_drill_whose_broker_is_killed_is_in_the_way_of_no_other(brokers):
    here, there = brokers
    with scripted(there, "frontend") as verifier, scripted(there, "third", is_deaf=True) as deaf:
        all_known(here, 2)
        request = drills_pb2.DrillRequest(request_id=request_id(), realm="evaluation")
        events = here.drills().Drill(request, timeout=60)
        assert next(events).begun.verifiers == 2
        eventually(lambda: verifier.canaries, "the other broker shows it")
        here.kill()
        with pytest.raises(grpc.RpcError):
            next(events)
        deaf.close()
        eventually(lambda: sum(one.state == "fresh" for one in listed(there)) == 1, "one is left")
        assert outcomes(result_of(there)) == {FRONTEND: "denied"}


def test_a_schedule_is_kept_by_all_brokers_together(brokers):
    here, there = brokers
    with here.verifier(), there.verifier(name="frontend"):
        all_known(here, 2)
        schedule(here, 10)
        eventually(lambda: len(past(here)) >= 3, "three drills", within_s=90)
        third, second, first = past(here)[:3]
        schedule(here, 0)
        for result in (first, second, third):
            assert outcomes(result) == {GATEWAY: "denied", FRONTEND: "denied"}
        assert second.at.ToMilliseconds() - first.at.ToMilliseconds() > 7_500
        assert third.at.ToMilliseconds() - second.at.ToMilliseconds() > 7_500
