"""Settings of `broker serve`: parsed once, with all problems reported together."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker.errors import ConfigInvalid

_T = TypeVar("_T", bound=BaseModel)
SERVER_MAX_TTL_S = 7 * 86_400

# Each way to log in to Vault with the settings that are its own.
LOGINS = {
    "approle": ("role_id_file", "secret_id_file"),
    "token": ("token_file",),
    "jwt": ("jwt_role", "jwt_file"),
}
_Mount = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")]
_Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ServerSettings(_Section):
    """Where the doors are."""

    listen: str = "127.0.0.1:7443"
    http_listen: str | None = "127.0.0.1:7444"
    login_listen: str | None = None
    feed_listen: str | None = None
    data_dir: Path
    admins: tuple[str, ...] = ()


class TlsSettings(_Section):
    """The broker's certificate, and the CA that callers' certificates must come from."""

    cert: Path
    key: Path
    client_ca: Path


class StoreSettings(_Section):
    """The ledger's home. Without `url`: SQLite in the data folder. PostgreSQL: `postgresql://…` or a file with it."""

    url: str | None = None
    url_file: Path | None = None
    headroom_mib: Annotated[int, Field(ge=1, le=65_536)] = 16
    sole_broker: bool | None = None

    @model_validator(mode="after")
    def _one_url(self) -> "StoreSettings":
        if self.url is not None and self.url_file is not None:
            raise ValueError("give url or url_file, not both")
        return self


class VaultSettings(_Section):
    """Where Vault (or OpenBao) is and how the broker logs in."""

    address: _Text
    ca_file: Path | None = None
    namespace: _Text | None = None
    auth: Literal["approle", "token", "jwt"]
    auth_mount: _Mount | None = None
    role_id_file: Path | None = None
    secret_id_file: Path | None = None
    token_file: Path | None = None
    jwt_role: _Text | None = None
    jwt_file: Path | None = None
    transit_mount: _Mount = "transit"
    key_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]*\{realm\}[A-Za-z0-9._-]*$")] = "broker-{realm}"
    connect_timeout_s: Annotated[float, Field(gt=0, le=30)] = 2.0
    read_timeout_s: Annotated[float, Field(gt=0, le=30)] = 5.0

    @model_validator(mode="after")
    def _complete(self) -> "VaultSettings":
        missing = [name for name in LOGINS[self.auth] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"auth = {self.auth!r} needs {' and '.join(missing)}")
        # What is set and not used was meant to do something.
        others = [name for auth in LOGINS if auth != self.auth for name in LOGINS[auth]]
        unused = [name for name in others if getattr(self, name) is not None]
        if self.auth == "token" and self.auth_mount is not None:
            unused.append("auth_mount")
        if unused:
            raise ValueError(f"auth = {self.auth!r} does not use {' and '.join(unused)}; take it out")
        return self


class IdentitySettings(_Section):
    """Whom the broker may ask about identities, and with which credentials it asks Kubernetes for TokenReviews.

    `allow_private`: the `host:port` that may have a private address. `ca_file` stands in place of the system's CAs.
    `review_token_files`: by provider, a token that may create TokenReviews; it is read anew each time.
    """

    allow_private: tuple[Annotated[str, Field(pattern=r"^([a-z0-9.-]+|[0-9a-f:]+):[1-9][0-9]{0,4}$")], ...] = ()
    ca_file: Path | None = None
    review_token_files: dict[str, Path] = {}


class KeySettings(_Section):
    """Which signer: `local` (roots in encrypted files), `vault` (roots in transit), `transit` (all in it)."""

    mode: Literal["local", "vault", "transit"]
    passphrase_file: Path | None = None
    signing_minutes: Annotated[int, Field(ge=1, le=1440)] = 10


class LimitSettings(_Section):
    """Bounds that no policy can exceed."""

    max_ttl_s: Annotated[int, Field(ge=1, le=SERVER_MAX_TTL_S)] = 86_400
    # How long a run can be kept alive: 30 days; at most a year.
    max_run_s: Annotated[int, Field(ge=60, le=31_536_000)] = 2_592_000


class WitnessSettings(_Section):
    """A witness of the log: where it takes checkpoints, and the key (vkey) that it signs them with."""

    url: Annotated[str, Field(pattern=r"^https://\S+$")]
    key: _Text


class LedgerSettings(_Section):
    """How the ledger is published as a log: under which name, and where its checkpoints go.

    `name` begins the origin of checkpoints, like ledger.example/eval. Entries tell who used what: the HTTP door
    shows them to anybody only with `publish_entries`. `archive`: the folder that `broker archive` moves bodies of old
    entries to, and that the broker then reads them from.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*[A-Za-z0-9]$")] = "credential-broker"
    publish_entries: bool = False
    checkpoint_file: Path | None = None
    checkpoint_command: tuple[_Text, ...] = ()
    witnesses: tuple[WitnessSettings, ...] = ()
    witness_ca_file: Path | None = None
    archive: Path | None = None


class LogSettings(_Section):
    """What is logged, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(_Section):
    """All of broker.toml."""

    server: ServerSettings
    tls: TlsSettings
    keys: KeySettings
    store: StoreSettings = StoreSettings()
    vault: VaultSettings | None = None
    limits: LimitSettings = LimitSettings()
    identity: IdentitySettings = IdentitySettings()
    ledger: LedgerSettings = LedgerSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _keys_have_a_home(self) -> "Settings":
        if self.keys.mode in ("vault", "transit") and self.vault is None:
            raise ValueError(f"keys.mode = {self.keys.mode!r} needs a [vault] section")
        if self.keys.mode == "local" and self.keys.passphrase_file is None:
            raise ValueError("keys.mode = 'local' needs keys.passphrase_file")
        if self.keys.mode == "local" and self.vault is not None:
            raise ValueError("keys.mode = 'local' does not use the [vault] section; take it out")
        if self.keys.mode != "local" and self.keys.passphrase_file is not None:
            raise ValueError(f"keys.mode = {self.keys.mode!r} does not use keys.passphrase_file; take it out")
        return self


def load_settings(path: Path) -> Settings:
    """Read broker.toml; paths in it are relative to its folder.

    Raises:
        ConfigInvalid: With every problem, each naming its key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigInvalid(str(path), (f"cannot be read: {problem.strerror}",)) from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigInvalid(str(path), (f"is not TOML: {problem}",)) from problem
    try:
        settings = Settings.model_validate(document)
    except ValidationError as invalid:
        raise ConfigInvalid(str(path), tuple(_problem(error) for error in invalid.errors())) from invalid
    settings = _resolved(settings, path.parent)
    missing = tuple(
        f"{section}.{name}: there is no file {value}"
        for section in ("tls", "keys", "vault", "store", "identity")
        if (part := getattr(settings, section)) is not None
        for name, value in _files(part)
        if not value.exists()
    )
    if missing:
        raise ConfigInvalid(str(path), missing)
    return settings


def _files(section: BaseModel) -> Iterator[tuple[str, Path]]:
    for name, value in section:
        if isinstance(value, Path):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", file) for key, file in value.items() if isinstance(file, Path))


def _problem(error: object) -> str:
    loc = ".".join(str(part) for part in error["loc"])  # type: ignore[index]
    message = str(error["msg"]).removeprefix("Value error, ")  # type: ignore[index]
    return f"{loc}: {message}" if loc else message


def _resolved(section: _T, folder: Path) -> _T:
    changes: dict[str, object] = {}
    for name, value in section:
        if isinstance(value, Path):
            changes[name] = folder / value
        elif isinstance(value, BaseModel):
            changes[name] = _resolved(value, folder)
        elif isinstance(value, dict):
            changes[name] = {key: folder / file if isinstance(file, Path) else file for key, file in value.items()}
    return section.model_copy(update=changes)
