"""Approvals and runs of before a restore are over: whether they were spent or revoked since, nobody knows."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from broker import stranger
from broker.token.approval import Decision
from broker.v1 import approvals_pb2 as pb
from broker.v1 import runs_pb2, status_pb2
from tests.asked import Person
from tests.e2e.test_restore import backup, done, lose, reason_of, reinstate, restore, run
from tests.served import POLICY, Served, request_id

CAROL = "spiffe://lab.example/approver"
RULE = "approvals: {needed: 1, group: board, window: 1h, valid: 2h, login: 15m}"
BOARD = POLICY.replace("grants:\n", "groups: {board: [carol]}\ngrants:\n", 1).replace(
    "- {id: acme-evaluation, ", f"- {{id: acme-evaluation, {RULE}, "
)


def approved(broker: Served) -> str:
    """Ask for a token, and have carol, who logs in, say yes."""
    since = datetime.now(UTC) - timedelta(seconds=60)
    papers = broker.papers["carol"] = broker.authority.client(CAROL, name="carol", not_before=since)
    person = Person(CAROL)
    person.private = serialization.load_pem_private_key(papers.key.read_bytes(), None)
    asked = broker.approvals("acme").RequestApproval(
        pb.RequestApprovalRequest(
            request_id=request_id(),
            purpose=pb.APPROVAL_PURPOSE_TOKEN,
            realm="evaluation",
            partner="acme",
            user="alice",
            models=["mythos"],
        ),
        timeout=10,
    )
    statement = person.says(hashlib.sha256(asked.approval.request).hexdigest(), Decision.APPROVE, approver=CAROL)
    wish = pb.ApproveRequest(request_id=request_id(), approval=asked.approval.id, statement=statement)
    assert broker.approvals("carol").Approve(wish, timeout=10).approval.state == pb.APPROVAL_STATE_APPROVED
    return str(asked.approval.id)


def state(broker: Served, approval: str) -> int:
    answer = broker.approvals("acme").GetApproval(pb.GetApprovalRequest(approval=approval), timeout=10)
    return int(answer.approval.state)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "served", policy=BOARD) as served:
        yield served


def test_an_approval_that_was_spent_after_the_backup_is_not_spent_again_after_the_restore(
    broker: Served, tmp_path: Path
) -> None:
    spent_before, spent_after, unspent = (approved(broker) for _ in range(3))
    broker.mint(approval=spent_before)
    done(backup(broker, tmp_path / "saved"))
    broker.mint(approval=spent_after)
    assert state(broker, spent_after) == pb.APPROVAL_STATE_SPENT
    broker.kill()
    lose(broker)
    done(restore(broker, tmp_path / "saved"))
    broker.start()
    reinstate(broker, "evaluation")
    assert state(broker, spent_before) == pb.APPROVAL_STATE_SPENT
    for one in (spent_after, unspent):
        assert state(broker, one) == pb.APPROVAL_STATE_VOID
        assert reason_of(lambda one=one: broker.mint(approval=one)) == "APPROVAL_OVER"
    # New ones are as good as ever, and a stranger finds nothing wrong.
    broker.mint(approval=approved(broker))
    export, papers = tmp_path / "export", broker.papers["auditor"]
    flags = ("--ca", papers.ca, "--cert", papers.certificate, "--cert-key", papers.key)
    done(run("audit", "export", str(export), "--endpoint", broker.endpoint, *map(str, flags)))
    trust = broker.status().GetTrust(status_pb2.GetTrustRequest(), timeout=10).document
    assert stranger.verify(export, trust, None, ())["kinds"]["ledger-restored"] == 1


def test_a_run_that_was_revoked_after_the_backup_does_not_live_again_when_its_realm_is_open(
    broker: Served, tmp_path: Path
) -> None:
    opened = [
        broker.runs()
        .OpenRun(
            runs_pb2.OpenRunRequest(request_id=request_id(), realm="research", partner="acme", models=["oracle"]),
            timeout=10,
        )
        .run.id
        for _ in range(2)
    ]
    wish = {"realm": "research", "models": ["oracle"]}
    broker.mint(run=opened[0], **wish)
    done(backup(broker, tmp_path / "saved"))
    broker.revoke(run=opened[0])
    assert reason_of(lambda: broker.mint(run=opened[0], **wish)) == "RUN_ENDED"
    broker.kill()
    lose(broker)
    done(restore(broker, tmp_path / "saved"))
    broker.start()
    reinstate(broker, "research")
    for one in opened:
        assert reason_of(lambda one=one: broker.mint(run=one, **wish)) == "RUN_ENDED"
        keep = runs_pb2.KeepRunRequest(request_id=request_id(), run=one)
        assert reason_of(lambda keep=keep: broker.runs().KeepRun(keep, timeout=10)) == "RUN_ENDED"
    broker.mint(**wish)
