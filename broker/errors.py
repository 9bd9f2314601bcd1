"""Every deliberate failure, free of transport.

Each class has a `reason` out of the closed set `broker.v1.ErrorReason`. The
doors translate a class to a status through one table each; a test walks the
subclasses and fails when a table lacks one.
"""

from collections.abc import Mapping
from typing import ClassVar

# Of 64 bits.
_MAX_INDEX_DIGITS = 20


class Failure(Exception):
    """Something was refused or could not be done, and nothing was half-done.

    `message` says what happened and which rule or field; `hint` says what to do
    next. Neither holds a secret: both may be sent to the caller and logged.
    """

    reason: ClassVar[str] = "INTERNAL"
    retry_after_s: float | None = None
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "", metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class Invalid(Failure):
    """A field of the request is missing or malformed."""

    reason = "INVALID"

    def __init__(self, field: str, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{field}: {problem}", hint=hint, metadata={"field": field})
        self.field = field
        self.problem = problem


class ConfigInvalid(Failure):
    """A configuration or policy file is unusable; `problems` lists all that is wrong with it."""

    reason = "INVALID"
    default_hint = "mend what is named and try again"

    def __init__(self, what: str, problems: tuple[str, ...]) -> None:
        super().__init__(f"{what}: " + "; ".join(problems), metadata={"field": what})
        self.what = what
        self.problems = problems


class Unauthenticated(Failure):
    """No usable client certificate or identity token, or nobody whom the policy knows."""

    reason = "UNAUTHENTICATED"
    default_hint = "present a client certificate whose URI SAN the policy names"


class Forbidden(Failure):
    """The principal's role may not do this, or not for this partner."""

    reason = "FORBIDDEN"


class IssuerUnavailable(Failure):
    """An identity provider cannot be asked, or what it answers cannot be used; nothing that needs it is decided."""

    reason = "ISSUER_UNAVAILABLE"
    retry_after_s = 2.0
    default_hint = "retry; what other providers vouch for goes on meanwhile"


class NotGranted(Failure):
    """No grant covers what was asked."""

    reason = "NOT_GRANTED"
    default_hint = "ask an admin, or see: broker explain"


class Blocked(Failure):
    """A block is in force."""

    reason = "BLOCKED"
    default_hint = "an admin must reinstate it"


class NotFound(Failure):
    """There is no such thing, or the caller may not know of it."""

    reason = "NOT_FOUND"


class RunEnded(Failure):
    """The run is closed or its lease has run out."""

    reason = "RUN_ENDED"
    default_hint = "open a new run"


class RequestReused(Failure):
    """The request id was used before, for something else."""

    reason = "REQUEST_REUSED"
    default_hint = "make a new request_id for each new intent"


class PolicyMoved(Failure):
    """The policy is no longer at the expected version; nothing was written."""

    reason = "POLICY_MOVED"
    default_hint = "look at the policy in force and decide again"


class ApprovalNeeded(Failure):
    """The grant needs approvals that this request does not have, or not yet."""

    reason = "APPROVAL_NEEDED"
    default_hint = "ask for it: broker approval request"


class ApprovalOver(Failure):
    """The approval was denied, withdrawn or spent, has run out, or is of a grant that demands something else by now."""

    reason = "APPROVAL_OVER"
    default_hint = "ask anew: broker approval request"


class ApprovalMismatch(Failure):
    """What is asked for is not what was approved."""

    reason = "APPROVAL_MISMATCH"
    default_hint = "ask for exactly what was approved, or for another approval"


class VotedAlready(Failure):
    """This person has voted on the request: each counts once, under whatever name."""

    reason = "VOTED_ALREADY"
    default_hint = "somebody else must decide"


class LoginTooOld(Failure):
    """The approver's login is older than the grant allows."""

    reason = "LOGIN_TOO_OLD"
    default_hint = "log in again, or renew the certificate, and repeat"


class BindingNeeded(Failure):
    """The grant demands that its tokens are bound to their holder."""

    reason = "BINDING_NEEDED"
    default_hint = "name a certificate or a DPoP key to bind the token to"


class LimitReached(Failure):
    """A limit of the grant or the partner is reached; the metadata's `limit` names it.

    `retry_after_s` is set where waiting helps: for rates, and for tokens that come to their end.
    """

    reason = "LIMIT_REACHED"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, metadata=metadata)
        self.retry_after_s = retry_after_s


class RunProofRefused(Failure):
    """The proof of a run's key is missing, used before, too old, or not by this key for this request."""

    reason = "RUN_PROOF_REFUSED"
    default_hint = "send the metadata entry run-proof, made anew for each call with the run's own key"


class Overloaded(Failure):
    """Too much is waiting."""

    reason = "OVERLOADED"
    retry_after_s = 0.5
    default_hint = "retry later"


class StoreUnavailable(Failure):
    """The store cannot be reached, or a write's outcome is unknown: treat as not done."""

    reason = "STORE_UNAVAILABLE"
    retry_after_s = 1.0
    default_hint = "repeat with the same request_id"


class StoreFull(Failure):
    """The disk is nearly full: minting has stopped, revoking goes on."""

    reason = "STORE_FULL"
    retry_after_s = 30.0
    default_hint = "free space on the broker's data disk"


class StoreCorrupt(Failure):
    """The store is damaged; the process must not go on with it."""

    reason = "STORE_CORRUPT"
    default_hint = "stop the broker, keep what there is, and see: broker restore --help"


class ArchiveUnavailable(Failure):
    """Bodies of old entries were moved to an archive, and cannot be had from there, or cannot be moved there."""

    reason = "ARCHIVE_UNAVAILABLE"
    default_hint = "put the archive back where ledger.archive in the broker's configuration says"


class LedgerForked(StoreCorrupt):
    """The ledger does not go on from what was published of it: rolled back, truncated or forked (P10)."""

    reason = "LEDGER_FORKED"
    default_hint = "stop the broker and put the newest copy of its store back"


class NotProven(Failure):
    """A note, checkpoint or proof of the log is malformed, not signed by whom it must be, or does not hold."""

    reason = "NOT_PROVEN"


class SignerUnavailable(Failure):
    """There is no key to sign with, because the key store cannot be reached."""

    reason = "SIGNER_UNAVAILABLE"
    retry_after_s = 1.0
    default_hint = "retry; revoking and verifying go on meanwhile"


class ClockAstray(Failure):
    """The clock cannot be trusted, so nothing is minted."""

    reason = "CLOCK_ASTRAY"
    retry_after_s = 10.0
    default_hint = "set the broker's clock right"


class Defect(Failure):
    """A defect in the broker."""

    reason = "INTERNAL"


class Rejected(Failure):
    """A token is not accepted.

    `http_status` and `grpc_code` are what a service answers its client with: 401
    and UNAUTHENTICATED mean get a new token and retry, 403 and PERMISSION_DENIED
    mean stop, 503 and UNAVAILABLE mean that nothing can be judged now.
    """

    http_status: ClassVar[int] = 401
    grpc_code: ClassVar[str] = "UNAUTHENTICATED"


class Malformed(Rejected):
    """Not a well-formed token of ours."""

    reason = "MALFORMED"


class Untrusted(Rejected):
    """The key is unknown or over, or the signature is wrong."""

    reason = "UNTRUSTED"


class Expired(Rejected):
    """The token's life is over."""

    reason = "EXPIRED"


class NotYetValid(Rejected):
    """The token's life has not begun."""

    reason = "NOT_YET_VALID"


class WrongRealm(Rejected):
    """Another issuer, realm or audience."""

    reason = "WRONG_REALM"


class NotAllowed(Rejected):
    """The token does not cover the model that was asked for."""

    reason = "NOT_ALLOWED"
    http_status = 403
    grpc_code = "PERMISSION_DENIED"


class Revoked(Rejected):
    """The token is dead."""

    reason = "REVOKED"
    http_status = 403
    grpc_code = "PERMISSION_DENIED"

    @property
    def index(self) -> int:
        """Ledger index of the revocation that killed it; 0 when who said so did not say which."""
        text = self.metadata.get("index", "")
        return int(text) if text.isdecimal() and len(text) <= _MAX_INDEX_DIGITS else 0


class UsedUp(Rejected):
    """The token was used as often as it may be, at this verifier."""

    reason = "USED_UP"
    http_status = 403
    grpc_code = "PERMISSION_DENIED"
    default_hint = "mint a new one"


class NotHolder(Rejected):
    """The token is bound to a key or certificate, and whoever shows it did not show that they hold it."""

    reason = "NOT_HOLDER"


class Stale(Rejected):
    """The verifier has not heard from the broker for a freshness lease."""

    reason = "STALE"
    http_status = 503
    grpc_code = "UNAVAILABLE"
    retry_after_s = 1.0
    default_hint = "check the verifier's connection to the broker"


class FrameRefused(Failure):
    """A frame of the feed is refused; the last good state stays."""

    reason = "FRAME_MALFORMED"


class FrameTooLarge(FrameRefused):
    """A frame is larger than allowed."""

    reason = "FRAME_TOO_LARGE"


class FrameUntrusted(FrameRefused):
    """A frame or echo has a bad signature or certificate."""

    reason = "FRAME_UNTRUSTED"


class FrameWrongRealm(FrameRefused):
    """A frame is for another realm."""

    reason = "FRAME_WRONG_REALM"


class FrameGap(FrameRefused):
    """A frame does not follow on the verifier's head; a snapshot is needed."""

    reason = "FRAME_GAP"


class FrameBehind(FrameRefused):
    """A frame is behind what the verifier has already applied."""

    reason = "FRAME_BEHIND"


class FrameForked(FrameRefused):
    """A frame is of another incarnation of the ledger."""

    reason = "FRAME_FORKED"
    default_hint = "a backup is restored with `broker restore`, which verifiers follow; this is another ledger"


class NameInUse(Failure):
    """A verifier of this name listens already, with another certificate."""

    reason = "NAME_IN_USE"
    default_hint = "give each verifier a certificate with a name of its own, or stop the other one first"


class ReceiptsUnkept(Rejected):
    """The realm's policy demands receipts, and this verifier cannot keep them now: so it accepts nothing."""

    reason = "RECEIPTS_UNKEPT"
    http_status = 503
    grpc_code = "UNAVAILABLE"
    retry_after_s = 1.0
    default_hint = "free space in the verifier's state folder, or mend it; it goes on by itself"


class ReceiptsRefused(Failure):
    """A batch of receipts or its key is wrong; nothing of it was written."""

    reason = "RECEIPTS_REFUSED"


class ReceiptsOutOfOrder(Failure):
    """A batch of receipts does not follow on what is written of its key."""

    reason = "RECEIPTS_OUT_OF_ORDER"
    default_hint = "go on from the number that the broker says"
