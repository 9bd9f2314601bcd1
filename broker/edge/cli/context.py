"""The context file: where the broker is and who to be, so that commands need no flags."""

import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from broker.edge.cli.problems import Misused, Unusable

T = TypeVar("T")

OWNER_ONLY = 0o600
LOGIN_FIELDS = ("endpoint", "issuer", "client_id", "issuer_ca")
_OTHERS = 0o077
_HINT = "start `broker dev`, or give --endpoint, --ca, --cert and --cert-key"


@dataclass(frozen=True, slots=True)
class Identity:
    """A client certificate, its key, and the principal that it names."""

    cert: Path
    key: Path
    principal: str


@dataclass(frozen=True, slots=True)
class Login:
    """Where people without a certificate log in: the broker's login door, and the provider. None: flags must say it."""

    endpoint: str | None = None
    issuer: str | None = None
    client_id: str | None = None
    issuer_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What the file says. `admin`, `approver`, `harness` (by partner) and `verifier` (by realm) name identities."""

    endpoint: str
    ca: Path
    trust: Path
    identities: Mapping[str, Identity]
    admin: str | None = None
    approver: str | None = None
    harness: Mapping[str, str] = field(default_factory=dict)
    verifier: Mapping[str, str] = field(default_factory=dict)
    login: Login = field(default_factory=Login)

    def named(self, name: str) -> Identity:
        """Return the identity `name`. Raises Misused."""
        if name not in self.identities:
            raise Misused(f"the context has no identity {name!r}", hint=_choose("--as", self.identities))
        return self.identities[name]

    def for_admin(self) -> Identity:
        """Return the identity of admins. Raises Misused."""
        if self.admin is None:
            raise Misused("the context names no admin", hint=_choose("--as", self.identities))
        return self.named(self.admin)

    def for_approver(self) -> Identity:
        """Return the identity of an approver. Raises Misused."""
        if self.approver is None:
            raise Misused("the context names no approver", hint=f"broker login, or {_choose('--as', self.identities)}")
        return self.named(self.approver)

    def for_partner(self, partner: str) -> Identity:
        """Return the identity of a partner's harness. Raises Misused."""
        if partner not in self.harness:
            raise Misused(f"the context has no harness of partner {partner!r}", hint=_choose("--partner", self.harness))
        return self.named(self.harness[partner])

    def for_realm(self, realm: str) -> Identity:
        """Return the identity of a verifier of `realm`. Raises Misused."""
        if realm not in self.verifier:
            raise Misused(f"the context has no verifier of realm {realm!r}", hint=_choose("--realm", self.verifier))
        return self.named(self.verifier[realm])


def context_path(environment: Mapping[str, str]) -> Path:
    """Return where the file is unless a flag says otherwise: `$XDG_CONFIG_HOME/broker/context.json`."""
    home = environment.get("XDG_CONFIG_HOME") or ""
    # XDG Base Directory: a relative path is to be ignored.
    folder = Path(home) if home.startswith("/") else Path.home() / ".config"
    return folder / "broker" / "context.json"


def write_context(context: Context, path: Path) -> None:
    """Replace the file at `path` in one step, with mode 0600. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    # Born with its mode: there is no moment at which others can open it.
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(_document(context), file, indent=2)
            file.write("\n")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_context(path: Path) -> Context:
    """Read the file. Relative paths in it begin at its folder.

    Raises:
        Unusable: It is missing, damaged, somebody else's, or others may read or write it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            # Of the open file, so that it cannot be exchanged after the check.
            must_be_private(path, os.fstat(file.fileno()))
            unverified = json.load(file)
        return _parsed(unverified, path.absolute().parent)
    except FileNotFoundError as missing:
        raise Unusable(f"there is no context file {path}", reason="CONTEXT", hint=_HINT) from missing
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as bad:
        what = bad.strerror if isinstance(bad, OSError) else "is not a context file"
        raise Unusable(f"{path}: {what}", reason="CONTEXT", hint=_HINT) from bad


def must_be_private(path: Path, status: os.stat_result) -> None:
    """Refuse a file that others may read or write, or that another user owns. Raises Unusable."""
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise Unusable(
            f"{path} has mode {mode:04o}: others may use what it names",
            reason="CONTEXT",
            hint=f"chmod 600 {path}",
        )
    # Whoever owns it chooses the broker that is believed.
    if status.st_uid not in {os.geteuid(), 0}:
        raise Unusable(f"{path} belongs to another user", reason="CONTEXT", hint="use a context file of your own")


def _document(context: Context) -> dict[str, object]:
    return {
        "endpoint": context.endpoint,
        "ca": str(context.ca.absolute()),
        "trust": str(context.trust.absolute()),
        "identities": {
            name: {
                "cert": str(identity.cert.absolute()),
                "key": str(identity.key.absolute()),
                "principal": identity.principal,
            }
            for name, identity in context.identities.items()
        },
        "defaults": {
            "admin": context.admin,
            **({} if context.approver is None else {"approver": context.approver}),
            "harness": dict(context.harness),
            "verifier": dict(context.verifier),
        },
        "login": {name: str(value) for name in LOGIN_FIELDS if (value := getattr(context.login, name)) is not None},
    }


def _parsed(unverified: Any, folder: Path) -> Context:
    defaults = unverified["defaults"]
    return Context(
        endpoint=_text(unverified["endpoint"]),
        ca=folder / _text(unverified["ca"]),
        trust=folder / _text(unverified["trust"]),
        identities=_mapped(unverified["identities"], lambda one: _identity(one, folder)),
        admin=None if defaults["admin"] is None else _text(defaults["admin"]),
        approver=None if defaults.get("approver") is None else _text(defaults["approver"]),
        harness=_mapped(defaults["harness"], _text),
        verifier=_mapped(defaults["verifier"], _text),
        # Contexts of before have none.
        login=_login(unverified.get("login", {}), folder),
    )


def _login(unverified: Any, folder: Path) -> Login:
    texts = _mapped(unverified, _text)
    if not set(texts) <= set(LOGIN_FIELDS):
        raise TypeError("not a login")
    ca = texts.pop("issuer_ca", None)
    return Login(**texts, issuer_ca=None if ca is None else folder / ca)


def _identity(unverified: Any, folder: Path) -> Identity:
    return Identity(
        cert=folder / _text(unverified["cert"]),
        key=folder / _text(unverified["key"]),
        principal=_text(unverified["principal"]),
    )


def _mapped(unverified: Any, of: Callable[[Any], T]) -> dict[str, T]:
    return {_text(name): of(value) for name, value in unverified.items()}


def _text(unverified: Any) -> str:
    if not isinstance(unverified, str) or not unverified:
        raise TypeError("not a text")
    return unverified


def _choose(option: str, names: Mapping[str, object]) -> str:
    known = f" (the context has: {', '.join(sorted(names))})" if names else ""
    return f"use {option} with one that it has{known}, or --cert and --cert-key"
