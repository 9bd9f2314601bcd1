"""What a partner's own admin and the security role can do, and what they are not told."""

import grpc
import pytest

from broker.v1 import revocations_pb2, runs_pb2, selector_pb2, tokens_pb2
from tests.edge.test_callers import UNHEARD_OF, refusal
from tests.served import Served, request_id, settled_head


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served")) as served:
        yield served


def revoke(served, name, *, wait=False, dry_run=False, **selector):
    request = revocations_pb2.RevokeRequest(
        request_id=request_id(),
        selector=selector_pb2.Selector(**selector),
        reason="a test",
        wait=wait,
        dry_run=dry_run,
        whole_realm=True,
    )
    return list(served.revocations(name).Revoke(request, timeout=30))


def told(served, name, index):
    request = revocations_pb2.GetRevocationRequest(index=index)
    return list(served.revocations(name).GetRevocation(request, timeout=10))


def listed(served, name, **options):
    return served.revocations(name).ListRevocations(revocations_pb2.ListRevocationsRequest(**options), timeout=10)


NOT_ITS_OWN = [
    {"partner": "acme"},
    {"partner": "acme", "user": "alice"},
    {"user": "alice"},
    {"user": "bob"},
    {"realm": "evaluation"},
    {"environment": "globex-cluster"},
    {"model": "mythos"},
    {"label": "jurisdiction=us"},
    {"run": UNHEARD_OF},
    {"token": "A" * 22},
    {"key": "A" * 43},
    {"partner": "nobody"},
    {"partner": "globex-evil"},
    {"partner": "globe"},
]


@pytest.mark.parametrize("dry_run", [False, True], ids=["revoke", "dry run"])
def test_b20_a_partners_admin_revokes_nothing_that_does_not_name_its_own_partner(served, dry_run):
    size = settled_head(served.status())
    for selector in NOT_ITS_OWN:
        found = refusal(lambda selector=selector: revoke(served, "globex-admin", dry_run=dry_run, **selector))
        assert found is not None, selector
        assert found[:2] == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN"), selector
        assert "own partner only" in found[2], selector
    assert settled_head(served.status()) == size


def test_b20_a_partners_admin_sees_the_revocations_of_its_own_partner_alone(served):
    theirs = revoke(served, "admin", partner="acme", user="nobody")[0].committed.index
    of_all = revoke(served, "admin", user="nobody-at-all")[0].committed.index
    mine = revoke(served, "globex-admin", partner="globex", user="nobody")[0].committed.index
    for_me = revoke(served, "admin", partner="globex", test="case-7")[0].committed.index
    answer = listed(served, "globex-admin")
    assert [one.index for one in answer.revocations] == [mine, for_me]
    assert [one.selector.partner for one in answer.blocks] == ["globex"]
    assert [one.index for one in listed(served, "globex-admin", limit=1).revocations] == [mine]
    assert listed(served, "globex-admin", limit=1).more
    assert not listed(served, "globex-admin", after=mine, limit=1).more
    assert {theirs, of_all, mine} <= {one.index for one in listed(served, "security").revocations}
    assert told(served, "globex-admin", mine)[0].event.committed.reason == "a test"
    # Of another's, or of everybody's, no more is told than of one that never was.
    never = refusal(lambda: told(served, "globex-admin", 2**40))
    for index in (theirs, of_all):
        found = refusal(lambda index=index: told(served, "globex-admin", index))
        assert found[2].replace(str(index), str(2**40)) == never[2]
        assert found[:2] == never[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    served.reinstate(partner="acme", user="nobody")
    served.reinstate(user="nobody-at-all")
    served.reinstate(partner="globex", user="nobody")


def test_p8_a_partners_admin_is_not_told_who_verifies_nor_of_realms_where_it_has_no_grant(served):
    verifier = served.verifier()
    try:
        events = revoke(served, "globex-admin", wait=True, partner="globex", test="case-8")
        [preview] = revoke(served, "globex-admin", dry_run=True, partner="globex")
        [full] = revoke(served, "security", dry_run=True, partner="globex")
    finally:
        verifier.close()
    assert events[-1].complete.entry
    said = "".join(str(event) for event in (*events, preview))
    assert "gateway" not in said
    assert "research" not in said
    assert list(preview.preview.realms) == ["evaluation"]
    assert not events[-1].complete.statements
    # Who may know is told.
    assert "gateway" in str(full)
    assert list(full.preview.realms) == ["evaluation", "research"]


def test_b20_a_partners_admin_sees_the_runs_of_its_own_partner_alone(served):
    opened = (
        served.runs("acme")
        .OpenRun(
            runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"])
        )
        .run
    )
    runs = {
        name: served.runs(name).ListRuns(runs_pb2.ListRunsRequest()).runs for name in ("acme-admin", "globex-admin")
    }
    assert opened.id in {run.id for run in runs["acme-admin"]}
    assert not runs["globex-admin"]
    found = refusal(lambda: served.runs("globex-admin").ListRuns(runs_pb2.ListRunsRequest(partner="acme")))
    assert found[:2] == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN")


def test_p4_who_may_revoke_may_not_give_back_what_is_revoked(served):
    """A stolen security or partner-admin identity can stop work; it lets nobody in."""
    revoke(served, "security", partner="globex")
    for name in ("security", "globex-admin"):
        found = refusal(
            lambda name=name: served.revocations(name).Reinstate(
                revocations_pb2.ReinstateRequest(
                    request_id=request_id(), selector=selector_pb2.Selector(partner="globex"), reason="x"
                )
            )
        )
        assert found[:2] == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN")
    bob = tokens_pb2.TokenSpec(realm="evaluation", partner="globex", user="bob", models=["mythos"])
    found = refusal(lambda: served.tokens("globex").Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=bob)))
    assert found[1] == "BLOCKED"
    assert served.reinstate(partner="globex").lifted


def test_the_security_role_revokes_whatever_there_is(served):
    minted = served.mint()
    for selector in ({"token": minted.id}, {"user": "nobody", "realm": "research"}, {"key": "B" * 43}):
        assert revoke(served, "security", **selector)[0].committed.by == "spiffe://lab.example/security"
    served.reinstate(user="nobody", realm="research")
