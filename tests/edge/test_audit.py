"""AuditService: what happened, the story of a token or a run, and what was accepted after a revocation."""

import csv
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from broker.sdk import Client, ReceiptPace, Verifier
from broker.sdk.failures import failure_of
from broker.stranger import follower
from broker.v1 import audit_pb2, feed_pb2, ledger_pb2, revocations_pb2, runs_pb2, status_pb2
from tests.completing import ask, document
from tests.receipting import ReceiptKey, accepted
from tests.scripted_verifier import ScriptedVerifier
from tests.served import BROKER, POLICY, Served, request_id, settled_head, wait_until

EACH = POLICY.replace("heartbeat: 1s}", "heartbeat: 1s, receipts: each}", 1).replace(
    "ttl: {default: 10m, max: 1h}}", "ttl: {default: 10m, max: 1h}, delegation: 2}", 1
)
QUICK = ReceiptPace(send_every_s=0.05, sums_every_s=0.2, denials_every_s=0.1, answer_within_s=2.0, again_after_s=0.1)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("served"), policy=EACH) as served:
        yield served


@pytest.fixture(scope="module")
def verifier(broker: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verifier]:
    with broker.verifier(state_dir=tmp_path_factory.mktemp("verifier") / "state", receipt_pace=QUICK) as verifier:
        yield verifier


def query(broker: Served, **filters: Any) -> list[Any]:
    """Return all that is found, page by page."""
    found: list[Any] = []
    token = ""
    while True:
        answer = broker.audit().Query(audit_pb2.QueryRequest(page_token=token, **filters), timeout=10)
        found += answer.events
        token = answer.next_page_token
        if not token:
            return found


def trail(broker: Served, **what: str) -> list[Any]:
    return list(broker.audit().Trail(audit_pb2.TrailRequest(**what), timeout=10).events)


def after(broker: Served, index: int) -> Any:
    return broker.audit().AfterRevocation(audit_pb2.AfterRevocationRequest(index=index), timeout=10)


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    failure = failure_of(caught.value)
    return failure.reason, failure.message


def used(broker: Served, verifier: Verifier, model: str = "mythos", **changes: Any) -> Any:
    minted = broker.mint(models=["mythos", "oracle"], **changes)
    broker.until_accepted(verifier, minted.token, model)
    wait_until(lambda: not verifier.state().receipts_waiting)
    return minted


class LogOf:
    """What a stranger is given of a broker's log."""

    def __init__(self, broker: Served) -> None:
        self._broker = broker

    def entries(self, start: int, limit: int) -> Sequence[bytes]:
        request = ledger_pb2.GetEntriesRequest(start=start, limit=limit)
        return list(self._broker.ledger().GetEntries(request, timeout=10).entries)

    def completion(self, index: int) -> bytes:
        [*_, last] = ask(self._broker, index)
        return document(last.complete).encode()

    def checkpoint(self) -> tuple[bytes, int]:
        answer = self._broker.ledger().GetCheckpoint(ledger_pb2.GetCheckpointRequest(fresh=True), timeout=10)
        return answer.checkpoint, answer.size


def test_which_identity_touched_which_model_is_found_by_each_filter(broker: Served, verifier: Verifier) -> None:
    minted = used(broker, verifier, "oracle")
    [mint] = query(broker, token=minted.id, kind="token-minted")
    assert (mint.index, mint.line, mint.decision, mint.by) == (minted.index, 0, "granted", "spiffe://acme.example/ci")
    assert (mint.realm, mint.partner, mint.user, mint.environment) == ("evaluation", "acme", "alice", "acme-ci")
    assert mint.grant == "acme-evaluation"
    uses = query(broker, token=minted.id, decision="accepted")
    assert {(one.kind, tuple(one.models), one.user, one.by) for one in uses} == {
        ("use", ("oracle",), "alice", "spiffe://lab.example/gateway")
    }
    assert all(one.line >= 1 and one.head >= minted.index for one in uses)
    for filters in (
        {"partner": "acme"}, {"user": "alice"}, {"environment": "acme-ci"}, {"realm": "evaluation"}, {"model": "oracle"},
        {"partner": "acme", "user": "alice", "model": "oracle", "decision": "accepted", "token": minted.id},
        {"by": "spiffe://lab.example/gateway"},
    ):  # fmt: skip
        assert any(one.token == minted.id for one in query(broker, kind="use", **filters)), filters
    for filters in ({"partner": "globex"}, {"model": "mythos", "token": minted.id}, {"realm": "research"}):
        assert not any(one.token == minted.id for one in query(broker, kind="use", **filters)), filters


def test_pages_go_on_where_the_last_ended_and_miss_nothing(broker: Served) -> None:
    indices = [broker.mint("globex", partner="globex", user="bob").index for _ in range(7)]
    found, token = [], ""
    for _ in range(20):
        request = audit_pb2.QueryRequest(partner="globex", kind="token-minted", page_size=2, page_token=token)
        answer = broker.audit().Query(request, timeout=10)
        found += [one.index for one in answer.events]
        token = answer.next_page_token
        if not token:
            break
    assert found[-7:] == indices
    assert found == sorted(set(found))


def test_times_bound_a_query(broker: Served) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    minted = broker.mint()
    for since, until, is_found in (
        (before, None, True),
        (before, before + timedelta(seconds=60), True),
        (before + timedelta(seconds=60), None, False),
        (None, before - timedelta(seconds=60), False),
    ):
        request = audit_pb2.QueryRequest(token=minted.id)
        for name, at in (("from", since), ("until", until)):
            if at is not None:
                getattr(request, name).FromDatetime(at)
        assert bool(broker.audit().Query(request, timeout=10).events) is is_found


def test_a_query_without_bounds_or_with_nonsense_is_refused(broker: Served) -> None:
    for request, words in (
        ({}, "no bounds"),
        ({"page_size": 10}, "no bounds"),
        ({"partner": "no such name!"}, "partner"),
        ({"decision": "maybe"}, "'maybe' is none"),
        ({"kind": "mint"}, "'mint' is none"),
        ({"partner": "acme", "page_size": 1_001}, "page_size"),
        ({"partner": "acme", "page_token": "x"}, "page_token"),
        ({"partner": "acme", "page_token": "1.0.0000000000000000"}, "other filters"),
    ):
        reason, message = refused(
            lambda request=request: broker.audit().Query(audit_pb2.QueryRequest(**request), timeout=10)  # type: ignore[misc]
        )
        assert reason == "INVALID"
        assert words in message
    backwards = audit_pb2.QueryRequest(partner="acme")
    getattr(backwards, "from").FromDatetime(datetime(2026, 1, 2, tzinfo=UTC))
    backwards.until.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    assert refused(lambda: broker.audit().Query(backwards, timeout=10))[0] == "INVALID"
    assert refused(lambda: broker.audit().Trail(audit_pb2.TrailRequest(), timeout=10))[0] == "INVALID"
    assert refused(lambda: trail(broker, token="t" * 22))[0] == "NOT_FOUND"
    assert refused(lambda: after(broker, 1))[0] == "NOT_FOUND"
    assert refused(lambda: after(broker, 2**40))[0] == "NOT_FOUND"
    assert refused(lambda: after(broker, 2**64 - 1))[0] == "INVALID"


def test_the_trail_of_a_child_tells_policy_key_parent_uses_and_its_end(broker: Served, verifier: Verifier) -> None:
    parent = used(broker, verifier)
    with Client.connect(broker.endpoint, identity=broker.identity("acme"), timeout_s=10) as client:
        child = client.exchange(parent.token, models=["mythos"])
    broker.until_accepted(verifier, child.text)
    wait_until(lambda: not verifier.state().receipts_waiting)
    [*_, last] = broker.revoke(token=parent.id, wait=True)
    story = trail(broker, token=child.id)
    roles = [one.role for one in story]
    for role in (
        "the policy in force", "the key that signs it", "an ancestor", "the token was minted", "a use that was accepted",
        "revoked it", "in force everywhere",
    ):  # fmt: skip
        assert role in roles, (role, roles)
    assert [one.index for one in story] == sorted(one.index for one in story)
    assert last.HasField("complete")
    of_parent = trail(broker, token=parent.id)
    assert [one.token for one in of_parent if one.role == "derived from it"] == [child.id]


def test_the_trail_of_a_run_tells_its_tokens_and_its_end(broker: Served) -> None:
    opened = broker.runs().OpenRun(
        runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"]),
        timeout=10,
    )
    run = opened.run.id
    minted = broker.mint(run=run, test="case-1")
    broker.runs().CloseRun(runs_pb2.CloseRunRequest(request_id=request_id(), run=run), timeout=10)
    story = trail(broker, run=run)
    assert [one.kind for one in story if one.run == run] == ["run-opened", "token-minted", "run-closed"]
    assert minted.id in [one.token for one in story]
    assert "the policy in force" in {one.role for one in story}
    of_token = trail(broker, token=minted.id)
    assert {"its run", "the token was minted"} <= {one.role for one in of_token}


def test_p4_after_a_revocation_nothing_was_accepted_and_the_heads_prove_it(broker: Served, verifier: Verifier) -> None:
    minted = used(broker, verifier)
    [committed, *_] = broker.revoke(token=minted.id, wait=True)
    [revoked] = query(broker, token=minted.id, kind="revoked")
    # A later receipt of the same verifier, with a head above the revocation.
    used(broker, verifier)
    told = after(broker, revoked.index)
    assert not told.events
    assert told.proven
    assert told.HasField("in_force_at")
    [one] = [one for one in told.verifiers if one.verifier == "spiffe://lab.example/gateway"]
    assert (one.keeps_receipts, one.stopped) == (True, "acknowledged")
    assert one.head > revoked.index
    assert revoked.index == committed.committed.index


def test_p4_a_use_by_the_last_head_before_the_revocation_accuses_nobody(broker: Served, tmp_path: Path) -> None:
    """A head is how many entries were applied: of the revocation at `index`, the verifier with head `index` knew not."""
    late = replace(QUICK, send_every_s=60.0)
    with broker.verifier(state_dir=tmp_path / "state", receipt_pace=late) as verifier:

        def revoked_at_its_head() -> int:
            """Other entries may come between: then again, by another token."""
            token = broker.mint()
            broker.until_accepted(verifier, token.token)
            settled = settled_head(broker.status())
            wait_until(lambda: verifier.state().head == settled)
            verifier.verify(token.token, "mythos")
            [committed, *_] = broker.revoke(token=token.id, wait=True)
            index = int(committed.committed.index)
            return index if index == settled else 0

        index = wait_until(revoked_at_its_head, 60)
    told = after(broker, index)
    assert not told.events
    assert told.proven
    # Nor does the stranger's check.
    source = LogOf(broker)
    checkpoint, size = source.checkpoint()
    trust = broker.status().GetTrust(status_pb2.GetTrustRequest(), timeout=10).document
    assert len(list(follower(trust, None, source).follow(checkpoint))) == size


def test_p4_a_verifier_that_accepted_after_it_had_applied_the_revocation_convicts_itself(
    broker: Served, verifier: Verifier
) -> None:
    minted = used(broker, verifier)
    broker.revoke(token=minted.id, wait=True)
    [revoked] = query(broker, token=minted.id, kind="revoked")
    # By hand, as a broken verifier would, with a key of its own.
    key = ReceiptKey()
    with ScriptedVerifier(
        broker.endpoint, broker.identity("gateway"), realm="evaluation", speaks=("receipts",)
    ) as broken:
        broken.say(enroll=feed_pb2.EnrollKey(public_key=key.point, signature=key.proof()))
        wait_until(lambda: broken.kept)
        body, signature = key.batch([accepted(minted.id, minted.index, head=revoked.index + 1)])
        broken.say(receipts=feed_pb2.SignedReceipts(body=body, signature=signature))
        wait_until(lambda: len(broken.kept) > 1)
    told = after(broker, revoked.index)
    assert [(one.token, one.head) for one in told.events] == [(minted.id, revoked.index + 1)]
    assert not told.proven


def test_a_use_that_was_in_the_ledger_before_the_revocation_is_not_after_it_whatever_its_clock_said(
    broker: Served,
) -> None:
    """The broker's clock was set back meanwhile: the ledger's order is what counts."""
    minted = broker.mint()
    key, ahead_ms = ReceiptKey(), int(time.time() * 1000) + 20_000
    with ScriptedVerifier(
        broker.endpoint, broker.identity("gateway"), realm="evaluation", speaks=("receipts",)
    ) as scripted:
        scripted.say(enroll=feed_pb2.EnrollKey(public_key=key.point, signature=key.proof()))
        wait_until(lambda: scripted.kept)
        line = accepted(minted.id, minted.index, head=minted.index + 1, first_at_ms=ahead_ms, last_at_ms=ahead_ms)
        body, signature = key.batch([line])
        scripted.say(receipts=feed_pb2.SignedReceipts(body=body, signature=signature))
        wait_until(lambda: len(scripted.kept) > 1)
    [committed, *_] = broker.revoke(token=minted.id, wait=True)
    told = after(broker, committed.committed.index)
    assert told.in_force_at.ToMilliseconds() < ahead_ms
    assert not told.events
    assert told.proven


def test_p4_after_many_single_tokens_were_revoked_the_uses_of_others_are_not_told(
    broker: Served, verifier: Verifier
) -> None:
    dead = [used(broker, verifier) for _ in range(3)]
    other = used(broker, verifier)
    request = revocations_pb2.RevokeTokensRequest(
        request_id=request_id(), tokens=[one.id for one in dead], realm="evaluation", reason="a test", wait=True
    )
    [committed, *_] = [answer.event for answer in broker.revocations().RevokeTokens(request, timeout=30)]
    index = int(committed.committed.index)
    wait_until(lambda: verifier.state().head > index)
    for _ in range(3):
        verifier.verify(other.token, "mythos")
    wait_until(lambda: not verifier.state().receipts_waiting)
    told = after(broker, index)
    assert not told.events
    assert told.proven
    # But those of each of them are.
    key = ReceiptKey()
    with ScriptedVerifier(
        broker.endpoint, broker.identity("gateway"), realm="evaluation", speaks=("receipts",)
    ) as broken:
        broken.say(enroll=feed_pb2.EnrollKey(public_key=key.point, signature=key.proof()))
        wait_until(lambda: broken.kept)
        lines = [accepted(one.id, one.index, number, head=index + 1) for number, one in enumerate(dead, 1)]
        body, signature = key.batch(lines)
        broken.say(receipts=feed_pb2.SignedReceipts(body=body, signature=signature))
        wait_until(lambda: len(broken.kept) > 1)
    assert {one.token for one in after(broker, index).events} == {one.id for one in dead}


def command(broker: Served, *words: str) -> "subprocess.CompletedProcess[str]":
    papers = broker.papers["auditor"]
    options = ["--endpoint", broker.endpoint, "--ca", broker.authority.ca]
    return subprocess.run(
        [BROKER, "audit", *words, *options, "--cert", papers.certificate, "--cert-key", papers.key],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"HOME": str(broker.folder), "XDG_CONFIG_HOME": str(broker.folder)},
    )


def test_the_commands_answer_as_table_json_and_csv(broker: Served, verifier: Verifier) -> None:
    minted = used(broker, verifier)
    found = json.loads(command(broker, "query", "--token", minted.id, "-o", "json").stdout)
    assert found["more"] is False
    assert [one["kind"] for one in found["events"]][:1] == ["token-minted"]
    assert {one["by"] for one in found["events"] if one["kind"] == "use"} == {"spiffe://lab.example/gateway"}
    rows = list(csv.DictReader(command(broker, "query", "--token", minted.id, "-o", "csv").stdout.splitlines()))
    assert [(int(row["index"]), row["kind"], row["token"]) for row in rows] == [
        (one["index"], one["kind"], minted.id) for one in found["events"]
    ]
    shown = command(broker, "query", "--token", minted.id, "--decision", "accepted", "--from", "1h")
    assert "spiffe://lab.example/gateway" in shown.stdout
    few = command(broker, "query", "--kind", "token-minted", "--limit", "1", "-o", "json")
    assert json.loads(few.stdout)["more"] is True
    nobody = command(broker, "query", "--partner", "initech")
    assert (nobody.returncode, "nothing in" in nobody.stdout) == (0, True)
    unbounded = command(broker, "query")
    assert unbounded.returncode == 2
    assert "nothing says what to look for" in unbounded.stderr

    story = command(broker, "trail", minted.id)
    assert "policy" in story.stdout
    assert [one["kind"] for one in json.loads(command(broker, "trail", minted.id, "-o", "json").stdout)["events"]][
        -1:
    ] == ["use"]
    assert command(broker, "trail", "t" * 22).returncode == 1


def test_the_command_that_asks_for_uses_after_a_revocation_ends_with_1_if_there_are_any(
    broker: Served, verifier: Verifier
) -> None:
    minted = used(broker, verifier)
    [committed, *_] = broker.revoke(token=minted.id, wait=True)
    index = int(committed.committed.index)
    good = command(broker, "after-revocation", str(index))
    assert good.returncode == 0, good.stderr
    assert "nobody accepted anything after it, and each verifier signs what it accepts" in good.stdout
    assert json.loads(command(broker, "after-revocation", str(index), "-o", "json").stdout)["proven"] is True
    assert "1 of 1 have signed no receipt since" in good.stdout
    used(broker, verifier)
    later = command(broker, "after-revocation", str(index))
    assert "nobody accepted anything after it" in later.stdout
    assert "no receipt since" not in later.stdout
    key = ReceiptKey()
    with ScriptedVerifier(
        broker.endpoint, broker.identity("gateway"), realm="evaluation", speaks=("receipts",)
    ) as broken:
        broken.say(enroll=feed_pb2.EnrollKey(public_key=key.point, signature=key.proof()))
        wait_until(lambda: broken.kept)
        body, signature = key.batch([accepted(minted.id, minted.index, head=index + 1)])
        broken.say(receipts=feed_pb2.SignedReceipts(body=body, signature=signature))
        wait_until(lambda: len(broken.kept) > 1)
    bad = command(broker, "after-revocation", str(index))
    assert bad.returncode == 1
    assert f"1 uses were accepted after revocation {index}" in bad.stdout
    assert command(broker, "after-revocation", str(minted.index)).returncode == 1


def test_the_index_can_be_deleted_and_is_made_again(broker: Served) -> None:
    minted = broker.mint()
    assert query(broker, token=minted.id)
    broker.kill()
    for one in (broker.folder / "data").glob("events.db*"):
        one.unlink()
    broker.start()
    wait_until(lambda: query(broker, token=minted.id))
    assert [one.index for one in query(broker, token=minted.id)] == [minted.index]
