"""Who the caller is towards the broker: a client certificate with its key, or an identity token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """A token of an identity provider that the policy knows, for the broker's login door.

    `token` is the text itself, or what returns it; `file` holds it: either is asked anew at each call, because
    such tokens live for minutes. `ca`: as in Identity; None: the system's CAs.
    """

    token: str | Callable[[], str] | None = field(default=None, repr=False)
    file: str | Path | None = None
    ca: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.token is None) == (self.file is None):
            raise ConfigInvalid("identity", ("needs token or file, one of the two",))

    def text(self) -> str:
        """Return the token as it is now. Raises ConfigInvalid."""
        if callable(self.token):
            return self.token()
        if self.token is not None:
            return self.token
        assert self.file is not None  # noqa: S101 - one of the two is there
        try:
            return Path(self.file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeError):
            raise ConfigInvalid("identity", (f"token {self.file}: cannot be read",)) from None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return credentials for TLS without a certificate, and the token with each call.

        Raises:
            ConfigInvalid: The CA or the token cannot be read.
        """
        self.text()
        ca = _read_ca(self.ca)
        calls = grpc.metadata_call_credentials(_Bearer(self.text), "identity token")
        return grpc.composite_channel_credentials(grpc.ssl_channel_credentials(root_certificates=ca), calls)


@dataclass(frozen=True, slots=True)
class KeyIdentity:
    """Nothing but a run's key: for `resume` at the broker's login door, where the key says who calls.

    `ca`: as in TokenIdentity.
    """

    ca: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return credentials for TLS without a certificate. Raises ConfigInvalid: The CA cannot be read."""
        return grpc.ssl_channel_credentials(root_certificates=_read_ca(self.ca))


AnyIdentity = Identity | TokenIdentity | KeyIdentity


def without_token(identity: AnyIdentity | None) -> AnyIdentity | None:
    """Return who to be in calls that a run's key proves: where a token said who calls, it may have ended since."""
    return KeyIdentity(identity.ca) if isinstance(identity, TokenIdentity) else identity


def _read_ca(ca: str | Path | None) -> bytes | None:
    try:
        return None if ca is None else Path(ca).read_bytes()
    except OSError as bad:
        raise ConfigInvalid("identity", (f"ca {ca}: {bad.strerror or 'cannot be read'}",)) from bad


class _Bearer(grpc.AuthMetadataPlugin):
    """Puts the token into each call's metadata; gRPC does so only on encrypted channels."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text

    def __call__(self, context: Any, callback: Any) -> None:
        del context
        try:
            callback((("authorization", f"Bearer {self._text()}"),), None)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the call must end with it
            callback((), problem)


def channel_credentials(identity: AnyIdentity | None) -> grpc.ChannelCredentials:
    """Return credentials for `identity`; without one, TLS by the system's CAs. There is no plaintext.

    Raises:
        ConfigInvalid: As the identity's `credentials`.
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
