"""What is told of a revocation, as messages."""

import json
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from broker.edge.grpc.translate import duration, milliseconds, selector_message, timestamp
from broker.service.complete import Completion
from broker.service.hits import Hits
from broker.service.listening import Progress, Stop
from broker.service.revoke import Prepared, Revoked
from broker.token.jws import unb64url
from broker.v1 import revocations_pb2 as pb

MAX_NAMED = 10


def committed(revoked: Revoked) -> pb.RevokeResponse:
    """Return the event of a commit."""
    return pb.RevokeResponse(
        committed=pb.RevocationCommitted(
            index=revoked.index,
            committed_at=timestamp(revoked.at),
            blocks=revoked.blocks,
            bound=duration(timedelta(milliseconds=revoked.bound_ms)),
            selector=selector_message(revoked.selector),
            reason=revoked.reason,
            by=revoked.by,
            entries=revoked.entries,
            awaits_completion=revoked.awaits_completion,
        )
    )


def progress(reached: Progress | None, waits_for: str) -> pb.RevokeResponse:
    """Return the event of a revocation that is not complete. `reached` None: this broker does not know how far."""
    if reached is None:
        return pb.RevokeResponse(progress=pb.RevocationProgress(waits_for=waits_for))
    acknowledged = sum(outcome.how is Stop.ACKNOWLEDGED for outcome in reached.outcomes)
    if not waits_for and not reached.waiting and not reached.is_complete:
        waits_for = (
            "the leases of verifiers that listened to another broker process"
            if reached.is_published
            else "the feed to publish it"
        )
    return pb.RevokeResponse(
        progress=pb.RevocationProgress(
            listening=reached.listening,
            acknowledged=acknowledged,
            lapsed=len(reached.outcomes) - acknowledged,
            waiting=len(reached.waiting),
            waiting_for=sorted(reached.waiting[:MAX_NAMED]),
            waits_for=waits_for,
        )
    )


def complete(completion: Completion) -> pb.RevokeResponse:
    """Return the event of a completion, by what its statements say: whoever asks gets the same answer."""
    statements = completion.document.splitlines()
    said: list[dict[str, Any]] = [json.loads(unb64url(statement.split(".")[1])) for statement in statements]
    verifiers = sorted(
        (one for statement in said for one in statement["verifiers"]),
        key=lambda one: (-one["after_ms"], one["realm"], one["verifier"]),
    )
    took_ms = max([one["after_ms"] for one in verifiers] + [statement["waited_ms"] for statement in said], default=0)
    message = pb.RevocationComplete(
        took=milliseconds(took_ms),
        verifiers=[
            pb.VerifierOutcome(
                verifier=one["verifier"],
                realm=one["realm"],
                acknowledged=one["state"] == Stop.ACKNOWLEDGED,
                after=milliseconds(one["after_ms"]),
                state=one["state"],
                uses_cut=one["uses_cut"],
            )
            for one in verifiers
        ],
        statements=statements,
        entry=completion.entry,
        uses_cut=sum(statement["uses_cut"] for statement in said),
    )
    if said:
        message.in_force_at.CopyFrom(
            timestamp(max(datetime.fromisoformat(statement["in_force_at"]) for statement in said))
        )
    if said and all(statement["tokens"] is not None for statement in said):
        message.tokens = sum(statement["tokens"] for statement in said)
    return pb.RevokeResponse(complete=message)


def preview(
    prepared: Prepared, hits: Hits, uses: int, verifiers: Sequence[str], silent: Sequence[str]
) -> pb.RevokeResponse:
    """Return the event of a dry run."""
    message = pb.RevocationPreview(
        selector=selector_message(prepared.selector),
        blocks=prepared.blocks,
        realms=prepared.realms,
        partners=sorted(hits.partners),
        users=sorted(hits.users),
        workloads=sorted(hits.workloads),
        runs=sorted(hits.runs),
        uses=uses,
        verifiers=verifiers,
        silent=silent,
        bound=duration(timedelta(milliseconds=prepared.bound_ms)),
    )
    if hits.is_all:
        message.tokens = hits.tokens
    return pb.RevokeResponse(preview=message)


def for_partner(event: pb.RevokeResponse, realms: Collection[str]) -> pb.RevokeResponse:
    """Return an event without what is not a partner's to know: names of verifiers, and of realms but `realms`."""
    match event.WhichOneof("event"):
        case "preview":
            seen = [realm for realm in event.preview.realms if realm in realms]
            for name in ("verifiers", "silent", "realms"):
                event.preview.ClearField(name)
            event.preview.realms.extend(seen)
        case "progress":
            event.progress.ClearField("waiting_for")
        case "complete":
            # The signed statements name the verifiers, too.
            event.complete.ClearField("verifiers")
            event.complete.ClearField("statements")
    return event
