"""`broker dev --once`: the tour does what it says, from an empty folder and again on the same ledger."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.ports import free_port

BROKER = Path(sys.executable).with_name("broker")
README = Path(__file__).parent.parent.parent / "README.md"


def test_the_tour_mints_verifies_revokes_and_is_denied_also_on_a_ledger_that_exists(tmp_path):
    for _ in range(2):
        done = subprocess.run(
            [BROKER, "dev", "--once", "--data", tmp_path / "data"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        for step in (
            "minted token",
            "verified offline",
            "complete: no verifier",
            "proof checked offline",
            "denied: the token was revoked",
            "no new token",
        ):
            assert step in done.stdout


def test_a_broker_that_was_left_with_its_partner_revoked_serves_so_that_it_can_be_reinstated(tmp_path):
    environment = {"HOME": str(tmp_path), "PATH": f"{BROKER.parent}{os.pathsep}{os.environ['PATH']}"}
    ports = [word for name in ("port", "http-port", "login-port") for word in (f"--{name}", str(free_port()))]
    command = [BROKER, "dev", "--data", tmp_path / "data", *ports]

    def serving():
        """Start it, and return it with what it said until it only serves."""
        served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert served.stdout is not None
        said = ""
        while "stop with Ctrl-C" not in (line := served.stdout.readline()):
            assert line, said
            said += line
        return served, said

    def tell(*words):
        done = subprocess.run(
            [BROKER, *words], capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr

    for words, promised in (
        (("revoke", "--partner", "acme", "--reason", "tried"), "denied: the token was revoked"),
        (("reinstate", "--partner", "acme", "--reason", "tried"), "to have it again: broker reinstate --partner acme"),
        (("status",), "denied: the token was revoked"),
    ):
        served, said = serving()
        with served:
            assert promised in said
            tell(*words)
            served.terminate()
            served.communicate(timeout=30)
        assert served.returncode == 0


def test_a_second_broker_on_the_same_folder_is_refused_with_what_to_do(tmp_path):
    data = tmp_path / "data"
    command = [BROKER, "dev", "--data", data, "--port", "0", "--http-port", "0", "--login-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"HOME": str(tmp_path)}) as first:
        assert first.stdout is not None
        assert "broker is ready" in first.stdout.readline()
        second = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env={"HOME": str(tmp_path)}
        )
        first.terminate()
        first.communicate(timeout=30)
    assert second.returncode == 1
    assert "another broker is using the data folder" in second.stderr
    assert "stop it" in second.stderr


def test_p10_a_reader_of_the_readme_exports_the_log_changes_one_byte_and_sees_it_named(tmp_path):
    section = README.read_text().partition("## Check us\n")[2].partition("\n## ")[0]
    script, questions = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    *lines, last = script.strip().splitlines()
    *asking, last_asked = questions.strip().splitlines()
    environment = {"HOME": str(tmp_path), "PATH": f"{BROKER.parent}{os.pathsep}{os.environ['PATH']}"}
    ports = [word for name in ("port", "http-port", "login-port") for word in (f"--{name}", str(free_port()))]
    command = [BROKER, "dev", "--data", tmp_path / "data", *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as served:
        assert served.stdout is not None
        while "stop with Ctrl-C" not in (line := served.stdout.readline()):
            assert line, "it ended"
        shell = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(["sh", "-ec", "\n".join(lines)], check=False, **shell)
        asked = subprocess.run(["sh", "-ec", "\n".join(asking)], check=False, **shell)
        served.kill()
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout
    assert asked.returncode == 0, asked.stderr
    assert "each verifier signs what it accepts" in asked.stdout
    reported = subprocess.run(["sh", "-c", last_asked], check=False, **shell)
    assert reported.returncode == 0, reported.stderr
    assert "good: access report on model mythos" in reported.stdout
    # Without the broker, as it says.
    found = subprocess.run(["sh", "-c", last], check=False, **shell)
    assert found.returncode == 1
    [promised] = [line.strip() for line in section.splitlines() if line.startswith("    broker: failed: ")]
    wanted = re.escape(promised.removesuffix("...")).replace("12", "[0-9]+").replace("23", "[0-9]+")
    assert re.match(wanted, found.stderr), found.stderr
