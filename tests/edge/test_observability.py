"""What an operator can see of a broker: log lines and metrics."""

import json
import ssl
import urllib.request

import grpc
import pytest

from broker.v1 import tokens_pb2
from tests.served import Served, request_id
from tests.waiting import eventually


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served")) as served:
        yield served


def lines(broker):
    return [json.loads(line) for line in broker.log.read_text().splitlines()]


def metrics(broker):
    context = ssl.create_default_context(cafile=str(broker.authority.ca))
    with urllib.request.urlopen(f"https://127.0.0.1:{broker.http_port}/metrics", context=context) as answer:
        text = answer.read().decode()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")
    }


def test_each_call_is_one_line_that_names_the_callers_own_request(broker):
    mine = request_id()
    broker.tokens().Mint(tokens_pb2.MintRequest(request_id=mine, spec=broker.spec()))
    [line] = [line for line in lines(broker) if line.get("request_id") == mine]
    assert (line["method"], line["message"], line["level"]) == ("TokenService/Mint", "done", "info")
    assert line["principal"] == "spiffe://acme.example/ci"
    assert line["ms"] > 0
    assert len(line["call"]) == 16


def test_a_refusal_says_which_rule_and_a_malformed_request_id_is_not_repeated(broker):
    with pytest.raises(grpc.RpcError):
        broker.tokens().Mint(tokens_pb2.MintRequest(request_id='"}\n{"level": "forged', spec=broker.spec()))
    line = lines(broker)[-1]
    assert (line["message"], line["reason"]) == ("refused", "INVALID")
    assert "request_id" not in line
    assert "forged" not in broker.log.read_text()


def test_the_metrics_count_what_happened(broker):
    verifier = broker.verifier()
    before = metrics(broker)
    minted = broker.mint()
    broker.until_accepted(verifier, minted.token)
    broker.revoke(wait=True, token=minted.id)
    with pytest.raises(grpc.RpcError):
        broker.mint(user="nobody")

    def grew(name):
        return metrics(broker).get(name, 0) - before.get(name, 0)

    assert grew('broker_tokens_minted_total{realm="evaluation"}') == 1
    assert grew('broker_revocations_total{dimensions="token"}') == 1
    assert grew('broker_calls_denied_total{reason="NOT_GRANTED"}') == 1
    assert grew('broker_revoke_to_ack_seconds_count{realm="evaluation"}') == 1
    assert grew("broker_append_seconds_count") >= 2
    assert grew("broker_append_batch_entries_count") >= 2
    eventually(lambda: metrics(broker).get('broker_verifiers{realm="evaluation",state="fresh"}') == 1, "the gauges")
    # The completion is an entry too, which is acknowledged a second later.
    eventually(lambda: metrics(broker).get('broker_verifier_lag_entries{realm="evaluation"}') == 0, "it keeps up")
    now = metrics(broker)
    assert 'broker_feed_queue_frames{realm="evaluation"}' in now
    assert 0 <= now['broker_signing_key_age_seconds{purpose="token",realm="evaluation"}'] < 600
    # There is no Vault here, which is neither up nor down.
    assert now["broker_vault_up"] != now["broker_vault_up"]
    verifier.close()
