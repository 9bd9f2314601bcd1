"""The built wheel, without extras, in an environment that has what its metadata names and nothing else: the SDK."""

import importlib.metadata
import json
import re
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.served import Served

ROOT = Path(__file__).parents[2]
SERVER_ONLY = ("hvac", "sqlalchemy", "alembic", "pydantic", "click", "rich", "starlette", "uvicorn", "yaml", "psycopg")
# What a fresh interpreter has loaded once the SDK is imported.
LOADED = "import json, sys, broker.sdk; print(json.dumps(sorted(sys.modules)))"
USE = """
import sys
from broker.sdk import Client, Identity, Revoked, Verifier

endpoint, trust, ca, *papers = sys.argv[1:]
harness = Identity(certificate=papers[0], key=papers[1], ca=ca)
gateway = Identity(certificate=papers[2], key=papers[3], ca=ca)
with Verifier.connect(endpoint, realm="evaluation", trust=trust, identity=gateway) as verifier:
    verifier.wait_fresh(10)
    with Client.connect(endpoint, identity=harness) as client:
        with client.run(realm="evaluation", partner="acme", models=["mythos"], user="alice") as run:
            proof = verifier.verify(run.token(test="case-7"), model="mythos")
            print(proof.claims.partner, proof.claims.test)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True, timeout=60
    )
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """Return the Python of a new environment with the wheel and what it requires without extras."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, *install, "--no-index", "--no-deps", wheel], check=True, timeout=60)
    # This environment's own copies: the same versions as in the lock file, and no network.
    [site] = folder.glob("lib/python*/site-packages")
    for name in required(wheel):
        provide(name, site)
    return python


def required(wheel):
    """Return the names of all distributions that the wheel needs, directly or not, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    found, waiting = set(), list(metadata.get_all("Requires-Dist"))
    while waiting:
        requirement = waiting.pop()
        name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
        if "extra ==" not in requirement and name not in found:
            try:
                waiting += importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                # Of another platform or version.
                assert ";" in requirement, requirement
                continue
            found.add(name)
    return found


def provide(name, site):
    for file in importlib.metadata.files(name):
        if ".." not in file.parts:
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.locate())


def run(python, *arguments):
    # -I: neither this folder nor the environment's variables can lend a module.
    return subprocess.run([python, "-I", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_environment_has_nothing_but_the_sdk_and_what_it_names(clean, wheel):
    assert {"cryptography", "grpcio", "protobuf"} <= required(wheel)
    for name in SERVER_ONLY:
        assert "ModuleNotFoundError" in run(clean, "-c", f"import {name}").stderr


def test_the_wheel_carries_types_schema_and_migrations(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("py.typed", "adapters/policy.schema.json", "adapters/sql/migrations/versions/0001_first.py"):
        assert f"broker/{name}" in names
    assert not [name for name in names if not name.startswith(("broker/", "credential_broker-"))]


@pytest.mark.parametrize("where", ["clean", "here"])
def test_importing_the_sdk_loads_no_part_of_the_server(clean, where):
    done = run(clean if where == "clean" else sys.executable, "-c", LOADED)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert not [name for name in loaded if name.partition(".")[0] in SERVER_ONLY]
    ours = {".".join(name.split(".")[:2]) for name in loaded if name.partition(".")[0] == "broker"}
    assert ours <= {"broker", "broker.sdk", "broker.token", "broker.errors", "broker.v1"}


def test_the_wheel_without_extras_mints_and_verifies_against_a_real_broker(clean, tmp_path):
    with Served(tmp_path) as served:
        harness, gateway = served.papers["acme"], served.papers["gateway"]
        done = run(
            clean,
            "-c",
            USE,
            served.endpoint,
            str(served.trust()),
            str(served.authority.ca),
            *(str(path) for paper in (harness, gateway) for path in (paper.certificate, paper.key)),
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["acme", "case-7"]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["status"], ["serve", "--config", "x"]])
@pytest.mark.parametrize("how", ["script", "module"])
def test_without_the_server_extra_the_command_says_what_to_install(clean, how, arguments):
    if how == "script":
        done = subprocess.run(
            [clean.with_name("broker"), *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    else:
        done = run(clean, "-m", "broker", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("broker: failed: ")
    assert "pip install 'credential-broker[server]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_the_server_extra_the_module_is_the_command():
    done = run(sys.executable, "-m", "broker", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("broker")
