"""Who may call what: every method of the contract by every role, and by another partner with stolen handles.

The methods are read from the descriptors, so that a new one fails here until somebody has said who may call it.
"""

import importlib
import pkgutil
import re
import threading
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc import status_pb2 as rpc_status

import broker.v1
from broker.v1 import (
    approvals_pb2,
    audit_pb2,
    drills_pb2,
    feed_pb2,
    feed_pb2_grpc,
    ledger_pb2,
    policy_pb2,
    reports_pb2,
    revocations_pb2,
    runs_pb2,
    selector_pb2,
    status_pb2,
    status_pb2_grpc,
    tokens_pb2,
)
from tests.authority import Authority
from tests.served import POLICY, PRINCIPALS, Served, request_id, settled_head

GLOBEX_OWN = tokens_pb2.TokenSpec(realm="evaluation", partner="globex", user="bob", models=["mythos"])
PROTOS = Path(__file__).parents[2] / "protos/broker/v1"
UNHEARD_OF = "run-that-never-was-000"
# The same, but for what acme needs before it gets a token.
WITH_APPROVALS = POLICY.replace("grants:\n", "groups: {board: [carol]}\ngrants:\n").replace(
    "- {id: acme-evaluation, ", "- {id: acme-evaluation, approvals: {needed: 1, group: board}, "
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served")) as served:
        yield served


def refusal(call):
    """Return (code, reason, message, metadata) as Google's own library reads them, or None."""
    try:
        call()
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata())
        status = rpc_status.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.domain == "broker"
        return error.code(), info.reason, status.message, dict(info.metadata)
    return None


def every_method():
    """Every method of every service in broker/v1, whatever file it is in."""
    modules = [
        importlib.import_module(f"broker.v1.{module.name}") for module in pkgutil.iter_modules(broker.v1.__path__)
    ]
    return {
        f"{service.name}/{method.name}"
        for module in modules
        if hasattr(module, "DESCRIPTOR")
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def listen(broker, name, realm):
    """Say hello and read the first message."""
    stub = feed_pb2_grpc.FeedServiceStub(broker.channel(name))
    over = threading.Event()

    def said():
        yield feed_pb2.ListenRequest(hello=feed_pb2.Hello(realm=realm, version="test"))
        over.wait(10)

    stream = stub.Listen(said(), timeout=10)
    try:
        return next(stream)
    finally:
        over.set()
        stream.cancel()


def selecting(**values):
    return selector_pb2.Selector(**values)


def spec(**changes):
    return tokens_pb2.TokenSpec(
        **{"realm": "evaluation", "partner": "acme", "user": "alice", "models": ["mythos"], **changes}
    )


def wish(**changes):
    return approvals_pb2.RequestApprovalRequest(
        **{
            "request_id": request_id(),
            "purpose": approvals_pb2.APPROVAL_PURPOSE_TOKEN,
            "realm": "evaluation",
            "partner": "acme",
            "user": "alice",
            "models": ["mythos"],
            **changes,
        }
    )


ANY = frozenset({"admin", "security", "approver", "operator", "auditor", "partner-admin", "harness", "verifier"})
# Who may call each method, as its comment in protos/ says.
MAY = {
    "TokenService/Mint": {"harness"},
    "TokenService/MintBatch": {"harness"},
    "TokenService/Exchange": {"harness"},
    "RunService/OpenRun": {"harness"},
    "RunService/KeepRun": {"harness"},
    "RunService/CloseRun": {"harness"},
    "RunService/ShowRun": {"harness", "partner-admin", "admin", "auditor"},
    "RunService/ListRuns": {"harness", "partner-admin", "admin", "auditor"},
    "RevocationService/Revoke": {"admin", "security", "partner-admin"},
    "RevocationService/RevokeTokens": {"admin", "security"},
    "RevocationService/GetRevocation": {"admin", "security", "partner-admin", "auditor"},
    "RevocationService/Reinstate": {"admin"},
    "RevocationService/ListRevocations": {"admin", "security", "partner-admin", "auditor"},
    "FeedService/Listen": {"verifier"},
    "PolicyService/ShowPolicy": {"admin", "auditor"},
    "PolicyService/ApplyPolicy": {"admin"},
    "PolicyService/PlanPolicy": {"admin", "auditor"},
    "PolicyService/ListPolicyVersions": {"admin", "auditor"},
    "PolicyService/RestorePolicy": {"admin"},
    "PolicyService/ExplainDenial": {"harness", "partner-admin", "admin", "auditor"},
    "PolicyService/ExplainToken": {"harness", "partner-admin", "admin", "auditor"},
    "PolicyService/ExplainPath": {"admin", "auditor"},
    "PolicyService/Explain": {"harness", "partner-admin", "admin", "auditor"},
    "StatusService/GetStatus": {"admin", "operator", "security", "auditor"},
    "StatusService/ListVerifiers": {"admin", "operator", "security", "auditor"},
    "StatusService/ForgetVerifier": {"admin", "operator"},
    "StatusService/GetTrust": ANY,
    "ApprovalService/RequestApproval": {"harness"},
    "ApprovalService/GetApproval": {"harness", "partner-admin", "admin", "auditor", "approver"},
    "ApprovalService/ListApprovals": {"harness", "partner-admin", "admin", "auditor", "approver"},
    "ApprovalService/WatchApproval": {"harness", "partner-admin", "admin", "auditor", "approver"},
    "ApprovalService/Approve": {"approver"},
    "ApprovalService/Deny": {"approver"},
    "ApprovalService/Withdraw": {"harness"},
    "DrillService/Drill": {"admin", "operator"},
    "DrillService/ScheduleDrills": {"admin", "operator"},
    "DrillService/ListDrills": {"admin", "operator", "auditor"},
    "LedgerService/GetCheckpoint": ANY,
    "LedgerService/ProveInclusion": {"admin", "auditor"},
    "LedgerService/ProveConsistency": {"admin", "auditor"},
    "LedgerService/GetEntries": {"admin", "auditor"},
    "AuditService/Query": {"admin", "auditor"},
    "AuditService/Trail": {"admin", "auditor"},
    "AuditService/AfterRevocation": {"admin", "auditor"},
    "ReportService/Access": {"admin", "auditor"},
}
# A call that is right in every way but, perhaps, for who makes it.
CALLS = {
    "TokenService/Mint": lambda s, n: s.tokens(n).Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=spec())),
    "TokenService/MintBatch": lambda s, n: s.tokens(n).MintBatch(
        tokens_pb2.MintBatchRequest(request_id=request_id(), specs=[spec(), spec()])
    ),
    "TokenService/Exchange": lambda s, n: s.tokens(n).Exchange(
        tokens_pb2.ExchangeRequest(request_id=request_id(), subject_token="a.b.c")
    ),
    "RunService/OpenRun": lambda s, n: s.runs(n).OpenRun(
        runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"])
    ),
    "RunService/KeepRun": lambda s, n: s.runs(n).KeepRun(
        runs_pb2.KeepRunRequest(request_id=request_id(), run=UNHEARD_OF)
    ),
    "RunService/CloseRun": lambda s, n: s.runs(n).CloseRun(
        runs_pb2.CloseRunRequest(request_id=request_id(), run=UNHEARD_OF)
    ),
    "RunService/ShowRun": lambda s, n: s.runs(n).ShowRun(runs_pb2.ShowRunRequest(run=UNHEARD_OF)),
    "RunService/ListRuns": lambda s, n: s.runs(n).ListRuns(runs_pb2.ListRunsRequest()),
    "RevocationService/Revoke": lambda s, n: list(
        s.revocations(n).Revoke(
            revocations_pb2.RevokeRequest(
                request_id=request_id(), selector=selecting(partner="acme", token="A" * 22), reason="x"
            )
        )
    ),
    "RevocationService/RevokeTokens": lambda s, n: list(
        s.revocations(n).RevokeTokens(
            revocations_pb2.RevokeTokensRequest(
                request_id=request_id(), realm="evaluation", tokens=["A" * 22], reason="x"
            )
        )
    ),
    "RevocationService/GetRevocation": lambda s, n: list(
        s.revocations(n).GetRevocation(revocations_pb2.GetRevocationRequest(index=2**40))
    ),
    "RevocationService/Reinstate": lambda s, n: s.revocations(n).Reinstate(
        revocations_pb2.ReinstateRequest(request_id=request_id(), selector=selecting(partner="acme"), reason="x")
    ),
    "RevocationService/ListRevocations": lambda s, n: s.revocations(n).ListRevocations(
        revocations_pb2.ListRevocationsRequest()
    ),
    "FeedService/Listen": lambda s, n: listen(s, n, "evaluation"),
    "PolicyService/ShowPolicy": lambda s, n: s.policies(n).ShowPolicy(policy_pb2.ShowPolicyRequest()),
    "PolicyService/ApplyPolicy": lambda s, n: s.policies(n).ApplyPolicy(
        policy_pb2.ApplyPolicyRequest(request_id=request_id(), document=POLICY)
    ),
    "PolicyService/PlanPolicy": lambda s, n: s.policies(n).PlanPolicy(policy_pb2.PlanPolicyRequest(document=POLICY)),
    "PolicyService/ListPolicyVersions": lambda s, n: s.policies(n).ListPolicyVersions(
        policy_pb2.ListPolicyVersionsRequest()
    ),
    "PolicyService/RestorePolicy": lambda s, n: s.policies(n).RestorePolicy(
        policy_pb2.RestorePolicyRequest(request_id=request_id(), version=1, reason="x")
    ),
    "PolicyService/ExplainDenial": lambda s, n: s.policies(n).ExplainDenial(
        policy_pb2.ExplainDenialRequest(request_id=UNHEARD_OF)
    ),
    "PolicyService/ExplainToken": lambda s, n: s.policies(n).ExplainToken(
        policy_pb2.ExplainTokenRequest(token="A" * 22)
    ),
    "PolicyService/ExplainPath": lambda s, n: s.policies(n).ExplainPath(
        policy_pb2.ExplainPathRequest(realm="evaluation", model="mythos")
    ),
    "PolicyService/Explain": lambda s, n: s.policies(n).Explain(
        policy_pb2.ExplainRequest(spec=spec(), environment="acme-ci")
    ),
    "StatusService/GetStatus": lambda s, n: s.status(n).GetStatus(status_pb2.GetStatusRequest()),
    "StatusService/ListVerifiers": lambda s, n: s.status(n).ListVerifiers(status_pb2.ListVerifiersRequest()),
    "StatusService/ForgetVerifier": lambda s, n: s.status(n).ForgetVerifier(
        status_pb2.ForgetVerifierRequest(
            request_id=request_id(), verifier="spiffe://lab.example/none", realm="evaluation", reason="x"
        )
    ),
    "DrillService/Drill": lambda s, n: list(s.drills(n).Drill(drills_pb2.DrillRequest(request_id=request_id()))),
    "DrillService/ScheduleDrills": lambda s, n: s.drills(n).ScheduleDrills(
        drills_pb2.ScheduleDrillsRequest(request_id=request_id(), realm="evaluation")
    ),
    "DrillService/ListDrills": lambda s, n: s.drills(n).ListDrills(drills_pb2.ListDrillsRequest()),
    "StatusService/GetTrust": lambda s, n: s.status(n).GetTrust(status_pb2.GetTrustRequest()),
    "LedgerService/GetCheckpoint": lambda s, n: s.ledger(n).GetCheckpoint(ledger_pb2.GetCheckpointRequest()),
    "LedgerService/ProveInclusion": lambda s, n: s.ledger(n).ProveInclusion(ledger_pb2.ProveInclusionRequest()),
    "LedgerService/ProveConsistency": lambda s, n: s.ledger(n).ProveConsistency(
        ledger_pb2.ProveConsistencyRequest(old_size=1)
    ),
    "LedgerService/GetEntries": lambda s, n: s.ledger(n).GetEntries(ledger_pb2.GetEntriesRequest(limit=1)),
    "AuditService/Query": lambda s, n: s.audit(n).Query(audit_pb2.QueryRequest(partner="acme")),
    "AuditService/Trail": lambda s, n: s.audit(n).Trail(audit_pb2.TrailRequest(run=UNHEARD_OF)),
    "AuditService/AfterRevocation": lambda s, n: s.audit(n).AfterRevocation(audit_pb2.AfterRevocationRequest(index=0)),
    "ReportService/Access": lambda s, n: s.reports(n).Access(reports_pb2.AccessRequest(partner="acme")),
    "ApprovalService/RequestApproval": lambda s, n: s.approvals(n).RequestApproval(wish()),
    "ApprovalService/GetApproval": lambda s, n: s.approvals(n).GetApproval(
        approvals_pb2.GetApprovalRequest(approval=UNHEARD_OF)
    ),
    "ApprovalService/ListApprovals": lambda s, n: s.approvals(n).ListApprovals(approvals_pb2.ListApprovalsRequest()),
    "ApprovalService/WatchApproval": lambda s, n: list(
        s.approvals(n).WatchApproval(approvals_pb2.WatchApprovalRequest(approval=UNHEARD_OF), timeout=10)
    ),
    "ApprovalService/Approve": lambda s, n: s.approvals(n).Approve(
        approvals_pb2.ApproveRequest(request_id=request_id(), approval=UNHEARD_OF, statement="x")
    ),
    "ApprovalService/Deny": lambda s, n: s.approvals(n).Deny(
        approvals_pb2.DenyRequest(request_id=request_id(), approval=UNHEARD_OF, statement="x")
    ),
    "ApprovalService/Withdraw": lambda s, n: s.approvals(n).Withdraw(
        approvals_pb2.WithdrawRequest(request_id=request_id(), approval=UNHEARD_OF)
    ),
}
WHO = {
    "admin": "admin",
    "security": "security",
    "approver": "approver",
    "operator": "operator",
    "auditor": "auditor",
    "acme-admin": "partner-admin",
    "acme": "harness",
    "gateway": "verifier",
    "stranger": None,
}


def test_every_method_of_the_contract_is_classified():
    assert every_method() == set(MAY) == set(CALLS)
    assert {role for roles in MAY.values() for role in roles} <= ANY


def test_the_contract_says_in_words_who_may_call_each_method():
    """`Role: admin.` or `Roles: harness (its own partner), admin.` above each rpc, or `Every authenticated role`."""
    roles = re.compile("partner-admin|" + "|".join(sorted(ANY - {"partner-admin"})))
    said = {}
    for path in sorted(PROTOS.glob("*.proto")):
        service, comment = "", ""
        for line in path.read_text().splitlines():
            text = line.strip()
            if text.startswith("//"):
                comment += " " + text.removeprefix("//").strip()
            elif text.startswith("service "):
                service = text.split()[1]
            elif text.startswith("rpc "):
                tail = re.split(r"Roles?: ", comment)[-1].partition(". ")[0]
                name = f"{service}/{text.split()[1].partition('(')[0]}"
                said[name] = ANY if "Every authenticated role" in comment else set(roles.findall(tail))
                if tail.startswith("as "):
                    said[name] = said[f"{service}/{tail.removeprefix('as ').rstrip('.')}"]
            if not text.startswith("//"):
                comment = ""
    assert said == MAY


@pytest.mark.parametrize("name", sorted(WHO))
def test_p7_a_method_is_open_to_its_roles_and_to_nobody_else(served, name):
    size = settled_head(served.status())
    for method in sorted(CALLS):
        if WHO[name] in MAY[method]:
            continue
        found = refusal(lambda method=method: CALLS[method](served, name))
        assert found is not None, method
        if WHO[name] is None:
            assert found[:2] == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), method
        else:
            assert found[:2] == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN"), method
            assert "this needs the role" in found[2], method
        assert found[3]["hint"], method
    assert settled_head(served.status()) == size


@pytest.mark.parametrize("name", sorted(name for name, role in WHO.items() if role))
def test_a_role_can_do_what_is_its_own(served, name):
    for method in sorted(CALLS):
        if WHO[name] in MAY[method]:
            found = refusal(lambda method=method: CALLS[method](served, name))
            # That there is no such run is what a harness is told of a run that never was; no grant needs approval here;
            # and what is exchanged is no token.
            is_told = found is None or found[1] in {"NOT_FOUND", "MALFORMED"} or "needs no approval" in found[2]
            assert is_told, (method, found)


EMPTY = {
    "TokenService/Mint": tokens_pb2.MintRequest(),
    "TokenService/MintBatch": tokens_pb2.MintBatchRequest(),
    "TokenService/Exchange": tokens_pb2.ExchangeRequest(),
    "RunService/OpenRun": runs_pb2.OpenRunRequest(),
    "RunService/KeepRun": runs_pb2.KeepRunRequest(),
    "RunService/CloseRun": runs_pb2.CloseRunRequest(),
    "RevocationService/Revoke": revocations_pb2.RevokeRequest(),
    "RevocationService/RevokeTokens": revocations_pb2.RevokeTokensRequest(),
    "RevocationService/Reinstate": revocations_pb2.ReinstateRequest(),
    "StatusService/ForgetVerifier": status_pb2.ForgetVerifierRequest(),
    "DrillService/Drill": drills_pb2.DrillRequest(),
    "DrillService/ScheduleDrills": drills_pb2.ScheduleDrillsRequest(),
    "PolicyService/PlanPolicy": policy_pb2.PlanPolicyRequest(),
    "PolicyService/ApplyPolicy": policy_pb2.ApplyPolicyRequest(),
    "PolicyService/RestorePolicy": policy_pb2.RestorePolicyRequest(),
    "PolicyService/Explain": policy_pb2.ExplainRequest(),
    "PolicyService/ExplainDenial": policy_pb2.ExplainDenialRequest(),
    "PolicyService/ExplainToken": policy_pb2.ExplainTokenRequest(),
    "PolicyService/ExplainPath": policy_pb2.ExplainPathRequest(),
    "ApprovalService/RequestApproval": approvals_pb2.RequestApprovalRequest(),
    "ApprovalService/GetApproval": approvals_pb2.GetApprovalRequest(),
    "ApprovalService/WatchApproval": approvals_pb2.WatchApprovalRequest(),
    "ApprovalService/Approve": approvals_pb2.ApproveRequest(),
    "ApprovalService/Deny": approvals_pb2.DenyRequest(),
    "ApprovalService/Withdraw": approvals_pb2.WithdrawRequest(),
}
STREAMS = {"Revoke", "RevokeTokens", "Drill", "WatchApproval"}


@pytest.mark.parametrize("method", sorted(EMPTY))
def test_p7_an_empty_request_is_refused_and_a_stranger_learns_nothing_of_what_it_lacks(served, method):
    service, name = method.split("/")

    def call(who):
        channel = served.channel(who)
        rpc = channel.unary_stream if name in STREAMS else channel.unary_unary
        # Sent as it is, without a stub.
        answer = rpc(f"/broker.v1.{service}/{name}", lambda message: message.SerializeToString(), bytes)(
            EMPTY[method], timeout=10
        )
        return list(answer) if name in STREAMS else answer

    able = next(name for name in ("acme", "admin", "approver") if WHO[name] in MAY[method])
    found = refusal(lambda: call(able))
    assert found is not None
    assert found[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID")
    assert found[3]["field"]
    assert found[3]["hint"]
    found = refusal(lambda: call("stranger"))
    assert found is not None
    assert found[1] == "UNAUTHENTICATED"


def test_b20_a_caller_of_one_partner_can_neither_act_for_nor_see_another(served):
    run = (
        served.runs("acme")
        .OpenRun(
            runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"])
        )
        .run
    )
    mine = served.mint(run=run.id)
    denied = request_id()
    refusal(lambda: served.tokens("acme").Mint(tokens_pb2.MintRequest(request_id=denied, spec=spec(user="mallory"))))
    served.apply(WITH_APPROVALS)
    approval = served.approvals("acme").RequestApproval(wish()).approval.id
    rid = request_id
    in_their_run = tokens_pb2.TokenSpec(realm="evaluation", partner="globex", user="bob", models=["mythos"], run=run.id)
    beyond_it = tokens_pb2.TokenSpec(realm="evaluation", partner="globex", user="bob", models=["oracle"], run=run.id)
    handles = (
        selecting(partner="acme"),
        selecting(user="alice"),
        selecting(environment="acme-ci"),
        selecting(run=run.id),
        selecting(token=mine.id),
        selecting(run=run.id, partner="globex"),
    )
    walks = {
        "TokenService/Mint": [
            lambda s, each=each: s.tokens("globex").Mint(tokens_pb2.MintRequest(request_id=rid(), spec=each))
            for each in (spec(), spec(user="bob"), spec(run=run.id), in_their_run, beyond_it)
        ],
        "TokenService/MintBatch": [
            lambda s, each=each: s.tokens("globex").MintBatch(
                tokens_pb2.MintBatchRequest(request_id=rid(), specs=[GLOBEX_OWN, each])
            )
            for each in (spec(), in_their_run, beyond_it)
        ],
        "TokenService/Exchange": [
            lambda s, each=each: s.tokens("globex").Exchange(
                tokens_pb2.ExchangeRequest(request_id=rid(), subject_token=mine.token, **each)
            )
            for each in ({}, {"models": ["mythos"]}, {"workload": "nightly"})
        ],
        "RunService/OpenRun": [
            lambda s: s.runs("globex").OpenRun(
                runs_pb2.OpenRunRequest(request_id=rid(), realm="evaluation", partner="acme", models=["mythos"])
            )
        ],
        "RunService/KeepRun": [
            lambda s: s.runs("globex").KeepRun(runs_pb2.KeepRunRequest(request_id=rid(), run=run.id))
        ],
        "RunService/CloseRun": [
            lambda s: s.runs("globex").CloseRun(runs_pb2.CloseRunRequest(request_id=rid(), run=run.id))
        ],
        "RunService/ShowRun": [lambda s: s.runs("globex").ShowRun(runs_pb2.ShowRunRequest(run=run.id))],
        "RunService/ListRuns": [lambda s: s.runs("globex").ListRuns(runs_pb2.ListRunsRequest(partner="acme"))],
        "RevocationService/Revoke": [
            lambda s, each=each: list(
                s.revocations("globex").Revoke(
                    revocations_pb2.RevokeRequest(request_id=rid(), selector=each, reason="x")
                )
            )
            for each in handles
        ],
        "RevocationService/RevokeTokens": [
            lambda s: list(
                s.revocations("globex").RevokeTokens(
                    revocations_pb2.RevokeTokensRequest(
                        request_id=rid(), realm="evaluation", tokens=[mine.id], reason="x"
                    )
                )
            )
        ],
        "RevocationService/GetRevocation": [
            lambda s, index=index: list(
                s.revocations("globex").GetRevocation(revocations_pb2.GetRevocationRequest(index=index))
            )
            for index in (0, 1, mine.index, 2**40)
        ],
        "RevocationService/Reinstate": [
            lambda s, each=each: s.revocations("globex").Reinstate(
                revocations_pb2.ReinstateRequest(request_id=rid(), selector=each, reason="x")
            )
            for each in handles
        ],
        "RevocationService/ListRevocations": [
            lambda s: s.revocations("globex").ListRevocations(revocations_pb2.ListRevocationsRequest())
        ],
        "PolicyService/ShowPolicy": [lambda s: s.policies("globex").ShowPolicy(policy_pb2.ShowPolicyRequest())],
        "PolicyService/ApplyPolicy": [
            lambda s: s.policies("globex").ApplyPolicy(policy_pb2.ApplyPolicyRequest(request_id=rid(), document=POLICY))
        ],
        "PolicyService/PlanPolicy": [
            lambda s: s.policies("globex").PlanPolicy(policy_pb2.PlanPolicyRequest(document=POLICY))
        ],
        "PolicyService/ListPolicyVersions": [
            lambda s: s.policies("globex").ListPolicyVersions(policy_pb2.ListPolicyVersionsRequest())
        ],
        "PolicyService/RestorePolicy": [
            lambda s: s.policies("globex").RestorePolicy(
                policy_pb2.RestorePolicyRequest(request_id=rid(), version=1, reason="x")
            )
        ],
        "PolicyService/ExplainDenial": [
            lambda s, each=each: s.policies("globex").ExplainDenial(each)
            for each in (
                policy_pb2.ExplainDenialRequest(request_id=denied),
                policy_pb2.ExplainDenialRequest(request_id=denied, partner="acme"),
            )
        ],
        "PolicyService/ExplainToken": [
            lambda s, index=index: s.policies("globex").ExplainToken(
                policy_pb2.ExplainTokenRequest(token=mine.id, index=index)
            )
            for index in (0, mine.index)
        ],
        "PolicyService/ExplainPath": [
            lambda s: s.policies("globex").ExplainPath(
                policy_pb2.ExplainPathRequest(realm="evaluation", model="mythos")
            )
        ],
        "PolicyService/Explain": [
            lambda s, each=each: s.policies("globex").Explain(
                policy_pb2.ExplainRequest(spec=each, environment="acme-ci")
            )
            for each in (spec(), spec(user="nobody"), spec(partner="nobody"))
        ],
        "StatusService/GetStatus": [lambda s: s.status("globex").GetStatus(status_pb2.GetStatusRequest())],
        "StatusService/ListVerifiers": [lambda s: s.status("globex").ListVerifiers(status_pb2.ListVerifiersRequest())],
        "StatusService/ForgetVerifier": [
            lambda s: s.status("globex").ForgetVerifier(
                status_pb2.ForgetVerifierRequest(
                    request_id=rid(), verifier="spiffe://lab.example/gateway", realm="evaluation", reason="x"
                )
            )
        ],
        "ApprovalService/RequestApproval": [
            lambda s, each=each: s.approvals("globex").RequestApproval(each)
            for each in (wish(), wish(user="bob"), wish(purpose=approvals_pb2.APPROVAL_PURPOSE_RUN))
        ],
        "ApprovalService/GetApproval": [
            lambda s: s.approvals("globex").GetApproval(approvals_pb2.GetApprovalRequest(approval=approval))
        ],
        "ApprovalService/ListApprovals": [
            lambda s: s.approvals("globex").ListApprovals(approvals_pb2.ListApprovalsRequest(partner="acme"))
        ],
        "ApprovalService/WatchApproval": [
            lambda s: list(
                s.approvals("globex").WatchApproval(approvals_pb2.WatchApprovalRequest(approval=approval), timeout=10)
            )
        ],
        "ApprovalService/Approve": [
            lambda s: s.approvals("globex").Approve(
                approvals_pb2.ApproveRequest(request_id=rid(), approval=approval, statement="x")
            )
        ],
        "ApprovalService/Deny": [
            lambda s: s.approvals("globex").Deny(
                approvals_pb2.DenyRequest(request_id=rid(), approval=approval, statement="x")
            )
        ],
        "ApprovalService/Withdraw": [
            lambda s: s.approvals("globex").Withdraw(approvals_pb2.WithdrawRequest(request_id=rid(), approval=approval))
        ],
        "DrillService/Drill": [
            lambda s: list(s.drills("globex").Drill(drills_pb2.DrillRequest(request_id=rid(), realm="evaluation")))
        ],
        "DrillService/ScheduleDrills": [
            lambda s: s.drills("globex").ScheduleDrills(
                drills_pb2.ScheduleDrillsRequest(request_id=rid(), realm="evaluation")
            )
        ],
        "DrillService/ListDrills": [lambda s: s.drills("globex").ListDrills(drills_pb2.ListDrillsRequest())],
        "LedgerService/ProveInclusion": [
            lambda s, index=index: s.ledger("globex").ProveInclusion(ledger_pb2.ProveInclusionRequest(index=index))
            for index in (0, mine.index, 2**40)
        ],
        "LedgerService/ProveConsistency": [
            lambda s: s.ledger("globex").ProveConsistency(ledger_pb2.ProveConsistencyRequest(old_size=1))
        ],
        "LedgerService/GetEntries": [
            lambda s, index=index: s.ledger("globex").GetEntries(ledger_pb2.GetEntriesRequest(start=index, limit=1))
            for index in (0, mine.index)
        ],
        "AuditService/Query": [lambda s: s.audit("globex").Query(audit_pb2.QueryRequest(partner="acme"))],
        "AuditService/Trail": [
            lambda s: s.audit("globex").Trail(audit_pb2.TrailRequest(token=mine.id)),
            lambda s: s.audit("globex").Trail(audit_pb2.TrailRequest(run=run.id)),
        ],
        "AuditService/AfterRevocation": [
            lambda s: s.audit("globex").AfterRevocation(audit_pb2.AfterRevocationRequest(index=mine.index))
        ],
        "ReportService/Access": [
            lambda s, scope=scope: s.reports("globex").Access(reports_pb2.AccessRequest(**scope))
            for scope in ({"partner": "acme"}, {"realm": "research"}, {"model": "mythos"})
        ],
        "FeedService/Listen": [
            lambda s, realm=realm: listen(s, "globex", realm) for realm in ("evaluation", "research")
        ],
    }
    # What shows no partner is left out: roots and checkpoints are public.
    assert set(walks) == every_method() - {"StatusService/GetTrust", "LedgerService/GetCheckpoint"}
    size = settled_head(served.status())
    for name, calls in walks.items():
        for call in calls:
            found = refusal(lambda call=call: call(served))
            assert found is not None, name
            assert found[0] in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND), name
            # Nothing of theirs is told: neither a model of the run nor who opened it.
            told = f"{found[2]} {found[3]}"
            assert "opened for" not in told, name
            assert "acme.example" not in told, name
    assert settled_head(served.status()) == size
    assert not served.runs("globex").ListRuns(runs_pb2.ListRunsRequest()).runs
    still = served.runs("acme").ListRuns(runs_pb2.ListRunsRequest()).runs
    assert next(one for one in still if one.id == run.id).state == runs_pb2.RUN_STATE_OPEN
    assert not served.approvals("globex").ListApprovals(approvals_pb2.ListApprovalsRequest()).approvals
    asked = served.approvals("acme").GetApproval(approvals_pb2.GetApprovalRequest(approval=approval)).approval
    assert asked.state == approvals_pb2.APPROVAL_STATE_WAITING
    served.apply(POLICY)


@pytest.mark.parametrize("name", ["KeepRun", "CloseRun", "Mint"])
def test_b20_a_run_of_another_partner_cannot_be_told_from_one_that_never_was(served, name):
    run = (
        served.runs("acme")
        .OpenRun(
            runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"])
        )
        .run
    )
    served.mint(run=run.id)

    def call(run_id):
        if name == "Mint":
            return served.tokens("globex").Mint(
                tokens_pb2.MintRequest(
                    request_id=request_id(),
                    spec=tokens_pb2.TokenSpec(
                        realm="evaluation", partner="globex", user="bob", models=["mythos"], run=run_id
                    ),
                )
            )
        request = getattr(runs_pb2, f"{name}Request")(request_id=request_id(), run=run_id)
        return getattr(served.runs("globex"), name)(request)

    theirs, none = refusal(lambda: call(run.id)), refusal(lambda: call(UNHEARD_OF))
    assert theirs is not None
    assert theirs == none


def test_p8_a_verifier_of_one_realm_learns_nothing_of_another(served):
    assert refusal(lambda: listen(served, "gateway", "research"))[:2] == (
        grpc.StatusCode.PERMISSION_DENIED,
        "FORBIDDEN",
    )
    found = refusal(lambda: served.status("gateway").GetTrust(status_pb2.GetTrustRequest(realm="research")))
    assert found[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    document = served.status("gateway").GetTrust(status_pb2.GetTrustRequest()).document
    assert "evaluation" in document
    assert "research" not in document


# Papers.


def status_with(served, issued):
    credentials = grpc.ssl_channel_credentials(
        served.authority.ca.read_bytes(),
        *((issued.key.read_bytes(), issued.certificate.read_bytes()) if issued is not None else ()),
    )
    with grpc.secure_channel(served.endpoint, credentials) as channel:
        return status_pb2_grpc.StatusServiceStub(channel).GetStatus(status_pb2.GetStatusRequest(), timeout=5)


def test_the_papers_that_the_following_tests_spoil_are_good_otherwise(served):
    assert status_with(served, served.authority.client(PRINCIPALS["admin"], name="good")).head


def test_p7_a_certificate_of_another_ca_none_or_one_that_has_ended_does_not_get_in(served, tmp_path):
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC)
    foreign = Authority(tmp_path / "foreign")
    # A name is no trust: this authority is called like ours.
    namesake = Authority(tmp_path / "namesake", name="throw-away authority")
    refused = [
        None,
        foreign.client(PRINCIPALS["admin"]),
        namesake.client(PRINCIPALS["admin"]),
        served.authority.client(PRINCIPALS["admin"], name="ended", not_after=now - timedelta(seconds=2)),
        served.authority.client(PRINCIPALS["admin"], name="early", not_before=now + timedelta(hours=1)),
    ]
    for issued in refused:
        with pytest.raises(grpc.RpcError) as caught:
            status_with(served, issued)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, issued


def test_p7_a_certificate_without_a_principal_or_with_another_is_nobody(served):
    papers = [
        served.authority.client_without_uri(),
        served.authority.client("https://lab.example/ops", name="https"),
        served.authority.client("spiffe://lab.example/ops/", name="slash"),
        served.authority.client("spiffe://lab.example/ops2", name="longer"),
        served.authority.client("spiffe://lab.example/op", name="shorter"),
        served.authority.client("spiffe://LAB.example/ops", name="upper"),
        served.authority.client("spiffe://lab.example/x/../ops", name="dots"),
        served.authority.client("spiffe://lab.example", name="bare"),
    ]
    for issued in papers:
        found = refusal(lambda issued=issued: status_with(served, issued))
        assert found is not None, issued
        assert found[:2] == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"), issued
        assert found[3]["hint"]


def test_removing_a_principal_from_the_policy_works_on_its_open_connection(served):
    stub = served.tokens("globex")
    assert stub.Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=GLOBEX_OWN)).token.token
    without = "\n".join(line for line in POLICY.splitlines() if 'globex.example/cluster", role' not in line) + "\n"
    served.apply(without)
    found = refusal(lambda: stub.Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=GLOBEX_OWN)))
    assert found is not None
    assert found[0] is grpc.StatusCode.UNAUTHENTICATED
    served.apply(POLICY)
    assert stub.Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=GLOBEX_OWN)).token.token
