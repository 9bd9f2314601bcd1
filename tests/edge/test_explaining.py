"""Explain, at a broker's door: why it was denied, what became of a token, who reaches a model; each to whom it concerns."""

import hashlib

import grpc
import pytest

from broker.sdk.failures import failure_of
from broker.v1 import policy_pb2, runs_pb2, tokens_pb2
from tests.edge.test_callers import UNHEARD_OF, refusal
from tests.served import POLICY, Served, request_id, wait_until

# A realm and a model that are none of acme's business, and a grant that demands more than can be had here.
MORE = (
    POLICY.replace(
        "models: [mythos, oracle]\npartners",
        '  production: {issuer: "https://broker.example/production", audience: models.production, max_ttl: 1h}\n'
        "models: [mythos, oracle, secret]\npartners",
    ).replace("max: 30m}}", "max: 30m}, limits: {batch: 2}}")
    + '  - {id: "spiffe://lab.example/gateway-production", role: verifier, realm: production}\n'
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served"), policy=MORE) as served:
        yield served


def denied_mint(served, name="acme", **changes):
    rid = request_id()
    request = tokens_pb2.MintRequest(request_id=rid, spec=served.spec(**changes))
    with pytest.raises(grpc.RpcError) as caught:
        served.tokens(name).Mint(request, timeout=10)
    return rid, failure_of(caught.value)


def denial(served, name, rid, **options):
    return served.policies(name).ExplainDenial(policy_pb2.ExplainDenialRequest(request_id=rid, **options), timeout=10)


def fate(served, name, token, **options):
    return served.policies(name).ExplainToken(policy_pb2.ExplainTokenRequest(token=token, **options), timeout=10)


def test_a_denial_is_explained_by_its_request_id_at_once_and_after_a_restart(served):
    rid, failure = denied_mint(served, realm="research", models=["mythos", "oracle"])
    at_once = denial(served, "acme", rid)
    assert (at_once.method, at_once.reason, at_once.message) == ("TokenService/Mint", "NOT_GRANTED", failure.message)
    assert at_once.principal == "spiffe://acme.example/ci"
    wait_until(lambda: denial(served, "admin", rid, partner="acme").rules)
    served.process.terminate()
    served.process.wait(20)
    served.start()
    assert denial(served, "auditor", rid) == denial(served, "admin", rid)
    assert denial(served, "admin", rid).policy_version == at_once.policy_version


def test_a_denial_by_a_rule_names_each_rule_and_the_one_thing(served):
    rid = request_id()
    nightly = tokens_pb2.TokenSpec(realm="research", partner="acme", workload="nightly", models=["oracle"])
    assert refusal(lambda: served.tokens("acme").Mint(tokens_pb2.MintRequest(request_id=rid, spec=nightly)))
    explained = denial(served, "acme", rid)
    assert explained.rules[-1].rule == "default"
    assert any(rule.rule == "grant acme-research" and not rule.passes for rule in explained.rules)
    assert explained.remedy == "an admin adds nightly to workloads of grant acme-research"


def test_denials_that_no_grant_decides_are_explained_too(served):
    rid = request_id()
    own = tokens_pb2.TokenSpec(realm="evaluation", partner="globex", user="bob", models=["mythos"])
    assert refusal(
        lambda: served.tokens("globex").MintBatch(tokens_pb2.MintBatchRequest(request_id=rid, specs=[own] * 3))
    )
    explained = denial(served, "globex", rid)
    assert (explained.method, explained.reason) == ("TokenService/MintBatch", "LIMIT_REACHED")
    assert [(rule.rule, rule.passes) for rule in explained.rules][-2:] == [
        ("grant globex-evaluation", True),
        ("batch", False),
    ]
    in_no_run, _ = denied_mint(served, run=UNHEARD_OF)
    assert denial(served, "acme", in_no_run).reason == "NOT_FOUND"
    run = request_id()
    assert refusal(
        lambda: served.runs("acme").OpenRun(
            runs_pb2.OpenRunRequest(request_id=run, realm="research", partner="acme", models=["mythos"])
        )
    )
    assert denial(served, "acme", run).method == "RunService/OpenRun"
    for_another, _ = denied_mint(served, partner="globex", user="bob")
    explained = denial(served, "acme", for_another)
    assert (explained.reason, explained.rules[-1].passes) == ("FORBIDDEN", False)
    assert "globex-evaluation" not in str(explained)


def test_b20_a_denial_of_another_partner_cannot_be_told_from_one_that_never_was(served):
    rid, _ = denied_mint(served, user="mallory")
    never = refusal(lambda: denial(served, "globex", UNHEARD_OF))
    assert never[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    for name in ("globex", "globex-admin"):
        for options in ({}, {"partner": "acme"}, {"partner": "globex"}):
            found = refusal(lambda name=name, options=options: denial(served, name, rid, **options))
            assert (found[0], found[1], found[2].replace(rid, UNHEARD_OF)) == never[:3]
    assert denial(served, "acme-admin", rid).rules


def test_p8_a_denial_tells_a_partner_nothing_of_what_it_was_never_granted(served):
    """Whether a realm or a model exists, or is blocked, must not be learnt by being denied."""
    served.revoke(model="secret")
    told = {}
    for name, changes in (
        ("secret", {"models": ["secret"]}),
        ("unheard-of", {"models": ["unheard-of"]}),
        ("production", {"realm": "production"}),
        ("nowhere", {"realm": "nowhere"}),
    ):
        rid, _ = denied_mint(served, **changes)
        for who in ("acme", "acme-admin"):
            explained = denial(served, who, rid)
            told[name, who] = (
                [(rule.rule, rule.passes, rule.detail.replace(name, "X")) for rule in explained.rules],
                explained.remedy,
                explained.reason,
            )
    for who in ("acme", "acme-admin"):
        assert told["secret", who] == told["unheard-of", who]
        assert told["production", who] == told["nowhere", who]
    # Whoever may see the policy is told the rule that decided.
    rid, _ = denied_mint(served, models=["secret"])
    assert denial(served, "admin", rid).rules[-1].rule == "block model=secret"
    served.reinstate(model="secret")


@pytest.mark.parametrize("rid", ["", "short", "x" * 65, "a b c d e f g h i j", "'; DROP TABLE denials; --"])
def test_what_is_no_request_id_is_refused(served, rid):
    found = refusal(lambda: denial(served, "acme", rid))
    assert found[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID")
    assert found[3]["hint"]


def test_a_token_is_followed_from_alive_to_dead(served):
    minted = served.mint(models=["mythos"])
    alive = fate(served, "acme", minted.id)
    assert (alive.alive, alive.rule, alive.grant, alive.mintable) == (True, "alive", "acme-evaluation", True)
    assert (alive.index, alive.user, alive.environment, list(alive.models)) == (
        minted.index,
        "alice",
        "acme-ci",
        ["mythos"],
    )
    assert alive.policy_version == served.policies().ShowPolicy(policy_pb2.ShowPolicyRequest()).applied_version
    index = served.revoke(user="alice", realm="evaluation")[0].committed.index
    dead = fate(served, "auditor", minted.id, index=minted.index)
    assert (dead.alive, dead.rule, list(dead.revocations)) == (False, "revocation", [index])
    assert "a test" in dead.detail
    assert (dead.mintable, dead.remedy) == (False, "an admin reinstates realm=evaluation user=alice")
    served.reinstate(user="alice", realm="evaluation")
    # P4: it may be minted again, and this one stays dead.
    again = fate(served, "acme-admin", minted.id)
    assert (again.alive, again.mintable) == (False, True)


def test_a_token_that_was_altered_or_forged_with_a_real_id_is_told(served):
    minted = served.mint()
    signed = minted.token.rpartition(".")[0]
    good = hashlib.sha256(signed.encode()).digest()
    assert fate(served, "admin", minted.id, sha256=good).alive
    bad = fate(served, "admin", minted.id, sha256=hashlib.sha256(signed.encode() + b"x").digest())
    assert (bad.alive, bad.rule) == (False, "forged")


def test_b20_a_token_of_another_partner_cannot_be_told_from_one_that_never_was(served):
    minted = served.mint()
    for options in ({}, {"index": minted.index}):
        for name in ("globex", "globex-admin"):
            never = refusal(lambda name=name, options=options: fate(served, name, "A" * 22, **options))
            found = refusal(lambda name=name, options=options: fate(served, name, minted.id, **options))
            assert never[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
            assert (found[0], found[1], found[2].replace(minted.id, "A" * 22)) == never[:3]
    for index in (1, minted.index + 1, 2**40, 2**64 - 1):
        assert refusal(lambda index=index: fate(served, "acme", minted.id, index=index))[1] == "NOT_FOUND"
    for bad in ("", "x", "a b c d e f", minted.token):
        found = refusal(lambda bad=bad: fate(served, "acme", bad))
        assert found[1] == "INVALID"
        # P12: what could be a token is not repeated.
        assert minted.token[10:60] not in str(found)


def test_every_way_to_a_model_is_listed_with_who_can_change_it(served):
    def path(model, realm="evaluation"):
        return served.policies("auditor").ExplainPath(policy_pb2.ExplainPathRequest(realm=realm, model=model))

    answer = path("mythos")
    assert [(way.partner, list(way.subjects), way.grant) for way in answer.ways] == [
        ("acme", ["user alice", "workload nightly"], "acme-evaluation"),
        ("globex", ["user bob"], "globex-evaluation"),
    ]
    assert list(answer.ways[0].environments) == ["acme-ci: certificate spiffe://acme.example/ci"]
    assert answer.ways[0].callers[0].startswith("spiffe://acme.example/ci (harness of acme")
    assert "at most 2 tokens in one batch" in list(answer.ways[1].terms)
    who = {(one.by, one.who) for one in answer.changers}
    assert ("policy", "spiffe://lab.example/ops") in who
    assert {by for by, _ in who} == {"policy", "configuration", "certificates", "keys"}
    assert [way.partner for way in path("oracle").ways] == ["acme"]
    assert [way.partner for way in path("oracle@one").ways] == ["acme"]
    assert not path("secret").ways
    served.revoke(partner="globex")
    assert path("mythos").ways[1].block == "block partner=globex"
    served.reinstate(partner="globex")
    for realm, model, reason in (("nowhere", "mythos", "NOT_FOUND"), ("evaluation", "sphinx", "NOT_FOUND"), ("", "mythos", "INVALID"), ("evaluation", "*", "INVALID")):  # fmt: skip
        assert refusal(lambda realm=realm, model=model: path(model, realm))[1] == reason
