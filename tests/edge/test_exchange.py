"""Children of tokens, by a real broker and a real verifier (RFC 8693): B2, B3."""

import asyncio
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from broker.errors import Invalid, Revoked
from broker.ledger.entry import decode_entry
from broker.sdk import AsyncClient, Client, DpopKey
from broker.sdk.asking import OwnCertificate
from broker.sdk.failures import failure_of
from broker.token.binding import Bound, Method
from broker.token.claims import TOKEN_TYP, decode_claims
from broker.token.jws import parse_jws
from broker.v1 import ledger_pb2, revocations_pb2, selector_pb2, status_pb2, tokens_pb2
from tests.realm_keys import RealmKeys
from tests.served import BROKER, POLICY, Served, request_id
from tests.waiting import eventually

DEEP = POLICY.replace("workloads: [nightly]\n", "workloads: [nightly, sandbox]\n", 1).replace(
    "workloads: [nightly], ttl", "workloads: [nightly, sandbox], delegation: 2, ttl", 1
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served"), policy=DEEP) as served:
        yield served


@pytest.fixture(scope="module")
def client(served):
    with Client.connect(served.endpoint, identity=served.identity("acme")) as client:
        yield client


@pytest.fixture(scope="module")
def verifier(served):
    with served.verifier() as verifier:
        yield verifier


def claims_of(token):
    return decode_claims(parse_jws(token, typ=TOKEN_TYP).payload)


def asked(served, token, name="acme", rid="", metadata=(), **fields):
    request = tokens_pb2.ExchangeRequest(request_id=rid or request_id(), subject_token=token, **fields)
    return served.tokens(name).Exchange(request, timeout=10, metadata=metadata).token


def refusal(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    failure = failure_of(caught.value)
    return failure.reason, caught.value.code(), failure


def is_dead(verifier, token) -> bool:
    try:
        verifier.verify(token, "mythos")
    except Revoked:
        return True
    return False


def test_a_sandbox_gets_one_model_and_fewer_minutes_and_who_acts_is_named(served, client, verifier):
    parent = served.mint(models=["mythos", "oracle"])
    child = client.exchange(parent.token, models=["mythos@a"], lifetime_s=60, workload="sandbox")
    claims, was = claims_of(child.text), claims_of(parent.token)
    assert (claims.models, claims.parents, claims.sub) == (("mythos@a",), (parent.id,), was.sub)
    assert claims.act == {"sub": "acme/workload/sandbox"}
    assert claims.exp - claims.iat == 60
    assert (claims.idx, claims.jti) == (child.index, child.id)
    served.until_accepted(verifier, child.text, "mythos@a")
    for model in ("mythos", "oracle", "mythos@b"):
        with pytest.raises(Exception, match="cover"):
            verifier.verify(child.text, model)
    grandchild = client.exchange(child.text)
    assert claims_of(grandchild.text).parents == (parent.id, child.id)
    assert claims_of(grandchild.text).exp <= claims.exp
    reason, code, failure = refusal(lambda: asked(served, grandchild.text))
    assert (reason, code) == ("NOT_GRANTED", grpc.StatusCode.PERMISSION_DENIED)
    assert "deep" in failure.message


@pytest.mark.parametrize("ancestor", [0, 1, 2])
def test_a_child_dies_with_any_ancestor_and_nothing_more_is_derived(served, client, verifier, ancestor):
    first = client.mint(realm="evaluation", partner="acme", user="alice", models=["mythos"])
    second = client.exchange(first.text)
    third = client.exchange(second.text)
    line = [first, second, third]
    for one in line:
        served.until_accepted(verifier, one.text)
    served.revoke(token=line[ancestor].id, wait=True)
    for place, one in enumerate(line):
        if place >= ancestor:
            assert is_dead(verifier, one.text), place
            assert refusal(lambda one=one: asked(served, one.text))[:2] == (
                "REVOKED",
                grpc.StatusCode.PERMISSION_DENIED,
            )
        else:
            verifier.verify(one.text, "mythos")


def test_a_child_dies_with_its_parent_also_by_a_model_it_lacks_and_by_a_key_that_did_not_sign_it(tmp_path):
    with Served(tmp_path, policy=DEEP) as served, served.verifier() as verifier:
        parent = served.mint(models=["mythos", "oracle"])
        served.kill()
        served.start()
        # A broker that starts signs with a new key.
        children = [asked(served, parent.token, models=["mythos"]) for _ in range(2)]
        grandchild = asked(served, children[0].token)
        family = [parent, *children, grandchild]
        kids = [parse_jws(one.token, typ=TOKEN_TYP).kid for one in family]
        assert kids[0] not in kids[1:]
        for one in family:
            served.until_accepted(verifier, one.token)
        assert claims_of(grandchild.token).parent_models == ("oracle",)
        # Signed before the restart, and of no kin.
        other = served.mint(models=["mythos"])
        served.until_accepted(verifier, other.token)

        def hit(**selector):
            request = revocations_pb2.RevokeRequest(
                request_id=request_id(), selector=selector_pb2.Selector(**selector), reason="a test", dry_run=True
            )
            [told] = served.revocations().Revoke(request, timeout=30)
            return told.preview.tokens

        assert (hit(model="oracle"), hit(key=kids[0]), hit(key=kids[1])) == (4, 4, 4)
        served.revoke(model="oracle", user="alice", wait=True)
        assert [is_dead(verifier, one.token) for one in (*family, other)] == [True] * 4 + [False]
        parent = served.mint(models=["mythos"])
        served.kill()
        served.start()
        child = asked(served, parent.token)
        served.until_accepted(verifier, child.token)
        served.revoke(key=parse_jws(parent.token, typ=TOKEN_TYP).kid, wait=True)
        assert is_dead(verifier, child.token)
        assert refusal(lambda: asked(served, child.token))[0] == "REVOKED"


def test_a_revocation_tells_how_many_children_it_hits(served, client):
    parent = served.mint()
    client.exchange(client.exchange(parent.token, workload="sandbox").text, workload="nightly")

    def hit(**selector):
        request = revocations_pb2.RevokeRequest(
            request_id=request_id(), selector=selector_pb2.Selector(**selector), reason="a test", dry_run=True
        )
        [told] = served.revocations().Revoke(request, timeout=30)
        return told.preview.tokens

    assert (hit(token=parent.id), hit(parent=parent.id)) == (3, 2)
    size = served.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).head
    # Each entry can be read again, actors within actors included.
    entries = (
        served.ledger("auditor")
        .GetEntries(ledger_pb2.GetEntriesRequest(start=parent.index, limit=10), timeout=10)
        .entries
    )
    assert size > len(entries) > 2
    assert all(decode_entry(entry) for entry in entries)
    # The first child is sandbox's, and it has acted in the second.
    assert hit(token=parent.id, workload="sandbox") == 2


def test_b3_a_repeated_request_gives_the_same_child_and_another_one_under_its_id_is_refused(served):
    parent, rid = served.mint(), request_id()
    first = asked(served, parent.token, rid=rid, models=["mythos"])
    again = asked(served, parent.token, rid=rid, models=["mythos"])
    assert (again.id, again.index, again.expires_at) == (first.id, first.index, first.expires_at)
    assert claims_of(again.token) == claims_of(first.token)
    assert refusal(lambda: asked(served, parent.token, rid=rid))[0] == "REQUEST_REUSED"
    with ThreadPoolExecutor(16) as pool:
        racing = request_id()
        found = list(pool.map(lambda _: asked(served, parent.token, rid=racing).id, range(32)))
    assert len(set(found)) == 1


def test_b3_an_exchange_that_races_a_revocation_never_leaves_a_live_child(served, verifier):
    stub = served.tokens()
    for _ in range(8):
        parent = served.mint()
        children, ends, stop, begun = [], set(), threading.Event(), threading.Barrier(5)

        def derive(parent=parent, children=children, ends=ends, stop=stop, begun=begun):
            begun.wait(10)
            while not stop.is_set():
                try:
                    request = tokens_pb2.ExchangeRequest(request_id=request_id(), subject_token=parent.token)
                    children.append(stub.Exchange(request, timeout=10).token)
                except grpc.RpcError as error:
                    ends.add(failure_of(error).reason)
                    return

        threads = [threading.Thread(target=derive) for _ in range(4)]
        for thread in threads:
            thread.start()
        begun.wait(10)
        [done, *_] = served.revoke(token=parent.id, wait=True)
        for thread in threads:
            thread.join(20)
        stop.set()
        assert not any(thread.is_alive() for thread in threads)
        assert ends == {"REVOKED"}
        for child in children:
            assert child.index < done.committed.index
            eventually(lambda child=child: is_dead(verifier, child.token), "the child is dead")


def test_b2_a_subject_that_is_not_good_gives_no_child(served):
    parent = served.mint()
    head, _, tail = parent.token.split(".")
    other = served.mint(models=["oracle"])
    for token, reason in (
        ("", "INVALID"),
        ("a.b.c", "MALFORMED"),
        ("x" * 9000, "MALFORMED"),
        (f"{head}.{other.token.split('.')[1]}.{tail}", "UNTRUSTED"),
        # Signed by nobody's key here.
        (RealmKeys.of_today().mint(), "UNTRUSTED"),
    ):
        found, _, failure = refusal(lambda token=token: asked(served, token))
        assert found == reason, token[:20]
        assert not token or token not in str(failure)
    for fields, reason in (
        ({"models": ["oracle"]}, "NOT_GRANTED"),
        ({"models": ["Mythos"]}, "INVALID"),
        ({"models": ["mythos", "mythos"]}, "INVALID"),
        ({"workload": "stranger"}, "NOT_GRANTED"),
        ({"workload": "Stranger"}, "INVALID"),
        ({"test": "case-1"}, "INVALID"),
        ({"binding": tokens_pb2.Binding()}, "INVALID"),
        ({"lifetime": {"seconds": 7200}}, "INVALID"),
        ({"lifetime": {"seconds": 0}}, "INVALID"),
        ({"lifetime": {"seconds": 1, "nanos": 1}}, "INVALID"),
    ):
        assert refusal(lambda fields=fields: asked(served, parent.token, **fields))[0] == reason, fields


def test_b20_another_partner_gets_no_child_of_a_stolen_token(served):
    parent = served.mint()
    reason, code, failure = refusal(lambda: asked(served, parent.token, name="globex"))
    assert (reason, code) == ("FORBIDDEN", grpc.StatusCode.PERMISSION_DENIED)
    assert "alice" not in failure.message


def test_a_bound_parent_needs_its_holder(served, client):
    key = DpopKey()
    spec = {"realm": "evaluation", "partner": "acme", "user": "alice", "models": ["mythos"]}
    mine = client.mint(**spec, binding=OwnCertificate())
    theirs = client.mint(**spec, binding=Bound.to_certificate(b"o" * 32))
    keyed = client.mint(**spec, binding=Bound(Method.DPOP, key.thumbprint))
    # A child of a bound token is bound.
    assert claims_of(client.exchange(mine.text).text).cnf == claims_of(mine.text).cnf
    assert refusal(lambda: asked(served, theirs.text))[:2] == ("NOT_HOLDER", grpc.StatusCode.UNAUTHENTICATED)
    assert refusal(lambda: asked(served, keyed.text))[0] == "NOT_HOLDER"
    sandbox = DpopKey()
    child = client.exchange(keyed.text, holder=key, binding=Bound(Method.DPOP, sandbox.thumbprint))
    assert claims_of(child.text).cnf == {"jkt": sandbox.thumbprint}
    path = "/broker.v1.TokenService/Exchange"
    proof = ("dpop", key.proof_for_exchange(path, keyed.text))
    asked(served, keyed.text, metadata=(proof,))
    for metadata in (
        (proof,),
        (("dpop", DpopKey().proof_for_exchange(path, keyed.text)),),
        (("dpop", key.proof("POST", f"https://broker.example/research{path}", keyed.text)),),
        (("dpop", key.proof_for_exchange(path, keyed.text)), ("dpop", key.proof_for_exchange(path, keyed.text))),
    ):
        assert refusal(lambda metadata=metadata: asked(served, keyed.text, metadata=metadata))[0] == "NOT_HOLDER"


def test_a_child_of_a_run_is_of_the_run_and_ends_with_it(served, client, verifier):
    with client.run(realm="evaluation", partner="acme", models=["mythos"], user="alice") as run:
        parent = run.token()
        child = run.exchange(parent, test="case-1")
        assert (claims_of(child.text).run, claims_of(child.text).test) == (run.id, "case-1")
        served.until_accepted(verifier, child.text)
        # The run has a key: without a proof of it nothing is derived from what is of the run.
        assert refusal(lambda: asked(served, parent))[0] == "RUN_PROOF_REFUSED"
    eventually(lambda: is_dead(verifier, child.text), "the child is dead")


def test_asyncio_derives_as_threads_do(served):
    key = DpopKey()

    async def derive():
        async with AsyncClient.connect(served.endpoint, identity=served.identity("acme")) as client:
            spec = {"realm": "evaluation", "partner": "acme", "user": "alice", "models": ["mythos"]}
            parent = await client.mint(**spec, binding=Bound(Method.DPOP, key.thumbprint))
            child = await client.exchange(parent.text, holder=key, lifetime_s=30)
            async with client.run(realm="evaluation", partner="acme", models=["mythos"], user="alice") as run:
                of_run = await run.exchange(await run.token(), models=["mythos@a"])
            return parent, child, of_run, run.id

    parent, child, of_run, run = asyncio.run(derive())
    assert claims_of(child.text).parents == (parent.id,)
    assert (claims_of(of_run.text).run, claims_of(of_run.text).models) == (run, ("mythos@a",))
    with pytest.raises(Invalid, match="list"):
        asyncio.run(
            AsyncClient.connect(served.endpoint, identity=served.identity("acme")).exchange("a", models="mythos")
        )


def test_b2_what_the_policy_takes_back_no_child_gets(served):
    parent = served.mint(models=["mythos", "oracle"])
    try:
        served.apply(
            DEEP.replace(
                "models: [mythos, oracle], environments: [acme-ci]", "models: [mythos], environments: [acme-ci]"
            )
        )
        assert refusal(lambda: asked(served, parent.token))[0] == "NOT_GRANTED"
        assert claims_of(asked(served, parent.token, models=["mythos"]).token).models == ("mythos",)
        served.apply(POLICY)
        assert refusal(lambda: asked(served, parent.token, models=["mythos"]))[0] == "NOT_GRANTED"
    finally:
        served.apply(DEEP)


def test_b2_a_child_by_a_grant_that_needs_approvals_or_a_binding_is_not_had_for_a_parent_without(served):
    parent = served.mint()
    approved = (
        DEEP.replace("grants:\n", "groups: {board: [carol]}\ngrants:\n", 1).replace(
            "- {id: acme-evaluation, ", "- {id: acme-reviewed, approvals: {needed: 1, group: board}, ", 1
        )
        + '  - {id: "spiffe://lab.example/carol", role: approver, person: carol}\n'
    )
    try:
        served.apply(approved)
        assert refusal(lambda: asked(served, parent.token))[0] == "APPROVAL_NEEDED"
        served.apply(DEEP.replace("- {id: acme-evaluation, ", "- {id: acme-bound, binding: any, ", 1))
        assert refusal(lambda: asked(served, parent.token))[0] == "BINDING_NEEDED"
        bound = tokens_pb2.Binding(jkt="a" * 43)
        assert claims_of(asked(served, parent.token, binding=bound).token).cnf == {"jkt": "a" * 43}
    finally:
        served.apply(DEEP)


def test_the_command_line_derives_from_stdin_and_prints_the_child_alone(served, tmp_path):
    parent = served.mint()
    papers = served.papers["acme"]
    command = [
        BROKER, "token", "exchange", "--model", "mythos@a", "--ttl", "60s", "--bind", f"cert:{papers.certificate}",
        "--endpoint", served.endpoint, "--cert", papers.certificate, "--key", papers.key, "--ca", papers.ca,
    ]  # fmt: skip
    done = subprocess.run(command, input=parent.token, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    claims = claims_of(done.stdout.strip())
    assert (claims.models, claims.parents) == (("mythos@a",), (parent.id,))
    assert set(claims.cnf) == {"x5t#S256"}
    shown = subprocess.run(
        [*command, "-o", "json"], input=parent.token, capture_output=True, text=True, timeout=60, check=True
    )
    assert set(json.loads(shown.stdout)) == {"token", "id", "index", "expires_at", "grant", "request_id"}
    for token, code in (("nonsense", 3), ("", 3)):
        bad = subprocess.run(command, input=token, capture_output=True, text=True, timeout=60, check=False)
        assert bad.returncode == code, bad.stderr
    assert parent.token not in done.stderr + bad.stderr


def test_b3_a_broker_that_was_killed_knows_its_tokens_and_what_was_revoked(served):
    """The last one here: the keys that signed before are gone, and what they certified is not."""
    parent, dead, rid = served.mint(), served.mint(), request_id()
    child = asked(served, parent.token, rid=rid)
    served.revoke(token=dead.id)
    served.kill()
    served.start()
    eventually(
        lambda: served.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).minting, "it mints", within_s=30
    )
    again = asked(served, parent.token, rid=rid)
    assert (again.id, again.index) == (child.id, child.index)
    # Signed again by a new key, and the same token still.
    assert claims_of(asked(served, again.token).token).parents == (parent.id, child.id)
    assert claims_of(asked(served, parent.token).token).parents == (parent.id,)
    assert refusal(lambda: asked(served, dead.token))[0] == "REVOKED"
