import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import click
import pytest

from broker.edge.cli.context import Context, Identity, context_path, read_context, write_context
from broker.edge.cli.problems import Unusable
from tests.edge.cli.conftest import Program
from tests.edge.cli.served import Served

CONTEXT = Context(
    endpoint="localhost:7443",
    ca=Path("/somewhere/ca.pem"),
    trust=Path("/somewhere/trust.json"),
    identities={"admin": Identity(Path("/somewhere/a.pem"), Path("/somewhere/a.key"), "spiffe://x/admin")},
    admin="admin",
    harness={"acme": "admin"},
    verifier={"evaluation": "admin"},
)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "context.json"
    write_context(CONTEXT, path)
    assert read_context(path) == CONTEXT


def test_a_context_without_defaults_is_kept_too(tmp_path: Path) -> None:
    path = tmp_path / "context.json"
    write_context(replace(CONTEXT, admin=None, harness={}, verifier={}), path)
    assert read_context(path).admin is None


def test_the_file_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "context.json"
    before = os.umask(0)
    try:
        write_context(CONTEXT, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_writing_replaces_a_file_that_others_could_read(tmp_path: Path) -> None:
    path = tmp_path / "context.json"
    path.write_text("old")
    path.chmod(0o644)
    write_context(CONTEXT, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["context.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "context.json"
    write_context(CONTEXT, path)
    with pytest.raises(TypeError):
        write_context(replace(CONTEXT, harness={"acme": object()}), path)  # type: ignore[dict-item]
    assert read_context(path) == CONTEXT
    assert [entry.name for entry in tmp_path.iterdir()] == ["context.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666, 0o777])
def test_a_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "context.json"
    write_context(CONTEXT, path)
    path.chmod(mode)
    with pytest.raises(Unusable) as refused:
        read_context(path)
    assert f"{mode:04o}" in refused.value.message
    assert refused.value.hint == f"chmod 600 {path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "context.json"
    write_context(CONTEXT, path)
    os.chown(path, 12345, 12345)
    with pytest.raises(Unusable, match="another user"):
        read_context(path)


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unusable):
        read_context(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        '{"endpoint": 1}',
        json.dumps({"endpoint": "", "ca": "x", "trust": "x", "identities": {}, "defaults": {}}),
        json.dumps({"endpoint": "x", "ca": "x", "trust": "x", "identities": [], "defaults": {"admin": None}}),
        json.dumps({"endpoint": "x", "ca": "x", "trust": "x", "identities": {"a": {}}, "defaults": {"admin": None}}),
        "\x00" * 100,
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "context.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Unusable) as refused:
        read_context(path)
    assert str(path) in refused.value.message
    assert "broker dev" in refused.value.hint


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "context.json"
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(Unusable):
        read_context(path)


def test_a_missing_file_says_how_to_get_one(bare: Program) -> None:
    code, error = bare.error("status")
    assert code == 1
    assert error["reason"] == "CONTEXT"
    assert "broker dev" in error["hint"]


def test_relative_paths_begin_at_the_files_folder(tmp_path: Path) -> None:
    path = tmp_path / "context.json"
    write_context(CONTEXT, path)
    document = json.loads(path.read_text())
    document["ca"] = "ca.pem"
    path.write_text(json.dumps(document))
    assert read_context(path).ca == tmp_path / "ca.pem"


def test_the_file_is_in_the_configuration_folder() -> None:
    assert context_path({"XDG_CONFIG_HOME": "/etc/xdg"}) == Path("/etc/xdg/broker/context.json")
    assert context_path({}) == Path.home() / ".config" / "broker" / "context.json"
    assert context_path({"XDG_CONFIG_HOME": "relative"}) == Path.home() / ".config" / "broker" / "context.json"


@pytest.mark.parametrize(
    "choose",
    [
        lambda context: context.named("nobody"),
        lambda context: context.for_partner("nobody"),
        lambda context: context.for_realm("nowhere"),
        lambda context: replace(context, admin=None).for_admin(),
        lambda context: replace(context, admin="gone").for_admin(),
    ],
)
def test_an_identity_that_is_not_there_is_a_usage_error(choose) -> None:
    with pytest.raises(click.UsageError):
        choose(CONTEXT)


def test_a_wide_context_file_stops_a_command_before_it_calls(broker: Program, home: Path, served: Served) -> None:
    (home / "broker" / "context.json").chmod(0o644)
    code, error = broker.error("status")
    assert code == 1
    assert "0644" in error["message"]
    assert served.calls == []
