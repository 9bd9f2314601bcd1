"""The login that commands act as: an identity token and the key that it is bound to, in a file of the owner's."""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.edge.cli.context import OWNER_ONLY, must_be_private
from broker.edge.cli.problems import Unusable
from broker.sdk.identity import TokenIdentity

FILE = "login.json"


@dataclass(frozen=True, slots=True)
class KeptLogin:
    """Who somebody logged in as, until when, and the login door that it is for."""

    endpoint: str
    issuer: str
    subject: str
    ends_at: datetime
    is_bound: bool
    token: str = field(repr=False)
    key_pem: str = field(repr=False)
    ca: Path | None = None

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The P-256 key that was made at the login; its thumbprint is the token's nonce if `is_bound`."""
        key = serialization.load_pem_private_key(self.key_pem.encode("ascii"), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - `new_key` made it
        return key

    def identity(self, now: datetime) -> TokenIdentity:
        """Return who to be. Raises Unusable when the login has ended."""
        if now >= self.ends_at:
            raise Unusable(
                f"the login of {self.subject} at {self.issuer} ended {self.ends_at:%Y-%m-%d %H:%M:%S} UTC",
                reason="CONTEXT",
                hint="broker login; or broker logout, to act with the certificates of the context again",
            )
        return TokenIdentity(self.token, ca=self.ca)


def new_key() -> tuple[ec.EllipticCurvePrivateKey, str]:
    """Make a key for a login; return it, and as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key, key.private_bytes(encoding, form, serialization.NoEncryption()).decode("ascii")


def login_path(context_file: Path) -> Path:
    """Return where the login is kept: beside the context file."""
    return context_file.with_name(FILE)


def write_login(login: KeptLogin, path: Path) -> None:
    """Replace the file in one step, with mode 0600. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    # Born with its mode: there is no moment at which others can open it.
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    document = {
        "endpoint": login.endpoint,
        "ca": None if login.ca is None else str(login.ca.absolute()),
        "issuer": login.issuer,
        "subject": login.subject,
        "ends_at": login.ends_at.isoformat(),
        "bound": login.is_bound,
        "token": login.token,
        "key": login.key_pem,
    }
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_login(path: Path) -> KeptLogin | None:
    """Read the file; None: nobody is logged in.

    Raises:
        Unusable: It is damaged, somebody else's, or others may read or write it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            must_be_private(path, os.fstat(file.fileno()))
            return _parsed(json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as bad:
        what = bad.strerror if isinstance(bad, OSError) else "is not a kept login"
        raise Unusable(f"{path}: {what}", reason="CONTEXT", hint="broker logout") from bad


def remove_login(path: Path) -> bool:
    """Remove the file; tell whether there was one."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _parsed(unverified: Any) -> KeptLogin:
    texts = {name: unverified[name] for name in ("endpoint", "issuer", "subject", "ends_at", "token", "key")}
    if not all(isinstance(text, str) and text for text in texts.values()):
        raise TypeError("not a text")
    ends_at = datetime.fromisoformat(texts["ends_at"])
    ca = unverified["ca"]
    return KeptLogin(
        endpoint=texts["endpoint"],
        issuer=texts["issuer"],
        subject=texts["subject"],
        ends_at=ends_at.astimezone(UTC),
        is_bound=unverified["bound"] is True,
        token=texts["token"],
        key_pem=texts["key"],
        ca=None if ca is None else Path(ca),
    )
