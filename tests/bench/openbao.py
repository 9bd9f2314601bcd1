"""OpenBao as a peer, in two forms: in memory and bare, or as it stands in production."""

import http.client
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.authority import Issued
from tests.openbao import OpenBao


class Peer(OpenBao):
    """An OpenBao with what the benchmarks ask for.

    With `tls` it keeps its data on disk and writes an audit log, as the broker does TLS and a ledger; without
    it is the bare dev server.
    """

    user_token: str

    def start(self) -> "Peer":
        """As OpenBao; then make the keys and the user."""
        super().start()
        self.must("POST", "sys/mounts/transit", {"type": "transit"})
        self.must("POST", "transit/keys/peer", {"type": "ecdsa-p256"})
        self.must("POST", "identity/oidc/key/peer", {"algorithm": "ES256", "allowed_client_ids": ["*"]})
        self.must("POST", "identity/oidc/role/peer", {"key": "peer", "ttl": "10m"})
        # Identity tokens are for entities: a user that logged in, not root.
        self.must("POST", "sys/auth/userpass", {"type": "userpass"})
        self.must(
            "PUT", "sys/policies/acl/peer", {"policy": 'path "identity/oidc/token/peer" { capabilities = ["read"] }'}
        )
        self.must("POST", "auth/userpass/users/peer", {"password": "peer-password", "policies": "peer"})
        login = self.must("POST", "auth/userpass/login/peer", {"password": "peer-password"})
        self.user_token = login["auth"]["client_token"]
        return self

    def caller(self, method: str, path: str, body: object = None, token: str | None = None) -> Callable[[], Any]:
        """Return a call on a connection of its own that is kept open."""
        connection: http.client.HTTPConnection
        if self.tls is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        else:
            context = ssl.create_default_context(cafile=str(self.tls.ca))
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
        data = json.dumps(body).encode() if body is not None else None
        headers = {"X-Vault-Token": token or self.token, "Content-Type": "application/json"}

        def call() -> Any:
            connection.request(method, f"/v1/{path}", data, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{path}: {answer.status} {text[:200]!r}")
            return json.loads(text) if text else None

        return call

    def _configuration(self) -> Path:
        assert self.tls is not None
        storage = self.folder / "storage"
        storage.mkdir(exist_ok=True)
        path = self.folder / "server.hcl"
        # In HCL: an audit device has two labels, which its JSON form cannot say.
        path.write_text(
            f"""
            storage "raft" {{
              path = "{storage}"
              node_id = "peer"
            }}
            cluster_addr = "https://127.0.0.1:{self.port + 1}"
            listener "tcp" {{
              address = "127.0.0.1:{self.port}"
              tls_cert_file = "{self.tls.certificate}"
              tls_key_file = "{self.tls.key}"
            }}
            api_addr = "{self.address}"
            audit "file" "bench" {{
              options = {{ file_path = "{self.folder / "audit.log"}" }}
            }}
            """
        )
        return path


def peers(folder: Path, server: Issued) -> dict[str, Peer]:
    """Return both forms, by name, not started."""
    return {"bare": Peer(folder / "bare"), "TLS, disk, audit": Peer(folder / "production", server)}
