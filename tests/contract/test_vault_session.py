"""The session with Vault, against a real OpenBao."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.adapters.metrics import PrometheusMeter
from broker.adapters.vault_login import AppRoleLogin, JwtLogin, Login, TokenFileLogin, VaultToken
from broker.adapters.vault_session import VaultServer, VaultSession
from broker.errors import ConfigInvalid, SignerUnavailable
from tests.moved_clock import MovedClock
from tests.openbao import OpenBao
from tests.waiting import eventually

pytest_plugins = ["tests.fixtures_openbao"]

Open = Callable[..., VaultSession]


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def meter() -> PrometheusMeter:
    return PrometheusMeter()


@pytest.fixture
def opened(vault: OpenBao, clock: MovedClock, meter: PrometheusMeter) -> Iterator[Open]:
    sessions = []

    def start(login: Login, server: VaultServer | None = None) -> VaultSession:
        sessions.append(VaultSession(server or vault.server(), login, clock, meter, jitter=lambda: 0.5))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


def whoami(session: VaultSession) -> dict[str, object]:
    return dict(session.call("lookup-self", lambda vault: vault.get("/v1/auth/token/lookup-self"))["data"])


def calls(meter: PrometheusMeter, operation: str, outcome: str = "ok") -> float:
    labels = {"operation": operation, "outcome": outcome}
    return meter.registry.get_sample_value("broker_vault_call_seconds_count", labels) or 0.0


def read_root(session: VaultSession) -> object:
    return session.call("read-key", lambda vault: vault.get("/v1/transit/keys/broker-evaluation"))


def texts(failure: BaseException) -> str:
    """All that a chain of errors says or carries."""
    said = ""
    error: BaseException | None = failure
    while error is not None:
        said += f"{error!s} {error!r} {vars(error)!r} {error.args!r}"
        for part in ("request", "response"):
            said += repr(getattr(getattr(error, part, None), "headers", ""))
        error = error.__cause__ or error.__context__
    return said


def test_it_logs_in_by_approle(opened: Open, login: AppRoleLogin) -> None:
    assert whoami(opened(login))["policies"] == ["broker"]


def test_it_logs_in_by_a_token_in_a_file(opened: Open, vault: OpenBao, tmp_path: Path) -> None:
    token = vault.must("POST", "auth/token/create", {"policies": ["broker"], "ttl": "1h"})["auth"]["client_token"]
    (tmp_path / "token").write_text(token + "\n")
    assert "broker" in str(whoami(opened(TokenFileLogin(tmp_path / "token")))["policies"])


def test_it_logs_in_by_a_jwt_in_a_file(opened: Open, vault: OpenBao, login: AppRoleLogin, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    vault.must("POST", "sys/auth/platform", {"type": "jwt"})
    vault.must("POST", "auth/platform/config", {"jwt_validation_pubkeys": [pem.decode()]})
    role = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"], "token_policies": ["broker"]}
    vault.must("POST", "auth/platform/role/broker", role)
    claims = {"sub": "broker", "aud": "vault", "iat": int(time.time()), "exp": int(time.time()) + 600}
    (tmp_path / "jwt").write_text(jwt.encode(claims, key, algorithm="ES256"))
    session = opened(JwtLogin("broker", tmp_path / "jwt", mount="platform"))
    assert "broker" in str(whoami(session)["policies"])


def test_what_the_environment_says_of_vault_is_ignored(
    opened: Open, login: AppRoleLogin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".vault-token").write_text("from-home")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in {
        "VAULT_TOKEN": "from-environment",
        "VAULT_ADDR": "http://127.0.0.1:1",
        "VAULT_NAMESPACE": "elsewhere",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "REQUESTS_CA_BUNDLE": str(tmp_path / "no-such-bundle"),
    }.items():
        monkeypatch.setenv(name, value)
    assert whoami(opened(login))["policies"] == ["broker"]


def test_a_token_that_was_revoked_is_replaced_within_the_call(
    opened: Open, vault: OpenBao, login: AppRoleLogin, meter: PrometheusMeter
) -> None:
    session = opened(login)
    vault.must("POST", "auth/token/revoke-accessor", {"accessor": whoami(session)["accessor"]})
    read_root(session)
    assert calls(meter, "login") == 2


def test_a_refusal_by_policy_does_not_log_in_again(opened: Open, login: AppRoleLogin, meter: PrometheusMeter) -> None:
    session = opened(login)
    for _ in range(3):
        with pytest.raises(SignerUnavailable, match="denied permission"):
            session.call("read-key", lambda vault: vault.get("/v1/transit/keys/somebody-elses"))
    assert calls(meter, "login") == 1
    read_root(session)


def test_many_threads_share_one_login(opened: Open, login: AppRoleLogin, meter: PrometheusMeter) -> None:
    session = opened(login)
    done: list[object] = []
    threads = [threading.Thread(target=lambda: done.append(read_root(session))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(done) == 16
    assert calls(meter, "login") == 1


def test_the_token_is_renewed_before_its_end(
    opened: Open, login: AppRoleLogin, clock: MovedClock, meter: PrometheusMeter
) -> None:
    session = opened(login)
    session.start()
    eventually(lambda: calls(meter, "login") == 1, "logged in")
    assert calls(meter, "renew-self") == 0
    clock.advance(20 * 60 * 0.65)
    eventually(lambda: calls(meter, "renew-self") == 1, "renewed")
    assert calls(meter, "login") == 1


def test_a_token_near_its_maximum_life_is_replaced_instead_of_renewed(
    opened: Open, vault: OpenBao, login: AppRoleLogin, meter: PrometheusMeter, tmp_path: Path
) -> None:
    vault.must(
        "POST", "auth/approle/role/short", {"token_policies": ["broker"], "token_ttl": "3s", "token_max_ttl": "4s"}
    )
    role_id = vault.must("GET", "auth/approle/role/short/role-id")["data"]["role_id"]
    secret_id = vault.must("POST", "auth/approle/role/short/secret-id")["data"]["secret_id"]
    (tmp_path / "role").write_text(role_id)
    (tmp_path / "secret").write_text(secret_id)
    session = opened(AppRoleLogin(tmp_path / "role", tmp_path / "secret"))
    session.start()
    # Twice over its maximum life, in real time, because OpenBao's clock is what ends it.
    eventually(lambda: calls(meter, "login") >= 3, "logged in again and again", within_s=20)
    read_root(session)
    assert calls(meter, "read-key", "forbidden") == 0


def test_closing_gives_back_a_token_that_was_made_for_us(
    opened: Open, vault: OpenBao, login: AppRoleLogin, tmp_path: Path
) -> None:
    ours = opened(login)
    accessor = whoami(ours)["accessor"]
    ours.close()
    assert vault.ask("POST", "auth/token/lookup-accessor", {"accessor": accessor})[0] != 200
    with pytest.raises(SignerUnavailable, match="closed"):
        read_root(ours)

    token = vault.must("POST", "auth/token/create", {"policies": ["broker"]})["auth"]["client_token"]
    (tmp_path / "token").write_text(token)
    theirs = opened(TokenFileLogin(tmp_path / "token"))
    whoami(theirs)
    theirs.close()
    assert vault.ask("GET", "auth/token/lookup-self", token=token)[0] == 200


def test_p12_no_error_holds_a_secret_whatever_goes_wrong(
    opened: Open, vault: OpenBao, login: AppRoleLogin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secret = "0f0e0d0c-secret-of-the-broker"
    (tmp_path / "role_id").write_text(secret)
    (tmp_path / "secret_id").write_text(secret)
    (tmp_path / "token").write_text(secret)
    (tmp_path / "two-lines").write_text(f"{secret}\nX-Evil: {secret}")
    (tmp_path / "bytes").write_bytes(secret.encode() + b"\xff")
    wrong = AppRoleLogin(tmp_path / "role_id", tmp_path / "secret_id")
    unreachable = VaultServer("http://127.0.0.1:1")
    sessions = [
        opened(wrong),
        opened(wrong, unreachable),
        opened(TokenFileLogin(tmp_path / "token")),
        opened(TokenFileLogin(tmp_path / "token"), unreachable),
        opened(TokenFileLogin(tmp_path / "two-lines")),
        opened(TokenFileLogin(tmp_path / "bytes")),
        opened(TokenFileLogin(tmp_path / "absent")),
        opened(JwtLogin(secret, tmp_path / "token")),
        opened(login, VaultServer(vault.address, namespace="no-such")),
    ]
    for session in sessions:
        with pytest.raises(SignerUnavailable) as refused:
            read_root(session)
        said = texts(refused.value) + repr(session) + json.dumps([record.getMessage() for record in caplog.records])
        assert secret not in said
        assert login.secret_id_file.read_text().strip() not in said
    assert secret not in repr(VaultToken(secret, 1, is_renewable=True, is_ours=True))


def test_p7_vault_is_not_reached_without_tls_over_a_network() -> None:
    for address in ("http://vault.example.org:8200", "ftp://127.0.0.1", "127.0.0.1:8200", "https://u:p@vault", ""):
        with pytest.raises(ConfigInvalid):
            VaultServer(address)


@pytest.mark.usefixtures("login")
def test_a_refused_login_is_not_repeated_for_each_call(
    opened: Open, clock: MovedClock, meter: PrometheusMeter, tmp_path: Path
) -> None:
    (tmp_path / "id").write_text("wrong")
    session = opened(AppRoleLogin(tmp_path / "id", tmp_path / "id"))
    for _ in range(20):
        with pytest.raises(SignerUnavailable):
            read_root(session)
    assert calls(meter, "login", "refused") == 1
    clock.advance(1.01)
    with pytest.raises(SignerUnavailable):
        read_root(session)
    assert calls(meter, "login", "refused") == 2
