"""What a client asks of the broker, and what it is answered: values, and their messages."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration

from broker.errors import Invalid
from broker.token.binding import Bound, Method
from broker.token.claims import TOKEN_TYP, decode_claims
from broker.token.identifiers import random_id
from broker.token.jws import parse_jws, unb64url
from broker.v1 import runs_pb2, tokens_pb2

# A run is kept alive so often within its lease.
KEEPS_PER_LEASE = 3
KEEP_AT_MOST_EVERY_S = 0.2


class OwnCertificate:
    """Binds a token to the certificate that the client calls the broker with."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What one token shall be for. The environment is the caller's own, by its certificate.

    Without user and workload it is for whom the caller is by the policy. With both, the workload acts for the user.

    Raises:
        Invalid: `models` is a text.
    """

    realm: str
    partner: str
    models: Sequence[str]
    user: str | None = None
    workload: str | None = None
    run: str | None = None
    test: str | None = None
    lifetime_s: int | None = None
    approval: str | None = None
    binding: Bound | OwnCertificate | None = None

    def __post_init__(self) -> None:
        # A text is a sequence too, of letters.
        if isinstance(self.models, str):
            raise Invalid("models", "must be a list of models")


@dataclass(frozen=True, slots=True)
class Minted:
    """A minted token. `text` is the secret; the rest is safe to log."""

    text: str = field(repr=False)
    id: str
    index: int
    expires_at: datetime
    grant: str


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run as the broker last told it."""

    id: str
    realm: str
    partner: str
    models: tuple[str, ...]
    state: str
    lease_ends_at: datetime


def new_request_id() -> str:
    """Return an id for one intent: repeated with it, a write happens once."""
    return random_id(secrets.token_bytes)


def spec_message(spec: Spec) -> tokens_pb2.TokenSpec:
    """Return `spec` for the wire."""
    message = tokens_pb2.TokenSpec(
        realm=spec.realm,
        partner=spec.partner,
        models=spec.models,
        run=spec.run or "",
        test=spec.test or "",
        lifetime=_duration(spec.lifetime_s),
        approval=spec.approval or "",
    )
    if spec.user is not None:
        message.user = spec.user
    if spec.workload is not None:
        message.workload = spec.workload
    if spec.binding is not None:
        message.binding.CopyFrom(binding_message(spec.binding))
    return message


def binding_message(binding: Bound | OwnCertificate) -> tokens_pb2.Binding:
    """Return a binding for the wire."""
    if isinstance(binding, OwnCertificate):
        return tokens_pb2.Binding(x5t_s256=b"")
    if binding.method is Method.DPOP:
        return tokens_pb2.Binding(jkt=binding.thumbprint)
    return tokens_pb2.Binding(x5t_s256=unb64url(binding.thumbprint))


def mint_request(spec: Spec, user_token: str = "") -> tokens_pb2.MintRequest:
    """Ask for one token; `user_token` is what its user proves themselves by."""
    return tokens_pb2.MintRequest(request_id=new_request_id(), spec=spec_message(spec), user_token=user_token)


def batch_request(specs: Sequence[Spec], user_token: str = "") -> tokens_pb2.MintBatchRequest:
    """Ask for several tokens, all or none."""
    messages = [spec_message(spec) for spec in specs]
    return tokens_pb2.MintBatchRequest(request_id=new_request_id(), specs=messages, user_token=user_token)


def exchange_request(
    token: str,
    *,
    models: Sequence[str] = (),
    lifetime_s: int | None = None,
    binding: Bound | OwnCertificate | None = None,
    test: str | None = None,
    workload: str | None = None,
) -> tokens_pb2.ExchangeRequest:
    """Ask for a child of a token. Raises Invalid: `models` is a text."""
    if isinstance(models, str):
        raise Invalid("models", "must be a list of models")
    return tokens_pb2.ExchangeRequest(
        request_id=new_request_id(),
        subject_token=token,
        models=models,
        lifetime=_duration(lifetime_s),
        binding=None if binding is None else binding_message(binding),
        test=test or "",
        workload=workload or "",
    )


def open_request(realm: str, partner: str, models: Sequence[str], lease_s: int | None) -> runs_pb2.OpenRunRequest:
    """Ask for a run."""
    return runs_pb2.OpenRunRequest(
        request_id=new_request_id(), realm=realm, partner=partner, models=models, lease=_duration(lease_s)
    )


def keep_request(run: str) -> runs_pb2.KeepRunRequest:
    """Ask to extend a run's lease."""
    return runs_pb2.KeepRunRequest(request_id=new_request_id(), run=run)


def close_request(run: str) -> runs_pb2.CloseRunRequest:
    """Ask to close a run."""
    return runs_pb2.CloseRunRequest(request_id=new_request_id(), run=run)


def minted(message: tokens_pb2.MintedToken) -> Minted:
    """Read a minted token."""
    return Minted(message.token, message.id, message.index, message.expires_at.ToDatetime(tzinfo=UTC), message.grant)


def opened_run(message: runs_pb2.Run) -> OpenedRun:
    """Read a run."""
    return OpenedRun(
        message.id,
        message.realm,
        message.partner,
        tuple(message.models),
        runs_pb2.RunState.Name(message.state).removeprefix("RUN_STATE_").lower(),
        message.lease_ends_at.ToDatetime(tzinfo=UTC),
    )


def keep_every_s(message: runs_pb2.Run) -> float:
    """Return how often a run that was just opened is to be kept, by the length of its lease on the broker's clock."""
    lease = message.lease_ends_at.ToDatetime(tzinfo=UTC) - message.opened_at.ToDatetime(tzinfo=UTC)
    return max(KEEP_AT_MOST_EVERY_S, lease.total_seconds() / KEEPS_PER_LEASE)


def life_s(token: str) -> int:
    """Return the length of a token's life. It says so itself; the caller's clock is not asked.

    Raises:
        Malformed: The broker sent something else than a token.
    """
    unverified = decode_claims(parse_jws(token, typ=TOKEN_TYP).payload)
    return unverified.exp - unverified.iat


def _duration(seconds: int | None) -> Duration | None:
    return None if seconds is None else Duration(seconds=seconds)
