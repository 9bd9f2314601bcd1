"""What the command line itself refuses, its help, and its completion."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from broker import stranger
from broker.edge.cli import cli_with
from broker.edge.cli.command import CommandGroup
from broker.edge.cli.durations import shown
from broker.edge.cli.problems import problem_of
from tests.edge.cli.conftest import Program
from tests.edge.cli.feeding import Realm
from tests.edge.cli.served import Served

SPEC = ("--realm", "evaluation", "--partner", "acme", "--user", "alice", "--model", "mythos")
PROGRAM = cli_with(
    dev=lambda **_: 0,
    serve=lambda **_: 0,
    witness=lambda **_: 0,
    backup=lambda **_: 0,
    archive=lambda **_: 0,
    restore=lambda **_: 0,
    validate=lambda _document, _source: [],
    strangers=lambda: stranger,
)


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from walk(inner, (*path, name))


EVERY = list(walk(PROGRAM))
LEAVES = [
    (path, command)
    for path, command in EVERY
    if not isinstance(command, click.Group) or isinstance(command, CommandGroup)
]


def test_the_commands_are_those_of_the_design() -> None:
    assert {" ".join(path) for path, _ in LEAVES} == {
        "dev",
        "login",
        "login token",
        "logout",
        "serve",
        "witness",
        "policy validate",
        "policy plan",
        "policy apply",
        "policy show",
        "policy versions",
        "policy restore",
        "run open",
        "run keep",
        "run close",
        "run list",
        "run show",
        "approval request",
        "approval list",
        "approval show",
        "approval approve",
        "approval deny",
        "approval withdraw",
        "approval wait",
        "token mint",
        "token exchange",
        "token verify",
        "token inspect",
        "explain",
        "explain denial",
        "explain token",
        "explain path",
        "revoke",
        "revoke show",
        "revoke tokens",
        "reinstate",
        "revocations",
        "verifiers",
        "verifiers forget",
        "drill",
        "drill history",
        "backup",
        "restore",
        "archive",
        "audit verify-completion",
        "audit verify-proof",
        "audit checkpoint",
        "audit prove",
        "audit export",
        "audit query",
        "audit trail",
        "audit after-revocation",
        "audit verify",
        "audit tail",
        "report access",
        "report verify",
        "status",
        "trust",
        "completion",
    }


@pytest.mark.parametrize("path", [path for path, _ in EVERY], ids=" ".join)
def test_the_help_of_every_command_has_an_example_of_it(bare: Program, path: tuple[str, ...]) -> None:
    result = bare(*path, "--help")
    assert result.exit_code == 0
    assert f"broker {' '.join(path)}".strip() in result.stdout.partition("Examples:")[2]


@pytest.mark.parametrize(
    "path",
    [path for path, _ in LEAVES if path[0] not in {"dev", "serve", "witness", "backup", "restore", "archive"}],
    ids=" ".join,
)
def test_every_command_that_answers_has_documented_json(bare: Program, path: tuple[str, ...]) -> None:
    text = bare(*path, "--help").stdout
    assert "-o, --output [text|json" in text
    assert text.partition("JSON (-o json):")[2].strip()


@pytest.mark.parametrize("command", [command for _, command in LEAVES], ids=lambda command: command.name)
def test_every_option_has_help(command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize(
    "example", [example for _, command in EVERY for example in getattr(command, "examples", ())], ids=str
)
def test_every_example_parses(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words after `broker` make a command line that click takes."""
    monkeypatch.chdir(tmp_path)
    for name in ("policy.yaml", "broker.toml"):
        (tmp_path / name).touch()
    for part in (
        example.replace('"$(', "| ")
        .replace(')"', "")
        .replace("$(", "| ")
        .replace(")", "")
        .replace("&&", "|")
        .split("|")
    ):
        words = shlex.split(part.partition(" > ")[0].partition(" < ")[0], comments=True)
        if "broker" in words:
            words = [word.replace("$RUN", "run-1") for word in words[words.index("broker") + 1 :]]
            command: click.Command = PROGRAM
            while isinstance(command, click.Group):
                if isinstance(command, CommandGroup) and (not words or words[0] not in command.commands):
                    break
                command = command.commands[words.pop(0)]
            command.make_context(command.name, words)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("unknown",),
        ("token",),
        ("run",),
        ("policy",),
        ("status", "extra"),
        ("status", "--unknown"),
        ("status", "-o", "yaml"),
        ("status", "-o"),
        ("status", "--deadline", "0s"),
        ("status", "--deadline", "10"),
        ("status", "--as", "nobody"),
        ("token", "mint"),
        ("token", "mint", *SPEC[2:]),
        ("token", "mint", *SPEC[:2], *SPEC[4:]),
        ("token", "mint", *SPEC[:6]),
        ("token", "mint", *SPEC, "--run", ""),
        ("token", "mint", *SPEC, "--test", ""),
        ("token", "mint", *SPEC, "--request-id", ""),
        ("token", "mint", *SPEC[:-1], ""),
        ("token", "mint", *SPEC, "--model", ""),
        ("token", "verify", "--realm", "evaluation"),
        ("token", "verify", "--model", "mythos"),
        ("token", "verify", "--realm", "", "--model", "mythos"),
        ("token", "inspect", "argument"),
        ("token", "exchange", "argument"),
        ("token", "exchange", "--model", ""),
        ("token", "exchange", "--ttl", "soon"),
        ("token", "exchange", "--bind", ""),
        ("token", "exchange", "--bind", "anything"),
        ("token", "exchange", "--bind", "jkt:short"),
        ("token", "exchange", "--bind", "cert:/nowhere/cert.pem"),
        ("token", "mint", *SPEC, "--bind", "OWN"),
        ("run", "open", "--realm", "r", "--partner", "acme"),
        ("run", "open", *SPEC[:4], "--model", "m", "--lease", "soon"),
        ("run", "keep"),
        ("run", "keep", ""),
        ("run", "close"),
        ("run", "close", "r", "--partner", ""),
        ("run", "list", "--limit", "0"),
        ("run", "list", "--limit", "1001"),
        ("run", "list", "--partner", ""),
        ("explain", *SPEC, "--environment", ""),
        ("explain", "denial"),
        ("explain", "denial", ""),
        ("explain", "token", ""),
        ("explain", "path"),
        ("explain", "path", "--realm", "r"),
        ("explain", "path", "--realm", "r", "--model", ""),
        ("revoke",),
        ("revoke", "--reason", "x"),
        ("revoke", "--partner", "acme"),
        ("revoke", "--partner", "acme", "--reason", "x", "--timeout", "0s"),
        ("revoke", "--realm", "r", "--reason", "x"),
        ("reinstate", "--reason", "x"),
        ("reinstate", "--partner", "acme"),
        ("revocations", "--after", "-1"),
        ("revocations", "--limit", "1001"),
        ("revoke", "--partner", "acme", "--reason", "x", "--timeout", "0"),
        ("revoke", "--partner", "acme", "--reason", "x", "--wait", "--timeout", "0"),
        ("revoke", "--partner", "acme", "--reason", "x", "--export", "new.jws"),
        ("revoke", "--partner", "acme", "--reason", "x", "--wait", "--export", "/nowhere/at/all.jws"),
        ("revoke", "--partner", "acme", "--reason", "x", "--wait", "--export", __file__),
        ("revoke", "--partner", "acme", "--reason", "x", "show", "17"),
        ("revoke", "--partner", "acme", "--dry-run", "--wait"),
        ("revoke", "--partner", "acme", "--dry-run", "--export", "new.jws"),
        ("revoke", "--dry-run"),
        ("revoke", "acme"),
        ("revoke", "show"),
        ("revoke", "show", "-1"),
        ("revoke", "show", "x"),
        ("revoke", "show", str(2**64)),
        ("revoke", "show", "17", "18"),
        ("revoke", "show", "17", "--wait", "--timeout", "0s"),
        ("revoke", "show", "17", "--export", __file__),
        ("revoke", "show", "17", "--partner", "acme"),
        ("revoke", "tokens"),
        ("revoke", "tokens", "--realm", "r"),
        ("revoke", "tokens", "--reason", "x"),
        ("revoke", "tokens", "--realm", "r", "--reason", "x"),
        ("revoke", "tokens", "--realm", "r", "--reason", "x", "--timeout", "0"),
        ("verifiers", "--realm", ""),
        ("verifiers", "--every", "5s"),
        ("verifiers", "--watch", "--every", "0"),
        ("verifiers", "forgot"),
        ("verifiers", "forget"),
        ("verifiers", "forget", "spiffe://a/b"),
        ("verifiers", "forget", "spiffe://a/b", "--realm", "r"),
        ("verifiers", "forget", "", "--realm", "r", "--reason", "x"),
        ("drill", "--realm", ""),
        ("drill", "--schedule", "15m"),
        ("drill", "--realm", "r", "--schedule", "0"),
        ("drill", "--realm", "r", "--schedule", "soon"),
        ("drill", "--timeout", "0"),
        ("drill", "historic"),
        ("drill", "history", "--limit", "0"),
        ("drill", "history", "--limit", "1001"),
        ("audit",),
        ("audit", "verify"),
        ("audit", "verify-completion"),
        ("audit", "verify-proof"),
        ("audit", "verify-proof", __file__, "--witnesses", "-1"),
        ("report",),
        ("backup",),
        ("archive",),
        ("archive", "--before", "yesterday", "--config", "/nowhere/broker.toml"),
        ("archive", "--before", "0d", "--config", "/nowhere/broker.toml"),
        ("backup", "x", "--config", "/nowhere/broker.toml"),
        ("restore", "x"),
        ("restore", "x", "--config", __file__, "--reason", "x"),
        ("restore", "x", "--config", __file__, "--by", "spiffe://a/b"),
        ("report", "access"),
        ("report", "access", "--partner", ""),
        ("report", "access", "--partner", "acme", "--soon", "-1"),
        ("report", "access", "--partner", "acme", "-o", "pdf"),
        ("report", "verify"),
        ("trust", "--realm", ""),
        ("policy", "validate"),
        ("policy", "apply"),
        ("policy", "plan"),
        ("policy", "plan", "/nowhere/policy.yaml"),
        ("policy", "apply", "/dev/null"),
        ("policy", "apply", "/dev/null", "--reason", "x", "--plan", ""),
        ("policy", "apply", "/dev/null", "--reason", ""),
        ("policy", "apply", "/dev/null", "--reason", "x", "--expected-version", "-1"),
        ("policy", "show", "--version", "-1"),
        ("policy", "versions", "--limit", "0"),
        ("policy", "restore", "--reason", "x"),
        ("policy", "restore", "seven", "--reason", "x"),
        ("policy", "restore", "7"),
        ("completion",),
        ("completion", "powershell"),
        ("serve",),
        ("serve", "--config", "/nowhere/broker.toml"),
        ("dev", "--port", "-1"),
        ("dev", "--port", "65536"),
        ("dev", "--http-port", "x"),
        ("dev", "--data", __file__),
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_every_usage_error_is_2_and_calls_nobody(broker: Program, served: Served, arguments: tuple[str, ...]) -> None:
    result = broker(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith(("broker: usage: ", "Usage: "))
    assert served.calls == []
    assert broker.started == []


@pytest.mark.parametrize(
    "ttl",
    [
        "0s",
        "0m",
        "-1s",
        "-5m",
        "10",
        "",
        "1.5h",
        "1w",
        "1D",
        "0d",
        "s",
        "90S",
        "9" * 300 + "s",
        "٣s",
        "1h30m",
        "10 m",
        "x",
    ],
)
def test_a_span_that_is_none_is_a_usage_error(broker: Program, served: Served, ttl: str) -> None:
    code, error = broker.error("token", "mint", *SPEC, "--ttl", ttl)
    assert code == 2
    assert "90s, 10m or 1h" in error["message"] or "at least 1s" in error["message"]
    assert served.calls == []


def test_a_usage_error_says_where_help_is(broker: Program) -> None:
    code, error = broker.error("token", "mint", "--realm", "r")
    assert (code, error["reason"]) == (2, "USAGE")
    assert error["hint"] == "see: broker token mint --help"


def test_an_id_that_looks_like_an_option_is_told_how_to_be_given(broker: Program) -> None:
    code, error = broker.error("approval", "show", "-If20_14jHhxMCkrNE7xYw")
    assert code == 2
    assert error["hint"] == "if it is an id that begins with a dash: broker approval show -- APPROVAL"
    assert broker.error("status", "-If20_14jHhxMCkrNE7xYw")[1]["hint"] == "see: broker status --help"


@pytest.mark.parametrize("form", [("-o", "json"), ("-ojson",), ("--output=json",), ("--output", "json")])
def test_a_usage_error_is_json_where_json_was_asked_for(broker: Program, form: tuple[str, ...]) -> None:
    for arguments in ((*form, "status", "--unknown"), ("status", "--unknown", *form)):
        result = broker(*arguments)
        assert result.exit_code == 2
        assert json.loads(result.stderr)["error"]["reason"] == "USAGE"


@pytest.mark.parametrize("place", ["argument", "option", "joined", "command", "split"])
def test_a_token_as_an_argument_is_refused_and_not_echoed(
    broker: Program, served: Served, realm: Realm, place: str
) -> None:
    """P12."""
    token = realm.token()
    arguments = {
        "argument": ("token", "inspect", token),
        "option": ("revoke", "--token", token, "--reason", "x"),
        "joined": ("revoke", f"--token={token}", "--reason", "x"),
        "command": (token,),
        "split": ("token", "verify", "--realm", "r", "--model", "m", f"Bearer {token[:200]}"),
    }[place]
    for form in ("text", "json"):
        result = broker(*arguments, "-o", form)
        assert result.exit_code == 2
        assert "looks like a token" in result.stderr
        for start in range(0, len(token) - 16, 16):
            assert token[start : start + 16] not in result.output
    assert served.calls == []


def test_names_ids_and_thumbprints_do_not_look_like_tokens(broker: Program, served: Served) -> None:
    for value in ("a.b.c", "mythos-4.1.2@eu-1.a", "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9eyJ", "spiffe://a.b/c.d"):
        assert "looks like a token" not in broker("run", "close", value, "--partner", "x").stderr


def test_bytes_that_are_no_text_are_a_usage_error(broker: Program, served: Served) -> None:
    code, error = broker.error("revoke", "--partner", "\udcff", "--reason", "x")
    assert code == 2
    assert "UTF-8" in error["message"]
    assert served.calls == []


def test_other_commands_start_nothing(broker: Program) -> None:
    broker("status")
    assert broker.started == []


def test_dev_is_started_with_its_defaults(bare: Program) -> None:
    assert bare("dev").exit_code == 0
    home = Path(str(bare.environment["XDG_DATA_HOME"]))
    assert bare.started == [
        ("dev", {"data": home / "broker" / "dev", "port": 7443, "http_port": 7444, "login_port": 7442, "once": False})
    ]


def test_dev_is_started_as_it_is_told(bare: Program, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert bare("dev", "--data", str(folder), "--port", "1", "--http-port", "0", "--once").exit_code == 0
    assert bare.started == [("dev", {"data": folder, "port": 1, "http_port": 0, "login_port": 0, "once": True})]


def test_the_tour_leaves_nothing_behind_and_takes_free_ports(bare: Program) -> None:
    assert bare("dev", "--once").exit_code == 0
    [(_, arguments)] = bare.started
    assert (arguments["port"], arguments["http_port"]) == (0, 0)
    assert not arguments["data"].exists()


def test_serve_is_started_with_its_settings(bare: Program, tmp_path: Path) -> None:
    config = tmp_path / "broker.toml"
    config.touch()
    assert bare("serve", "--config", str(config)).exit_code == 0
    assert bare.started == [("serve", {"config": config})]


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_servers_exit_code_is_the_programs(code: int) -> None:
    program = cli_with(
        dev=lambda **_: code,
        serve=lambda **_: code,
        witness=lambda **_: code,
        backup=lambda **_: code,
        archive=lambda **_: code,
        restore=lambda **_: code,
        validate=lambda _document, _source: [],
        strangers=lambda: stranger,
    )
    with pytest.raises(SystemExit) as ended:
        program.main(["dev", "--once"])
    assert ended.value.code == code


def test_a_servers_failure_is_told_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    def dev(**_: object) -> int:
        raise OSError(98, "Address already in use", "localhost:7443")

    program = cli_with(
        dev=dev,
        serve=dev,
        witness=dev,
        backup=dev,
        archive=dev,
        restore=dev,
        validate=lambda _document, _source: [],
        strangers=lambda: stranger,
    )
    with pytest.raises(SystemExit) as ended:
        program.main(["dev", "--once"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "broker: failed: localhost:7443: Address already in use\n"


def test_what_click_cannot_do_is_a_failure() -> None:
    problem = problem_of(click.ClickException("cannot\nbe  done."))
    assert (problem.exit_code, problem.message) == (1, "cannot be done")


@pytest.mark.parametrize(("shell", "mark"), [("bash", "_broker_completion"), ("zsh", "#compdef broker"), ("fish", "")])
def test_a_completion_script_is_printed(bare: Program, shell: str, mark: str) -> None:
    result = bare("completion", shell)
    assert result.exit_code == 0
    assert mark in result.stdout
    assert "_BROKER_COMPLETE" in result.stdout
    assert list(bare.json("completion", shell)) == ["shell", "script"]


def test_the_completion_script_runs_in_a_real_shell() -> None:
    script = subprocess.run(
        [sys.executable, "-c", "from broker.edge.cli import main; main()", "completion", "bash"],
        capture_output=True,
        check=True,
    ).stdout
    subprocess.run(["bash", "-n"], input=script, check=True)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("broker rev", {"revoke", "revocations"}),
        ("broker token v", {"verify"}),
        ("broker revoke --part", {"--partner"}),
        ("broker revoke sh", {"show"}),
        ("broker revoke show --w", {"--wait"}),
        ("broker revoke --partner acme --w", {"--wait", "--workload"}),
        ("broker drill --sch", {"--schedule"}),
        ("broker verifiers f", {"forget"}),
        ("broker audit v", {"verify-completion"}),
    ],
)
def test_completion_completes(words: str, wanted: set[str]) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", "from broker.edge.cli import main; main()"],
        env={
            **os.environ,
            "_BROKER_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line.partition(",")[2] for line in completed.stdout.splitlines()} == wanted


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12.3 ms"), (0, "0 ms"), (1.5, "1.5 s"), (59.9, "59.9 s"), (200, "3 m 20 s"), (7500, "2 h 5 m")],
)
def test_spans_are_shown_for_people(seconds: float, text: str) -> None:
    assert shown(seconds) == text
