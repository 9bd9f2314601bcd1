"""Who the caller is towards the broker: a client certificate with its key, and the CA that the broker's is from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from broker.errors import ConfigInvalid


@dataclass(frozen=True, slots=True)
class Identity:
    """PEM files. They are read at each connection, so renewed certificates are taken up by themselves."""

    certificate: str | Path
    key: str | Path
    ca: str | Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files and return credentials for mutual TLS.

        Raises:
            ConfigInvalid: A file cannot be read; all that cannot are named.
        """
        contents: list[bytes] = []
        problems: list[str] = []
        for what, path in (("ca", self.ca), ("key", self.key), ("certificate", self.certificate)):
            try:
                contents.append(Path(path).read_bytes())
            except OSError as bad:
                problems.append(f"{what} {path}: {bad.strerror or 'cannot be read'}")
        if problems:
            raise ConfigInvalid("identity", tuple(problems))
        ca, key, certificate = contents
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)


def channel_credentials(identity: Identity | None) -> grpc.ChannelCredentials:
    """Return credentials for `identity`; without one, TLS by the system's CAs. There is no plaintext.

    Raises:
        ConfigInvalid: As `Identity.credentials`.
    """
    return grpc.ssl_channel_credentials() if identity is None else identity.credentials()


def endpoint_list(endpoint: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses of `"a:1,b:2"` or of a sequence of such.

    Raises:
        ConfigInvalid: There is none.
    """
    texts = (endpoint,) if isinstance(endpoint, str) else endpoint
    addresses = tuple(part for text in texts for raw in text.split(",") if (part := raw.strip()))
    if not addresses:
        raise ConfigInvalid("endpoint", ("names no address; use host:port, or several with commas",))
    return addresses
