"""Production: README's walk-through as it is written, and two brokers with OpenBao on one PostgreSQL."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from broker.adapters.vault_login import AppRoleLogin
from broker.config import Settings, load_settings
from broker.errors import Rejected, Revoked
from broker.sdk import Verifier
from broker.sdk.failures import failure_of
from broker.v1 import policy_pb2, runs_pb2, status_pb2, tokens_pb2
from tests.embedded import Embedded, Wall
from tests.openbao import OpenBao
from tests.ports import free_port
from tests.postgresql import PostgreSql
from tests.served import POLICY, Served, request_id
from tests.waiting import eventually

pytest_plugins = ["tests.fixtures_openbao", "tests.fixtures_stores"]

ROOT = Path(__file__).parent.parent.parent
HEADING = "## Production: OpenBao and PostgreSQL"
STORY = "## A partner's week: who may get what"
EXIT_CODE = re.compile(r"\s+# exit code (\d+)(: \w+)?$")
STOP_POSTGRESQL = "import pgserver, sys; pgserver.get_server(sys.argv[1]).cleanup()"


def section(heading: str = HEADING) -> str:
    text = (ROOT / "README.md").read_text()
    assert heading in text, f"README.md has no section {heading!r}"
    return text.partition(heading)[2].partition("\n## ")[0]


def commands(heading: str = HEADING) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", section(heading), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def script(lines: list[str]) -> str:
    """Return what runs the commands one by one in one shell, and ends at the first that does not end as it should."""
    steps = ["trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT"]
    for line in lines:
        expected = EXIT_CODE.search(line)
        code = expected.group(1) if expected else "0"
        steps.append(f"printf '+ %s\\n' {shlex.quote(line)}\n{line}\ncode=$?")
        steps.append(f'[ $code = {code} ] || {{ echo "ended with $code instead of {code}"; cat status; exit 1; }}')
    return "\n".join(steps)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not among pytest's folders: as root, PostgreSQL runs as a user that may not go there."""
    folder = Path(tempfile.mkdtemp(prefix="production-"))
    yield folder
    if (folder / "try" / "pg" / "postmaster.pid").exists():
        subprocess.run([sys.executable, "-c", STOP_POSTGRESQL, folder / "try" / "pg"], timeout=60, check=True)
    shutil.rmtree(folder)


def followed(folder: Path, heading: str) -> str:
    """Do what a section of the README says, each command, and return what was said."""
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    # Only the ports are changed, which may be in use here.
    ports = {str(port): str(free_port()) for port in (8200, 7442, 7443, 7444, 7445, 7446)}
    text, wanted = script(commands(heading)), "\n".join(commands(heading))
    files = [file for file in (folder / "deploy").rglob("*") if file.is_file()]
    for port, free in ports.items():
        text, wanted = text.replace(port, free), wanted.replace(port, free)
        for file in files:
            file.write_text(file.read_text().replace(port, free))
    with subprocess.Popen(
        ["bash", "-c", text],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "BAO_DEV_LISTEN_ADDRESS": f"127.0.0.1:{ports['8200']}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            said, _ = shell.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            said, _ = shell.communicate()
    assert shell.returncode == 0, said[-4000:] + (folder / "try" / "broker.log").read_text()[-2000:]
    # Each command was reached, the last one included.
    reached = {line.removeprefix("+ ") for line in said.splitlines()}
    assert [line for line in wanted.splitlines() if line not in reached] == []
    return said


def test_the_walk_through_of_the_readme_works_as_it_is_written(folder: Path) -> None:
    said = followed(folder, HEADING)
    assert said.count("accepted: acme/user/alice may use mythos") == 3
    assert said.count("broker: denied:") == 3
    # What the walk-through wrote down holds no token (P12).
    token = (folder / "try" / "token").read_text().strip()
    for log in ("broker.log", "broker-2.log", "vault.log"):
        assert token not in (folder / "try" / log).read_text()


def test_the_story_of_the_readme_works_as_it_is_written(folder: Path) -> None:
    said = followed(folder, STORY)
    assert said.count("accepted: acme/user/alice may use") == 3
    assert said.count("broker: denied:") == 4
    assert "what would have changed it: an admin reinstates partner=acme" in said
    home = folder / "try"
    assert len((home / "tokens").read_text().split()) == 1_000
    # What it wrote down holds no token (P12).
    secrets = [(home / name).read_text().strip() for name in ("token", "child", "late", "alice.jwt", "ci.jwt")]
    for log in ("broker.log", "vault.log"):
        assert not any(secret in (home / log).read_text() for secret in secrets)


def test_the_walk_through_seals_vault_and_uses_two_brokers() -> None:
    """So that nobody shortens it to what always works."""
    words = "\n".join(commands())
    sealed = words.partition("operator seal")[2].partition("operator unseal")[0]
    for promise in ("token mint", "token verify", "revoke", "--wait"):
        assert promise in sealed
    assert words.count("broker serve --config") == 2
    assert "prepare.sh" in words
    assert "pgserver" in words


def test_the_example_of_a_configuration_is_good_and_names_every_setting(tmp_path: Path) -> None:
    example = (ROOT / "deploy" / "broker.example.toml").read_text()
    (tmp_path / "vault").mkdir()
    for name in re.findall(r'"([a-z-]+\.(?:pem|key)|store-url|vault/\w+)"', example):
        (tmp_path / name).write_text("x")
    (tmp_path / "broker.toml").write_text(example)
    settings = load_settings(tmp_path / "broker.toml")
    assert settings.keys.mode == "vault"
    for name, section_ in Settings.model_fields.items():
        shown = example.partition(f"\n[{name}]\n")[2].partition("\n[")[0]
        fields = getattr(section_.annotation, "model_fields", None) or type(getattr(settings, name)).model_fields
        for field in fields:
            assert re.search(rf"^(# )?{field} = |\burl = ", shown, re.MULTILINE), f"{name}.{field}"
    # What is commented out with its default is the default.
    everything = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", example, flags=re.MULTILINE))
    for name, field in (("store", "headroom_mib"), ("keys", "signing_minutes"), ("vault", "read_timeout_s")):
        assert everything[name][field] == getattr(getattr(settings, name), field)
    assert everything["limits"]["max_ttl_s"] == settings.limits.max_ttl_s


@pytest.fixture(scope="module")
def store(postgresql: PostgreSql) -> Iterator[str]:
    """The settings of a store in a database of its own."""
    name = postgresql.new_database()
    file = postgresql.folder / name
    file.write_text(postgresql.url(name))
    yield f'url_file = "{file}"'
    postgresql.drop_database(name)


@pytest.fixture
def another_database(postgresql: PostgreSql) -> Iterator[str]:
    """The URL of an empty database."""
    name = postgresql.new_database()
    yield postgresql.url(name)
    postgresql.drop_database(name)


@pytest.fixture(scope="module")
def brokers(
    sealed_vault: OpenBao, sealed_login: AppRoleLogin, store: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Served]]:
    """Two brokers on one ledger and one Vault; the first has its keys in memory, the second signs in Vault."""
    assert sealed_vault.tls is not None
    keys = f"""
[vault]
address = "{sealed_vault.address}"
ca_file = "{sealed_vault.tls.ca}"
auth = "approle"
role_id_file = "{sealed_login.role_id_file}"
secret_id_file = "{sealed_login.secret_id_file}"
[keys]
"""
    first = Served(tmp_path_factory.mktemp("first"), store=store, keys=keys + 'mode = "vault"')
    second = Served(tmp_path_factory.mktemp("second"), store=store, keys=keys + 'mode = "transit"', policy=None)
    # One CA for both, so that a verifier can go from one to the other.
    second._config = second._config.replace(str(second.folder / "ca"), str(first.folder / "ca"))
    second.authority, second.server, second.papers = first.authority, first.server, first.papers
    with first, second:
        yield first, second


@pytest.fixture(scope="module")
def verifiers(brokers: tuple[Served, Served]) -> Iterator[tuple[Verifier, Verifier]]:
    """One at each broker."""
    first, second = brokers
    with first.verifier() as at_first, second.verifier() as at_second:
        yield at_first, at_second


def denied(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token, "mythos")
    except Revoked:
        return True
    except Rejected as odd:
        raise AssertionError(odd) from odd
    return False


def accepted(verifier: Verifier, token: str) -> bool:
    """A token may be faster than the certificate of its key."""
    try:
        verifier.verify(token, "mythos")
    except Rejected:
        return False
    return True


@pytest.mark.parametrize(("mints", "revokes"), [(0, 1), (1, 0), (0, 0), (1, 1)])
def test_p4_what_one_broker_revokes_the_verifiers_of_every_broker_deny(
    brokers: tuple[Served, Served], verifiers: tuple[Verifier, Verifier], mints: int, revokes: int
) -> None:
    dead, alive = brokers[mints].mint(), brokers[mints].mint()
    for verifier in verifiers:
        eventually(lambda v=verifier: accepted(v, dead.token), "the key's certificate has arrived")
    committed, *_, last = brokers[revokes].revoke(token=dead.id, wait=True)
    # Complete: also the verifier of the other broker, whom this one has never seen, has stopped (P6).
    assert [denied(verifier, dead.token) for verifier in verifiers] == [True, True]
    assert [accepted(verifier, alive.token) for verifier in verifiers] == [True, True]
    assert last.complete.took.ToMilliseconds() <= committed.committed.bound.ToMilliseconds() + 2000


def test_p3_a_block_at_one_broker_stops_minting_at_the_other_from_its_return_on(
    brokers: tuple[Served, Served],
) -> None:
    first, second = brokers
    for revoking, minting in ((first, second), (second, first)):
        revoking.revoke(partner="acme")
        with pytest.raises(grpc.RpcError) as refused:
            minting.mint()
        assert failure_of(refused.value).reason == "BLOCKED"
        minting.reinstate(partner="acme")
        # Lifting may take until the other's next look at the ledger, a heartbeat: until then it refuses.
        eventually(lambda broker=revoking: minted(broker), "minting again", within_s=3)


def test_p4_tokens_minted_at_both_while_one_revokes_are_dead_exactly_when_they_came_before(
    brokers: tuple[Served, Served], verifiers: tuple[Verifier, Verifier]
) -> None:
    opening = runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"])
    run = brokers[0].runs().OpenRun(opening, timeout=10).run.id
    minted: list[tokens_pb2.MintedToken] = []
    stopping = threading.Event()

    def mint(broker: Served) -> None:
        stub = broker.tokens()
        while not stopping.is_set():
            request = tokens_pb2.MintRequest(request_id=request_id(), spec=broker.spec(run=run, test="case-7"))
            minted.append(stub.Mint(request, timeout=10).token)

    threads = [threading.Thread(target=mint, args=(broker,)) for broker in brokers]
    for thread in threads:
        thread.start()
    eventually(lambda: len(minted) > 20, "both mint")
    # A test's revocation blocks nothing, so minting goes on on both sides of it.
    [committed, *_] = brokers[1].revoke(run=run, test="case-7", wait=True)
    index = committed.committed.index
    before = len(minted)
    eventually(lambda: len(minted) > before + 20, "both mint on")
    stopping.set()
    for thread in threads:
        thread.join(timeout=20)
    # One order for both (P2).
    indices = {one.index for one in minted}
    assert len(indices) == len(minted)
    assert min(indices) < index < max(indices)
    assert index not in indices
    for verifier in verifiers:
        for one in minted:
            if one.index < index:
                assert denied(verifier, one.token)
            else:
                eventually(lambda v=verifier, o=one: accepted(v, o.token), "what came later is alive")


def test_p11_a_sealed_vault_stops_only_the_broker_whose_token_keys_are_in_it(
    brokers: tuple[Served, Served], verifiers: tuple[Verifier, Verifier], sealed_vault: OpenBao
) -> None:
    first, second = brokers
    token = first.mint()
    sealed_vault.seal()
    try:
        with pytest.raises(grpc.RpcError) as refused:
            second.mint()
        assert failure_of(refused.value).reason == "SIGNER_UNAVAILABLE"
        assert first.mint().token
        assert all(accepted(verifier, token.token) for verifier in verifiers)
        second.revoke(token=token.id, wait=True)
        assert [denied(verifier, token.token) for verifier in verifiers] == [True, True]
    finally:
        sealed_vault.unseal()
    eventually(lambda: minted(second), "minting again", within_s=6)


def minted(served: Served) -> bool:
    try:
        served.mint()
    except grpc.RpcError:
        return False
    return True


def test_p11_a_verifier_whose_broker_is_killed_hears_of_revocations_from_the_other(
    brokers: tuple[Served, Served],
) -> None:
    first, second = brokers
    token = first.mint()
    endpoints = f"{first.endpoint},{second.endpoint}"
    with Verifier.connect(
        endpoints, realm="evaluation", trust=first.trust(), identity=first.identity("gateway")
    ) as verifier:
        verifier.wait_fresh(10)
        assert accepted(verifier, token.token)
        first.kill()
        second.revoke(token=token.id)
        # Never accepted again: stale, and then revoked.
        eventually(lambda: refused_as(verifier, token.token) is Revoked, "the other broker's word counts", within_s=20)
        first.start()
    assert minted(first)


def refused_as(verifier: Verifier, token: str) -> type[Rejected] | None:
    try:
        verifier.verify(token, "mythos")
    except Rejected as rejected:
        return type(rejected)
    return None


@pytest.mark.parametrize("off", [timedelta(hours=1), timedelta(hours=-1), timedelta(seconds=65)])
def test_a_broker_whose_clock_differs_from_its_databases_by_more_than_a_minute_mints_nothing(
    another_database: str, tmp_path: Path, off: timedelta
) -> None:
    wall = Wall()
    wall.off = off
    served = Embedded(tmp_path, wall=wall, store=another_database, policy=None)
    with served:
        served.policies().ApplyPolicy(
            policy_pb2.ApplyPolicyRequest(request_id=request_id(), document=POLICY), timeout=10
        )
        with pytest.raises(grpc.RpcError) as refused:
            served.mint()
        failure = failure_of(refused.value)
        assert failure.reason == "CLOCK_ASTRAY"
        assert "the store's clock" in failure.message
        assert failure.message in served.status().GetStatus(status_pb2.GetStatusRequest(), timeout=10).problems
        # Cutting off goes on, and is told with the database's time.
        [answer] = served.revoke(partner="acme")
        assert abs(answer.committed.committed_at.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(seconds=30)


def test_a_clock_within_a_minute_of_the_databases_mints(another_database: str, tmp_path: Path) -> None:
    wall = Wall()
    wall.off = timedelta(seconds=50)
    with Embedded(tmp_path, wall=wall, store=another_database) as served:
        assert served.mint().token
