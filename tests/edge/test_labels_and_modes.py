"""Labels and modes at a broker's door: grants and revocations by label, and grants that are only audited."""

import json

import grpc
import pytest

from broker.errors import Revoked
from broker.v1 import runs_pb2, tokens_pb2
from tests.edge.test_callers import refusal
from tests.edge.test_observability import metrics
from tests.served import POLICY, Served, request_id, wait_until

LABELLED = POLICY.replace(
    "models: [mythos, oracle]\npartners",
    "models: [mythos, {name: oracle, labels: {clearance: high}}, {name: vision, labels: {clearance: low}}, "
    "{name: vision@lab, labels: {clearance: high}}, {name: dream, labels: {clearance: low}}]\n"
    "groups: {board: [carol]}\npartners",
).replace(
    "grants:\n",
    "grants:\n"
    "  - {id: low-for-us, partner_labels: {jurisdiction: us}, realm: evaluation, model_labels: {clearance: low}, "
    "environments: [acme-ci], users: [alice], ttl: {default: 10m, max: 1h}}\n"
    "  - {id: audited, partner: globex, realm: research, models: [mythos], environments: [globex-cluster], "
    "users: [bob], ttl: {default: 10m, max: 1h}, mode: audit, binding: any, "
    "approvals: {needed: 1, group: board}, "
    "limits: {batch: 1, mints_per_minute: 1, live_tokens: 1, live_runs: 1, tokens_per_run: 1}}\n",
)
BOB = {"realm": "research", "partner": "globex", "user": "bob", "models": ["mythos"]}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served"), policy=LABELLED) as served:
        yield served


def metric(served, rule):
    return metrics(served).get(f'broker_would_deny_total{{grant="audited",rule="{rule}"}}', 0.0)


def test_a_grant_by_labels_covers_what_has_the_label_and_nothing_else(served):
    assert served.mint(models=["vision"]).grant == "low-for-us"
    assert served.mint(models=["vision", "dream"]).grant == "low-for-us"
    assert served.mint(models=["oracle"]).grant == "acme-evaluation"
    for models in (["vision", "oracle"], ["sphinx"]):
        request = tokens_pb2.MintRequest(request_id=request_id(), spec=served.spec(models=models))
        found = refusal(lambda request=request: served.tokens("acme").Mint(request))
        assert found[1] == "NOT_GRANTED"
    # globex has no such label.
    spec = tokens_pb2.TokenSpec(realm="evaluation", partner="globex", user="bob", models=["vision"])
    found = refusal(lambda: served.tokens("globex").Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=spec)))
    assert found[1] == "NOT_GRANTED"


def test_p4_a_revocation_by_a_models_label_kills_and_blocks_what_reaches_such_a_model(served):
    high = {
        "the model": served.mint(models=["oracle"]),
        # A token for a name reaches its instances, and one of them has the label.
        "all instances": served.mint(models=["vision"]),
        "the instance": served.mint(models=["vision@lab"]),
        "among others": served.mint(models=["mythos", "oracle"]),
    }
    low = {"another model": served.mint(models=["mythos"]), "a low one": served.mint(models=["dream"])}
    with served.verifier() as verifier:
        asked = {
            "the instance": "vision@lab",
            "all instances": "vision",
            "a low one": "dream",
            "another model": "mythos",
        }
        for name, minted in (high | low).items():
            served.until_accepted(verifier, minted.token, asked.get(name, "oracle"))
        served.revoke(label="clearance=high", wait=True)
        for name, minted in high.items():
            with pytest.raises(Revoked):
                verifier.verify(minted.token, model=asked.get(name, "oracle"))
        for name, minted in low.items():
            assert verifier.verify(minted.token, model=asked[name])
    for models in (["oracle"], ["vision"], ["vision@lab"]):
        request = tokens_pb2.MintRequest(request_id=request_id(), spec=served.spec(models=models))
        assert refusal(lambda request=request: served.tokens("acme").Mint(request))[1] == "BLOCKED"
    assert served.mint(models=["dream"]).token
    served.reinstate(label="clearance=high")


def test_an_audited_grant_allows_what_it_would_deny_and_says_so(served):
    before = {
        rule: metric(served, rule) for rule in ("binding", "approvals", "batch", "mints_per_minute", "live_tokens")
    }
    spec = tokens_pb2.TokenSpec(**BOB)
    minted = served.tokens("globex").MintBatch(
        tokens_pb2.MintBatchRequest(request_id=request_id(), specs=[spec] * 3), timeout=10
    )
    assert [token.grant for token in minted.tokens] == ["audited"] * 3
    again = served.tokens("globex").Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=spec), timeout=10)
    assert again.token.grant == "audited"
    for rule, count in before.items():
        assert wait_until(lambda rule=rule, count=count: metric(served, rule) > count), rule
    lines = [json.loads(line) for line in served.log.read_text().splitlines() if "would be denied" in line]
    assert {line["rule"] for line in lines} >= set(before)
    assert {line["grant"] for line in lines} == {"audited"}


def test_an_audited_grant_allows_runs_beyond_its_limits_and_says_so(served):
    def opened():
        request = runs_pb2.OpenRunRequest(
            request_id=request_id(), realm="research", partner="globex", models=["mythos"], user="bob"
        )
        return served.runs("globex").OpenRun(request, timeout=10).run

    runs = [opened(), opened()]
    assert wait_until(lambda: metric(served, "live_runs") > 0)
    for _ in range(2):
        spec = tokens_pb2.TokenSpec(**BOB, run=runs[0].id)
        served.tokens("globex").Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=spec), timeout=10)
    assert wait_until(lambda: metric(served, "tokens_per_run") > 0)


def test_mode_audit_opens_nothing_that_no_grant_covers_nor_what_is_blocked(served):
    for changes, reason in (({"models": ["oracle"]}, "NOT_GRANTED"), ({"user": "mallory"}, "NOT_GRANTED")):
        spec = tokens_pb2.TokenSpec(**{**BOB, **changes})
        request = tokens_pb2.MintRequest(request_id=request_id(), spec=spec)
        assert refusal(lambda request=request: served.tokens("globex").Mint(request))[1] == reason
    served.revoke(partner="globex")
    request = tokens_pb2.MintRequest(request_id=request_id(), spec=tokens_pb2.TokenSpec(**BOB))
    found = refusal(lambda: served.tokens("globex").Mint(request))
    assert found[:2] == (grpc.StatusCode.PERMISSION_DENIED, "BLOCKED")
    served.reinstate(partner="globex")
