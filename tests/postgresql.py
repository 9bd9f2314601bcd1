"""A real PostgreSQL, from the wheel `pgserver`."""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psycopg

from tests.ports import free_port
from tests.waiting import eventually

START_WITHIN_S = 20.0
# PostgreSQL refuses to run as root.
NOT_ROOT = "nobody"


def _programs() -> Path:
    # Importing the wheel warns on a machine without XDG_RUNTIME_DIR; only its programs are wanted.
    found = importlib.util.find_spec("pgserver")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


_AS_USER = """
import os, pwd, sys
user = pwd.getpwnam(sys.argv[1])
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
os.execv(sys.argv[2], sys.argv[2:])
"""


class PostgreSql:
    """One server on a Unix socket and a loopback port. `start`, `stop`, `kill`, `freeze` as often as needed.

    With `follows`, it is a standby of that one, until it is promoted. `environment` is added to its own.
    """

    def __init__(self, *, follows: "PostgreSql | None" = None, environment: Mapping[str, str] | None = None) -> None:
        # Not in pytest's folders: the server's user may not go there.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self.port = free_port()
        self._user = NOT_ROOT if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._server: subprocess.Popen[bytes] | None = None
        self._environment = {**os.environ, **(environment or {})}
        if follows is None:
            self._run("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync")
        else:
            origin = f"host=127.0.0.1 port={follows.port} user=postgres"
            self._run("pg_basebackup", "-D", self.data, "-d", origin, "-R", "-c", "fast", "--no-sync")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def url(self, database: str, *, port: int | None = None) -> str:
        """Return a URL by the socket, or by TCP through `port`."""
        if port is not None:
            return f"postgresql://postgres@127.0.0.1:{port}/{database}"
        return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"

    def start(self) -> "PostgreSql":
        doors = ["-k", self.folder, "-h", "127.0.0.1", "-p", str(self.port)]
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                self._command("postgres", "-D", self.data, *doors, "-c", "max_connections=200"),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment,
            )
        eventually(self._answers, f"PostgreSQL answers: {self.log.read_text()[-2000:]}", within_s=START_WITHIN_S)
        return self

    def stop(self) -> None:
        if self._server is not None and self._server.poll() is None:
            # Fast shutdown: clients are sent away.
            self._server.send_signal(signal.SIGINT)
            self._server.wait(START_WITHIN_S)

    def remove(self) -> None:
        if self._server is not None and self._server.poll() is None:
            self.kill()
        shutil.rmtree(self.folder)

    def kill(self) -> None:
        """Kill -9 the server with all its processes."""
        assert self._server is not None
        everybody = self.processes()
        self._server.kill()
        self._server.wait(START_WITHIN_S)
        for pid in everybody:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # A new server waits for none of the old one's; they hold its memory until they are gone.
        eventually(lambda: not any(_runs(pid) for pid in everybody), "the old processes are gone")

    def kill_backends(self) -> None:
        """Kill -9 those who serve clients; the server throws everybody out and recovers from its log. Wait for it."""
        for pid in self.processes():
            with suppress(OSError):
                if b": postgres " in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        eventually(self._answers, "PostgreSQL has recovered", within_s=START_WITHIN_S)

    def promote(self) -> None:
        """Make the standby a primary of its own."""
        self.execute("SELECT pg_promote(true, 60)")

    def wait_for_standbys(self) -> None:
        """Acknowledge from now on only what a standby has on its disk."""
        self.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.execute("SELECT pg_reload_conf()")
        following = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
        eventually(lambda: self.execute(following), "a standby follows", within_s=START_WITHIN_S)

    def freeze(self) -> None:
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def processes(self) -> list[int]:
        """Return the processes of the server but for its first."""
        assert self._server is not None
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def new_database(self) -> str:
        name = f"t{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, self.log.read_text()[-2000:]
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._server is not None
        for pid in (self._server.pid, *self.processes()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _command(self, program: str, *arguments: str | Path) -> list[str | Path]:
        command = [_programs() / program, *arguments]
        # Not Popen(user=...): that forks where it could vfork, and gRPC's own handlers crash some of the children.
        return command if self._user is None else [sys.executable, "-c", _AS_USER, self._user, *command]

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            self._command(program, *arguments),
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
        )
        assert done.returncode == 0, done.stderr


def _runs(pid: int) -> bool:
    """Tell whether a process does; one that is dead and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
