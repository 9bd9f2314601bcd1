"""One table from our failures to gRPC codes, and the details that go with them."""

from collections.abc import Mapping

import grpc

from broker import errors
from broker.v1 import details_pb2

DOMAIN = "broker"
ERROR_INFO_URL = "type.googleapis.com/google.rpc.ErrorInfo"
RETRY_INFO_URL = "type.googleapis.com/google.rpc.RetryInfo"
DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_CHARS = 2000

CODES: Mapping[type[errors.Failure], grpc.StatusCode] = {
    errors.Failure: grpc.StatusCode.INTERNAL,
    errors.Defect: grpc.StatusCode.INTERNAL,
    errors.Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ConfigInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.IssuerUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.NotGranted: grpc.StatusCode.PERMISSION_DENIED,
    errors.Blocked: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.RunEnded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RequestReused: grpc.StatusCode.ALREADY_EXISTS,
    errors.NameInUse: grpc.StatusCode.ALREADY_EXISTS,
    errors.PolicyMoved: grpc.StatusCode.ABORTED,
    errors.ApprovalNeeded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ApprovalOver: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ApprovalMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VotedAlready: grpc.StatusCode.ALREADY_EXISTS,
    errors.LoginTooOld: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BindingNeeded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RunProofRefused: grpc.StatusCode.UNAUTHENTICATED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StoreFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.StoreCorrupt: grpc.StatusCode.DATA_LOSS,
    errors.ArchiveUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.LedgerForked: grpc.StatusCode.DATA_LOSS,
    errors.NotProven: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SignerUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ClockAstray: grpc.StatusCode.UNAVAILABLE,
    errors.Rejected: grpc.StatusCode.UNAUTHENTICATED,
    errors.Malformed: grpc.StatusCode.UNAUTHENTICATED,
    errors.Untrusted: grpc.StatusCode.UNAUTHENTICATED,
    errors.Expired: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotYetValid: grpc.StatusCode.UNAUTHENTICATED,
    errors.WrongRealm: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.Revoked: grpc.StatusCode.PERMISSION_DENIED,
    errors.UsedUp: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotHolder: grpc.StatusCode.UNAUTHENTICATED,
    errors.Stale: grpc.StatusCode.UNAVAILABLE,
    errors.FrameRefused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FrameTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FrameUntrusted: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FrameWrongRealm: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FrameGap: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FrameBehind: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FrameForked: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ReceiptsUnkept: grpc.StatusCode.UNAVAILABLE,
    errors.ReceiptsRefused: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ReceiptsOutOfOrder: grpc.StatusCode.ABORTED,
}


def code_of(failure: errors.Failure) -> grpc.StatusCode:
    """Return the code of the nearest class that the table names."""
    for kind in type(failure).__mro__:
        if kind in CODES:
            return CODES[kind]
    return grpc.StatusCode.INTERNAL


def details_of(failure: errors.Failure) -> bytes:
    """Return the serialized google.rpc.Status with ErrorInfo and, where a retry helps, RetryInfo."""
    metadata = {name: value[:MAX_MESSAGE_CHARS] for name, value in failure.metadata.items()}
    if failure.hint:
        metadata["hint"] = failure.hint[:MAX_MESSAGE_CHARS]
    status = details_pb2.StatusDetails(code=code_of(failure).value[0], message=failure.message[:MAX_MESSAGE_CHARS])
    info = details_pb2.ErrorInfoDetail(reason=failure.reason, domain=DOMAIN, metadata=metadata)
    status.details.add(type_url=ERROR_INFO_URL, value=info.SerializeToString())
    if failure.retry_after_s is not None:
        retry = details_pb2.RetryInfoDetail()
        retry.retry_delay.FromMilliseconds(int(failure.retry_after_s * 1000))
        status.details.add(type_url=RETRY_INFO_URL, value=retry.SerializeToString())
    return status.SerializeToString()
