"""`broker dev --once`: the tour does what it says, from an empty folder and again on the same ledger."""

import subprocess
import sys
from pathlib import Path

BROKER = Path(sys.executable).with_name("broker")


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


def test_a_second_broker_on_the_same_folder_is_refused_with_what_to_do(tmp_path):
    data = tmp_path / "data"
    command = [BROKER, "dev", "--data", data, "--port", "0", "--http-port", "0"]
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
