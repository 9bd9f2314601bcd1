"""After a fork the child is closed until its own connection stands, and the parent goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

from broker.token.keys import render_trust
from tests.feed_server import eventually

HEAVY = ("hvac", "sqlalchemy", "starlette", "uvicorn", "pydantic", "click", "alembic", "psycopg", "yaml")


PROGRAM = Path(__file__).with_name("forking_program.py")


def test_p7_a_forked_child_is_closed_until_its_own_connection_stands(server, keys, identity, tmp_path):
    # A fork takes some milliseconds away from a lease that is short here.
    server.lease_ms = 5000
    (tmp_path / "trust.json").write_text(render_trust([keys.trust]))
    files = [str(identity.certificate), str(identity.key), str(identity.ca)]
    program = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            str(PROGRAM),
            server.endpoint,
            str(tmp_path / "trust.json"),
            keys.mint(),
            *files,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[3])},
    )
    with program:
        said: dict[str, object] = {}
        assert program.stdout is not None
        for line in program.stdout:
            facts = json.loads(line)
            said |= facts
            if "held" in facts:
                # The parent's lease bridged the fork, and it listens again.
                assert facts == {"parent": "mythos", "held": True}
                server.revoke(partner="acme")
        assert program.stderr is not None
        assert program.stderr.read() == ""
    assert program.returncode == 0
    assert said == {
        "threads": [],
        "fresh": False,
        "cancelled": True,
        "before": "STALE",
        "closed": "STALE",
        "after": "mythos",
        "own": True,
        "child_ended": 0,
        "held": True,
        "parent": "REVOKED",
    }


def test_importing_the_sdk_loads_no_server_code():
    program = "import sys, json, broker.sdk, broker.sdk.asgi, broker.sdk.grpc_interceptor; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    loaded = json.loads(done.stdout)
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []
    rooms = {name.split(".")[1] for name in loaded if name.startswith("broker.")}
    assert rooms == {"errors", "sdk", "token", "v1"}


def test_a_process_that_leaves_its_verifier_open_ends_quietly(server, keys, identity, tmp_path):
    (tmp_path / "trust.json").write_text(render_trust([keys.trust]))
    program = (
        "import sys\nfrom broker.sdk import Identity, Verifier\n"
        "v = Verifier.connect(sys.argv[1], realm='evaluation', trust=sys.argv[2], identity=Identity(*sys.argv[3:]))\n"
        "v.wait_fresh(10)\nprint('fresh')\n"
    )
    files = [str(identity.certificate), str(identity.key), str(identity.ca)]
    done = subprocess.run(
        [sys.executable, "-c", program, server.endpoint, str(tmp_path / "trust.json"), *files],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fresh\n", "")
    eventually(lambda: server.listening == 0, "the end of the stream")
