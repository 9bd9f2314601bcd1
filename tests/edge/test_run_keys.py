"""A run with a key: nobody goes on with it who does not prove to have the key, for this very call, once."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from broker.errors import Unauthenticated
from broker.sdk import Client, KeyIdentity, TokenIdentity
from broker.sdk.run_key import RunKey
from broker.token.jws import parse_jws
from broker.token.run_proof import RUN_PROOF_TYP
from broker.v1 import (
    policy_pb2,
    policy_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
)
from tests.edge.test_callers import refusal
from tests.identified import identified
from tests.served import request_id, wait_until

REFUSED = (grpc.StatusCode.UNAUTHENTICATED, "RUN_PROOF_REFUSED")
METHODS = ("Mint", "MintBatch", "KeepRun", "CloseRun")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with identified(tmp_path_factory.mktemp("keys")) as broker:
        yield broker


class KeyedRun:
    """A run with a key, whose calls can be made rightly and wrongly, at either door."""

    def __init__(self, broker, *, key=None, channel=None, **fields):
        self.broker = broker
        self.key = key or RunKey.new()
        self.channel = channel or broker.channel("acme")
        request = runs_pb2.OpenRunRequest(
            **{"request_id": request_id(), "realm": "evaluation", "partner": "acme", "models": ["mythos"], **fields},
            run_key=self.key.public_text(),
        )
        proof = self.key.metadata("RunService/OpenRun", None, request)
        self.opened = runs_pb2_grpc.RunServiceStub(self.channel).OpenRun(request, timeout=10, metadata=proof).run
        self.id = self.opened.id

    def request(self, method, **spec):
        wanted = tokens_pb2.TokenSpec(
            **{"realm": "evaluation", "partner": "acme", "models": ["mythos"], "run": self.id, **spec}
        )
        match method:
            case "Mint":
                return tokens_pb2.MintRequest(request_id=request_id(), spec=wanted)
            case "MintBatch":
                return tokens_pb2.MintBatchRequest(request_id=request_id(), specs=[wanted, wanted])
            case "KeepRun":
                return runs_pb2.KeepRunRequest(request_id=request_id(), run=self.id)
            case _:
                return runs_pb2.CloseRunRequest(request_id=request_id(), run=self.id)

    def call(self, method, request=None, *, metadata=None, key=None, channel=None, **spec):
        request = request if request is not None else self.request(method, **spec)
        if metadata is None:
            metadata = (key or self.key).metadata(full(method), self.id, request)
        return stub_method(channel or self.channel, method)(request, timeout=10, metadata=metadata)


def full(method):
    return f"{'TokenService' if method.startswith('Mint') else 'RunService'}/{method}"


def stub_method(channel, method):
    stub = (tokens_pb2_grpc.TokenServiceStub if method.startswith("Mint") else runs_pb2_grpc.RunServiceStub)(channel)
    return getattr(stub, method)


@pytest.fixture(scope="module")
def keyed(broker):
    return KeyedRun(broker, user="alice")


def test_a_run_says_for_whom_it_is_and_its_key_by_its_thumbprint(keyed):
    opened = keyed.opened
    assert (opened.user, opened.workload, opened.environment) == ("alice", "", "acme-ci")
    assert (opened.key_thumbprint, opened.opened_by) == (keyed.key.thumbprint, "spiffe://acme.example/ci")
    assert dict(opened.grants) == {"mythos": "acme-evaluation"}


def test_who_proves_the_key_mints_keeps_and_closes(broker):
    run = KeyedRun(broker, user="alice")
    minted = run.call("Mint").token
    with broker.verifier() as verifier:
        broker.until_accepted(verifier, minted.token)
        claims = verifier.verify(minted.token, model="mythos").claims
    assert (claims.run, claims.user) == (run.id, "alice")
    assert len(run.call("MintBatch").tokens) == 2
    assert run.call("KeepRun").run.id == run.id
    assert run.call("CloseRun").run.state == runs_pb2.RUN_STATE_CLOSED


@pytest.mark.parametrize("method", METHODS)
def test_without_a_proof_or_with_another_key_nothing_is_done(broker, keyed, method):
    request = keyed.request(method)
    assert refusal(lambda: keyed.call(method, request, metadata=()))[:2] == REFUSED
    found = refusal(lambda: keyed.call(method, request, key=RunKey.new()))
    assert found[:2] == REFUSED
    assert "another key than the one the run was opened with" in found[2]
    # Still open, so nothing of it was done.
    keyed.call("KeepRun")


@pytest.mark.parametrize("method", METHODS)
def test_b3_a_proof_is_good_once_and_for_its_own_request_and_method(keyed, method):
    request, other = keyed.request(method), keyed.request(method)
    proof = keyed.key.metadata(full(method), keyed.id, request)
    assert "another request" in refusal(lambda: keyed.call(method, other, metadata=proof))[2]
    for elsewhere in METHODS:
        if elsewhere != method:
            found = refusal(lambda elsewhere=elsewhere: keyed.call(elsewhere, metadata=proof))
            assert found[:2] == REFUSED
    if method == "CloseRun":
        return
    keyed.call(method, request, metadata=proof)
    found = refusal(lambda: keyed.call(method, request, metadata=proof))
    assert found[:2] == REFUSED
    assert "used before" in found[2]


def test_b3_of_64_racing_uses_of_one_proof_one_is_taken(keyed):
    request = keyed.request("Mint")
    proof = keyed.key.metadata("TokenService/Mint", keyed.id, request)
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda _: refusal(lambda: keyed.call("Mint", request, metadata=proof)), range(64)))
    assert found.count(None) == 1


def test_a_repeated_request_with_a_new_proof_gets_the_first_answer(keyed):
    request = keyed.request("Mint")
    assert keyed.call("Mint", request).token.id == keyed.call("Mint", request).token.id


@pytest.mark.parametrize(("off_s", "why"), [(3600, "from the future"), (-3600, "too old")])
def test_b5_a_proof_of_another_time_is_refused_and_the_right_time_is_told(keyed, off_s, why):
    wrong = RunKey.from_pem(keyed.key.to_pem())
    wrong._now_s = lambda: time.time() + off_s
    code, reason, message, metadata = refusal(lambda: keyed.call("Mint", key=wrong))
    assert (code, reason) == REFUSED
    assert why in message
    assert wrong.learn_clock(metadata["now"])
    keyed.call("Mint", key=wrong)
    assert not wrong.learn_clock("x" * 3)


def test_b18_two_proofs_are_none(keyed):
    request = keyed.request("Mint")
    proofs = keyed.key.metadata(full("Mint"), keyed.id, request) + keyed.key.metadata(full("Mint"), keyed.id, request)
    assert refusal(lambda: keyed.call("Mint", request, metadata=proofs))[:2] == REFUSED
    assert refusal(lambda: keyed.call("Mint", request, metadata=(("run-proof", "x.y.z"),)))[:2] == REFUSED


def test_a_run_is_not_opened_with_a_key_that_is_not_proven(broker):
    runs = runs_pb2_grpc.RunServiceStub(broker.channel("acme"))
    key, other = RunKey.new(), RunKey.new()

    def opening(text):
        return runs_pb2.OpenRunRequest(
            request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"], run_key=text
        )

    request = opening(key.public_text())
    for metadata in ((), other.metadata("RunService/OpenRun", None, request)):
        assert refusal(lambda metadata=metadata: runs.OpenRun(request, metadata=metadata, timeout=10))[:2] == REFUSED
    private = json.dumps({**key.jwk, "d": "x" * 43})
    for bad in ("{}", "[]", "x", private, key.public_text().replace("P-256", "P-384")):
        request = opening(bad)
        proof = key.metadata("RunService/OpenRun", None, request)
        assert (
            refusal(lambda proof=proof, request=request: runs.OpenRun(request, metadata=proof, timeout=10))[:2]
            == REFUSED
        )


def test_b20_another_partner_learns_nothing_of_a_run_with_a_key(broker, keyed):
    globex = broker.channel("globex")
    for method in METHODS:
        found = refusal(lambda method=method: keyed.call(method, channel=globex, partner="globex", user="bob"))
        assert found[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND") or found[1] == "FORBIDDEN"


def test_a_batch_proves_one_run(broker, keyed):
    other = KeyedRun(broker, user="alice")
    spec = tokens_pb2.TokenSpec(realm="evaluation", partner="acme", models=["mythos"], user="alice")
    for run in (other.id, runs_of(broker)):
        mixed = [tokens_pb2.TokenSpec(**{**as_fields(spec), "run": one}) for one in (keyed.id, run)]
        request = tokens_pb2.MintBatchRequest(request_id=request_id(), specs=mixed)
        assert refusal(lambda request=request: keyed.call("MintBatch", request))[:2] == REFUSED


def as_fields(spec):
    return {"realm": spec.realm, "partner": spec.partner, "models": list(spec.models), "user": spec.user}


def runs_of(broker):
    request = runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"])
    return broker.runs().OpenRun(request, timeout=10).run.id


def test_with_the_key_alone_a_run_goes_on_at_the_login_door(broker):
    """The login that opened it has ended, and no certificate was ever there."""
    logged_in = broker.login_channel(broker.github.github_token())
    run = KeyedRun(broker, channel=logged_in)
    assert (run.opened.workload, run.opened.environment, run.opened.opened_by) == ("nightly", "github-ci", "acme-ci")
    run.channel = broker.login_channel()
    minted = run.call("Mint").token
    with broker.verifier() as verifier:
        broker.until_accepted(verifier, minted.token)
        claims = verifier.verify(minted.token, model="mythos").claims
    assert (claims.workload, claims.env, claims.client_id, claims.run) == ("nightly", "github-ci", "acme-ci", run.id)
    run.call("KeepRun")
    assert len(run.call("MintBatch").tokens) == 2
    # After a restart, too; and what was used before it is used up after it.
    used = run.request("Mint")
    proof = run.key.metadata("TokenService/Mint", run.id, used)
    run.call("Mint", used, metadata=proof)
    broker.kill()
    broker.start()
    run.channel = broker.login_channel()
    wait_until(lambda: refusal(lambda: run.call("Mint")) is None)
    assert refusal(lambda: run.call("Mint", used, metadata=proof))[:2] == REFUSED
    assert run.call("Mint", used).token.id
    run.call("CloseRun")
    assert refusal(lambda: run.call("Mint"))[1] == "RUN_ENDED"


def test_the_key_alone_is_good_for_its_run_and_nothing_else(broker):
    run = KeyedRun(broker, channel=broker.login_channel(broker.github.github_token()))
    nobody = broker.login_channel()
    run.channel = nobody
    spec = {"realm": "evaluation", "partner": "acme", "models": ["mythos"]}
    # Neither without the run, nor for anybody or anything else than it was opened for.
    for changed in ({"run": ""}, {"user": "alice"}, {"models": ["oracle"]}, {"partner": "globex"}):
        assert refusal(lambda changed=changed: run.call("Mint", **changed))[1] in {"NOT_GRANTED", "FORBIDDEN"}
    other = KeyedRun(broker, user="alice")
    assert refusal(lambda: run.call("Mint", run=other.id))[1] == "NOT_FOUND"
    # No other method, above all no other run.
    request = runs_pb2.OpenRunRequest(request_id=request_id(), **spec, run_key=run.key.public_text())
    for claimed in (None, run.id):
        proof = run.key.metadata("RunService/OpenRun", claimed, request)
        found = refusal(
            lambda proof=proof: runs_pb2_grpc.RunServiceStub(nobody).OpenRun(request, metadata=proof, timeout=10)
        )
        assert found[:2] == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    shown = policy_pb2.ShowPolicyRequest()
    proof = run.key.metadata("PolicyService/ShowPolicy", run.id, shown)
    found = refusal(lambda: policy_pb2_grpc.PolicyServiceStub(nobody).ShowPolicy(shown, metadata=proof, timeout=10))
    assert found[0] is grpc.StatusCode.UNAUTHENTICATED
    # The door is as closed as ever without a proof, and a replay opens nothing.
    assert refusal(lambda: run.call("Mint", metadata=()))[1] == "UNAUTHENTICATED"
    mint = run.request("Mint")
    proof = run.key.metadata("TokenService/Mint", run.id, mint)
    run.call("Mint", mint, metadata=proof)
    assert refusal(lambda: run.call("Mint", mint, metadata=proof))[:2] == REFUSED
    keyless = runs_of(broker)
    unknown = run.request("KeepRun")
    for run_id in (keyless, "run-that-never-was-000"):
        unknown.run = run_id
        proof = run.key.metadata("RunService/KeepRun", run_id, unknown)
        assert refusal(lambda proof=proof: run.call("KeepRun", unknown, metadata=proof))[:2] == REFUSED


def test_p3_who_opened_a_run_must_still_be_in_the_policy_at_each_mint(broker):
    run = KeyedRun(broker, channel=broker.login_channel(broker.github.github_token()))
    run.channel = broker.login_channel()
    run.call("Mint")
    before = broker.policy()
    try:
        broker.apply(before.replace("  - {id: acme-ci,", "  - {id: acme-ci-2,"))
        assert refusal(lambda: run.call("Mint"))[:2] == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        # In the policy, but not where the run came from any more.
        broker.apply(before.replace('networks: ["127.0.0.0/8", "::1/128"]', 'networks: ["10.0.0.0/8"]'))
        assert refusal(lambda: run.call("Mint"))[1] == "NOT_GRANTED"
    finally:
        broker.apply(before)
    run.call("Mint")


def test_p12_a_proof_holds_no_secret_and_is_no_token(keyed):
    request = keyed.request("Mint")
    [(_, text)] = keyed.key.metadata("TokenService/Mint", keyed.id, request)
    body = parse_jws(text, typ=RUN_PROOF_TYP).payload.decode()
    assert sorted(json.loads(body)) == ["iat", "jti", "method", "run", "sha256"]
    assert "PRIVATE" not in repr(keyed.key)


def test_a_run_without_a_key_asks_for_no_proof(broker):
    assert broker.mint(run=runs_of(broker)).token


def test_a_run_survives_the_end_of_the_login_that_opened_it(broker, tmp_path):
    """And then the end of the harness: it is resumed where nobody is logged in."""
    login = [broker.github.github_token()]
    endpoint, ca = f"127.0.0.1:{broker.login_port}", broker.authority.ca
    wanted = {"realm": "evaluation", "partner": "acme", "models": ["mythos"], "key_file": tmp_path / "run.key"}
    identity = TokenIdentity(token=lambda: login[0], ca=ca)
    with Client.connect(endpoint, identity=identity) as client, client.run(**wanted) as run:
        login[0] = broker.github.github_token(exp=int(time.time()) - 3600)
        with pytest.raises(Unauthenticated):
            client.mint(realm="evaluation", partner="acme", models=["mythos"])
        assert run.token(test="case-1")
        run.leave()
    with Client.connect(endpoint, identity=KeyIdentity(ca=ca)) as client:
        with pytest.raises(Unauthenticated):
            client.mint(realm="evaluation", partner="acme", models=["mythos"])
        with client.resume(tmp_path / "run.key") as resumed:
            assert resumed.id == run.id
            assert resumed.token(test="case-2")
    assert not (tmp_path / "run.key").exists()


SHARED = {"realm": "shared", "user": "alice", "workload": "nightly"}


def test_where_a_user_must_prove_themselves_they_do_so_once_for_a_run_with_a_key(broker):
    alice = broker.sso.token(sub="u-alice")
    # Nobody's word is taken for her when the run is opened, key or not.
    assert refusal(lambda: KeyedRun(broker, **SHARED))[:2] == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN")
    for channel in (broker.channel("acme"), broker.login_channel(broker.github.github_token())):
        run = KeyedRun(broker, channel=channel, user_token=alice, realm="shared")
        assert (run.opened.user, run.opened.workload) == ("alice", "nightly")
        assert run.call("Mint", realm="shared").token.token
    # And with the key alone.
    run.channel = broker.login_channel()
    assert run.call("Mint", realm="shared").token.token
    assert len(run.call("MintBatch", realm="shared").tokens) == 2


def test_a_run_without_a_key_stands_for_no_users_proof(broker):
    """Whoever speaks for the partner could name the run."""
    request = runs_pb2.OpenRunRequest(
        request_id=request_id(),
        realm="shared",
        partner="acme",
        models=["mythos"],
        user_token=broker.sso.token(sub="u-alice"),
    )
    run = broker.runs().OpenRun(request, timeout=10).run.id
    spec = {"realm": "shared", "partner": "acme", "models": ["mythos"], "run": run}
    mint = tokens_pb2.MintRequest(request_id=request_id(), spec=tokens_pb2.TokenSpec(**spec))
    assert refusal(lambda: broker.tokens().Mint(mint, timeout=10))[:2] == (
        grpc.StatusCode.PERMISSION_DENIED,
        "FORBIDDEN",
    )
