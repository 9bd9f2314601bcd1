"""The promises, through the real door of a real process."""

import ssl
import time

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc import status_pb2 as rpc_status

from broker.errors import Revoked, Stale, Untrusted, WrongRealm
from broker.v1 import policy_pb2, runs_pb2, status_pb2, tokens_pb2
from tests.served import POLICY, Served, request_id, wait_until


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served")) as served:
        yield served


def reason(call):
    """Return (code, reason) as Google's own library reads them from the trailer."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    trailers = dict(caught.value.trailing_metadata())
    status = rpc_status.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "broker"
    return caught.value.code(), info.reason


def test_p4_a_wider_revocation_does_not_mask_a_narrower_one_and_reinstating_revives_nothing(broker):
    verifier = broker.verifier()
    old = broker.mint()
    wait_until(lambda: accepts(verifier, old.token))
    broker.revoke(wait=True, partner="acme")
    assert broker.reinstate(partner="acme").lifted
    with pytest.raises(Revoked):
        verifier.verify(old.token, model="mythos")
    new = broker.mint()
    wait_until(lambda: accepts(verifier, new.token))
    broker.revoke(wait=True, token=new.id)
    # A wider, older-looking revocation of something else masks nothing.
    broker.revoke(wait=True, user="bob")
    broker.reinstate(user="bob")
    for dead in (old, new):
        with pytest.raises(Revoked):
            verifier.verify(dead.token, model="mythos")
    verifier.close()


def accepts(verifier, token, model="mythos"):
    try:
        verifier.verify(token, model=model)
    except (Untrusted, Stale):
        return False
    return True


def test_p3_after_a_revoke_has_returned_no_mint_is_allowed_until_it_is_reinstated(broker):
    for _ in range(20):
        broker.revoke(partner="acme")
        assert reason(broker.mint) == (grpc.StatusCode.PERMISSION_DENIED, "BLOCKED")
        broker.reinstate(partner="acme")
        assert broker.mint().token


def test_p8_a_token_of_one_realm_is_nothing_in_another(broker):
    research = broker.verifier("research", "gateway-research")
    token = broker.mint().token
    with pytest.raises((Untrusted, WrongRealm)):
        research.verify(token, model="mythos")
    research.close()


def test_p8_a_verifier_of_one_realm_cannot_listen_to_another(broker):
    from broker.sdk import Verifier

    wrong = Verifier.connect(
        broker.endpoint, realm="research", trust=broker.trust("research"), identity=broker.identity("gateway")
    )
    with pytest.raises(Stale):
        wrong.wait_fresh(1.5)
    wrong.close()


def test_p5_a_verifier_that_hears_nothing_stops_within_the_lease_and_recovers(broker):
    verifier = broker.verifier()
    token = broker.mint().token
    wait_until(lambda: accepts(verifier, token))
    broker.kill()
    killed = time.monotonic()
    wait_until(lambda: not accepts(verifier, token), 10)
    assert time.monotonic() - killed < 3.5
    broker.start()
    wait_until(lambda: accepts(verifier, token), 20)
    verifier.close()


def test_p6_waiting_names_each_verifier_that_listened(broker):
    verifier = broker.verifier()
    wait_until(lambda: broker.status().ListVerifiers(status_pb2.ListVerifiersRequest(realm="evaluation")).verifiers)
    events = broker.revoke(wait=True, user="alice")
    complete = events[-1].complete
    mine = [one for one in complete.verifiers if one.verifier == "spiffe://lab.example/gateway"]
    assert mine
    assert any(one.acknowledged for one in mine)
    broker.reinstate(user="alice")
    verifier.close()


def test_a_repeated_request_returns_the_first_answer_and_mints_nothing_more(broker):
    request = tokens_pb2.MintRequest(request_id=request_id(), spec=broker.spec())
    first = broker.tokens().Mint(request).token
    size = broker.status().GetStatus(status_pb2.GetStatusRequest()).head
    again = broker.tokens().Mint(request).token
    assert (again.id, again.index, again.expires_at) == (first.id, first.index, first.expires_at)
    assert broker.status().GetStatus(status_pb2.GetStatusRequest()).head == size
    other = tokens_pb2.MintRequest(request_id=request.request_id, spec=broker.spec(models=["oracle"]))
    assert reason(lambda: broker.tokens().Mint(other)) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_REUSED")


def test_p1_a_repeated_request_after_kill_9_returns_a_token_with_the_same_id_that_is_accepted(broker):
    request = tokens_pb2.MintRequest(request_id=request_id(), spec=broker.spec())
    first = broker.tokens().Mint(request).token
    broker.kill()
    broker.start()
    wait_until(lambda: broker.status().GetStatus(status_pb2.GetStatusRequest()).minting)
    again = broker.tokens().Mint(request).token
    assert (again.id, again.index, again.expires_at) == (first.id, first.index, first.expires_at)
    verifier = broker.verifier()
    wait_until(lambda: accepts(verifier, again.token))
    broker.revoke(wait=True, token=first.id)
    for token in (first.token, again.token):
        with pytest.raises(Revoked):
            verifier.verify(token, model="mythos")
    verifier.close()


def test_closing_a_run_kills_its_tokens_and_ends_minting_in_it(broker):
    verifier = broker.verifier()
    opened = (
        broker.runs()
        .OpenRun(
            runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"])
        )
        .run
    )
    token = broker.mint(run=opened.id, test="case-7").token
    wait_until(lambda: accepts(verifier, token))
    broker.runs().CloseRun(runs_pb2.CloseRunRequest(request_id=request_id(), run=opened.id))
    with pytest.raises(Revoked):
        wait_until(lambda: not accepts(verifier, token), 5)
    assert reason(lambda: broker.mint(run=opened.id)) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_ENDED")
    verifier.close()


def test_a_token_for_a_model_beyond_its_run_is_refused(broker):
    opened = (
        broker.runs()
        .OpenRun(
            runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"])
        )
        .run
    )
    assert reason(lambda: broker.mint(run=opened.id, models=["oracle"])) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "NOT_GRANTED",
    )


def test_p9_a_revoked_signing_key_kills_its_tokens_and_is_replaced(broker):
    verifier = broker.verifier()
    token = broker.mint().token
    wait_until(lambda: accepts(verifier, token))
    status = broker.status().GetStatus(status_pb2.GetStatusRequest())
    kid = next(realm.key for realm in status.realms if realm.realm == "evaluation")
    broker.revoke(wait=True, key=kid)
    with pytest.raises((Revoked, Untrusted)):
        verifier.verify(token, model="mythos")

    def renewed():
        realms = broker.status().GetStatus(status_pb2.GetStatusRequest()).realms
        return next(realm.key for realm in realms if realm.realm == "evaluation") not in ("", kid)

    wait_until(renewed)
    fresh = broker.mint().token
    wait_until(lambda: accepts(verifier, fresh))
    verifier.close()


DENIED = (grpc.StatusCode.PERMISSION_DENIED, "NOT_GRANTED")


def test_a_batch_is_minted_whole_at_consecutive_indices_or_not_at_all(broker):
    request = tokens_pb2.MintBatchRequest(request_id=request_id(), specs=[broker.spec()] * 1000)
    minted = broker.tokens().MintBatch(request, timeout=30).tokens
    assert [token.index for token in minted] == list(range(minted[0].index, minted[0].index + 1000))
    assert len({token.id for token in minted}) == 1000
    size = broker.status().GetStatus(status_pb2.GetStatusRequest()).head
    spoilt = tokens_pb2.MintBatchRequest(
        request_id=request_id(), specs=[*[broker.spec()] * 9, broker.spec(user="mallory")]
    )
    assert reason(lambda: broker.tokens().MintBatch(spoilt)) == DENIED
    assert broker.status().GetStatus(status_pb2.GetStatusRequest()).head == size


def test_explain_agrees_with_mint(broker):
    allowed = broker.policies("acme").Explain(policy_pb2.ExplainRequest(spec=broker.spec()))
    denied = broker.policies("acme").Explain(policy_pb2.ExplainRequest(spec=broker.spec(user="mallory")))
    assert allowed.allowed
    assert allowed.grant == "acme-evaluation"
    assert not denied.allowed
    assert denied.rules[-1].detail


def test_p12_no_log_ledger_or_metric_holds_any_16_characters_of_a_token(broker):
    import httpx

    tokens = [broker.mint().token for _ in range(5)]
    verifier = broker.verifier()
    for token in tokens:
        wait_until(lambda token=token: accepts(verifier, token))
    broker.revoke(wait=True, token="A" * 22)
    metrics = httpx.get(
        f"https://127.0.0.1:{broker.http_port}/metrics", verify=ssl.create_default_context(cafile=broker.authority.ca)
    ).text
    assert "broker_tokens_minted_total" in metrics
    places = {"log": broker.log.read_bytes(), "metrics": metrics.encode()}
    for file in (broker.folder / "data").glob("ledger.db*"):
        places[file.name] = file.read_bytes()
    for token in tokens:
        for start in range(len(token) - 15):
            piece = token[start : start + 16].encode()
            for name, data in places.items():
                assert piece not in data, (name, start)
    verifier.close()


def test_the_jwks_lists_the_keys_that_sign(broker):
    import httpx
    import jwt

    token = broker.mint().token
    url = f"https://127.0.0.1:{broker.http_port}/realms/evaluation/jwks.json"

    def keys():
        found = jwt.PyJWKSet.from_dict(
            httpx.get(url, verify=ssl.create_default_context(cafile=broker.authority.ca)).json()
        )
        kid = jwt.get_unverified_header(token)["kid"]
        return next((key for key in found.keys if key.key_id == kid), None)

    key = wait_until(keys)
    claims = jwt.decode(
        token, key, algorithms=["ES256"], audience="models.evaluation", issuer="https://broker.example/evaluation"
    )
    assert claims["partner"] == "acme"


def test_a_repeated_policy_is_answered_with_the_version_that_it_made(broker):
    def apply(request, document):
        return broker.policies().ApplyPolicy(
            policy_pb2.ApplyPolicyRequest(request_id=request, document=document), timeout=10
        )

    first_id = request_id()
    first = apply(first_id, POLICY + "# one\n")
    second = apply(request_id(), POLICY)
    assert second.version == first.version + 1
    again = apply(first_id, POLICY + "# one\n")
    assert (again.version, again.index) == (first.version, first.index)
    assert broker.policies().ShowPolicy(policy_pb2.ShowPolicyRequest(), timeout=10).version == second.version
