"""The CheckpointSigner port's promises, on a local file and on a transit key of a real OpenBao."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker.adapters.checkpoint_keys import LocalCheckpointKey, VaultCheckpointKey
from broker.adapters.clock import SystemClock
from broker.adapters.local_root import LocalRoot
from broker.adapters.metrics import PrometheusMeter
from broker.adapters.vault_login import AppRoleLogin
from broker.adapters.vault_session import VaultSession
from broker.errors import SignerUnavailable
from tests.openbao import OpenBao

pytest_plugins = ["tests.fixtures_openbao"]

SECRET = b"a passphrase"
NAME = "broker-_checkpoints"


@pytest.fixture
def in_vault(vault: OpenBao, login: AppRoleLogin):
    session = VaultSession(vault.server(), login, SystemClock(), PrometheusMeter())
    session.start()
    yield lambda: VaultCheckpointKey(session, SystemClock(), mount="transit", key_name="broker-{realm}")
    session.close()


@pytest.fixture(params=["local", "vault"])
def another(request, tmp_path):
    """Makes one more signer of the same log."""
    if request.param == "local":
        return lambda: LocalCheckpointKey(tmp_path / "keys", SECRET)
    return request.getfixturevalue("in_vault")


def verify(signer, message, signature):
    Ed25519PublicKey.from_public_bytes(signer.public_keys()[0]).verify(signature, message)


def test_what_it_signs_its_public_key_verifies(another):
    signer = another()
    verify(signer, b"a checkpoint", signer.sign(b"a checkpoint"))


def test_all_brokers_of_a_log_have_one_key(another):
    one, two = another(), another()
    assert list(one.public_keys()) == list(two.public_keys())
    verify(one, b"x", two.sign(b"x"))


def test_a_rotated_key_signs_newest_and_the_old_one_stays_known(in_vault, vault):
    before = list(in_vault().public_keys())
    vault.must("POST", f"transit/keys/{NAME}/rotate", {})
    signer = in_vault()
    assert list(signer.public_keys())[1:] == before
    verify(signer, b"x", signer.sign(b"x"))


def test_a_version_that_may_sign_no_more_is_left_behind_at_the_next_try(in_vault, vault):
    signer = in_vault()
    signer.sign(b"x")
    vault.must("POST", f"transit/keys/{NAME}/rotate", {})
    newest = vault.must("GET", f"transit/keys/{NAME}")["data"]["latest_version"]
    vault.must("POST", f"transit/keys/{NAME}/config", {"min_encryption_version": newest})
    with pytest.raises(SignerUnavailable):
        signer.sign(b"x")
    verify(signer, b"x", signer.sign(b"x"))


@pytest.mark.parametrize(
    "kind", [{"type": "ecdsa-p256"}, {"type": "ed25519", "exportable": True, "allow_plaintext_backup": True}]
)
def test_p9_a_key_of_another_kind_or_one_that_could_leave_vault_is_refused(in_vault, vault, kind):
    vault.must("POST", f"transit/keys/{NAME}/config", {"deletion_allowed": True})
    vault.must("DELETE", f"transit/keys/{NAME}")
    vault.must("POST", f"transit/keys/{NAME}", kind)
    try:
        with pytest.raises(SignerUnavailable, match=r"ed25519|could leave Vault"):
            in_vault().public_keys()
    finally:
        vault.must("POST", f"transit/keys/{NAME}/config", {"deletion_allowed": True})
        vault.must("DELETE", f"transit/keys/{NAME}")
        vault.must("POST", f"transit/keys/{NAME}", {"type": "ed25519"})


def test_p12_the_local_file_is_for_its_owner_alone_and_encrypted(tmp_path):
    LocalCheckpointKey(tmp_path / "keys", SECRET).sign(b"x")
    file = tmp_path / "keys" / "checkpoints.pem"
    assert file.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in file.read_bytes()
    with pytest.raises(SignerUnavailable, match="decrypted"):
        LocalCheckpointKey(tmp_path / "keys", b"another").sign(b"x")
    file.chmod(0o644)
    with pytest.raises(SignerUnavailable, match="chmod 600"):
        LocalCheckpointKey(tmp_path / "keys", SECRET).sign(b"x")


def test_p8_a_root_key_is_no_key_of_the_log_and_the_other_way_round(tmp_path):
    folder = tmp_path / "keys"
    LocalRoot(folder, SECRET).sign("evaluation", b"x")
    LocalCheckpointKey(folder, SECRET).sign(b"x")
    root, log = folder / "root-evaluation.pem", folder / "checkpoints.pem"
    root_pem, log_pem = root.read_bytes(), log.read_bytes()
    log.write_bytes(root_pem)
    with pytest.raises(SignerUnavailable, match="not an Ed25519 key"):
        LocalCheckpointKey(folder, SECRET).sign(b"x")
    root.write_bytes(log_pem)
    with pytest.raises(SignerUnavailable, match="not a P-256 key"):
        LocalRoot(folder, SECRET).sign("evaluation", b"x")


def test_p9_the_policy_lets_the_broker_sign_with_it_and_nothing_else(in_vault, vault):
    assert in_vault().sign(b"x")
    data = vault.must("GET", f"transit/keys/{NAME}")["data"]
    assert (data["type"], data["exportable"], data["allow_plaintext_backup"]) == ("ed25519", False, False)
    assert base64.b64decode(data["keys"]["1"]["public_key"])
