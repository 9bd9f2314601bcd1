"""Least privilege: what the broker's Vault identity can do, and what it is refused (P9)."""

import base64
import json
import stat
from pathlib import Path

import pytest

from broker.adapters.clock import SystemClock
from broker.adapters.metrics import PrometheusMeter
from broker.adapters.transit_signer import TransitSigner
from broker.adapters.vault_login import AppRoleLogin
from broker.adapters.vault_root import VaultRoot
from broker.adapters.vault_session import VaultSession
from broker.adapters.vault_transit import TransitKeys
from tests.openbao import REALMS, OpenBao

pytest_plugins = ["tests.fixtures_openbao"]

INPUT = {"input": base64.b64encode(b"a message").decode()}


@pytest.fixture
def token(vault: OpenBao, login: AppRoleLogin) -> str:
    """A token as the broker gets it."""
    ids = {"role_id": login.role_id_file.read_text().strip(), "secret_id": login.secret_id_file.read_text().strip()}
    return str(vault.must("POST", "auth/approle/login", ids)["auth"]["client_token"])


def test_the_broker_can_do_what_it_needs(vault: OpenBao, login: AppRoleLogin) -> None:
    meter = PrometheusMeter()
    session = VaultSession(vault.server(), login, SystemClock(), meter)
    keys = TransitKeys(session, meter)
    for realm in REALMS:
        assert VaultRoot(keys).sign(realm, b"m")
        name = f"broker-{realm}-tokens"
        assert keys.sign(name, keys.versions(name)[0], [b"m"] * 490)
    transit = TransitSigner(keys, SystemClock())
    transit.close()
    session.close()


@pytest.mark.parametrize("operation", ["lookup-self", "renew-self", "revoke-self"])
def test_the_broker_can_look_after_its_own_token(vault: OpenBao, token: str, operation: str) -> None:
    method = "GET" if operation == "lookup-self" else "POST"
    assert vault.ask(method, f"auth/token/{operation}", token=token)[0] in (200, 204)


REFUSED: list[tuple[str, str, object]] = [
    # Taking a key out, or away.
    ("GET", "transit/export/signing-key/broker-evaluation", None),
    ("GET", "transit/export/public-key/broker-evaluation", None),
    ("GET", "transit/backup/broker-evaluation", None),
    ("GET", "transit/byok-export/broker-research/broker-evaluation", None),
    ("DELETE", "transit/keys/broker-evaluation", None),
    ("DELETE", "transit/keys/broker-evaluation/soft-delete", None),
    ("POST", "transit/keys/broker-evaluation/trim", {"min_available_version": 1}),
    # Changing or making keys.
    ("POST", "transit/keys/broker-evaluation/config", {"exportable": True, "allow_plaintext_backup": True}),
    ("POST", "transit/keys/broker-evaluation/config", {"deletion_allowed": True}),
    ("POST", "transit/keys/broker-evaluation/rotate", {}),
    ("POST", "transit/keys/broker-new", {"type": "ecdsa-p256"}),
    ("POST", "transit/keys/broker-evaluation", {"type": "ecdsa-p256", "exportable": True}),
    ("POST", "transit/keys/broker-evaluation/import_version", {"ciphertext": "x"}),
    ("POST", "transit/restore/broker-evaluation", {"backup": "x"}),
    ("LIST", "transit/keys", None),
    # Another realm's key, and other uses of its own.
    ("POST", "transit/sign/broker-production/sha2-256", INPUT),
    ("GET", "transit/keys/broker-production", None),
    ("POST", "transit/sign/broker-production-tokens/sha2-256", INPUT),
    ("POST", "transit/sign/broker-evaluation/sha2-512", INPUT),
    ("POST", "transit/sign/broker-evaluation", INPUT),
    ("POST", "transit/sign/broker-evaluation-other/sha2-256", INPUT),
    ("POST", "transit/encrypt/broker-evaluation", {"plaintext": "bQ=="}),
    ("POST", "transit/hmac/broker-evaluation", INPUT),
    # The log's key signs in one way only, and stays where it is.
    ("POST", "transit/sign/broker-_checkpoints/sha2-256", INPUT),
    ("GET", "transit/export/signing-key/broker-_checkpoints", None),
    ("POST", "transit/keys/broker-_checkpoints/rotate", {}),
    ("POST", "transit/keys/broker-_checkpoints/config", {"deletion_allowed": True}),
    # Anything else in Vault.
    ("GET", "secret/data/somebodys", None),
    ("POST", "secret/data/somebodys", {"data": {"a": "b"}}),
    ("GET", "sys/mounts", None),
    ("POST", "sys/mounts/other", {"type": "transit"}),
    ("PUT", "sys/seal", None),
    ("GET", "sys/policies/acl/broker", None),
    ("PUT", "sys/policies/acl/broker", {"policy": 'path "*" { capabilities = ["sudo"] }'}),
    ("PUT", "sys/audit/file", {"type": "file"}),
    ("GET", "sys/raw/core", None),
    ("POST", "auth/token/create", {}),
    ("POST", "auth/token/create-orphan", {}),
    ("LIST", "auth/token/accessors", None),
    ("GET", "auth/approle/role/broker", None),
    ("POST", "auth/approle/role/broker/secret-id", {}),
    ("GET", "auth/approle/role/broker/role-id", None),
    ("GET", "identity/oidc/config", None),
    ("GET", "cubbyhole/mine", None),
]


@pytest.mark.parametrize(("method", "path", "body"), REFUSED, ids=[f"{m} {p}" for m, p, _ in REFUSED])
def test_p9_the_broker_is_refused_the_rest(vault: OpenBao, token: str, method: str, path: str, body: object) -> None:
    for name in ("broker-production", "broker-production-tokens", "broker-evaluation-other"):
        vault.must("POST", f"transit/keys/{name}", {"type": "ecdsa-p256"})
    assert vault.ask(method, path, body, token=token)[0] == 403


@pytest.mark.usefixtures("login")
def test_the_refusals_are_the_policys_and_not_the_requests(vault: OpenBao) -> None:
    """An administrator may do some of the same, so a 403 above says something."""
    vault.must("POST", "transit/keys/broker-production", {"type": "ecdsa-p256"})
    allowed = [entry for entry in REFUSED if entry[0] == "GET" and "export/public" not in entry[1]]
    assert sum(vault.ask(*entry)[0] == 200 for entry in allowed) >= 5


def test_p9_keys_are_made_so_that_they_cannot_leave(vault: OpenBao, login: AppRoleLogin) -> None:
    for realm in REALMS:
        for name in (f"broker-{realm}", f"broker-{realm}-tokens"):
            key = vault.must("GET", f"transit/keys/{name}")["data"]
            assert (key["type"], key["exportable"], key["allow_plaintext_backup"]) == ("ecdsa-p256", False, False)
            assert key["deletion_allowed"] is False
            assert vault.ask("GET", f"transit/export/signing-key/{name}")[0] == 400
            assert vault.ask("GET", f"transit/backup/{name}")[0] != 200


def test_p12_what_prepare_writes_is_for_its_owner_alone(login: AppRoleLogin) -> None:
    for file in (login.role_id_file, login.secret_id_file):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {file.name for file in login.role_id_file.parent.iterdir()} == {"role_id", "secret_id"}


def test_prepare_may_be_run_again_and_keeps_the_keys(vault: OpenBao, login: AppRoleLogin, tmp_path: Path) -> None:
    before = json.dumps(vault.must("GET", "transit/keys/broker-evaluation")["data"]["keys"])
    again = vault.prepare(tmp_path, *REALMS)
    assert json.dumps(vault.must("GET", "transit/keys/broker-evaluation")["data"]["keys"]) == before
    assert again.role_id_file.read_text() == login.role_id_file.read_text()


@pytest.mark.parametrize("realm", ["", "../x", "a b", "Evaluation", "a..b", ".a", "a-tokens", "x/../y", "a\nb"])
def test_prepare_refuses_what_is_no_name_of_a_realm(vault: OpenBao, tmp_path: Path, realm: str) -> None:
    with pytest.raises(AssertionError, match=r"prepare\.sh"):
        vault.prepare(tmp_path, "evaluation", realm)
    assert list(tmp_path.iterdir()) == []
