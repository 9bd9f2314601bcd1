"""Nobody waits for Vault longer than our own timeouts say, whatever it does with the bytes."""

import threading
import time
from collections.abc import Iterator

import pytest

from broker.adapters.metrics import PrometheusMeter
from broker.adapters.transit_signer import TransitSigner
from broker.adapters.vault_login import AppRoleLogin
from broker.adapters.vault_session import VaultSession
from broker.adapters.vault_transit import KeyVersion, TransitKeys
from broker.errors import SignerUnavailable
from tests.moved_clock import MovedClock
from tests.openbao import OpenBao
from tests.tcp_proxy import Behaviour, TcpProxy
from tests.waiting import eventually

pytest_plugins = ["tests.fixtures_openbao"]

NAME = "broker-evaluation-tokens"
CONNECT_S, READ_S = 0.5, 0.7
# For a machine that does much else.
SLACK_S = 5


@pytest.fixture
def wire(vault: OpenBao) -> Iterator[TcpProxy]:
    with TcpProxy(vault.port) as wire:
        yield wire


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def session(vault: OpenBao, login: AppRoleLogin, wire: TcpProxy, clock: MovedClock) -> Iterator[VaultSession]:
    server = vault.server(port=wire.port, connect_timeout_s=CONNECT_S, read_timeout_s=READ_S)
    session = VaultSession(server, login, clock, PrometheusMeter())
    yield session
    wire.behave(Behaviour.RESET)
    session.close()


@pytest.fixture
def keys(session: VaultSession) -> TransitKeys:
    return TransitKeys(session, PrometheusMeter())


@pytest.fixture
def version(keys: TransitKeys) -> KeyVersion:
    return keys.versions(NAME)[0]


@pytest.mark.parametrize("behaviour", [Behaviour.HOLD, Behaviour.TRICKLE])
def test_a_call_ends_by_its_deadline_also_when_each_byte_comes_in_time(
    keys: TransitKeys, version: KeyVersion, wire: TcpProxy, clock: MovedClock, behaviour: Behaviour
) -> None:
    """A socket's own timeout starts anew with each byte: a trickle would hold the caller for minutes."""
    wire.behave(behaviour)
    began = time.monotonic()
    with pytest.raises(SignerUnavailable, match="does not answer in time"):
        keys.versions(NAME)
    assert time.monotonic() - began < CONNECT_S + READ_S + SLACK_S
    # The circuit is open: nobody waits at all.
    tried = len(wire.accepted_at)
    with pytest.raises(SignerUnavailable, match="does not answer in time"):
        keys.sign(NAME, version, [b"m"])
    assert len(wire.accepted_at) == tried
    wire.behave(Behaviour.FORWARD)
    clock.advance(1.1)
    assert keys.sign(NAME, version, [b"m"])


def test_no_thread_watches_a_call_that_is_over(keys: TransitKeys, version: KeyVersion) -> None:
    for _ in range(20):
        keys.sign(NAME, version, [b"m"])
    eventually(
        lambda: "vault-deadline" not in {thread.name for thread in threading.enumerate()},
        "they have ended",
        within_s=READ_S,
    )


def test_a_signature_is_there_or_refused_within_its_time_however_long_the_calls_take(
    vault: OpenBao, login: AppRoleLogin, wire: TcpProxy, clock: MovedClock
) -> None:
    session = VaultSession(vault.server(port=wire.port, read_timeout_s=30), login, clock, PrometheusMeter())
    signer = TransitSigner(TransitKeys(session, PrometheusMeter()), clock, read_timeout_s=30)
    version = TransitKeys(session, PrometheusMeter()).versions(NAME)[0]
    try:
        wire.behave(Behaviour.HOLD)
        began = time.monotonic()
        # More than the workers can have under way: those behind them wait no longer.
        waiting = [signer._batches.sign(NAME, version, [b"m"] * 490, on_refused=lambda: None) for _ in range(12)]
        for future in waiting:
            with pytest.raises(SignerUnavailable, match="in time"):
                future.result(timeout=30)
        # Section 9 of threats.md.
        assert time.monotonic() - began < 2.0 + SLACK_S
    finally:
        wire.behave(Behaviour.RESET)
        signer.close()
        session.close()


def test_while_vault_is_away_it_is_tried_once_a_second_whoever_asks(
    keys: TransitKeys, version: KeyVersion, wire: TcpProxy, clock: MovedClock
) -> None:
    wire.behave(Behaviour.RESET)
    with pytest.raises(SignerUnavailable):
        keys.sign(NAME, version, [b"m"])
    before = len(wire.accepted_at)

    def ask() -> None:
        for _ in range(25):
            with pytest.raises(SignerUnavailable):
                keys.sign(NAME, version, [b"m"])

    for _ in range(3):
        clock.advance(1.01)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
    assert len(wire.accepted_at) - before == 3
