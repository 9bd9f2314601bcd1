"""The command line as a process of its own: signals, pipes, and what it loads."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from broker.v1 import revocations_pb2 as pb
from broker.v1 import status_pb2, tokens_pb2
from tests.edge.cli.feeding import Realm
from tests.edge.cli.served import Hang, InTurn, Served
from tests.edge.cli.test_listening import VERIFIERS
from tests.edge.cli.test_revoking import COMMITTED, PROGRESS

# As from a terminal: whoever runs the tests in the background made their children deaf to Ctrl-C.
HEARING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
MAIN = (sys.executable, "-c", f"{HEARING}; from broker.edge.cli import main; main()")
DEADLINE_S = 30
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(home: Path) -> Start:
    def started(*arguments: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        return subprocess.Popen(
            [*MAIN, *arguments],
            env={**environment, "XDG_CONFIG_HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return started


def test_ctrl_c_is_130_without_a_traceback(start: Start, served: Served) -> None:
    served.answers["GetStatus"] = Hang()
    process = start("status")
    assert served.hanging.wait(DEADLINE_S)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "")


def test_ctrl_c_while_waiting_comes_after_the_commit_was_told(start: Start, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED, PROGRESS, Hang()]
    process = start("revoke", "--partner", "acme", "--reason", "x", "--wait")
    assert process.stderr is not None
    assert process.stderr.readline() == "revoked at index 42; waiting until no verifier accepts a matching token\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "")


def test_ctrl_c_while_a_verifier_is_not_fresh_yet_is_130(start: Start, realm: Realm) -> None:
    realm.is_silent = True
    process = start("token", "verify", "--realm", "evaluation", "--model", "mythos")
    assert process.stdin is not None
    process.stdin.write(realm.token())
    process.stdin.close()
    process.stdin = None
    assert realm.heard_of.wait(DEADLINE_S)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "")


def test_on_a_terminal_a_watched_list_is_drawn_over_until_ctrl_c_and_steers_nothing(home: Path, served: Served) -> None:
    served.answers["ListVerifiers"] = InTurn(VERIFIERS, grpc.StatusCode.UNAVAILABLE, VERIFIERS)
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    process = subprocess.Popen(
        [*MAIN, "verifiers", "--watch"],
        env={**environment, "XDG_CONFIG_HOME": str(home), "COLUMNS": "300", "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    drawn = b""
    while drawn.count(b"LAST DRILL") < 2:
        assert select.select([ours], [], [], DEADLINE_S)[0], drawn
        drawn += os.read(ours, 65_536)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    os.close(ours)
    assert (process.returncode, err.strip()) == (130, b"")
    assert b"no answer from the broker" in drawn
    assert b"\\x1b[2J" in drawn
    assert b"\x1b[2J" not in drawn


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_reader_that_has_gone_away_is_no_drama(start: Start, served: Served, form: str) -> None:
    many = [pb.Revocation(index=index, reason="x" * 400) for index in range(1000)]
    served.answers["ListRevocations"] = pb.ListRevocationsResponse(revocations=many)
    process = start("revocations", "-o", form)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (1, "")


def test_the_token_is_nowhere_but_on_stdout(start: Start, served: Served, realm: Realm) -> None:
    """P12."""
    token = realm.token()
    served.answers["Mint"] = tokens_pb2.MintResponse(token=tokens_pb2.MintedToken(token=token))
    minting = start("token", "mint", "--realm", "r", "--partner", "acme", "--user", "alice", "--model", "m")
    out, err = minting.communicate(timeout=DEADLINE_S)
    assert (out, err) == (token + "\n", "")


def test_a_whole_pipe_accepts(start: Start, realm: Realm) -> None:
    process = start("token", "verify", "--realm", "evaluation", "--model", "mythos", "-o", "json")
    out, err = process.communicate(realm.token() + "\n", timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, "")
    assert '"accepted": true' in out


def test_a_token_on_a_terminal_is_not_waited_for(home: Path) -> None:
    leader, follower = os.openpty()
    try:
        result = subprocess.run(
            [*MAIN, "token", "inspect"], stdin=follower, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert result.returncode == 2
    assert "terminal" in result.stderr


def test_commands_that_only_call_have_no_servers(home: Path) -> None:
    result = subprocess.run([*MAIN, "--help"], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert "  status " in result.stdout
    assert "  serve " not in result.stdout
    assert "  dev " not in result.stdout


def test_the_command_line_loads_no_server_code() -> None:
    """It is a client: neither use cases nor adapters, nor what they need."""
    code = "import sys, broker.edge.cli; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in loaded if name.startswith("broker.")}
    rooms = {".".join(name.split(".")[:2]) for name in ours}
    assert rooms == {"broker.edge", "broker.errors", "broker.https", "broker.sdk", "broker.token", "broker.v1"}
    assert {
        name for name in ours if name.startswith("broker.edge.") and not name.startswith("broker.edge.cli")
    } == set()
    assert {"sqlalchemy", "hvac", "starlette", "yaml", "pydantic"}.isdisjoint(loaded)


def test_stderr_is_quiet_when_all_is_well(start: Start, served: Served) -> None:
    served.answers["GetStatus"] = status_pb2.GetStatusResponse(minting=True)
    _, err = start("status").communicate(timeout=DEADLINE_S)
    assert err == ""
