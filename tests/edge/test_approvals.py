"""Approvals on a real broker, by both doors: the certificate's key and the login's sign, and nothing else does."""

import asyncio
import hashlib
import json
import os
import subprocess
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from broker.edge.cli.kept_login import KeptLogin, new_key, write_login
from broker.edge.grpc.watching import MAX_OF_ONE
from broker.errors import ApprovalNeeded, ApprovalOver, Forbidden, Invalid
from broker.sdk import AsyncClient, Client
from broker.token.approval import Decision
from broker.token.keys import public_jwk, thumbprint
from broker.v1 import approvals_pb2 as pb
from broker.v1 import approvals_pb2_grpc, audit_pb2, runs_pb2, status_pb2
from tests.asked import Person
from tests.authority import Authority
from tests.edge.test_callers import refusal
from tests.identified import PRINCIPALS, Identified
from tests.issuer import Issuer
from tests.served import BROKER, request_id, wait_until

CAROL = "spiffe://lab.example/approver"
DANA = '  - {id: dana, role: approver, person: dana, identity: {provider: sso, claims: {sub: "u-dana"}}}\n'
RULE = "approvals: {needed: 2, group: board, window: 1h, valid: 2h, login: 15m}"
RUN = {"realm": "evaluation", "partner": "acme", "models": ["mythos"], "user": "alice"}


def with_board(policy: str) -> str:
    policy = policy.replace("- {id: acme-evaluation, ", f"- {{id: acme-evaluation, {RULE}, ")
    return policy.replace("grants:\n", "groups: {board: [carol, dana]}\ngrants:\n", 1) + DANA


class Board(Identified):
    """As Identified, where a grant needs the approval of carol, who has a certificate, and dana, who logs in."""

    def policy(self, *, principals: str = PRINCIPALS, **more):
        return with_board(super().policy(principals=principals, **more))

    def carol(self, *, logged_in_s: float = 60):
        """Return carol, and her stub: her certificate was made when she logged in."""
        since = datetime.now(UTC) - timedelta(seconds=logged_in_s)
        papers = self.papers["carol"] = self.authority.client(CAROL, name="carol", not_before=since)
        person = Person(CAROL)
        person.private = serialization.load_pem_private_key(papers.key.read_bytes(), None)
        return person, approvals_pb2_grpc.ApprovalServiceStub(self.channel("carol"))

    def dana(self, *, key: Person | None = None, logged_in_s: float | None = 60, **claims):
        """Return dana, and her stub: her identity token is bound to the key by its nonce."""
        person = key or Person("dana")
        since = None if logged_in_s is None else int(time.time() - logged_in_s)
        token = self.sso.token(**{"sub": "u-dana", "auth_time": since, "nonce": thumbprint(person.jwk), **claims})
        return person, approvals_pb2_grpc.ApprovalServiceStub(self.login_channel(token))

    def vote(self, who, approval, decision=Decision.APPROVE, *, key=None, saw=None, signer=None, iat=None):
        person, stub = who
        shown = stub.GetApproval(pb.GetApprovalRequest(approval=approval), timeout=10)
        digest = hashlib.sha256(saw or shown.approval.request).hexdigest()
        statement = (signer or person).says(digest, decision, iat=iat, approver=shown.principal)
        is_login = shown.principal == "dana"
        key = (json.dumps(person.jwk, sort_keys=True) if is_login else "") if key is None else key
        fields = {"request_id": request_id(), "approval": approval, "statement": statement, "key": key}
        if decision is Decision.APPROVE:
            return stub.Approve(pb.ApproveRequest(**fields), timeout=10).approval
        return stub.Deny(pb.DenyRequest(**fields), timeout=10).approval


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    papers = Authority(folder / "issuers").server()
    with ExitStack() as stack:
        issuers = [stack.enter_context(Issuer(papers, path=path)) for path in ("/sso", "/github", "/cluster")]
        yield stack.enter_context(Board(folder, *issuers))


@pytest.fixture
def client(broker):
    with Client.connect(broker.endpoint, identity=broker.identity("acme")) as client:
        yield client


def test_a_harness_asks_two_people_approve_by_both_doors_and_its_run_needs_no_more(broker, client):
    asked = client.request_approval(purpose="run", **RUN)
    assert asked.state == "waiting"
    with pytest.raises(ApprovalNeeded), client.run(**RUN):
        pass
    seen = []
    stub = broker.approvals("acme")
    watching = stub.WatchApproval(pb.WatchApprovalRequest(approval=asked.id), timeout=60)

    def watch():
        seen.extend(event.approval for event in watching)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wait_until(lambda: seen)
    assert broker.vote(broker.carol(), asked.id).state == pb.APPROVAL_STATE_WAITING
    wait_until(lambda: len(seen) >= 2)
    assert broker.vote(broker.dana(), asked.id).state == pb.APPROVAL_STATE_APPROVED
    assert client.wait_approval(asked.id, timeout_s=30).state == "approved"
    wait_until(lambda: seen[-1].state == pb.APPROVAL_STATE_APPROVED)
    with client.run(**RUN, approval=asked.id) as run:
        tokens = {run.token(test=f"case-{n}") for n in range(3)}
        assert len(tokens) == 3
        # The stream ends by itself: nothing can change any more.
        watcher.join(30)
        assert not watcher.is_alive()
        assert seen[-1].spent_on == run.id
    states = [one.state for one in seen]
    assert states == sorted(
        states, key=[pb.APPROVAL_STATE_WAITING, pb.APPROVAL_STATE_APPROVED, pb.APPROVAL_STATE_SPENT].index
    )
    assert states[0] == pb.APPROVAL_STATE_WAITING
    assert states[-1] == pb.APPROVAL_STATE_SPENT
    # How many is told; who it was is nobody's business at the partner.
    assert [(vote.person, vote.principal) for vote in seen[-1].votes] == [("", "")] * 2
    auditor = broker.approvals("auditor").GetApproval(pb.GetApprovalRequest(approval=asked.id)).approval
    assert [(vote.person, vote.approves) for vote in auditor.votes] == [("carol", True), ("dana", True)]


def test_b3_what_is_spent_is_spent_on_one_token(broker, client):
    asked = client.request_approval(purpose="token", **RUN, lifetime_s=60)
    broker.vote(broker.carol(), asked.id)
    broker.vote(broker.dana(), asked.id)
    minted = client.mint(**RUN, lifetime_s=60, approval=asked.id)
    assert client.approval(asked.id).spent_on == minted.id
    with pytest.raises(ApprovalOver):
        client.mint(**RUN, lifetime_s=60, approval=asked.id)
    with pytest.raises(ApprovalOver, match="spent"):
        client.wait_approval(asked.id)


def test_the_trail_of_what_was_approved_begins_with_who_asked_and_who_approved(broker, client):
    asked = client.request_approval(purpose="token", **RUN, lifetime_s=60)
    broker.vote(broker.carol(), asked.id)
    broker.vote(broker.dana(), asked.id)
    minted = client.mint(**RUN, lifetime_s=60, approval=asked.id)
    story = broker.audit().Trail(audit_pb2.TrailRequest(token=minted.id), timeout=10).events
    kinds = [one.kind for one in story]
    wanted = ["approval-requested", "approval-given", "approval-given", "token-minted", "approval-spent"]
    assert [kind for kind in kinds if kind in wanted] == wanted
    assert "policy-applied" in kinds
    assert "key-certified" in kinds
    assert [one.by for one in story if one.kind == "approval-given"] == [CAROL, "dana"]
    [grant] = {one.grant for one in story if one.kind == "token-minted"}
    assert grant == "acme-evaluation"


def test_waiting_ends_with_a_no_also_in_a_loop(broker):
    async def story():
        async with AsyncClient.connect(broker.endpoint, identity=broker.identity("acme")) as client:
            asked = await client.request_approval(purpose="token", **RUN)
            waiting = asyncio.create_task(client.wait_approval(asked.id, timeout_s=60))
            await asyncio.sleep(0)
            await asyncio.to_thread(broker.vote, broker.dana(), asked.id, Decision.DENY)
            with pytest.raises(ApprovalOver) as over:
                await waiting
            assert over.value.metadata["state"] == "denied"
            other = await client.request_approval(purpose="token", **RUN)
            with pytest.raises(ApprovalNeeded, match="0 of 2"):
                await client.wait_approval(other.id, timeout_s=0.1)
            assert (await client.withdraw_approval(other.id)).state == "withdrawn"
            with pytest.raises(Invalid):
                await client.request_approval(purpose="both", **RUN)
            with pytest.raises(Invalid):
                await client.request_approval(purpose="run", **{**RUN, "models": "mythos"})

    asyncio.run(story())


# Whose key signs.


@pytest.fixture
def asked(client):
    return client.request_approval(purpose="token", **RUN).id


def refused(work, reason, field=""):
    found = refusal(work)
    assert found is not None
    assert found[1] == reason, found
    assert found[3].get("field", "") == field, found
    assert found[3]["hint"]


def test_b15_a_login_that_is_bound_to_no_key_or_to_another_signs_nothing(broker, asked):
    mallory = Person("dana")
    other = json.dumps(mallory.jwk)
    dana = broker.dana()
    for who, more in (
        (broker.dana(nonce=None), {}),
        (broker.dana(nonce="n" * 10), {}),
        (dana, {"key": other}),
        (dana, {"key": other, "signer": mallory}),
        (dana, {"key": ""}),
        (dana, {"key": "{}"}),
        (dana, {"key": "x" * 5000}),
        (dana, {"key": json.dumps({**dana[0].jwk, "d": "A" * 43})}),
    ):
        refused(lambda who=who, more=more: broker.vote(who, asked, **more), "INVALID", "key")
    refused(lambda: broker.vote(dana, asked, signer=mallory), "INVALID", "statement")
    assert broker.vote(dana, asked).votes


def test_an_old_login_or_one_that_says_no_time_signs_nothing(broker, asked):
    for who in (broker.dana(logged_in_s=901), broker.dana(logged_in_s=None), broker.carol(logged_in_s=1000)):
        refused(lambda who=who: broker.vote(who, asked), "LOGIN_TOO_OLD")
    assert broker.vote(broker.carol(), asked).votes


def test_b15_beside_a_certificate_no_other_key_counts(broker, asked):
    carol, mallory = broker.carol(), Person(CAROL)
    refused(lambda: broker.vote(carol, asked, key=json.dumps(mallory.jwk), signer=mallory), "INVALID", "key")
    refused(lambda: broker.vote(carol, asked, key=json.dumps(carol[0].jwk)), "INVALID", "key")
    refused(lambda: broker.vote(carol, asked, signer=mallory), "INVALID", "statement")
    # Made with her certificate of before: a new one has a new key.
    before = carol[0]
    refused(lambda: broker.vote(broker.carol(), asked, signer=before), "INVALID", "statement")


def test_b15_what_was_shown_is_what_was_signed(broker, client, asked):
    other = client.request_approval(purpose="token", **RUN, lifetime_s=3600)
    refused(lambda: broker.vote(broker.carol(), other.id, saw=client.approval(asked).request), "INVALID", "statement")
    refused(lambda: broker.vote(broker.carol(), asked, iat=int(time.time()) - 400), "INVALID", "statement")


def test_b15_a_vote_is_not_to_be_sent_again_for_another_decision_or_request(broker, asked):
    person, stub = broker.carol()
    shown = stub.GetApproval(pb.GetApprovalRequest(approval=asked), timeout=10)
    statement = person.says(hashlib.sha256(shown.approval.request).hexdigest(), Decision.APPROVE)
    deny = pb.DenyRequest(request_id=request_id(), approval=asked, statement=statement)
    refused(lambda: stub.Deny(deny, timeout=10), "INVALID", "statement")
    approve = pb.ApproveRequest(request_id=request_id(), approval=asked, statement=statement)
    first = stub.Approve(approve, timeout=10).approval
    assert stub.Approve(approve, timeout=10).approval == first
    approve.request_id = request_id()
    refused(lambda: stub.Approve(approve, timeout=10), "VOTED_ALREADY")


def test_a_ci_job_with_a_token_asks_and_a_human_of_another_partner_sees_nothing(broker):
    stub = approvals_pb2_grpc.ApprovalServiceStub(broker.login_channel(broker.github.github_token()))
    wish = pb.RequestApprovalRequest(
        request_id=request_id(),
        purpose=pb.APPROVAL_PURPOSE_RUN,
        realm="evaluation",
        partner="acme",
        user="alice",
        models=["mythos"],
    )
    made = stub.RequestApproval(wish, timeout=10).approval
    request = json.loads(made.request)
    assert (request["requester"], request["environment"], request["person"]) == ("acme-ci", "github-ci", None)
    bob = approvals_pb2_grpc.ApprovalServiceStub(broker.login_channel(broker.sso.token(sub="u-bob")))
    refused(lambda: bob.GetApproval(pb.GetApprovalRequest(approval=made.id), timeout=10), "NOT_FOUND")
    refused(lambda: next(bob.WatchApproval(pb.WatchApprovalRequest(approval=made.id), timeout=10)), "NOT_FOUND")
    assert not bob.ListApprovals(pb.ListApprovalsRequest(), timeout=10).approvals
    assert stub.Withdraw(pb.WithdrawRequest(request_id=request_id(), approval=made.id), timeout=10).approval.state


def test_what_needs_approval_says_so_to_whoever_has_none(broker, client):
    found = refusal(
        lambda: broker.runs("acme").OpenRun(
            runs_pb2.OpenRunRequest(
                request_id=request_id(), realm="evaluation", partner="acme", user="alice", models=["mythos"]
            )
        )
    )
    assert found[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "APPROVAL_NEEDED")
    assert (found[3]["grant"], found[3]["purpose"]) == ("acme-evaluation", "run")
    assert "broker approval request" in found[3]["hint"]
    with pytest.raises(Forbidden), Client.connect(broker.endpoint, identity=broker.identity("admin")) as admin:
        admin.request_approval(purpose="run", **RUN)


def test_whoever_is_nobody_any_more_watches_nothing_any_more(broker, asked):
    stream = broker.approvals("acme").WatchApproval(pb.WatchApprovalRequest(approval=asked), timeout=60)
    assert next(stream).approval.state == pb.APPROVAL_STATE_WAITING
    policy = broker.policy()
    line = next(one for one in policy.splitlines(keepends=True) if 'acme.example/ci", role' in one)
    broker.apply(policy.replace(line, ""))
    try:
        assert refusal(lambda: list(stream))[:2] == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    finally:
        broker.apply(policy)


def command(broker, *words, code=0, **environment):
    done = subprocess.run(
        [BROKER, *words, "-o", "json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(broker.folder), **environment},
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout or done.stderr)


def test_the_command_line_asks_approves_by_certificate_and_by_login_and_opens_the_run(broker, tmp_path):
    broker.carol()
    papers = {
        name: ("--endpoint", broker.endpoint, "--ca", one.ca, "--cert", one.certificate, "--cert-key", one.key)
        for name, one in broker.papers.items()
    }
    wanted = ("--realm", "evaluation", "--partner", "acme", "--user", "alice", "--model", "mythos")
    asked = command(broker, "approval", "request", "--for", "run", *wanted, *papers["acme"])
    voted = command(broker, "approval", "approve", asked["id"], "--yes", "--sha256", asked["sha256"], *papers["carol"])
    assert [vote["person"] for vote in voted["votes"]] == ["carol"]
    # Dana has logged in: her token is bound to the key that is kept with it.
    key, pem = new_key()
    token = broker.sso.token(sub="u-dana", auth_time=int(time.time()), nonce=thumbprint(public_jwk(key.public_key())))
    ends_at = datetime.now(UTC) + timedelta(minutes=5)
    door = f"127.0.0.1:{broker.login_port}"
    login = KeptLogin(door, broker.sso.url, "u-dana", ends_at, True, token, pem, broker.authority.ca)
    home = tmp_path / "config"
    write_login(login, home / "broker" / "login.json")
    voted = command(broker, "approval", "approve", asked["id"], "--yes", XDG_CONFIG_HOME=str(home))
    assert voted["state"] == "approved"
    assert command(broker, "approval", "wait", asked["id"], *papers["acme"])["state"] == "approved"
    run = command(broker, "run", "open", *wanted, "--approval", asked["id"], *papers["acme"])
    minted = command(broker, "token", "mint", *wanted, "--run", run["id"], *papers["acme"])
    assert minted["grant"] == "acme-evaluation"
    # Spent, it is waited for in vain.
    assert command(broker, "approval", "wait", asked["id"], *papers["acme"], code=3)["state"] == "spent"


def test_one_harness_takes_not_all_the_streams_there_are(broker, asked):
    stub, other = broker.approvals("acme"), broker.approvals("auditor")
    watch = pb.WatchApprovalRequest(approval=asked)
    streams = [stub.WatchApproval(watch, timeout=60) for _ in range(MAX_OF_ONE)]
    assert {next(stream).approval.id for stream in streams} == {asked}
    refused(lambda: next(stub.WatchApproval(watch, timeout=10)), "OVERLOADED")
    assert next(other.WatchApproval(watch, timeout=10)).approval.id == asked
    for stream in streams:
        stream.cancel()
    wait_until(lambda: refusal(lambda: next(stub.WatchApproval(watch, timeout=10))) is None)


def test_p11_what_was_asked_and_approved_outlives_the_broker(broker, client, asked):
    broker.vote(broker.carol(), asked)
    broker.kill()
    broker.start()
    wait_until(lambda: broker.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).minting)
    assert broker.vote(broker.dana(), asked).state == pb.APPROVAL_STATE_APPROVED
    assert client.wait_approval(asked, timeout_s=30).state == "approved"
    assert client.mint(**RUN, approval=asked).id
