"""Ways to log in to Vault: AppRole, a token in a file, a JWT in a file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hvac.adapters import JSONAdapter
from hvac.api.auth_methods import JWT, AppRole

from broker.errors import SignerUnavailable

# requests quotes a header value that it refuses in its error, so a token must be fit for a header before.
_PRINTABLE = re.compile(r"[!-~]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class VaultToken:
    """A Vault token. `lasts_s` 0: it never ends. `is_ours`: we got it by logging in, so we revoke it at the end."""

    value: str = field(repr=False)
    lasts_s: int
    is_renewable: bool
    is_ours: bool

    def __post_init__(self) -> None:
        if not _PRINTABLE.fullmatch(self.value):
            raise SignerUnavailable("the Vault token is not one line of printable characters")


class Login(Protocol):
    """A way to get a token. Reads its files anew each time, because whoever renews them replaces them."""

    def log_in(self, vault: JSONAdapter) -> VaultToken:
        """Return a new token; `vault` carries none and may be given one.

        Raises:
            SignerUnavailable: A file cannot be read, or what it holds is of no use.
            Whatever hvac and requests raise; ValueError for an answer that makes no sense.
        """


@dataclass(frozen=True, slots=True)
class AppRoleLogin:
    """AppRole: a role id and a secret id, each in a file."""

    role_id_file: Path
    secret_id_file: Path
    mount: str = "approle"

    def log_in(self, vault: JSONAdapter) -> VaultToken:
        """As the protocol says."""
        role_id, secret_id = _line(self.role_id_file), _line(self.secret_id_file)
        return _granted(AppRole(vault).login(role_id, secret_id, use_token=False, mount_point=self.mount))


@dataclass(frozen=True, slots=True)
class JwtLogin:
    """A JWT of the platform (Kubernetes, a CI) in a file, for a role."""

    role: str
    jwt_file: Path
    mount: str = "jwt"

    def log_in(self, vault: JSONAdapter) -> VaultToken:
        """As the protocol says."""
        return _granted(JWT(vault).jwt_login(self.role, _line(self.jwt_file), use_token=False, path=self.mount))


@dataclass(frozen=True, slots=True)
class TokenFileLogin:
    """A token that somebody else keeps in a file, such as Vault Agent."""

    token_file: Path

    def log_in(self, vault: JSONAdapter) -> VaultToken:
        """As the protocol says."""
        value = VaultToken(_line(self.token_file), 0, is_renewable=False, is_ours=False).value
        vault.token = value
        data = _members(_members(lookup_self(vault)).get("data"))
        return VaultToken(value, _whole(data.get("ttl")), data.get("renewable") is True, is_ours=False)


def lookup_self(vault: JSONAdapter) -> object:
    """Ask about the token that `vault` carries; refused (403) when it is over."""
    return vault.get("/v1/auth/token/lookup-self")


def renew_self(vault: JSONAdapter, token: VaultToken) -> VaultToken:
    """Renew `token`, which `vault` carries. Raises ValueError for an answer that makes no sense."""
    auth = _members(_members(vault.post("/v1/auth/token/renew-self", json={})).get("auth"))
    return VaultToken(token.value, _whole(auth.get("lease_duration")), auth.get("renewable") is True, token.is_ours)


def revoke_self(vault: JSONAdapter) -> object:
    """End the token that `vault` carries."""
    return vault.post("/v1/auth/token/revoke-self", json={})


def _granted(answer: object) -> VaultToken:
    auth = _members(_members(answer).get("auth"))
    value = auth.get("client_token")
    if not isinstance(value, str):
        raise ValueError("a login without a token")  # noqa: TRY004 - as in _members
    return VaultToken(value, _whole(auth.get("lease_duration")), auth.get("renewable") is True, is_ours=True)


def _members(answer: object) -> Mapping[str, Any]:
    if not isinstance(answer, Mapping):
        raise ValueError("not a JSON object")  # noqa: TRY004 - whatever is odd about an answer is one error
    return answer


def _whole(seconds: object) -> int:
    if type(seconds) is not int or seconds < 0:
        raise ValueError("not a duration")
    return seconds


def _line(path: Path) -> str:
    try:
        data = path.read_bytes().strip()
    except OSError as problem:
        raise SignerUnavailable(f"{path} cannot be read: {problem.strerror}") from problem
    # Not left to a decoder, whose error would quote what it was given (P12).
    if not data or not data.isascii():
        raise SignerUnavailable(f"{path} is {'not ASCII text' if data else 'empty'}")
    return data.decode("ascii")
