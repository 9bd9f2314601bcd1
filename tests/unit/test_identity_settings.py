"""Settings of identities: each mistake is named with its field, all of them at once, before anything is served."""

import pytest

from broker.config import load_settings
from broker.errors import ConfigInvalid
from broker.running import run_serve
from tests.authority import Authority


@pytest.fixture
def written(tmp_path):
    Authority(tmp_path).server()
    for name in ("passphrase", "review-token", "garbage.pem"):
        (tmp_path / name).write_text("x")

    def write(identity, server=""):
        path = tmp_path / "broker.toml"
        path.write_text(
            f'[server]\ndata_dir = "data"\nlisten = "127.0.0.1:0"\nhttp_listen = "127.0.0.1:0"\n{server}\n'
            '[tls]\ncert = "server.pem"\nkey = "server.key"\nclient_ca = "ca.pem"\n'
            f'[keys]\nmode = "local"\npassphrase_file = "passphrase"\n[identity]\n{identity}\n'
        )
        return path

    return write


def test_good_settings_are_read_and_files_are_found_beside_them(written, tmp_path):
    settings = load_settings(
        written(
            'allow_private = ["sso.internal:443", "127.0.0.1:8200", "::1:8443"]\nca_file = "ca.pem"\n'
            'review_token_files = {cluster = "review-token"}',
            'login_listen = "127.0.0.1:0"',
        )
    )
    assert settings.identity.ca_file == tmp_path / "ca.pem"
    assert settings.identity.review_token_files == {"cluster": tmp_path / "review-token"}
    assert settings.server.login_listen == "127.0.0.1:0"


def test_without_the_section_nothing_private_is_asked_and_there_is_no_login_door(written):
    path = written("")
    path.write_text(path.read_text().replace("[identity]\n", ""))
    settings = load_settings(path)
    assert settings.identity.allow_private == ()
    assert settings.server.login_listen is None


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ('allow_private = ["*"]', "identity.allow_private.0"),
        ('allow_private = ["sso.internal"]', "identity.allow_private.0"),
        ('allow_private = ["10.0.0.0/8"]', "identity.allow_private.0"),
        ('allow_private = ["https://sso.internal:443"]', "identity.allow_private.0"),
        ('allow_private = ["SSO.internal:443"]', "identity.allow_private.0"),
        ('allow_private = ["sso.internal:0"]', "identity.allow_private.0"),
        ("allow_private = true", "identity.allow_private"),
        ('ca_file = "absent.pem"', "identity.ca_file: there is no file"),
        ('review_token_files = {cluster = "absent"}', "identity.review_token_files.cluster: there is no file"),
        ('review_token_files = "review-token"', "identity.review_token_files"),
        ("allow_all = true", "identity.allow_all"),
    ],
)
def test_p7_a_mistake_names_its_field(written, identity, said):
    with pytest.raises(ConfigInvalid) as refused:
        load_settings(written(identity))
    assert said in str(refused.value)


def test_all_mistakes_are_told_together(written):
    with pytest.raises(ConfigInvalid) as refused:
        load_settings(written('allow_private = ["*", "x"]\nca_files = "ca.pem"\nreview_token_files = 1', "login = 1"))
    assert len(refused.value.problems) == 5


def test_a_ca_file_that_is_none_is_told_at_the_start(written, capsys):
    assert run_serve(config=written('ca_file = "garbage.pem"')) == 1
    assert "identity.ca_file" in capsys.readouterr().err


def test_a_login_door_whose_port_is_taken_is_told_with_its_field(written, capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_serve(config=written("", f'login_listen = "127.0.0.1:{port}"')) == 1
    assert "server.login_listen" in capsys.readouterr().err
