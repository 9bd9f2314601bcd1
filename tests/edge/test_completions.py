"""A revocation that proves itself: the completion, through the real door of a real process."""

import hashlib
import json
import ssl
import urllib.request

import grpc
import jwt
import pytest

from broker.errors import Malformed, Revoked, Untrusted
from broker.token.completion import COMPLETION_TYP, check_completions
from broker.token.keys import parse_trust
from broker.v1 import revocations_pb2 as pb
from broker.v1 import runs_pb2, selector_pb2
from tests.completing import ask, document, silent_verifier
from tests.served import ADMIN, Served, request_id, settled_head, wait_until


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture
def own_broker(tmp_path):
    (tmp_path / "served").mkdir()
    with Served(tmp_path / "served") as served:
        yield served


def trusts(served, *realms):
    known = {}
    for realm in realms:
        known |= parse_trust(served.trust(realm).read_text())
    return known


def code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def test_p6_the_completion_names_each_verifier_and_a_stranger_can_check_it(broker):
    verifier = broker.verifier()
    token = broker.mint()
    broker.until_accepted(verifier, token.token)
    events = broker.revoke(wait=True, partner="acme")
    broker.reinstate(partner="acme")
    committed, complete = events[0].committed, events[-1].complete
    assert committed.awaits_completion
    statements = check_completions(document(complete), trusts(broker, "evaluation", "research"))
    assert [statement.realm for statement in statements] == ["evaluation", "research"]
    ours = statements[0]
    assert (ours.index, ours.by, ours.blocks) == (committed.index, ADMIN, True)
    assert dict(ours.selector) == {"partner": "acme"}
    assert [(stop.verifier, stop.state) for stop in ours.verifiers] == [
        ("spiffe://lab.example/gateway", "acknowledged")
    ]
    assert ours.tokens is not None
    assert ours.tokens >= 1
    assert statements[1].verifiers == ()
    with pytest.raises(Revoked):
        verifier.verify(token.token, model="mythos")
    verifier.close()


def test_p6_whoever_asks_again_by_index_gets_the_same_answer(broker):
    events = broker.revoke(wait=True, user="alice")
    broker.reinstate(user="alice")
    again = ask(broker, events[0].committed.index)
    assert again[0].committed == events[0].committed
    assert again[-1].complete == events[-1].complete
    assert ask(broker, events[0].committed.index, wait=False)[-1].complete == events[-1].complete
    assert ask(broker, events[0].committed.index, name="auditor")[-1].complete == events[-1].complete


def test_p10_the_completion_is_in_the_ledger_by_its_hash(broker):
    events = broker.revoke(wait=True, environment="acme-ci")
    broker.reinstate(environment="acme-ci")
    complete = events[-1].complete
    import sqlite3

    with sqlite3.connect(broker.folder / "data" / "ledger.db") as store:
        [[data]] = store.execute("SELECT entry FROM ledger WHERE idx = ?", (complete.entry,)).fetchall()
    entry = json.loads(data)
    assert entry["kind"] == "revocation-completed"
    assert entry["body"]["revocation"] == events[0].committed.index
    assert entry["body"]["sha256"] == hashlib.sha256(document(complete).encode()).hexdigest()


def test_p8_a_realm_speaks_only_for_itself(broker):
    events = broker.revoke(wait=True, workload="nightly")
    broker.reinstate(workload="nightly")
    evaluation, research = events[-1].complete.statements
    both = trusts(broker, "evaluation", "research")
    with pytest.raises((Untrusted, Malformed)):
        check_completions(document(events[-1].complete), {"evaluation": both["evaluation"]})
    # Half of it is not all of it.
    with pytest.raises((Untrusted, Malformed)):
        check_completions(f"{evaluation}\n", both)
    with pytest.raises((Untrusted, Malformed)):
        check_completions(f"{research}\n{evaluation}\n", both)


def test_pyjwt_checks_a_completion_with_the_key_set(broker):
    events = broker.revoke(wait=True, realm="evaluation", whole_realm=True)
    broker.reinstate(realm="evaluation")
    [statement] = events[-1].complete.statements
    context = ssl.create_default_context(cafile=str(broker.authority.ca))
    url = f"https://127.0.0.1:{broker.http_port}/realms/evaluation/jwks.json"

    def key():
        with urllib.request.urlopen(url, context=context) as answer:
            keys = {one["kid"]: one for one in json.load(answer)["keys"]}
        return keys.get(jwt.get_unverified_header(statement)["kid"])

    jwk = wait_until(key)
    assert jwk["broker_purpose"] == "completion"
    claims = jwt.decode(statement, jwt.PyJWK(jwk), algorithms=["ES256"])
    assert claims["index"] == events[0].committed.index
    assert jwt.get_unverified_header(statement)["typ"] == COMPLETION_TYP


def test_a_wait_with_nobody_listening_completes_and_says_so(own_broker):
    events = own_broker.revoke(wait=True, partner="acme")
    assert not events[-1].complete.verifiers
    for statement in check_completions(document(events[-1].complete), trusts(own_broker, "evaluation", "research")):
        assert statement.verifiers == ()


def test_p6_a_verifier_that_never_answers_is_named_when_its_lease_has_run_out(own_broker):
    with silent_verifier(own_broker):
        events = own_broker.revoke(wait=True, partner="acme")
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "committed"
    assert kinds[-1] == "complete"
    assert "progress" in kinds
    [waiting] = events[1].progress.waiting_for
    assert waiting == "spiffe://lab.example/gateway"
    [outcome] = events[-1].complete.verifiers
    assert (outcome.state, outcome.acknowledged) == ("lapsed", False)
    # The realm's lease is 3 s.
    assert outcome.after.ToMilliseconds() >= 3000


def test_p6_what_a_dead_broker_committed_is_completed_by_the_one_that_serves_next(own_broker):
    with silent_verifier(own_broker):
        # It was noted that somebody listens.
        wait_until(lambda: roster(own_broker))
        request = pb.RevokeRequest(
            request_id=request_id(), selector=selector_pb2.Selector(partner="acme"), reason="a test", wait=True
        )
        stream = own_broker.revocations().Revoke(request, timeout=30)
        committed = next(stream).committed
        own_broker.kill()
        code_of(lambda: list(stream))
    own_broker.start()
    events = ask(own_broker, committed.index)
    assert events[0].committed.index == committed.index
    complete = events[-1].complete
    [outcome] = complete.verifiers
    assert (outcome.verifier, outcome.state) == ("spiffe://lab.example/gateway", "lapsed")
    # Waited for from the restart, because when the commit was, only the dead process knew.
    [evaluation, _] = check_completions(document(complete), trusts(own_broker, "evaluation", "research"))
    assert evaluation.waited_ms >= 3000
    assert ask(own_broker, committed.index)[-1].complete == complete
    # The same intent, repeated by the client that lost its stream.
    again = list(own_broker.revocations().Revoke(request, timeout=30))
    assert again[0].committed.index == committed.index
    assert again[-1].complete == complete


def roster(served):
    import sqlite3

    with sqlite3.connect(served.folder / "data" / "ledger.db") as store:
        return store.execute("SELECT count(*) FROM verifiers").fetchone()[0]


def test_a_revocation_of_a_run_that_nobody_waits_for_has_no_completion(broker):
    token = broker.mint()
    [event] = broker.revoke(token=token.id)
    assert not event.committed.awaits_completion
    [told] = ask(broker, event.committed.index, wait=False)
    assert told.committed == event.committed
    assert code_of(lambda: ask(broker, event.committed.index, wait=True)) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("index", [0, 1, 10**9, 2**64 - 1])
def test_an_index_that_is_no_revocation_is_not_found(broker, index):
    assert code_of(lambda: ask(broker, index)) is grpc.StatusCode.NOT_FOUND


def test_neither_a_harness_nor_a_verifier_may_ask(broker):
    [event] = broker.revoke(token=broker.mint().id)
    for name in ("acme", "gateway"):
        assert code_of(lambda name=name: ask(broker, event.committed.index, name=name)) is (
            grpc.StatusCode.PERMISSION_DENIED
        )


def dry(served, *, name="admin", **selector):
    request = pb.RevokeRequest(
        request_id=request_id(), selector=selector_pb2.Selector(**selector), reason="a test", dry_run=True
    )
    return list(served.revocations(name).Revoke(request, timeout=30))


def test_a_dry_run_says_what_it_would_hit_and_writes_nothing(own_broker):
    verifier = own_broker.verifier()
    run = (
        own_broker.runs()
        .OpenRun(
            runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"]),
            timeout=10,
        )
        .run
    )
    tokens = [own_broker.mint(run=run.id, test=f"case-{number}") for number in range(3)]
    other = own_broker.mint("globex", partner="globex", user="bob")
    own_broker.until_accepted(verifier, tokens[0].token)
    size = head(own_broker)
    with verifier.use(tokens[0].token, model="mythos"):
        [event] = dry(own_broker, partner="acme")
    preview = event.preview
    assert (preview.tokens, list(preview.partners), list(preview.users)) == (3, ["acme"], ["alice"])
    assert list(preview.runs) == [run.id]
    assert preview.blocks
    assert preview.uses == 1
    assert list(preview.verifiers) == ["spiffe://lab.example/gateway"]
    assert not preview.silent
    assert list(preview.realms) == ["evaluation", "research"]
    assert head(own_broker) == size
    verifier.verify(tokens[0].token, model="mythos")
    assert own_broker.mint().token
    [narrow] = dry(own_broker, partner="acme", test="case-1")
    assert (narrow.preview.tokens, narrow.preview.blocks) == (1, False)
    [model] = dry(own_broker, model="mythos")
    assert model.preview.tokens == 5
    [none] = dry(own_broker, partner="initech")
    assert none.preview.tokens == 0
    verifier.verify(other.token, model="mythos")
    verifier.close()


def head(served):
    return settled_head(served.status())


def test_a_dry_run_is_refused_where_the_real_one_would_be(broker):
    assert code_of(lambda: dry(broker, realm="evaluation")) is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(lambda: dry(broker, realm="atlantis", partner="acme")) is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(lambda: dry(broker, name="acme", partner="acme")) is grpc.StatusCode.PERMISSION_DENIED
    assert code_of(lambda: dry(broker, name="auditor", partner="acme")) is grpc.StatusCode.PERMISSION_DENIED


def revoke_tokens(served, ids, *, wait=False, name="admin", realm="evaluation", request=None):
    message = pb.RevokeTokensRequest(
        request_id=request or request_id(), realm=realm, tokens=ids, reason="a test", wait=wait
    )
    return [answer.event for answer in served.revocations(name).RevokeTokens(message, timeout=60)]


def test_many_single_tokens_die_in_one_commit_with_one_completion(broker):
    verifier = broker.verifier()
    tokens = [broker.mint() for _ in range(5)]
    spared = broker.mint()
    broker.until_accepted(verifier, spared.token)
    ids = [token.id for token in tokens] + [f"{number:022d}" for number in range(9_995)]
    key = request_id()
    events = revoke_tokens(broker, ids, wait=True, request=key)
    committed, complete = events[0].committed, events[-1].complete
    assert committed.entries == 10_000
    for token in tokens:
        with pytest.raises(Revoked):
            verifier.verify(token.token, model="mythos")
    verifier.verify(spared.token, model="mythos")
    [statement] = check_completions(document(complete), trusts(broker, "evaluation"))
    assert (statement.index, statement.entries) == (committed.index, 10_000)
    assert revoke_tokens(broker, ids, wait=True, request=key)[-1].complete == complete
    assert ask(broker, committed.index)[-1].complete == complete
    verifier.close()


@pytest.mark.parametrize(
    ("ids", "realm"),
    [
        ([], "evaluation"),
        (["a" * 22] * 2, "evaluation"),
        (["not an id"], "evaluation"),
        ([f"{number:022d}" for number in range(10_001)], "evaluation"),
        (["a" * 22], "atlantis"),
        (["a" * 22], ""),
    ],
    ids=["none", "twice", "malformed", "too-many", "unknown-realm", "no-realm"],
)
def test_single_tokens_that_cannot_be_revoked_are_refused_all_together(broker, ids, realm):
    size = head(broker)
    assert code_of(lambda: revoke_tokens(broker, ids, realm=realm)) is grpc.StatusCode.INVALID_ARGUMENT
    assert head(broker) == size


def test_running_uses_that_were_cut_are_counted_in_the_completion(broker):
    verifier = broker.verifier()
    token = broker.mint()
    broker.until_accepted(verifier, token.token)
    with verifier.use(token.token, model="mythos") as one, verifier.use(token.token, model="mythos") as two:
        events = broker.revoke(wait=True, token=token.id)
        assert one.cancelled.is_set()
        assert two.cancelled.is_set()
    complete = events[-1].complete
    assert complete.uses_cut == 2
    [statement] = check_completions(document(complete), trusts(broker, "evaluation", "research"))[:1]
    assert statement.uses_cut == 2
    verifier.close()
