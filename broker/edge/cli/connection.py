"""Calls to the broker: where it is, as whom, for how long; and what it means when nobody answers."""

import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.edge.cli.context import Context, Login, context_path, read_context
from broker.edge.cli.kept_login import KeptLogin, login_path, read_login
from broker.edge.cli.problems import Misused, TimedOut, Unusable
from broker.sdk.channels import Metadata
from broker.sdk.failures import Unreachable, failure_of
from broker.sdk.identity import AnyIdentity, Identity, KeyIdentity, TokenIdentity
from broker.token.identifiers import random_id
from broker.v1 import (
    approvals_pb2_grpc,
    audit_pb2_grpc,
    drills_pb2_grpc,
    ledger_pb2_grpc,
    policy_pb2_grpc,
    reports_pb2_grpc,
    revocations_pb2_grpc,
    runs_pb2_grpc,
    status_pb2_grpc,
    tokens_pb2_grpc,
)

DEFAULT_DEADLINE = "10s"
# A thousand tokens of the largest size must fit, and the longest completion there can be beside its list.
_OPTIONS = (("grpc.max_receive_message_length", 96 << 20),)

Choose = Callable[[Context], Any]
"""Chooses the identity in the context that a command acts as."""


@dataclass(frozen=True, slots=True)
class LoginPlace:
    """Where somebody logs in: the broker's login door, and the provider."""

    endpoint: str
    issuer: str
    client_id: str
    issuer_ca: Path | None


@dataclass(frozen=True, slots=True)
class Settings:
    """What flags and environment say; None: the context says it."""

    endpoint: str | None
    ca: Path | None
    cert: Path | None
    key: Path | None
    trust: Path | None
    context_file: Path | None
    name: str | None
    deadline_s: int
    environment: Mapping[str, str]
    token_file: Path | None = None
    is_endpoint_ambient: bool = False

    def context(self) -> Context:
        """Read the context file. Raises Unusable."""
        return read_context(self.context_file or context_path(self.environment))

    def address(self) -> str:
        """Return `host:port`. Raises Unusable."""
        return self.endpoint or self.context().endpoint

    def trust_file(self) -> Path:
        """Return the file with what to pin. Raises Unusable."""
        return self.trust or self.context().trust

    def ca_or_none(self) -> Path | None:
        """Return the CA of the broker's certificate, or None: the system's CAs."""
        if self.ca is not None:
            return self.ca
        context = self._context_or_none()
        return None if context is None else context.ca

    def login_file(self) -> Path:
        """Return where a login is kept."""
        return login_path(self.context_file or context_path(self.environment))

    def where_to_log_in(self, given: Login) -> LoginPlace:
        """Return where to log in: what is `given`, and for the rest what the context says. Raises Misused."""
        context = self._context_or_none()
        known = Login() if context is None else context.login
        endpoint, issuer, client_id = (
            getattr(given, name) or getattr(known, name) for name in ("endpoint", "issuer", "client_id")
        )
        for option, value in (("--login-endpoint", endpoint), ("--issuer", issuer), ("--client-id", client_id)):
            if value is None:
                raise Misused(f"{option} is needed", hint=f"give {option}, or put it into the context file under login")
        return LoginPlace(endpoint, issuer, client_id, given.issuer_ca or known.issuer_ca)

    def _context_or_none(self) -> Context | None:
        path = self.context_file or context_path(self.environment)
        return read_context(path) if self.context_file is not None or path.exists() else None

    def login(self) -> KeptLogin | None:
        """Return the login to act as: one that there is, unless a certificate was asked for. Raises Unusable."""
        if self.cert is not None or self.key is not None or self.name is not None:
            return None
        return read_login(self.login_file())

    def _by_token(self, *, by_key: bool) -> tuple[str, AnyIdentity] | None:
        """Return the login door and who to be there, or None: a certificate is to be used. Raises Misused, Unusable."""
        if self.token_file is not None:
            if self.cert is not None or self.name is not None:
                raise Misused("--token-file and a certificate both say who to be", hint="give one of them")
            context = self._context_or_none()
            address = self.endpoint or (context.login.endpoint if context is not None else None)
            if address is None:
                raise Misused(
                    "--token-file needs --endpoint, the login door", hint="give it, or name it in the context"
                )
            ca = self.ca_or_none()
            return address, KeyIdentity(ca) if by_key else TokenIdentity(file=self.token_file, ca=ca)
        login = self.login()
        if login is None:
            return None
        identity = KeyIdentity(login.ca) if by_key else login.identity(datetime.now(UTC))
        return login.endpoint if self.is_endpoint_ambient else self.endpoint or login.endpoint, identity

    def identity(self, choose: Choose) -> Identity:
        """Return who to be: `--cert` and `--cert-key`, or `--as`, or what `choose` takes from the context.

        Raises:
            Misused: One of the pair is missing, or the context has no such identity.
            Unusable: The context file cannot be used.
        """
        if (self.cert is None) != (self.key is None):
            raise Misused("--cert and --cert-key belong together", hint="give both, or neither")
        if self.cert is not None and self.name is not None:
            raise Misused("--as and --cert both say who to be", hint="give one of them")
        if self.cert is not None and self.key is not None:
            return Identity(self.cert, self.key, self.ca or self.context().ca)
        context = self.context()
        chosen = choose(context) if self.name is None else context.named(self.name)
        return Identity(chosen.cert, chosen.key, self.ca or context.ca)

    def signing_key(self, choose: Choose) -> tuple[ec.EllipticCurvePrivateKey, bool]:
        """Return the key of who is logged in, else of the identity chosen, and whether it is a login's.

        Raises:
            Unusable: It cannot be read, is not on P-256, or the provider did not bind the login to it.
        """
        login = self.login()
        if login is not None:
            if not login.is_bound:
                raise Unusable(
                    "the provider did not bind the login to its key, so nothing can be signed with it",
                    reason="CONTEXT",
                    hint="use a provider that returns the nonce, or a certificate: --as, or --cert and --cert-key",
                )
            return login.key, True
        path = Path(self.identity(choose).key)
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError) as bad:
            raise Unusable(f"{path} is not a key that can be read", reason="FILE", hint="give --cert-key") from bad
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise Unusable(f"{path} is not an EC P-256 key", reason="FILE", hint="approve with a certificate of one")
        return key, False

    def _by_certificate(self, choose: Choose, *, by_key: bool) -> tuple[str, AnyIdentity]:
        """Return where to call and who to be; a run's key needs nobody else, where the context knows the login door."""
        try:
            return self.address(), self.identity(choose)
        except Misused:
            context = self._context_or_none()
            is_asked_for = self.cert is not None or self.key is not None or self.name is not None
            if not by_key or is_asked_for or context is None or context.login.endpoint is None:
                raise
            return self.endpoint or context.login.endpoint, KeyIdentity(self.ca_or_none())

    @contextmanager
    def connect(self, choose: Choose, *, by_key: bool = False) -> Iterator["Broker"]:
        """Yield the broker, as who is logged in, else as the identity chosen; nothing is sent before the first call.

        With `by_key` a run's key says who calls at the login door, so that a login may have ended.
        """
        by_token = self._by_token(by_key=by_key)
        address: str
        identity: AnyIdentity
        address, identity = self._by_certificate(choose, by_key=by_key) if by_token is None else by_token
        credentials = identity.credentials()
        try:
            channel = grpc.secure_channel(address, credentials, options=_OPTIONS)
        except (ValueError, TypeError) as bad:
            raise Misused(f"{address!r} is not an endpoint", hint="use host:port") from bad
        with channel:
            yield Broker(channel, address, identity, self.deadline_s)


class Broker:
    """The broker's services over one channel."""

    def __init__(self, channel: grpc.Channel, address: str, identity: AnyIdentity, deadline_s: int) -> None:
        self._channel = channel
        self._address = address
        self._identity = identity
        self._deadline_s = deadline_s

    @cached_property
    def tokens(self) -> Any:
        """TokenService."""
        return tokens_pb2_grpc.TokenServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @cached_property
    def runs(self) -> Any:
        """RunService."""
        return runs_pb2_grpc.RunServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @cached_property
    def revocations(self) -> Any:
        """RevocationService."""
        return revocations_pb2_grpc.RevocationServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @cached_property
    def policy(self) -> Any:
        """PolicyService."""
        return policy_pb2_grpc.PolicyServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @cached_property
    def status(self) -> Any:
        """StatusService."""
        return status_pb2_grpc.StatusServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @cached_property
    def drills(self) -> Any:
        """DrillService."""
        return drills_pb2_grpc.DrillServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @cached_property
    def approvals(self) -> Any:
        """ApprovalService."""
        return approvals_pb2_grpc.ApprovalServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @property
    def audit(self) -> Any:
        """AuditService."""
        return audit_pb2_grpc.AuditServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @property
    def reports(self) -> Any:
        """ReportService."""
        return reports_pb2_grpc.ReportServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @property
    def ledger(self) -> Any:
        """LedgerService."""
        return ledger_pb2_grpc.LedgerServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def call(self, method: Any, request: Any, metadata: Metadata | None = None) -> Any:
        """Call and return the answer.

        Raises:
            Failure: The broker's own.
            Unusable: Nobody answered in time.
        """
        try:
            return method(request, timeout=self._deadline_s, metadata=metadata)
        except grpc.RpcError as failed:
            raise self._told(failed, request) from failed

    def stream(self, method: Any, request: Any, *, timeout_s: int | None) -> Generator[Any, None, None]:
        """Call and yield the answers, for `timeout_s` (None: the deadline of a call) in all. Raises as `call`.

        Whoever stops early ends the call.
        """
        call = method(request, timeout=timeout_s or self._deadline_s)
        try:
            yield from call
        except grpc.RpcError as failed:
            raise self._told(failed, request) from failed
        finally:
            call.cancel()

    def _told(self, failed: Any, request: Any) -> Exception:
        failure = failure_of(failed)
        if not isinstance(failure, Unreachable):
            return failure
        request_id = getattr(request, "request_id", "")
        repeat = (
            f"; whether it was done is unknown, so repeat the same command with --request-id {request_id}"
            if request_id
            else ""
        )
        kind = TimedOut if failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED else Unusable
        return kind(
            f"no answer from the broker at {self._address}: {failure.message}",
            reason="UNREACHABLE",
            hint=f"{self._advice()}{repeat}",
        )

    def _advice(self) -> str:
        """Say what to look at. TLS 1.3 does not tell a client why its certificate was refused, so look here."""
        if not isinstance(self._identity, Identity):
            return (
                "check that it runs, that this is its login door, and that its certificate is from the CA of the login"
            )
        try:
            certificate = x509.load_pem_x509_certificate(Path(self._identity.certificate).read_bytes())
        except (OSError, ValueError):
            return f"{self._identity.certificate} is not a certificate"
        if not certificate.not_valid_before_utc <= datetime.now(UTC) < certificate.not_valid_after_utc:
            return f"the certificate {self._identity.certificate} ended {certificate.not_valid_after_utc}: renew it"
        return f"check that it runs, and that it trusts the CA of {self._identity.certificate}"


def new_request_id() -> str:
    """Return an id for one intent: 128 random bits."""
    return random_id(secrets.token_bytes)
