"""The import contracts hold for the tree, and each fails when an arrow is reversed."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")
CONTRACTS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
]
ROOMS, PURE, SDK, CORE, CLI = CONTRACTS

# (the contract that must break, the file that reaches too far, what it reaches for)
REVERSED = [
    (ROOMS, "service/mint.py", "broker.adapters.clock"),
    (ROOMS, "domain/decision.py", "broker.service.ports"),
    (ROOMS, "token/claims.py", "broker.domain.policy"),
    (ROOMS, "token/claims.py", "broker.ledger.entry"),
    (ROOMS, "ledger/entry.py", "broker.token.claims"),
    (ROOMS, "edge/grpc/server.py", "broker.adapters.clock"),
    (ROOMS, "adapters/clock.py", "broker.edge.grpc.server"),
    (PURE, "domain/decision.py", "time"),
    (PURE, "token/lease.py", "os"),
    (PURE, "ledger/entry.py", "logging"),
    (PURE, "token/keys.py", "secrets"),
    (PURE, "domain/policy.py", "broker.v1.feed_pb2"),
    (SDK, "sdk/verifier.py", "broker.service.ports"),
    (SDK, "sdk/verifier.py", "broker.domain.policy"),
    (SDK, "sdk/feed.py", "sqlalchemy"),
    (CORE, "service/revoke.py", "grpc"),
    (CORE, "domain/decision.py", "sqlalchemy"),
    (CLI, "edge/cli/tokens.py", "broker.service.ports"),
]


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "broker", folder / "broker", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder):
    done = subprocess.run(
        [LINT, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, " ".join(done.stdout.split())


def test_the_tree_keeps_its_contracts(copied):
    code, told = lint(copied)
    assert code == 0, told
    assert f"{len(CONTRACTS)} kept, 0 broken" in told


def test_each_contract_has_a_case():
    assert {contract for contract, _, _ in REVERSED} == set(CONTRACTS)


@pytest.mark.parametrize(
    ("contract", "file", "reaches_for"), REVERSED, ids=[f"{file}-{to}" for _, file, to in REVERSED]
)
def test_an_arrow_that_is_reversed_breaks_its_contract(copied, contract, file, reaches_for):
    path = copied / "broker" / file
    before = path.read_text()
    path.write_text(f"{before}\nimport {reaches_for}\n")
    try:
        code, told = lint(copied)
    finally:
        path.write_text(before)
    assert code == 1, told
    assert f"{contract} BROKEN" in told
