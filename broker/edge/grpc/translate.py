"""Between messages and the core's values; whatever is missing or malformed is named."""

import hashlib
import re
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.domain.asking import UNRECOGNISED, Ask
from broker.errors import Invalid
from broker.service.calling import Caller, CertificateProof
from broker.service.mint import Minted
from broker.service.ports import RequestKey, RunRecord
from broker.token.binding import Bound, Method
from broker.token.keys import thumbprint
from broker.token.revocation import Dimension, Selector
from broker.v1 import runs_pb2, selector_pb2, tokens_pb2

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{16,64}", re.ASCII)


def is_request_id(text: str) -> bool:
    """Tell whether a write may be called so."""
    return _REQUEST_ID.fullmatch(text) is not None


def request_key(caller: Caller, request: Any) -> RequestKey:
    """Return what makes the write happen once. Raises Invalid."""
    if not is_request_id(request.request_id):
        raise Invalid("request_id", "is not 16 to 64 of A-Z a-z 0-9 _ -", hint="make a random one for each new intent")
    contents = type(request).DESCRIPTOR.full_name.encode() + b"\x00" + request.SerializeToString(deterministic=True)
    return RequestKey(caller.principal, request.request_id, hashlib.sha256(contents).digest())


def seconds(field: str, duration: Duration) -> int:
    """Return whole seconds. Raises Invalid."""
    if duration.nanos != 0:
        raise Invalid(field, "is not in whole seconds", hint="leave out the fraction")
    return int(duration.seconds)


def ask(spec: tokens_pb2.TokenSpec, environment: str | None, caller: Caller | None = None) -> Ask:
    """Return what is asked for, from `environment`: for whom the caller is, unless it names a user or a workload.

    With a user who proved themselves, it is for that one, and for the caller's workload.

    Raises:
        Invalid: A field is missing or malformed.
    """
    user = spec.user if spec.HasField("user") else None
    workload = spec.workload if spec.HasField("workload") else None
    if caller is not None and caller.beside is not None:
        user, workload = user or caller.beside.name, workload or caller.workload
    elif user is None and workload is None and caller is not None:
        user, workload = caller.user, caller.workload
    return Ask(
        realm=spec.realm,
        partner=spec.partner,
        user=user,
        workload=workload,
        models=tuple(spec.models),
        environment=environment if environment is not None else UNRECOGNISED,
        run=spec.run or None,
        test=spec.test or None,
        ttl_s=seconds("lifetime", spec.lifetime) if spec.HasField("lifetime") else None,
        approval=spec.approval or None,
        bound=bound(spec.binding, caller) if spec.HasField("binding") else None,
    )


def bound(message: tokens_pb2.Binding, caller: Caller | None) -> Bound:
    """Return to what a token shall be bound; an empty certificate hash is the caller's own. Raises Invalid."""
    match message.WhichOneof("to"):
        case "jkt":
            return Bound(Method.DPOP, message.jkt)
        case "x5t_s256":
            own = caller.proof.sha256 if caller is not None and isinstance(caller.proof, CertificateProof) else b""
            if not message.x5t_s256 and not own:
                raise Invalid("binding.x5t_s256", "is empty, and the caller shows no certificate", hint="name a hash")
            return Bound.to_certificate(message.x5t_s256 or own)
        case _:
            raise Invalid("binding", "is empty", hint="name a certificate or a DPoP key, or leave the binding out")


def selector(message: selector_pb2.Selector) -> Selector:
    """Return the selector. Raises Invalid for an empty one."""
    return Selector.of(
        **{dimension.name.lower(): getattr(message, dimension.name.lower()) or None for dimension in Dimension}
    )


def selector_message(value: Selector) -> selector_pb2.Selector:
    """Return the message of a selector."""
    return selector_pb2.Selector(**{dimension.name.lower(): text for dimension, text in value.conditions})


def timestamp(at: datetime) -> Timestamp:
    """Return the message of an aware instant."""
    message = Timestamp()
    message.FromDatetime(at)
    return message


def duration(span: timedelta) -> Duration:
    """Return the message of a span."""
    message = Duration()
    message.FromTimedelta(span)
    return message


def milliseconds(span_ms: int) -> Duration:
    """Return the message of a span in milliseconds, not below 0: a completion has ten thousand of them."""
    seconds, left_ms = divmod(span_ms, 1000)
    return Duration(seconds=seconds, nanos=left_ms * 1_000_000)


def nanoseconds(span_ns: int) -> Duration:
    """Return the message of a span in nanoseconds."""
    message = Duration()
    message.FromNanoseconds(span_ns)
    return message


def minted_message(minted: Minted) -> tokens_pb2.MintedToken:
    """Return the message of a token."""
    return tokens_pb2.MintedToken(
        token=minted.token,
        id=minted.id,
        index=minted.index,
        expires_at=timestamp(minted.expires_at),
        grant=minted.grant,
    )


def run_message(run: RunRecord, now: datetime) -> runs_pb2.Run:
    """Return the message of a run as it is at `now`."""
    state = runs_pb2.RUN_STATE_OPEN
    if run.is_lapsed or (not run.is_closed and run.lease_ends_at <= now):
        state = runs_pb2.RUN_STATE_LAPSED
    elif run.is_closed:
        state = runs_pb2.RUN_STATE_CLOSED
    return runs_pb2.Run(
        id=run.id,
        realm=run.realm,
        partner=run.partner,
        models=run.models,
        state=state,
        opened_at=timestamp(run.opened_at),
        lease_ends_at=timestamp(run.lease_ends_at),
        user=run.user or "",
        workload=run.workload or "",
        environment=run.environment or "",
        key_thumbprint="" if run.key is None else thumbprint(run.key),
        approval=run.approval or "",
        grants=dict(run.grants),
        opened_by=run.opened_by,
    )


def limit(value: int, *, default: int = 100, most: int = 1000) -> int:
    """Return a page's size. Raises Invalid."""
    if value > most:
        raise Invalid("limit", f"{value} is above {most}", hint="ask for fewer, and page on")
    return value or default
