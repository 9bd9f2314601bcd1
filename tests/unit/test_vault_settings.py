"""Settings of the keys' home: each mistake is named with its field, all at once, before anything is opened."""

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.adapters.clock import SystemClock
from broker.adapters.metrics import PrometheusMeter
from broker.config import Settings, load_settings
from broker.errors import ConfigInvalid
from broker.key_home import open_key_home
from broker.running import run_serve
from tests.authority import Authority

Written = Callable[..., Path]

KEYS_IN_VAULT = 'mode = "vault"'
APPROLE = 'address = "https://127.0.0.1:1"\nauth = "approle"\nrole_id_file = "role_id"\nsecret_id_file = "secret_id"'


@pytest.fixture
def written(tmp_path: Path) -> Written:
    authority = Authority(tmp_path)
    authority.server()
    for name in ("passphrase", "role_id", "secret_id", "token", "jwt", "garbage.pem"):
        (tmp_path / name).write_text("x")

    def write(keys: str = KEYS_IN_VAULT, vault: str = APPROLE, more: str = "") -> Path:
        path = tmp_path / "broker.toml"
        section = f"[vault]\n{vault}\n" if vault else ""
        path.write_text(
            '[server]\ndata_dir = "data"\n[tls]\ncert = "server.pem"\nkey = "server.key"\nclient_ca = "ca.pem"\n'
            f"[keys]\n{keys}\n{section}{more}"
        )
        return path

    return write


def opened(path: Path) -> Settings:
    settings = load_settings(path)
    open_key_home(settings, SystemClock(), PrometheusMeter()).close()
    return settings


@pytest.mark.parametrize(
    ("vault", "keys"),
    [
        (APPROLE, KEYS_IN_VAULT),
        (APPROLE + '\nca_file = "ca.pem"\nauth_mount = "teams/broker"\ntransit_mount = "a/b"', 'mode = "transit"'),
        ('address = "http://localhost:1"\nauth = "token"\ntoken_file = "token"', KEYS_IN_VAULT),
        ('address = "https://v:1"\nauth = "jwt"\njwt_role = "broker"\njwt_file = "jwt"', KEYS_IN_VAULT),
        ("", 'mode = "local"\npassphrase_file = "passphrase"'),
    ],
)
def test_good_settings_open_a_home_also_while_vault_is_away(written: Written, vault: str, keys: str) -> None:
    opened(written(keys, vault))


MISTAKES = [
    # What is said of it, the section [keys], the section [vault].
    ("keys.mode: Input should be 'local', 'vault' or 'transit'", 'mode = "hsm"', APPROLE),
    ("keys.mode: Field required", "", APPROLE),
    ("keys.mode = 'vault' needs a [vault] section", KEYS_IN_VAULT, ""),
    ("keys.mode = 'transit' needs a [vault] section", 'mode = "transit"', ""),
    ("keys.mode = 'local' needs keys.passphrase_file", 'mode = "local"', ""),
    ("keys.passphrase_file: there is no file", 'mode = "local"\npassphrase_file = "absent"', ""),
    ("does not use keys.passphrase_file", KEYS_IN_VAULT + '\npassphrase_file = "passphrase"', APPROLE),
    ("does not use the [vault] section", 'mode = "local"\npassphrase_file = "passphrase"', APPROLE),
    ("keys.signing_minutes", KEYS_IN_VAULT + "\nsigning_minutes = 0", APPROLE),
    ("keys.signing_minutes", KEYS_IN_VAULT + "\nsigning_minutes = 1441", APPROLE),
    ("vault.address: Field required", KEYS_IN_VAULT, APPROLE.partition("\n")[2]),
    ("vault.address: must be https", KEYS_IN_VAULT, APPROLE.replace("https://127.0.0.1:1", "http://vault.example:1")),
    ("vault.address: must be https", KEYS_IN_VAULT, APPROLE.replace("https://127.0.0.1:1", "vault.example:8200")),
    ("vault.address: must hold no user", KEYS_IN_VAULT, APPROLE.replace("127.0.0.1", "u:p@127.0.0.1")),
    ("vault.address", KEYS_IN_VAULT, APPROLE.replace("https://127.0.0.1:1", "")),
    ("vault.address", KEYS_IN_VAULT, APPROLE.replace("127.0.0.1:1", "127.0.0.1:notaport")),
    ("vault.ca_file: there is no file", KEYS_IN_VAULT, APPROLE + '\nca_file = "absent.pem"'),
    ("vault.ca_file", KEYS_IN_VAULT, APPROLE + '\nca_file = "garbage.pem"'),
    ("vault.auth: Input should be 'approle', 'token' or 'jwt'", KEYS_IN_VAULT, APPROLE.replace('"approle"', '"ldap"')),
    ("vault: auth = 'approle' needs secret_id_file", KEYS_IN_VAULT, APPROLE.rpartition("\n")[0]),
    ("vault: auth = 'token' needs token_file", KEYS_IN_VAULT, 'address = "https://v"\nauth = "token"'),
    ("vault: auth = 'jwt' needs jwt_role and jwt_file", KEYS_IN_VAULT, 'address = "https://v"\nauth = "jwt"'),
    ("vault: auth = 'approle' does not use token_file", KEYS_IN_VAULT, APPROLE + '\ntoken_file = "token"'),
    ("vault.secret_id_file: there is no file", KEYS_IN_VAULT, APPROLE.replace('"secret_id"', '"absent"')),
    ("vault.transit_mount", KEYS_IN_VAULT, APPROLE + '\ntransit_mount = "../sys"'),
    ("vault.transit_mount", KEYS_IN_VAULT, APPROLE + '\ntransit_mount = ""'),
    ("vault.key_name", KEYS_IN_VAULT, APPROLE + '\nkey_name = "broker"'),
    ("vault.key_name", KEYS_IN_VAULT, APPROLE + '\nkey_name = "{realm}-{realm}"'),
    ("vault.key_name", KEYS_IN_VAULT, APPROLE + '\nkey_name = "../{realm}"'),
    ("vault.read_timeout_s", KEYS_IN_VAULT, APPROLE + "\nread_timeout_s = 0"),
    ("vault.connect_timeout_s", KEYS_IN_VAULT, APPROLE + "\nconnect_timeout_s = 60"),
    ("vault.read_timeout", KEYS_IN_VAULT, APPROLE + "\nread_timeout = 5"),
]


@pytest.mark.parametrize(("said", "keys", "vault"), MISTAKES, ids=[str(number) for number in range(len(MISTAKES))])
def test_p7_a_mistake_in_the_settings_names_its_field_and_nothing_is_opened(
    written: Written, said: str, keys: str, vault: str
) -> None:
    path = written(keys, vault)
    with pytest.raises(ConfigInvalid) as refused:
        opened(path)
    assert said in str(refused.value)
    assert not (path.parent / "data" / "ledger.db").exists()


def test_all_mistakes_are_told_at_once_one_a_line_with_the_file_once(
    written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written('mode = "hsm"', 'address = "x"\nauth = "ldap"\nkey_name = "broker"')
    assert run_serve(config=path) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[3] for line in lines] == ["keys.mode", "vault.auth", "vault.key_name"]
    assert all(line.startswith(f"broker: failed: {path}: ") and line.count(str(path)) == 1 for line in lines)


def test_p12_a_secret_pasted_into_a_field_is_not_quoted(written: Written) -> None:
    secret = "s.0123456789abcdef"
    path = written(KEYS_IN_VAULT, APPROLE + f'\ntransit_mount = "{secret}"\nsecret_id = "{secret}"\n')
    with pytest.raises(ConfigInvalid) as refused:
        opened(path)
    assert secret not in str(refused.value)
    assert "vault.secret_id" in str(refused.value)


@pytest.mark.parametrize(
    ("file", "field"), [("server.pem", "tls.cert"), ("server.key", "tls.cert"), ("ca.pem", "tls.client_ca")]
)
def test_p7_papers_that_are_none_are_told_as_such_and_not_as_a_port_that_is_taken(
    written: Written, capsys: pytest.CaptureFixture[str], file: str, field: str
) -> None:
    path = written('mode = "local"\npassphrase_file = "passphrase"', "")
    path.write_text(
        path.read_text().replace("[server]", '[server]\nlisten = "127.0.0.1:0"\nhttp_listen = "127.0.0.1:0"')
    )
    (path.parent / file).write_text("garbage")
    assert run_serve(config=path) == 1
    said = capsys.readouterr().err
    assert f"broker: failed: {field}: " in said
    assert "cannot be bound" not in said
