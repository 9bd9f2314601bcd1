"""The broker's errors on a gRPC status: the ErrorInfo in the trailer `grpc-status-details-bin`."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from broker import errors
from broker.errors import Failure
from broker.v1 import details_pb2

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "broker"
ERROR_INFO_URL = "type.googleapis.com/google.rpc.ErrorInfo"
RETRY_INFO_URL = "type.googleapis.com/google.rpc.RetryInfo"


class FailedCall(Protocol):
    """What sync and asyncio gRPC errors have in common."""

    def code(self) -> grpc.StatusCode:
        """Return the status code."""

    def details(self) -> str | None:
        """Return the status message."""

    def trailing_metadata(self) -> Any:
        """Return pairs of key and value, or None."""


class Unreachable(errors.StoreUnavailable):
    """No broker answered; a write's outcome is unknown."""

    default_hint = "check the endpoint and the network, then repeat with the same request_id"


def _subclasses(of: type[Failure]) -> Iterator[type[Failure]]:
    for cls in of.__subclasses__():
        yield cls
        yield from _subclasses(cls)


# Where classes share a reason, the first one speaks for it; only those of `broker.errors`, whoever subclasses them.
_BY_REASON: Mapping[str, type[Failure]] = {
    cls.reason: cls for cls in reversed(list(_subclasses(Failure))) if cls.__module__ == errors.__name__
}
# For answers without an ErrorInfo: gRPC's own, or a proxy's.
_BY_CODE: Mapping[grpc.StatusCode, type[Failure]] = {
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unreachable,
    grpc.StatusCode.CANCELLED: Unreachable,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
}


def failure_of(call: FailedCall) -> Failure:
    """Return the broker's error that a failed call carries; one with an unknown reason becomes a `Defect`."""
    text = call.details() or call.code().name
    found = _error_info(call)
    if found is None:
        return _BY_CODE.get(call.code(), errors.Defect)(text)
    message, info, retry_after_s = found
    metadata = dict(info.metadata)
    hint = metadata.pop("hint", "")
    cls = _BY_REASON.get(info.reason, errors.Defect)
    if cls is errors.Invalid:
        field = metadata.get("field", "request")
        return errors.Invalid(field, message.removeprefix(f"{field}: "), hint=hint)
    failure = cls(message or text, hint=hint, metadata=metadata)
    if retry_after_s is not None:
        failure.retry_after_s = retry_after_s
    return failure


def status_details(failure: Failure, code: grpc.StatusCode) -> bytes:
    """Return what `grpc-status-details-bin` holds for `failure`."""
    info = details_pb2.ErrorInfoDetail(reason=failure.reason, domain=DOMAIN, metadata=failure.metadata)
    if failure.hint:
        info.metadata["hint"] = failure.hint
    status = details_pb2.StatusDetails(code=code.value[0], message=failure.message)
    status.details.add(type_url=ERROR_INFO_URL, value=info.SerializeToString())
    return status.SerializeToString()


def _retry_after_s(status: details_pb2.StatusDetails) -> float | None:
    for detail in status.details:
        if detail.type_url == RETRY_INFO_URL:
            return details_pb2.RetryInfoDetail.FromString(detail.value).retry_delay.ToMilliseconds() / 1000
    return None


def _error_info(call: FailedCall) -> tuple[str, details_pb2.ErrorInfoDetail, float | None] | None:
    for key, value in call.trailing_metadata() or ():
        if key != DETAILS_KEY:
            continue
        try:
            status = details_pb2.StatusDetails.FromString(value)
            for detail in status.details:
                if detail.type_url == ERROR_INFO_URL:
                    info = details_pb2.ErrorInfoDetail.FromString(detail.value)
                    if info.domain == DOMAIN:
                        return status.message, info, _retry_after_s(status)
        except DecodeError:
            return None
    return None
