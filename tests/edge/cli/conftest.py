import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from broker import stranger
from broker.edge.cli import cli_with
from broker.edge.cli.context import Context, Identity, write_context
from tests.authority import Authority, Issued
from tests.edge.cli.feeding import Realm
from tests.edge.cli.served import Served, serving

DOMAIN = "spiffe://broker.test"
NAMES = ("admin", "acme-ci", "globex-ci", "verifier")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> Issued:
    return authority.server()


@pytest.fixture(scope="session")
def issued(authority: Authority) -> dict[str, Issued]:
    return {name: authority.client(f"{DOMAIN}/{name}") for name in NAMES}


@pytest.fixture
def realm() -> Realm:
    return Realm()


@pytest.fixture
def served(certificate: Issued, realm: Realm) -> Iterator[Served]:
    with serving(certificate, realm) as server:
        yield server


@pytest.fixture
def context(served: Served, authority: Authority, issued: dict[str, Issued], tmp_path: Path) -> Context:
    return Context(
        endpoint=served.endpoint,
        ca=authority.ca,
        trust=tmp_path / "trust.json",
        identities={name: Identity(one.certificate, one.key, f"{DOMAIN}/{name}") for name, one in issued.items()},
        admin="admin",
        harness={"acme": "acme-ci", "globex": "globex-ci"},
        verifier={"evaluation": "verifier"},
    )


@pytest.fixture
def home(context: Context, realm: Realm, tmp_path: Path) -> Path:
    """A configuration folder with the context file in it, and the trust file that it names."""
    context.trust.write_text(realm.document)
    write_context(context, tmp_path / "config" / "broker" / "context.json")
    return tmp_path / "config"


@dataclass
class Program:
    """The command line in this process, with what the composition root gives replaced by recorders."""

    environment: dict[str, str | None]
    problems: list[str]
    started: list[tuple[str, dict[str, Any]]]

    def __call__(self, *arguments: str, stdin: str | bytes | None = "", **environment: str) -> Result:
        program = cli_with(
            dev=self._start("dev"),
            serve=self._start("serve"),
            witness=self._start("witness"),
            backup=self._start("backup"),
            archive=self._start("archive"),
            restore=self._start("restore"),
            validate=self._validate,
            strangers=lambda: stranger,
        )
        return CliRunner().invoke(
            program, arguments, input=stdin, env={**self.environment, **environment}, catch_exceptions=False
        )

    def json(self, *arguments: str, **more: Any) -> Any:
        result = self(*arguments, "-o", "json", **more)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return json.loads(result.stdout)

    def error(self, *arguments: str, **more: Any) -> tuple[int, dict[str, str]]:
        """Run with `-o json`; return the exit code and the error, which must be all of stderr."""
        result = self(*arguments, "-o", "json", **more)
        document = json.loads(result.stderr)
        assert set(document) == {"error"}
        assert set(document["error"]) == {"reason", "message", "hint"}
        return result.exit_code, document["error"]

    def _start(self, name: str) -> Any:
        def start(**arguments: Any) -> int:
            self.started.append((name, arguments))
            return 0

        return start

    def _validate(self, document: str, source: str) -> list[str]:
        return [f"{source}:{line}" for line in self.problems if document]


@pytest.fixture
def bare(tmp_path: Path) -> Program:
    """The program with an empty home and no BROKER_ variables."""
    folder = tmp_path / "home"
    folder.mkdir()
    unset: dict[str, str | None] = {
        f"BROKER_{name}": None for name in ("ENDPOINT", "CA", "CERT", "KEY", "TRUST", "CONTEXT", "AS")
    }
    environment = {**unset, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    return Program(environment, [], [])


@pytest.fixture
def broker(bare: Program, home: Path) -> Program:
    """The program with a context file that leads to `served`."""
    return Program({**bare.environment, "XDG_CONFIG_HOME": str(home)}, bare.problems, bare.started)
