"""Receipts of a real verifier at a real broker: each use, sums, denials, ends, and closed without a place for them."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from broker.errors import Invalid, NotAllowed, ReceiptsUnkept, Rejected, Revoked, Untrusted
from broker.sdk import ReceiptPace, Verifier
from broker.sdk.asgi import BearerMiddleware
from broker.sdk.receipting import MAX_DENIED, Receipts
from broker.token.jws import b64url
from broker.token.receipts import Line, What
from tests.receipting import alarms_in, batches_in, lines_in
from tests.served import POLICY, Served, wait_until

EACH = POLICY.replace("heartbeat: 1s}", "heartbeat: 1s, receipts: each}", 1)
SUMMED = POLICY.replace("heartbeat: 1s}", "heartbeat: 1s, receipts: summed}", 1)
QUICK = ReceiptPace(send_every_s=0.05, sums_every_s=0.2, denials_every_s=0.1, answer_within_s=2.0, again_after_s=0.1)


@pytest.fixture(scope="module")
def broker(tmp_path_factory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("served"), policy=EACH) as served:
        yield served


@pytest.fixture
def verifier(broker, tmp_path) -> Iterator[Verifier]:
    with broker.verifier(state_dir=tmp_path / "state", receipt_pace=QUICK) as verifier:
        yield verifier


def of(broker: Served, token: str, what: What = What.ACCEPTED) -> list[Line]:
    return [line for line in lines_in(broker.folder, what) if line.token == token]


def until_told(verifier: Verifier) -> None:
    wait_until(lambda: not verifier.state().receipts_waiting)


def refused(call: Callable[[], object]) -> Rejected:
    with pytest.raises(Rejected) as caught:
        call()
    return caught.value


def test_each_accepted_use_is_in_the_ledger_with_token_model_time_head_and_hash(broker, verifier):
    minted = broker.mint(models=["mythos", "oracle"])
    broker.until_accepted(verifier, minted.token)
    until_told(verifier)
    before, head = len(of(broker, minted.id)), verifier.state().head
    request = hashlib.sha256(b"a prompt").digest()
    verifier.verify(minted.token, "mythos", request_hash=request)
    verifier.verify(minted.token, "oracle")
    until_told(verifier)
    one, other = of(broker, minted.id)[before:]
    assert (one.model, other.model) == ("mythos", "oracle")
    assert (one.request_hash, other.request_hash) == (b64url(request), "")
    assert one.index == other.index == minted.index
    assert head <= one.head <= verifier.state().head
    assert one.first_at_ms <= other.first_at_ms
    assert not alarms_in(broker.folder)


def test_what_is_no_hash_is_refused(broker, verifier):
    token = broker.mint().token
    for use in (verifier.verify, verifier.use):
        with pytest.raises(Invalid):
            use(token, "mythos", request_hash=b"short")


def test_a_use_that_lasts_tells_how_it_ended_and_what_it_carried(broker, verifier):
    minted = broker.mint()
    broker.until_accepted(verifier, minted.token)
    with verifier.use(minted.token, "mythos") as use:
        use.count(size=100)
        use.count(calls=2, size=50)
        use.check()
    with verifier.use(minted.token, "mythos") as cut:
        cut.count()
        broker.revoke(token=minted.id)
        assert cut.cancelled.wait(10)
    until_told(verifier)
    ends, numbers = of(broker, minted.id, What.ENDED), [line.number for line in of(broker, minted.id)]
    assert [(end.calls, end.bytes, end.reason) for end in ends] == [(3, 150, ""), (1, 0, "REVOKED")]
    # To be judged again is no further use.
    assert [end.accepted_as for end in ends] == numbers[-2:]


def test_what_a_service_carried_is_told_by_its_middleware(broker, verifier):
    minted = broker.mint()
    broker.until_accepted(verifier, minted.token)

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for word in (b"three ", b"small ", b"words"):
            await send({"type": "http.response.body", "body": word, "more_body": word != b"words"})

    guarded = BearerMiddleware(app, verifier, lambda scope, body: "mythos", max_body_bytes=1000)

    async def ask():
        transport = httpx.ASGITransport(app=guarded)
        async with httpx.AsyncClient(transport=transport, base_url="http://service.example") as client:
            headers = {"Authorization": f"Bearer {minted.token}"}
            return await client.post("/complete", headers=headers, content=b"a prompt")

    assert asyncio.run(ask()).text == "three small words"
    until_told(verifier)
    assert of(broker, minted.id)[-1].request_hash == b64url(hashlib.sha256(b"a prompt").digest())
    [end] = of(broker, minted.id, What.ENDED)
    assert (end.calls, end.bytes, end.reason) == (1, 17, "")


def test_denials_are_summed_and_name_a_token_only_where_its_signature_is_good(broker, verifier):
    minted = broker.mint()
    broker.until_accepted(verifier, minted.token)
    for _ in range(3):
        assert isinstance(refused(lambda: verifier.verify(minted.token, "oracle")), NotAllowed)
    broker.revoke(token=minted.id, wait=True)
    for _ in range(2):
        assert isinstance(refused(lambda: verifier.verify(minted.token, "mythos")), Revoked)
    forged = minted.token[:-10] + "AAAAAAAAAA"
    assert isinstance(refused(lambda: verifier.verify(forged, "mythos")), Untrusted)
    refused(lambda: verifier.verify("no token", "mythos"))

    def denied() -> dict[tuple[str, str], int]:
        sums: dict[tuple[str, str], int] = {}
        for line in lines_in(broker.folder, What.DENIED):
            sums[line.token, line.reason] = sums.get((line.token, line.reason), 0) + line.count
        return sums

    wait_until(lambda: ("", "MALFORMED") in denied())
    assert denied()[minted.id, "NOT_ALLOWED"] == 3
    assert denied()[minted.id, "REVOKED"] == 2
    assert denied()["", "MALFORMED"] == 1
    assert of(broker, minted.id, What.DENIED)[0].model == "oracle"


def test_p7_without_a_place_for_receipts_nothing_is_accepted_and_it_says_what_to_do(broker):
    token = broker.mint().token
    with Verifier.connect(
        broker.endpoint, realm="evaluation", trust=broker.trust(), identity=broker.identity("gateway")
    ) as verifier:
        with pytest.raises(ReceiptsUnkept, match="state_dir"):
            verifier.wait_fresh(3)
        wait_until(lambda: verifier.state().is_fresh)
        why = refused(lambda: verifier.verify(token, "mythos"))
        assert (why.reason, why.http_status, why.grpc_code) == ("RECEIPTS_UNKEPT", 503, "UNAVAILABLE")
        assert "state_dir" in str(why)
        assert "state_dir" in verifier.state().problem
        with pytest.raises(ReceiptsUnkept), verifier.use(token, "mythos"):
            pass


def test_a_policy_that_begins_or_ends_to_demand_receipts_is_followed(broker, tmp_path):
    minted = broker.mint()
    with broker.verifier(state_dir=tmp_path, receipt_pace=QUICK) as verifier:
        broker.until_accepted(verifier, minted.token)
        broker.apply(POLICY)
        until_told(verifier)
        wait_until(lambda: not of_next(verifier, broker, minted))
        broker.apply(EACH)
        wait_until(lambda: of_next(verifier, broker, minted))


def of_next(verifier: Verifier, broker: Served, minted) -> bool:
    """Tell whether a use leaves a receipt, or is refused until there is a place for one."""
    before = len(of(broker, minted.id))
    try:
        verifier.verify(minted.token, "mythos")
    except ReceiptsUnkept:
        return False
    until_told(verifier)
    return len(of(broker, minted.id)) > before


def test_sums_are_of_each_token_model_and_minute(broker, tmp_path):
    broker.apply(SUMMED)
    minted, other = broker.mint(models=["mythos", "oracle"]), broker.mint()
    with broker.verifier(state_dir=tmp_path, receipt_pace=QUICK) as verifier:
        broker.until_accepted(verifier, minted.token)
        broker.until_accepted(verifier, other.token)
        for _ in range(200):
            verifier.verify(minted.token, "mythos")
        verifier.verify(minted.token, "oracle")
        with verifier.use(minted.token, "oracle") as use:
            use.count(size=7)
        until_told(verifier)
    broker.apply(EACH)
    sums = of(broker, minted.id, What.SUMMED)
    assert 201 <= sum(line.count for line in sums if line.model == "mythos") <= 250
    oracle = [line for line in sums if line.model == "oracle"]
    assert (sum(line.count for line in oracle), sum(line.bytes for line in oracle)) == (2, 7)
    assert sum(line.count for line in of(broker, other.id, What.SUMMED)) >= 1
    assert not of(broker, minted.id)
    for line in sums:
        assert line.first_at_ms // 60_000 == line.last_at_ms // 60_000


def test_p11_what_is_left_at_the_end_is_sent_by_the_next_process_under_the_key_it_was_written_for(broker, tmp_path):
    minted = broker.mint()
    slow = ReceiptPace(send_every_s=3600.0)
    first = broker.verifier(state_dir=tmp_path, receipt_pace=slow)
    broker.until_accepted(first, minted.token)
    for _ in range(9):
        first.verify(minted.token, "mythos")
    # As when the process is killed: nothing is drained.
    first._receipts._is_over.set()
    wait_until(lambda: not first._receipts._thread.is_alive())
    first.close()
    left = list((tmp_path / "receipts" / "evaluation").iterdir())
    assert len(left) == 1
    assert not of(broker, minted.id)
    with broker.verifier(state_dir=tmp_path, receipt_pace=QUICK) as second:
        wait_until(lambda: len(of(broker, minted.id)) >= 10)
        second.verify(minted.token, "mythos")
        until_told(second)
    kids = {batch.kid for batch in batches_in(broker.folder) if any(line.token == minted.id for line in batch.lines)}
    assert left[0].name in kids
    assert len(kids) == 2
    # All is told, so nothing is kept.
    assert not list((tmp_path / "receipts" / "evaluation").iterdir())


def test_two_verifiers_of_one_folder_have_keys_of_their_own(broker, tmp_path):
    minted = broker.mint()
    with (
        broker.verifier(state_dir=tmp_path, receipt_pace=QUICK) as one,
        broker.verifier(state_dir=tmp_path, receipt_pace=QUICK) as other,
    ):
        for verifier in (one, other):
            broker.until_accepted(verifier, minted.token)
            verifier.verify(minted.token, "mythos")
            until_told(verifier)
    kids = {batch.kid for batch in batches_in(broker.folder) if any(line.token == minted.id for line in batch.lines)}
    assert len(kids) == 2


def test_no_key_and_no_receipt_can_be_read_by_others(broker, verifier, tmp_path):
    broker.until_accepted(verifier, broker.mint().token)
    for path in (tmp_path / "state" / "receipts").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_many_threads_leave_a_receipt_for_each_use_and_none_twice(broker, verifier):
    minted = broker.mint()
    broker.until_accepted(verifier, minted.token)
    until_told(verifier)
    before = len(of(broker, minted.id))

    def work(lane: int) -> None:
        for number in range(300):
            verifier.verify(minted.token, "mythos", request_hash=(lane * 1000 + number).to_bytes(32, "big"))

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    until_told(verifier)
    hashes = [line.request_hash for line in of(broker, minted.id)[before:]]
    assert len(hashes) == len(set(hashes)) == 1200


def test_a_forked_child_keeps_receipts_of_its_own(broker, tmp_path):
    import subprocess
    import sys

    minted = broker.mint()
    papers = broker.papers["gateway"]
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.edge.sdk.forking_receipts_program", broker.endpoint, str(broker.trust()),
            str(papers.certificate), str(papers.key), str(papers.ca), str(tmp_path), minted.token,
        ],
        capture_output=True, text=True, timeout=90, check=False, cwd=Path(__file__).parents[3],
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    by_kid: dict[str, set[int]] = {}
    for batch in batches_in(broker.folder):
        for line in batch.lines:
            if line.token == minted.id and line.request_hash:
                from broker.token.jws import unb64url

                by_kid.setdefault(batch.kid, set()).add(int.from_bytes(unb64url(line.request_hash), "big"))
    # Before and after the fork in the parent, and in the child.
    assert sorted(by_kid.values(), key=len) == [{200}, {100, 101}]


def test_p7_a_folder_that_cannot_be_used_is_named_and_used_once_it_can_be(broker, tmp_path):
    minted = broker.mint()
    blocked = tmp_path / "receipts"
    blocked.write_text("a file where a folder should be")
    with Verifier.connect(
        broker.endpoint,
        realm="evaluation",
        trust=broker.trust(),
        identity=broker.identity("gateway"),
        state_dir=tmp_path,
        receipt_pace=QUICK,
    ) as verifier:
        with pytest.raises(ReceiptsUnkept, match="cannot be kept"):
            verifier.wait_fresh(3)
        assert isinstance(refused(lambda: verifier.verify(minted.token, "mythos")), ReceiptsUnkept)
        blocked.unlink()
        verifier.wait_fresh(10)
        broker.until_accepted(verifier, minted.token)
        until_told(verifier)
    assert of(broker, minted.id)


def test_strangers_fill_no_memory_with_denials(tmp_path):
    receipts = Receipts(tmp_path, "evaluation", lambda: None)
    for number in range(5000):
        receipts.denied(Revoked("dead"), f"token-{number:06d}", number, "mythos", 1, 1)
    assert len(receipts._denied) <= MAX_DENIED + 1
    assert sum(one[3] for one in receipts._denied.values()) == 5000
    receipts.close(drain_s=0.0)
