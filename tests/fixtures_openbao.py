"""Fixtures with a real OpenBao; a test module asks for them by `pytest_plugins = ["tests.fixtures_openbao"]`."""

from collections.abc import Iterator

import pytest

from broker.adapters.vault_login import AppRoleLogin
from tests.authority import Authority
from tests.openbao import REALMS, OpenBao


@pytest.fixture(scope="session")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """An OpenBao in memory, for tests that do not harm it."""
    server = OpenBao(tmp_path_factory.mktemp("openbao")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def login(vault: OpenBao, tmp_path_factory: pytest.TempPathFactory) -> AppRoleLogin:
    """The broker's login at `vault`, with root and token keys for REALMS."""
    return vault.prepare(tmp_path_factory.mktemp("approle"), *REALMS)


@pytest.fixture(scope="module")
def sealed_vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """An OpenBao with TLS, a seal and a disk, for tests that harm it; each leaves it well."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    server = OpenBao(tmp_path_factory.mktemp("openbao-tls"), authority.server()).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def sealed_login(sealed_vault: OpenBao, tmp_path_factory: pytest.TempPathFactory) -> AppRoleLogin:
    """The broker's login at `sealed_vault`."""
    return sealed_vault.prepare(tmp_path_factory.mktemp("approle-tls"), *REALMS)
