"""OpenBao as a peer: a dev server in memory, with a key for identity tokens and one for transit."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BAO = Path(sys.executable).with_name("bao")
ROOT = "bench-root"


class Bao:
    """A running dev server. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def __enter__(self) -> "Bao":
        self._process = subprocess.Popen(
            [BAO, "server", "-dev", f"-dev-root-token-id={ROOT}", f"-dev-listen-address=127.0.0.1:{self.port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder)},
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.ask("GET", "/v1/sys/health")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self._prepare()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)

    def _prepare(self) -> None:
        self.ask("POST", "/v1/sys/mounts/transit", {"type": "transit"})
        self.ask("POST", "/v1/transit/keys/peer", {"type": "ecdsa-p256"})
        self.ask("POST", "/v1/identity/oidc/key/peer", {"algorithm": "ES256", "allowed_client_ids": ["*"]})
        self.ask("POST", "/v1/identity/oidc/role/peer", {"key": "peer", "ttl": "10m"})
        # Identity tokens are for entities: a user that logged in, not root.
        self.ask("POST", "/v1/sys/auth/userpass", {"type": "userpass"})
        policy = 'path "identity/oidc/token/peer" { capabilities = ["read"] }'
        self.ask("PUT", "/v1/sys/policies/acl/peer", {"policy": policy})
        self.ask("POST", "/v1/auth/userpass/users/peer", {"password": "peer-password", "policies": "peer"})
        login = self.ask("POST", "/v1/auth/userpass/login/peer", {"password": "peer-password"})
        self.user_token = login["auth"]["client_token"]

    def ask(self, method: str, path: str, body: object = None, token: str = ROOT) -> Any:
        """Call once and return the JSON."""
        return self.caller(method, path, body, token)()

    def caller(self, method: str, path: str, body: object = None, token: str = ROOT) -> Callable[[], Any]:
        """Return a call on a connection of its own that is kept open."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = json.dumps(body).encode() if body is not None else None
        headers = {"X-Vault-Token": token, "Content-Type": "application/json"}

        def call() -> Any:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{path}: {answer.status} {text[:200]!r}")
            return json.loads(text) if text else None

        return call
