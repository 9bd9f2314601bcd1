"""Section 9 of threats.md for Vault, through the door of a real `broker serve` with a real OpenBao behind proxies."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from broker.adapters.vault_login import AppRoleLogin
from broker.errors import Rejected, Revoked, Stale
from broker.sdk import Verifier
from broker.token.jws import unb64url
from broker.v1 import policy_pb2, tokens_pb2
from tests.altering_proxy import Answered, Asked, failing, unaltered
from tests.authority import Authority
from tests.openbao import REALMS, OpenBao
from tests.served import POLICY, request_id
from tests.tcp_proxy import Behaviour
from tests.vault_stand import BACK_WITHIN_S, REFUSED_WITHIN_S, SLACK_S, Stand
from tests.waiting import eventually

pytest_plugins = ["tests.fixtures_openbao"]

Undo = Callable[[], object]


@pytest.fixture(scope="module")
def vault(sealed_vault: OpenBao) -> OpenBao:
    return sealed_vault


@pytest.fixture(scope="module")
def login(sealed_login: AppRoleLogin) -> Path:
    """The folder of role_id and secret_id."""
    return sealed_login.role_id_file.parent


@pytest.fixture(scope="module")
def transit(vault: OpenBao, login: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A broker whose every signature is made in Vault; each test leaves it well."""
    with Stand(tmp_path_factory.mktemp("transit"), vault, login, "transit") as stand:
        yield stand


@pytest.fixture(scope="module")
def memory(vault: OpenBao, login: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A broker that asks Vault for certificates only; each test leaves it well."""
    with Stand(tmp_path_factory.mktemp("memory"), vault, login, "vault") as stand:
        yield stand


def sealed(stand: Stand) -> Undo:
    stand.vault.seal()
    return stand.vault.unseal


def killed(stand: Stand) -> Undo:
    stand.vault.kill()
    return stand.vault.start


def stopped(stand: Stand) -> Undo:
    stand.vault.pause()
    return stand.vault.resume


def reset(stand: Stand) -> Undo:
    stand.wire.behave(Behaviour.RESET)
    return stand.heal


def trickling(stand: Stand) -> Undo:
    stand.wire.behave(Behaviour.TRICKLE)
    return stand.heal


def answering(status: int) -> Callable[[Stand], Undo]:
    def fault(stand: Stand) -> Undo:
        stand.alter(failing(status))
        return stand.heal

    fault.__name__ = f"answering_{status}"
    return fault


FAULTS = [sealed, killed, stopped, reset, trickling, *map(answering, (429, 472, 500, 503))]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_p11_with_token_keys_in_vault_only_minting_stops_and_comes_back_by_itself(
    transit: Stand, fault: Callable[[Stand], Undo]
) -> None:
    dead, alive = transit.mint(), transit.mint()
    size = transit.status().head
    verifier = transit.verifier
    with ExitStack() as undoing:
        undo = fault(transit)
        undoing.callback(transit.heal)
        # A test that fails here leaves Vault well for the next: each undo may be called twice.
        undoing.callback(undo)
        for refusal in (*transit.refusals_at_once(8), transit.refusal()):
            assert (refusal.failure.reason, refusal.code) == ("SIGNER_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE)
            assert refusal.failure.retry_after_s
            assert refusal.took_s < REFUSED_WITHIN_S + SLACK_S
            assert "Vault" in refusal.failure.message
        # Verifying and revoking never ask Vault, and the feed's keys are in memory.
        [*_, last] = transit.served.revoke(token=dead.id, wait=True)
        assert [one.acknowledged for one in last.complete.verifiers] == [True]
        with pytest.raises(Revoked):
            verifier.verify(dead.token, "mythos")
        assert verifier.verify(alive.token, "mythos")
        # What is refused now is refused before it is recorded: only the first were.
        after = transit.status()
        assert not after.minting
        assert any("Vault" in problem for problem in after.problems)
        assert size <= after.head <= size + 1 + 9
        assert transit.metric("broker_vault_up") == 0
        eventually(lambda: not transit.serves("mint"), "health says so")
        assert transit.serves("revoke")
        assert transit.serves("watch")
        undo()
        minted = transit.mints_again()
        assert verifier.verify(minted.token, "mythos")
    eventually(lambda: transit.serves("mint"), "health says so")
    assert transit.metric("broker_vault_up") == 1
    assert transit.secrets_told() == set()


def test_no_fault_leaves_a_thread_behind(transit: Stand) -> None:
    """A trickle that is read for ever would cost a thread for each probe."""
    transit.mint()
    before = transit.threads()
    for behaviour in (Behaviour.TRICKLE, Behaviour.HOLD, Behaviour.RESET):
        transit.wire.behave(behaviour)
        transit.refusals_at_once(4)
        transit.heal()
        transit.mints_again()
    eventually(lambda: transit.threads() <= before + 4, "the threads are gone")


def test_p11_with_keys_in_memory_a_sealed_vault_stops_nothing_and_is_shown(memory: Stand, vault: OpenBao) -> None:
    verifier = memory.verifier
    for realm in REALMS:
        age = f'broker_signing_key_age_seconds{{purpose="feed",realm="{realm}"}}'
        eventually(lambda name=age: memory.metric(name) > 1, "Vault is needed for nothing now")
    vault.seal()
    # Shown before it is needed: the broker looks every five seconds.
    eventually(lambda: "sealed" in str(memory.status().problems), "the status tells it", within_s=10)
    assert memory.status().minting
    assert memory.serves("mint")
    assert memory.metric("broker_vault_up") == 0
    age = 'broker_signing_key_age_seconds{purpose="token",realm="evaluation"}'
    eventually(lambda: memory.metric(age) > 0, "the metrics tell the key's age")
    minted = memory.mint()
    assert verifier.verify(minted.token, "mythos")
    [*_, last] = memory.served.revoke(token=minted.id, wait=True)
    assert [one.acknowledged for one in last.complete.verifiers] == [True]
    with pytest.raises(Revoked):
        verifier.verify(minted.token, "mythos")
    vault.unseal()
    eventually(lambda: not memory.status().problems, "the status tells it", within_s=BACK_WITHIN_S + SLACK_S)
    assert any("sealed" in problem for problem in memory.problems_logged())
    assert memory.secrets_told() == set()


def test_p7_a_broker_that_starts_while_vault_is_sealed_mints_nothing_revokes_and_recovers(
    memory: Stand, vault: OpenBao
) -> None:
    token = memory.mint()
    verifier = memory.verifier
    vault.seal()
    memory.served.kill()
    memory.served.start()
    assert memory.refusal().failure.reason == "SIGNER_UNAVAILABLE"
    assert "sealed" in memory.refusal().failure.message
    assert not memory.status().minting
    assert math.isnan(memory.metric('broker_signing_key_age_seconds{purpose="feed",realm="evaluation"}'))
    [committed] = memory.served.revoke(token=token.id)
    assert committed.committed.index
    # The feed's key went with the process before, so verifiers stop by themselves (P5).
    eventually(lambda: not verifier.state().fresh_for_s > 0, "the lease has run out")
    with pytest.raises(Stale):
        verifier.verify(token.token, "mythos")
    vault.unseal()
    minted = memory.mints_again()
    verifier.wait_fresh(15)
    assert verifier.verify(minted.token, "mythos")
    with pytest.raises(Revoked):
        verifier.verify(token.token, "mythos")


def test_p7_a_broker_that_starts_while_vault_hangs_is_there_within_our_timeouts(
    vault: OpenBao, login: Path, tmp_path: Path
) -> None:
    stand = Stand(tmp_path, vault, login, "vault")
    stand.wire.behave(Behaviour.HOLD)
    with ExitStack() as leaving:
        leaving.callback(stand.__exit__)
        stand.served.start()
        stand.served.policies().ApplyPolicy(_policy(), timeout=10)
        stand.served.kill()
        began = time.monotonic()
        # Now there are realms whose keys it asks for.
        stand.served.start()
        assert time.monotonic() - began < 10
        stand.connect()
        assert stand.refusal().failure.reason == "SIGNER_UNAVAILABLE"
        assert "does not answer in time" in str(stand.status().problems)
        stand.heal()
        assert stand.mints_again().token


def test_a_vault_with_a_certificate_of_another_ca_is_not_asked_and_told_apart(
    vault: OpenBao, login: Path, tmp_path: Path
) -> None:
    assert vault.tls is not None
    stand = Stand(tmp_path, vault, login, "vault")
    other = Authority(tmp_path / "other")
    stand.served._config = stand.served._config.replace(str(vault.tls.ca), str(other.ca))
    with ExitStack() as leaving:
        leaving.callback(stand.__exit__)
        stand.served.start()
        stand.served.policies().ApplyPolicy(_policy(), timeout=10)
        stand.connect()
        eventually(lambda: any("cannot be trusted" in text for text in stand.status().problems), "told")
        assert "vault.ca_file" in stand.refusal().failure.message
        assert stand.altering.asked == []


def _policy() -> policy_pb2.ApplyPolicyRequest:
    return policy_pb2.ApplyPolicyRequest(request_id=request_id(), document=POLICY)


def accessors(vault: OpenBao) -> set[str]:
    """Return the accessors of the brokers' tokens."""
    found = set()
    for accessor in vault.must("LIST", "auth/token/accessors")["data"]["keys"]:
        status, answer = vault.ask("POST", "auth/token/lookup-accessor", {"accessor": accessor})
        if status == 200 and "broker" in answer["data"]["policies"]:
            found.add(accessor)
    return found


def revoke_tokens(vault: OpenBao) -> None:
    for accessor in accessors(vault):
        vault.must("POST", "auth/token/revoke-accessor", {"accessor": accessor})


def test_a_revoked_vault_token_is_replaced_within_the_mint(transit: Stand, vault: OpenBao) -> None:
    transit.mint()
    revoke_tokens(vault)
    assert transit.mint().token


def test_a_login_that_is_used_up_is_told_and_a_new_secret_id_in_the_file_heals_it(
    transit: Stand, vault: OpenBao, login: Path
) -> None:
    # Whatever the tests before did to its token, it has one.
    transit.mint()
    secret_id = (login / "secret_id").read_text().strip()
    fresh = vault.must("POST", "auth/approle/role/broker/secret-id")["data"]["secret_id"]
    vault.must("POST", "auth/approle/role/broker/secret-id/destroy", {"secret_id": secret_id})
    try:
        assert transit.mint().token
        revoke_tokens(vault)
        refusal = transit.refusal()
        assert refusal.failure.reason == "SIGNER_UNAVAILABLE"
        assert "refused" in refusal.failure.message
        assert "login" in refusal.failure.message
        assert secret_id not in str(refusal.failure)
    finally:
        (login / "secret_id").write_text(fresh)
    transit.mints_again()
    assert transit.secrets_told() == set()


def test_a_token_file_that_an_agent_replaces_is_read_anew_when_its_token_is_over(
    vault: OpenBao, login: Path, tmp_path: Path
) -> None:
    file = tmp_path / "vault-token"
    file.write_text(_token_for_broker(vault))
    stand = Stand(tmp_path, vault, login, "transit")
    config = stand.served._config
    begin, end = config.index('auth = "approle"'), config.index("connect_timeout_s")
    stand.served._config = f'{config[:begin]}auth = "token"\ntoken_file = "{file}"\n{config[end:]}'
    with stand:
        assert stand.mint().token
        revoke_tokens(vault)
        refusal = stand.refusal()
        assert refusal.failure.reason == "SIGNER_UNAVAILABLE"
        assert file.read_text() not in str(refusal.failure)
        file.write_text(_token_for_broker(vault))
        stand.mints_again()
        assert stand.secrets_told() == set()


def _token_for_broker(vault: OpenBao) -> str:
    made = vault.must("POST", "auth/token/create-orphan", {"policies": ["broker"], "ttl": "1h"})
    return str(made["auth"]["client_token"])


def test_a_policy_taken_away_is_told_and_given_back_heals_it(transit: Stand, vault: OpenBao) -> None:
    policy = vault.must("GET", "sys/policies/acl/broker")["data"]["policy"]
    transit.mint()
    size = transit.status().head
    vault.must("PUT", "sys/policies/acl/broker", {"policy": 'path "nothing" { capabilities = ["read"] }'})
    try:
        assert "denied permission" in transit.refusal().failure.message
        eventually(lambda: "denied permission" in str(transit.status().problems), "the status tells it")
        assert not transit.status().minting
        # It does not fill the ledger with tokens that nobody can sign.
        for _ in range(5):
            # Why, the status tells: between two looks at Vault a mint may hear only that the key has ended.
            assert transit.refusal().failure.reason == "SIGNER_UNAVAILABLE"
        assert transit.status().head <= size + 2
        assert transit.serves("revoke")
    finally:
        vault.must("PUT", "sys/policies/acl/broker", {"policy": policy})
    transit.mints_again()


def test_a_token_key_rotated_and_its_old_version_forbidden_changes_the_key_by_itself(
    transit: Stand, vault: OpenBao
) -> None:
    verifier = transit.verifier
    before = transit.mint()
    newest = vault.must("POST", "transit/keys/broker-evaluation-tokens/rotate")["data"]["latest_version"]
    assert transit.mint().token
    vault.must("POST", "transit/keys/broker-evaluation-tokens/config", {"min_encryption_version": newest})
    after = transit.mints_again()
    assert _kid(after.token) != _kid(before.token)
    # Old and new are good: the certificates overlap.
    eventually(lambda: _accepts(verifier, after.token), "the new certificate has arrived")
    assert verifier.verify(before.token, "mythos")


def test_a_token_key_deleted_in_vault_stops_minting_until_it_is_made_anew(
    transit: Stand, vault: OpenBao, login: Path
) -> None:
    verifier = transit.verifier
    before = transit.mint()
    vault.must("POST", "transit/keys/broker-evaluation-tokens/config", {"deletion_allowed": True})
    vault.must("DELETE", "transit/keys/broker-evaluation-tokens")
    assert transit.refusal().failure.reason == "SIGNER_UNAVAILABLE"
    eventually(lambda: not transit.status().minting, "the status tells it")
    # The other realm has its own key.
    assert transit.mint(realm="research", models=["oracle"]).token
    vault.prepare(login, *REALMS)
    after = transit.mints_again()
    eventually(lambda: _accepts(verifier, after.token), "the new certificate has arrived")
    assert verifier.verify(before.token, "mythos")


def test_p9_a_token_key_that_could_leave_vault_is_not_certified(transit: Stand, vault: OpenBao, login: Path) -> None:
    vault.must("POST", "transit/keys/broker-evaluation-tokens/config", {"deletion_allowed": True, "exportable": True})
    vault.must("POST", "transit/keys/broker-evaluation-tokens/rotate")
    newest = vault.must("GET", "transit/keys/broker-evaluation-tokens")["data"]["latest_version"]
    vault.must("POST", "transit/keys/broker-evaluation-tokens/config", {"min_encryption_version": newest})
    assert transit.refusal().failure.reason == "SIGNER_UNAVAILABLE"
    eventually(lambda: any("could leave Vault" in text for text in transit.status().problems), "told")
    vault.must("DELETE", "transit/keys/broker-evaluation-tokens")
    vault.prepare(login, *REALMS)
    transit.mints_again()


def _wrong_bit(asked: Asked, answered: Answered) -> Answered:
    """Another signature of the right form: one bit of it flipped."""
    return _resigned(asked, answered, lambda results: [_flipped(result) for result in results])


def _of_another_message(asked: Asked, answered: Answered) -> Answered:
    """Good signatures by the right key, each of its neighbour's message."""
    return _resigned(asked, answered, lambda results: [*results[1:], results[0]])


def _flipped(result: Any) -> Any:
    version, _, text = result["signature"].rpartition(":")
    return {**result, "signature": f"{version}:{'B' if text[0] == 'A' else 'A'}{text[1:]}"}


def _resigned(asked: Asked, answered: Answered, change: Callable[[list[Any]], list[Any]]) -> Answered:
    if "/sign/" not in asked.path or answered.status != 200:
        return answered
    body = json.loads(answered.body)
    body["data"]["batch_results"] = change(body["data"]["batch_results"])
    return replace(answered, body=json.dumps(body).encode())


@pytest.mark.parametrize("alter", [_wrong_bit, _of_another_message])
def test_a_wrong_signature_from_vault_is_noticed_before_anybody_gets_it(
    transit: Stand, alter: Callable[[Asked, Answered], Answered]
) -> None:
    transit.alter(unaltered)
    try:
        # A call may have been under way on a connection that was cut.
        transit.mints_again()
        transit.altering.alter = alter
        request = _batch(transit, 5)
        with pytest.raises(grpc.RpcError) as refused:
            transit.tokens.MintBatch(request, timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "wrong signature" in str(refused.value.details())
        assert 'outcome="wrong-signature"' in transit.metrics()
    finally:
        transit.heal()
    transit.mints_again()
    # The same request again: the tokens that were recorded, now signed.
    tokens = transit.tokens.MintBatch(request, timeout=10).tokens
    verifier = transit.verifier
    assert len({verifier.verify(one.token, "mythos").claims.jti for one in tokens}) == 5


def test_p9_a_certificate_with_a_wrong_signature_is_not_published_and_its_key_signs_nothing(
    vault: OpenBao, login: Path, tmp_path: Path
) -> None:
    stand = Stand(tmp_path, vault, login, "vault")
    stand.alter(_wrong_bit)
    with ExitStack() as leaving:
        leaving.callback(stand.__exit__)
        stand.served.start()
        stand.served.policies().ApplyPolicy(_policy(), timeout=10)
        stand.connect()
        eventually(lambda: any("wrong signature" in text for text in stand.status().problems), "told")
        assert stand.refusal().failure.reason == "SIGNER_UNAVAILABLE"
        # The ledger's first entry and the policy: no key was certified.
        assert stand.status().head == 2
        stand.heal()
        assert stand.mints_again().token


def _batch(stand: Stand, count: int) -> tokens_pb2.MintBatchRequest:
    return tokens_pb2.MintBatchRequest(request_id=request_id(), specs=[stand.served.spec() for _ in range(count)])


def _kid(token: str) -> str:
    return str(json.loads(unb64url(token.partition(".")[0]))["kid"])


def _accepts(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token, "mythos")
    except Rejected:
        return False
    return True
