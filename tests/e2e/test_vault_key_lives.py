"""The ends of keys that Vault certified, through the door, with lives of seconds instead of minutes and hours."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from broker.adapters.checkpoint_keys import VaultCheckpointKey
from broker.adapters.clock import SystemClock
from broker.adapters.key_rotation import Lifetimes
from broker.adapters.memory_signer import make_memory_key
from broker.adapters.metrics import PrometheusMeter
from broker.adapters.vault_login import AppRoleLogin
from broker.adapters.vault_root import VaultRoot
from broker.adapters.vault_session import VaultSession
from broker.adapters.vault_transit import TransitKeys
from broker.errors import Rejected, Stale, Untrusted
from broker.key_home import KeyHome
from broker.sdk import Verifier
from broker.sdk.failures import failure_of
from broker.v1 import status_pb2
from tests.embedded import Embedded
from tests.openbao import REALMS, OpenBao
from tests.waiting import eventually

pytest_plugins = ["tests.fixtures_openbao"]

# Far enough apart that a slow machine gets from the one end to the other in time.
TOKEN_S, FEED_S = 5, 20
BACK_WITHIN_S = 6


@pytest.fixture
def served(sealed_vault: OpenBao, sealed_login: AppRoleLogin, tmp_path: Path) -> Iterator[Embedded]:
    def open_home(clock: SystemClock, meter: PrometheusMeter) -> KeyHome:
        session = VaultSession(sealed_vault.server(), sealed_login, clock, meter)
        session.start()
        root = VaultRoot(TransitKeys(session, meter))
        checkpoints = VaultCheckpointKey(session, clock, mount="transit", key_name="broker-{realm}")
        return KeyHome(
            root, checkpoints, make_memory_key, signs_in_memory=True, problem=session.problem, close=session.close
        )

    lifetimes = Lifetimes(token=timedelta(seconds=TOKEN_S), feed=timedelta(seconds=FEED_S))
    with Embedded(tmp_path, lifetimes=lifetimes, open_home=open_home) as served:
        yield served


def mint_refusal(served: Embedded, realm: str = "evaluation") -> str:
    """Return why a mint is refused, or nothing."""
    try:
        served.mint(realm=realm, models=["oracle"])
    except grpc.RpcError as refused:
        failure = failure_of(refused)
        return f"{failure.reason} {failure.message}" if failure.retry_after_s else "no RetryInfo"
    return ""


def verdict(verifier: Verifier, token: str) -> type[Rejected] | None:
    try:
        verifier.verify(token, "oracle")
    except Rejected as rejected:
        return type(rejected)
    return None


def test_p9_without_vault_minting_and_the_feed_go_on_exactly_as_long_as_their_keys(
    served: Embedded, sealed_vault: OpenBao
) -> None:
    with served.verifier() as verifier:
        sealed_vault.seal()
        token = served.mint(models=["oracle"]).token
        assert verifier.verify(token, "oracle")
        ended_s = eventually(lambda: mint_refusal(served).startswith("SIGNER_UNAVAILABLE"), "the key's end")
        assert ended_s <= TOKEN_S + 3
        # The feed's key lives on: revoking and verifying do.
        assert verifier.verify(token, "oracle")
        [*_, last] = served.revoke(test="nothing-of-it", run="no-such-run", wait=True)
        assert all(one.acknowledged for one in last.complete.verifiers)
        # When it ends too, frames end, and verifiers stop by themselves.
        eventually(lambda: verdict(verifier, token) is Stale, "the feed key's end and a lease", within_s=FEED_S + 6)
        assert served.revoke(test="nothing-of-it", run="no-such-run")[0].committed.index
        sealed_vault.unseal()
        eventually(lambda: not mint_refusal(served), "minting again", within_s=BACK_WITHIN_S)
        eventually(lambda: verdict(verifier, token) is None, "verifying again", within_s=BACK_WITHIN_S + 4)


def test_p8_a_root_rotated_in_vault_is_followed_by_those_who_pin_it_and_believed_by_no_other(
    served: Embedded, sealed_vault: OpenBao
) -> None:
    with served.verifier() as old:
        token = served.mint(models=["oracle"]).token
        assert old.verify(token, "oracle")
        sealed_vault.must("POST", "transit/keys/broker-evaluation/rotate")
        eventually(
            lambda: verdict(old, served.mint(models=["oracle"]).token) in (Untrusted, Stale), "refused by the old pin"
        )
        with served.verifier() as new:
            assert verdict(new, served.mint(models=["oracle"]).token) is None
            # Both versions are pinned, so what was certified before is good until its end.
            assert verdict(new, token) is None


def test_p9_a_root_that_becomes_exportable_certifies_nothing_more(
    served: Embedded, sealed_vault: OpenBao, sealed_login: AppRoleLogin
) -> None:
    assert mint_refusal(served, "research") == ""
    sealed_vault.must("POST", "transit/keys/broker-research/config", {"exportable": True, "deletion_allowed": True})
    try:
        eventually(lambda: "could leave Vault" in mint_refusal(served, "research"), "refused", within_s=TOKEN_S + 3)
        problems = served.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).problems
        assert any("could leave Vault" in problem for problem in problems)
        # The other realm goes on (P8).
        assert mint_refusal(served, "evaluation") == ""
    finally:
        # What was exportable once stays so.
        sealed_vault.must("DELETE", "transit/keys/broker-research")
        sealed_vault.prepare(sealed_login.role_id_file.parent, *REALMS)
    eventually(lambda: not mint_refusal(served, "research"), "minting under the new root", within_s=BACK_WITHIN_S)
