"""The Root port's promises, on a local file and on Vault; then what is particular to each."""

import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from broker.adapters.local_root import LocalRoot
from broker.adapters.metrics import PrometheusMeter
from broker.adapters.vault_login import AppRoleLogin, TokenFileLogin
from broker.adapters.vault_root import VaultRoot
from broker.adapters.vault_session import VaultSession
from broker.adapters.vault_transit import TransitKeys
from broker.errors import ConfigInvalid, Failure, SignerUnavailable
from broker.service.ports import Root
from broker.token.keys import load_jwk, thumbprint, verify_es256
from tests.moved_clock import MovedClock
from tests.openbao import OpenBao

pytest_plugins = ["tests.fixtures_openbao"]

PASSPHRASE = b"a passphrase of this test"
Another = Callable[[], Root]


@pytest.fixture
def transit(vault: OpenBao, login: AppRoleLogin) -> Iterator[TransitKeys]:
    meter = PrometheusMeter()
    session = VaultSession(vault.server(), login, MovedClock(), meter)
    yield TransitKeys(session, meter)
    session.close()


@pytest.fixture
def as_root(vault: OpenBao, login: AppRoleLogin, tmp_path: Path) -> Iterator[TransitKeys]:
    """Transit (which `login` mounts) with all rights, for keys that a test makes itself."""
    (tmp_path / "token").write_text(vault.token)
    meter = PrometheusMeter()
    session = VaultSession(vault.server(), TokenFileLogin(tmp_path / "token"), MovedClock(), meter)
    yield TransitKeys(session, meter)
    session.close()


@pytest.fixture(params=["local", "vault"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Another:
    """Opens the same root keys once more, as another process does."""
    if request.param == "local":
        return lambda: LocalRoot(tmp_path / "keys", PASSPHRASE)
    transit = request.getfixturevalue("transit")
    return lambda: VaultRoot(transit)


def test_it_signs_with_its_newest_key_and_names_it(another: Another) -> None:
    root = another()
    newest = root.public_jwk("evaluation")[0]
    kid, signature = root.sign("evaluation", b"a message")
    assert kid == thumbprint(newest)
    assert len(signature) == 64
    assert verify_es256(load_jwk(newest), signature, b"a message")
    assert not verify_es256(load_jwk(newest), signature, b"another message")


def test_p8_each_realm_has_a_key_of_its_own(another: Another) -> None:
    root = another()
    assert root.sign("evaluation", b"m")[0] != root.sign("research", b"m")[0]


def test_the_keys_outlive_the_process(another: Another) -> None:
    assert another().public_jwk("evaluation") == another().public_jwk("evaluation")


@pytest.mark.parametrize(
    "realm", ["", "..", "../research", "a/b", "Evaluation", "evaluation\n", "a..b", "é", "x" * 300]
)
def test_what_is_no_name_of_a_realm_has_no_key(another: Another, realm: str) -> None:
    with pytest.raises(Failure):
        another().public_jwk(realm)
    with pytest.raises(Failure):
        another().sign(realm, b"m")


def test_threads_and_processes_that_begin_together_agree_on_the_key(another: Another) -> None:
    kids: set[str] = set()
    barrier = threading.Barrier(8)

    def sign() -> None:
        root = another()
        barrier.wait(timeout=10)
        kids.add(root.sign("evaluation", secrets.token_bytes(100))[0])

    threads = [threading.Thread(target=sign) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert kids == {thumbprint(another().public_jwk("evaluation")[0])}


def test_the_local_file_is_encrypted_and_for_its_owner_alone(tmp_path: Path) -> None:
    LocalRoot(tmp_path / "keys", PASSPHRASE).public_jwk("evaluation")
    [file] = (tmp_path / "keys").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert file.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")


def test_a_local_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    LocalRoot(tmp_path, PASSPHRASE).public_jwk("evaluation")
    for mode in (0o640, 0o604, 0o620, 0o644):
        (tmp_path / "root-evaluation.pem").chmod(mode)
        with pytest.raises(SignerUnavailable, match="chmod 600"):
            LocalRoot(tmp_path, PASSPHRASE).public_jwk("evaluation")


def test_a_folder_that_others_can_change_gets_no_key(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(SignerUnavailable, match="chmod 700"):
        LocalRoot(tmp_path, PASSPHRASE).public_jwk("evaluation")
    assert list(tmp_path.iterdir()) == []


def test_p12_a_wrong_passphrase_is_refused_and_not_quoted(tmp_path: Path) -> None:
    LocalRoot(tmp_path, PASSPHRASE).public_jwk("evaluation")
    with pytest.raises(SignerUnavailable, match="passphrase") as refused:
        LocalRoot(tmp_path, b"some other passphrase").public_jwk("evaluation")
    assert "some other" not in f"{refused.value!r} {refused.value} {refused.value.__cause__!r}"
    with pytest.raises(SignerUnavailable, match="empty"):
        LocalRoot(tmp_path, b"")


def test_a_local_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        file = tmp_path / "root-evaluation.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(PASSPHRASE),
            )
        )
        file.chmod(0o600)
        with pytest.raises(SignerUnavailable, match="not a P-256 key"):
            LocalRoot(tmp_path, PASSPHRASE).public_jwk("evaluation")


def test_a_damaged_or_empty_local_file_is_never_replaced(tmp_path: Path) -> None:
    LocalRoot(tmp_path, PASSPHRASE).public_jwk("evaluation")
    file = tmp_path / "root-evaluation.pem"
    for damaged in (b"", file.read_bytes()[:100], b"\x00" * 400):
        file.write_bytes(damaged)
        with pytest.raises(SignerUnavailable):
            LocalRoot(tmp_path, PASSPHRASE).public_jwk("evaluation")
        assert file.read_bytes() == damaged


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SignerUnavailable, match="cannot be written"):
        LocalRoot(tmp_path / "file" / "keys", PASSPHRASE).public_jwk("evaluation")


def test_a_rotated_root_in_vault_signs_with_the_newest_version_and_lists_it_first(
    vault: OpenBao, as_root: TransitKeys
) -> None:
    vault.must("POST", "transit/keys/broker-rotated", {"type": "ecdsa-p256"})
    root = VaultRoot(as_root)
    [first] = root.public_jwk("rotated")
    vault.must("POST", "transit/keys/broker-rotated/rotate")
    assert list(root.public_jwk("rotated"))[1:] == [first]
    kid, signature = root.sign("rotated", b"m")
    assert kid == thumbprint(root.public_jwk("rotated")[0]) != thumbprint(first)
    assert verify_es256(load_jwk(root.public_jwk("rotated")[0]), signature, b"m")
    vault.must("POST", "transit/keys/broker-rotated/config", {"min_decryption_version": 2, "min_encryption_version": 2})
    assert [thumbprint(jwk) for jwk in root.public_jwk("rotated")] == [kid]


@pytest.mark.parametrize("property_", [{"exportable": True}, {"allow_plaintext_backup": True}])
def test_p9_a_root_that_could_leave_vault_is_refused(
    vault: OpenBao, as_root: TransitKeys, property_: dict[str, bool]
) -> None:
    realm = f"leaky-{next(iter(property_)).replace('_', '-')}"
    vault.must("POST", f"transit/keys/broker-{realm}", {"type": "ecdsa-p256", **property_})
    with pytest.raises(SignerUnavailable, match="could leave Vault"):
        VaultRoot(as_root).sign(realm, b"m")


def test_a_key_in_vault_of_another_kind_is_refused(vault: OpenBao, as_root: TransitKeys) -> None:
    for kind in ("ecdsa-p384", "ed25519", "aes256-gcm96"):
        vault.must("POST", f"transit/keys/broker-{kind}", {"type": kind})
        with pytest.raises(SignerUnavailable, match="not of type ecdsa-p256"):
            VaultRoot(as_root).public_jwk(kind)


def test_p9_the_token_key_of_one_realm_is_never_the_root_of_another(transit: TransitKeys) -> None:
    # broker-evaluation-tokens exists; as a root it would be that of a realm `evaluation-tokens`.
    assert transit.versions("broker-evaluation-tokens")
    with pytest.raises(SignerUnavailable, match="-tokens"):
        VaultRoot(transit).sign("evaluation-tokens", b"m")


@pytest.mark.parametrize("template", ["broker", "{realm}{realm}", "broker-{}", ""])
def test_p8_a_key_name_without_the_realm_is_refused(transit: TransitKeys, template: str) -> None:
    with pytest.raises(ConfigInvalid):
        VaultRoot(transit, key_name=template)
