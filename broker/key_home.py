"""Where the keys are, as `keys.mode` says: root keys in local files or in Vault, token keys in memory or in Vault."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from broker.adapters.checkpoint_keys import LocalCheckpointKey, VaultCheckpointKey
from broker.adapters.key_rotation import MakeKey
from broker.adapters.local_root import LocalRoot
from broker.adapters.memory_signer import make_memory_key
from broker.adapters.transit_signer import TransitSigner
from broker.adapters.vault_login import AppRoleLogin, JwtLogin, Login, TokenFileLogin
from broker.adapters.vault_root import VaultRoot
from broker.adapters.vault_session import VaultServer, VaultSession
from broker.adapters.vault_transit import TOKENS_SUFFIX, TransitKeys
from broker.config import Settings, VaultSettings
from broker.errors import ConfigInvalid, SignerUnavailable
from broker.service.metering import Meter
from broker.service.ports import Clock, Root
from broker.service.tree_ports import CheckpointSigner


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class KeyHome:
    """The parts that differ. `problem` says why the home cannot be asked now, or nothing."""

    root: Root
    checkpoints: CheckpointSigner
    make: MakeKey
    signs_in_memory: bool
    problem: Callable[[], str] = str
    close: Callable[[], None] = _nothing


def open_key_home(settings: Settings, clock: Clock, meter: Meter) -> KeyHome:
    """Open what `settings` names; a Vault that is away is not an error, it is waited for.

    Raises:
        ConfigInvalid: With the field that cannot be.
        SignerUnavailable: The passphrase of local root keys cannot be read.
    """
    match settings.keys.mode:
        case "local":
            return _local(settings)
        case "vault" | "transit":
            if settings.vault is None:
                raise ConfigInvalid("vault", ("the section is missing",))
            return _in_vault(settings.vault, clock, meter, with_token_keys=settings.keys.mode == "transit")
        case mode:
            assert_never(mode)


def _local(settings: Settings) -> KeyHome:
    file = settings.keys.passphrase_file
    if file is None:
        raise ConfigInvalid("keys.passphrase_file", ("is missing",))
    try:
        passphrase = file.read_bytes().strip()
    except OSError as problem:
        raise SignerUnavailable(f"keys.passphrase_file: {file} cannot be read: {problem.strerror}") from problem
    folder = settings.server.data_dir / "keys"
    return KeyHome(
        LocalRoot(folder, passphrase), LocalCheckpointKey(folder, passphrase), make_memory_key, signs_in_memory=True
    )


def _in_vault(vault: VaultSettings, clock: Clock, meter: Meter, *, with_token_keys: bool) -> KeyHome:
    if vault.ca_file is not None:
        _must_be_certificates(vault.ca_file)
    server = VaultServer(vault.address, vault.ca_file, vault.namespace, vault.connect_timeout_s, vault.read_timeout_s)
    session = VaultSession(server, _login(vault), clock, meter)
    keys = TransitKeys(session, meter, mount=vault.transit_mount)
    root = VaultRoot(keys, key_name=vault.key_name)
    checkpoints = VaultCheckpointKey(session, clock, mount=vault.transit_mount, key_name=vault.key_name)
    session.start()
    if not with_token_keys:
        return KeyHome(
            root, checkpoints, make_memory_key, signs_in_memory=True, problem=session.problem, close=session.close
        )
    transit = TransitSigner(keys, clock, key_name=vault.key_name + TOKENS_SUFFIX)

    def close() -> None:
        transit.close()
        session.close()

    return KeyHome(root, checkpoints, transit.make, signs_in_memory=False, problem=session.problem, close=close)


def _login(vault: VaultSettings) -> Login:
    match vault.auth:
        case "approle" if vault.role_id_file is not None and vault.secret_id_file is not None:
            return AppRoleLogin(vault.role_id_file, vault.secret_id_file, vault.auth_mount or "approle")
        case "jwt" if vault.jwt_role is not None and vault.jwt_file is not None:
            return JwtLogin(vault.jwt_role, vault.jwt_file, vault.auth_mount or "jwt")
        case "token" if vault.token_file is not None:
            return TokenFileLogin(vault.token_file)
    raise ConfigInvalid("vault.auth", (f"{vault.auth} is not complete",))


def _must_be_certificates(file: Path) -> None:
    """A CA file that cannot be used would look like a Vault that is away, for ever."""
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError as problem:
        raise ConfigInvalid("vault.ca_file", (f"{file} holds no certificates in PEM",)) from problem
    except OSError as problem:
        raise ConfigInvalid("vault.ca_file", (f"{file} cannot be read: {problem.strerror}",)) from problem
