"""Each failure has its place in every door's table, and each reason of the contract has a failure.

A failure without a place would reach the caller as a defect, or as a status that tells it to do the wrong thing.
"""

import importlib
import pkgutil

import grpc
import pytest

import broker
from broker import errors
from broker.edge.cli.problems import DENIED, DONE, FAILED, USAGE, problem_of
from broker.edge.grpc.failures import CODES, DETAILS_KEY, code_of, details_of
from broker.errors import ConfigInvalid, Failure, FrameRefused, Invalid, Rejected
from broker.sdk.failures import failure_of
from broker.v1 import details_pb2, errors_pb2

# Migrations are scripts of Alembic, not modules.
for module in pkgutil.walk_packages(broker.__path__, "broker."):
    if ".migrations" not in module.name:
        importlib.import_module(module.name)


def below(kind):
    for each in kind.__subclasses__():
        yield each
        yield from below(each)


FAILURES = sorted({Failure, *below(Failure)}, key=lambda kind: (kind.__module__, kind.__name__))
OF_THE_TREE = [kind for kind in FAILURES if kind.__module__ == errors.__name__]
REJECTIONS = [kind for kind in FAILURES if issubclass(kind, Rejected)]
REASONS = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - no mapping

# What a script may rely on (design.md, Doors): 1 failed, 2 usage, 3 denied.
EXIT_CODES = {
    "Failure": FAILED,
    "Defect": FAILED,
    "Invalid": USAGE,
    "ConfigInvalid": FAILED,
    "Unauthenticated": FAILED,
    "Forbidden": DENIED,
    "IssuerUnavailable": FAILED,
    "NotGranted": DENIED,
    "Blocked": DENIED,
    "NotFound": FAILED,
    "RunEnded": FAILED,
    "RequestReused": FAILED,
    "NameInUse": FAILED,
    "PolicyMoved": FAILED,
    "ApprovalNeeded": DENIED,
    "ApprovalOver": DENIED,
    "ApprovalMismatch": DENIED,
    "VotedAlready": DENIED,
    "LoginTooOld": DENIED,
    "BindingNeeded": DENIED,
    "LimitReached": FAILED,
    "RunProofRefused": FAILED,
    "Overloaded": FAILED,
    "StoreUnavailable": FAILED,
    "StoreFull": FAILED,
    "StoreCorrupt": FAILED,
    "ArchiveUnavailable": FAILED,
    "LedgerForked": FAILED,
    "NotProven": FAILED,
    "SignerUnavailable": FAILED,
    "ClockAstray": FAILED,
    "Rejected": DENIED,
    "Malformed": DENIED,
    "Untrusted": DENIED,
    "Expired": DENIED,
    "NotYetValid": DENIED,
    "WrongRealm": DENIED,
    "NotAllowed": DENIED,
    "Revoked": DENIED,
    "UsedUp": DENIED,
    "NotHolder": DENIED,
    "Stale": DENIED,
    "FrameRefused": FAILED,
    "FrameTooLarge": FAILED,
    "FrameUntrusted": FAILED,
    "FrameWrongRealm": FAILED,
    "FrameGap": FAILED,
    "FrameBehind": FAILED,
    "FrameForked": FAILED,
    "ReceiptsUnkept": DENIED,
    "ReceiptsRefused": FAILED,
    "ReceiptsOutOfOrder": FAILED,
    # Made on the client's side, or at the start; never answered by a broker.
    "Unreachable": FAILED,
    "NoToken": DENIED,
    "TooLarge": DENIED,
    "StoreBroken": FAILED,
    "Refused": FAILED,
    "TourFailed": FAILED,
    "BackupRefused": FAILED,
}
# What a service answers its client with: 401 get a new token, 403 stop, 503 try again, 413 send less.
ANSWERS = {
    "Rejected": (401, "UNAUTHENTICATED"),
    "Malformed": (401, "UNAUTHENTICATED"),
    "Untrusted": (401, "UNAUTHENTICATED"),
    "Expired": (401, "UNAUTHENTICATED"),
    "NotYetValid": (401, "UNAUTHENTICATED"),
    "WrongRealm": (401, "UNAUTHENTICATED"),
    "NotAllowed": (403, "PERMISSION_DENIED"),
    "Revoked": (403, "PERMISSION_DENIED"),
    "UsedUp": (403, "PERMISSION_DENIED"),
    "NotHolder": (401, "UNAUTHENTICATED"),
    "Stale": (503, "UNAVAILABLE"),
    "ReceiptsUnkept": (503, "UNAVAILABLE"),
    "NoToken": (401, "UNAUTHENTICATED"),
    "TooLarge": (413, "UNAUTHENTICATED"),
}


def one_of(kind):
    if issubclass(kind, Invalid):
        return kind("field", "a problem", hint="a hint")
    if kind is ConfigInvalid:
        return kind("policy", ("policy:1: field: problem; fix",))
    try:
        return kind("what happened", hint="a hint")
    except TypeError:
        return kind("what happened")


def named(kind):
    return kind.__name__


def test_the_walk_sees_the_tree():
    assert len(OF_THE_TREE) >= 35
    assert {Failure, Invalid, Rejected, FrameRefused} <= set(OF_THE_TREE)


@pytest.mark.parametrize("kind", OF_THE_TREE, ids=named)
def test_each_failure_has_a_grpc_status_of_its_own_in_the_table(kind):
    assert kind in CODES, f"{kind.__name__} is not in broker/edge/grpc/failures.py CODES"
    assert code_of(one_of(kind)) is CODES[kind]
    # UNKNOWN never leaves the server, and OK is no failure.
    assert CODES[kind] not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK)


def test_the_grpc_table_names_nothing_that_is_gone():
    assert set(CODES) == set(OF_THE_TREE)


@pytest.mark.parametrize("kind", FAILURES, ids=named)
def test_each_failure_has_a_reason_of_the_contract(kind):
    assert kind.reason in REASONS, f"{kind.reason} is not in protos/broker/v1/errors.proto"


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_each_reason_of_the_contract_is_the_reason_of_a_failure(reason):
    assert reason in {kind.reason for kind in OF_THE_TREE}


@pytest.mark.parametrize("kind", FAILURES, ids=named)
def test_each_failure_has_an_exit_code(kind):
    assert kind.__name__ in EXIT_CODES, f"say which exit code {kind.__name__} has"
    problem = problem_of(one_of(kind))
    assert problem.exit_code == EXIT_CODES[kind.__name__] != DONE
    assert problem.reason == kind.reason
    assert problem.line.isprintable()


@pytest.mark.parametrize("kind", REJECTIONS, ids=named)
def test_each_rejection_has_an_answer_for_the_client_of_a_service(kind):
    assert kind.__name__ in ANSWERS, f"say what a service answers when a token is {kind.__name__}"
    assert (kind.http_status, kind.grpc_code) == ANSWERS[kind.__name__]
    # Both doors of a service say the same: get a new token, stop, or try again.
    assert code_of(one_of(kind)).name == kind.grpc_code


@pytest.mark.parametrize("kind", [kind for kind in OF_THE_TREE if kind.retry_after_s is not None], ids=named)
def test_a_failure_that_a_retry_can_mend_says_when(kind):
    status = details_pb2.StatusDetails.FromString(details_of(one_of(kind)))
    [retry] = [detail for detail in status.details if detail.type_url.endswith("google.rpc.RetryInfo")]
    delay = details_pb2.RetryInfoDetail.FromString(retry.value).retry_delay
    assert delay.ToMilliseconds() == kind.retry_after_s * 1000


class Answered:
    """A failed call as a client sees it."""

    def __init__(self, failure):
        self._failure = failure

    def code(self):
        return code_of(self._failure)

    def details(self):
        return str(self._failure)

    def trailing_metadata(self):
        return ((DETAILS_KEY, details_of(self._failure)),)


@pytest.mark.parametrize("kind", OF_THE_TREE, ids=named)
def test_a_failure_comes_out_of_the_sdk_as_what_went_in_at_the_door(kind):
    sent = one_of(kind)
    received = failure_of(Answered(sent))
    assert received.reason == sent.reason
    assert type(received) is kind or type(received).reason == kind.reason
    assert received.message == sent.message
    assert received.hint == sent.hint


@pytest.mark.parametrize("kind", OF_THE_TREE, ids=named)
def test_what_leaves_the_door_is_bounded(kind):
    if issubclass(kind, Invalid):
        long = kind("f" * 5000, "p" * 100_000, hint="h" * 100_000)
    elif kind is ConfigInvalid:
        long = kind("policy", ("p" * 100_000,))
    else:
        long = kind("m" * 100_000, hint="h" * 100_000, metadata={"rule": "r" * 100_000})
    # Peers refuse trailers above 8 KiB, and the caller would learn nothing at all.
    assert len(details_of(long)) <= 7000
