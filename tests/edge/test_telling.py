"""What is told of a revocation and when it is looked at, to the millisecond, without a broker."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
from rich.console import Console

from broker.edge.cli.asking import _aftermath
from broker.edge.grpc.completions import Completions
from broker.edge.grpc.translate import milliseconds
from broker.v1 import audit_pb2

NOW_NS = 1_000_000_000_000
MS = 1_000_000
INDEX = 40


@pytest.mark.parametrize("span_ms", [0, 1, 999, 1000, 1234, 86_400_001])
def test_a_span_is_told_to_the_millisecond(span_ms):
    assert milliseconds(span_ms).ToTimedelta() == timedelta(milliseconds=span_ms)


def pending(next_look_ns, *, is_finishing=False):
    return SimpleNamespace(
        finishing=object() if is_finishing else None, progress=SimpleNamespace(next_look_ns=next_look_ns)
    )


@pytest.mark.parametrize(
    ("waiting", "rest_s"),
    [
        ([], 5.0),
        ([pending(NOW_NS + 100 * MS, is_finishing=True)], 5.0),
        # When a lease runs out, and not before.
        ([pending(NOW_NS + 100 * MS)], 0.101),
        ([pending(NOW_NS + 10_000 * MS), pending(NOW_NS + 100 * MS)], 0.101),
        # Whoever waits sees how far it is.
        ([pending(NOW_NS + 10_000 * MS)], 0.25),
        # It has run out, and something else is missing, as the feed's publication.
        ([pending(NOW_NS - 1)], 0.05),
    ],
)
def test_p6_a_completion_is_looked_at_when_a_lease_runs_out_and_four_times_a_second(waiting, rest_s):
    completions = object.__new__(Completions)
    completions._clock = SimpleNamespace(boottime_ns=lambda: NOW_NS)
    completions._pending = dict(enumerate(waiting))
    assert completions._rest_s() == pytest.approx(rest_s)


@pytest.mark.parametrize(
    ("heads", "silent"),
    [
        # A head is how many entries were applied: the revocation's own only by one above its index.
        ([INDEX], "1 of 1"),
        ([INDEX + 1], ""),
        ([INDEX + 1, None], "1 of 2"),
        ([None, INDEX - 1, INDEX + 5], "2 of 3"),
    ],
)
def test_p10_of_how_many_nothing_was_signed_since_a_revocation_is_said(heads, silent):
    answer = audit_pb2.AfterRevocationResponse(proven=True)
    for head in heads:
        answer.verifiers.add(verifier="spiffe://lab.example/gateway", keeps_receipts=True, stopped="acknowledged")
        if head is not None:
            answer.verifiers[-1].head = head
    console = Console(width=200)
    with console.capture() as shown:
        for part in _aftermath(answer, INDEX, "2026-11-30T00:00:00.000Z"):
            console.print(part)
    assert ("have signed no receipt since" in shown.get()) == bool(silent)
    assert silent in shown.get()
