"""`mode: audit`: what a grant's demands would deny is said in the log and the metrics, and allowed; nothing else is."""

import json
import logging
from dataclasses import replace

import pytest

from broker.adapters.logs import JsonLines
from broker.adapters.metrics import PrometheusMeter
from broker.domain.policy import Grant
from broker.errors import LimitReached
from broker.service.enforcing import Demand, enforce

GRANT = Grant(
    id="acme-evals",
    partner="acme",
    realm="evaluation",
    models=frozenset({"mythos"}),
    environments=frozenset({"ci"}),
    users=frozenset({"alice"}),
    workloads=frozenset(),
    default_ttl_s=600,
    max_ttl_s=3600,
)
PROBLEM = LimitReached("4 tokens at once, grant acme-evals allows 3", metadata={"limit": "batch"})


@pytest.mark.parametrize("demand", list(Demand))
def test_what_an_enforced_grant_demands_is_refused(demand):
    meter = PrometheusMeter()
    with pytest.raises(LimitReached) as caught:
        enforce(GRANT, demand, PROBLEM, meter)
    assert caught.value is PROBLEM
    assert b"broker_would_deny_total{" not in meter.render()


@pytest.mark.parametrize("demand", list(Demand))
def test_what_an_audited_grant_demands_is_noted_and_allowed(demand, caplog):
    meter = PrometheusMeter()
    with caplog.at_level(logging.WARNING):
        enforce(replace(GRANT, is_audit_only=True), demand, PROBLEM, meter)
    line = f'broker_would_deny_total{{grant="acme-evals",rule="{demand.value}"}} 1.0'
    assert line.encode() in meter.render()
    [record] = caplog.records
    said = json.loads(JsonLines().format(record))
    assert (said["level"], said["grant"], said["rule"], said["reason"]) == (
        "warning",
        "acme-evals",
        demand.value,
        "LIMIT_REACHED",
    )
    assert said["detail"] == PROBLEM.message
