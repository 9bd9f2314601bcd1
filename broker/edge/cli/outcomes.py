"""How a revocation went: as JSON, and as lines and a table for people."""

import shlex
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from broker.edge.cli.durations import shown
from broker.edge.cli.output import instant, milliseconds, plain, table
from broker.edge.cli.selectors import selector_fields, selector_flags, selector_text
from broker.edge.cli.waiting import Watched, progress_line
from broker.v1 import revocations_pb2 as pb
from broker.v1 import selector_pb2

HOW = {"acknowledged": "acknowledged", "lapsed": "lease ran out", "left": "left"}
KEYS = (
    "selector (its dimensions), index, entries, committed_at, reason, by, blocks, bound_ms, awaits_completion, "
    "complete, progress (listening, acknowledged, lapsed, waiting, waiting_for, waits_for; null when none was told); "
    "when complete also took_ms, in_force_at, entry, tokens (null: too many to count), uses_cut, verifiers: "
    "[verifier, realm, state (acknowledged, lapsed, left), acknowledged, after_ms, uses_cut], the slowest first, and "
    "statements: the signed completion, one for each realm"
)


def result_of(watched: Watched, selector: selector_pb2.Selector | None = None) -> dict[str, object]:
    """Return all that is known of a committed revocation. `selector`: what was asked for, if anything was."""
    committed = watched.committed or pb.RevocationCommitted()
    result: dict[str, object] = {
        "selector": selector_fields(_selector(committed, selector)),
        "index": committed.index,
        "entries": max(committed.entries, 1),
        "committed_at": instant(committed.committed_at),
        "reason": committed.reason,
        "by": committed.by,
        "blocks": committed.blocks,
        "bound_ms": milliseconds(committed.bound),
        "awaits_completion": committed.awaits_completion,
        "complete": watched.complete is not None,
        "progress": _progress(watched),
    }
    return result if watched.complete is None else {**result, **_completion(watched.complete)}


def report_of(
    watched: Watched, selector: selector_pb2.Selector | None = None, *, exported: Path | None = None
) -> Group:
    """Return the same for people: what was done, what was hit, who was slowest, and every verifier."""
    committed = watched.committed or pb.RevocationCommitted()
    what = _selector(committed, selector)
    last, many = committed.index, committed.entries > 1
    if many:
        lines = [f"revoked {committed.entries} tokens of {selector_text(what)} at index {last - committed.entries + 1}"]
        lines[0] += f" to {last}"
    else:
        lines = [f"revoked {selector_text(what)} at index {last}"]
    if committed.blocks:
        lines.append(f"new mints are blocked until: broker reinstate {selector_flags(what)} --reason ...")
    if watched.complete is None:
        lines += _open(watched, committed)
        return Group(*(Text(plain(line)) for line in lines))
    lines += _closed(watched.complete, committed.index, exported)
    outcomes: list[Text | Table] = [Text(), _outcomes(watched.complete)] if watched.complete.verifiers else []
    return Group(*(Text(plain(line)) for line in lines), *outcomes)


def slowest_first(complete: pb.RevocationComplete) -> list[pb.VerifierOutcome]:
    """Return who was waited for, the slowest first."""
    return sorted(complete.verifiers, key=lambda one: one.after.ToNanoseconds(), reverse=True)


def how(one: pb.VerifierOutcome) -> str:
    """Return how a verifier stopped, in words."""
    return HOW.get(one.state, one.state) or ("acknowledged" if one.acknowledged else "lease ran out")


def hits(tokens: int | None, uses: int) -> str:
    """Return `3 live tokens, and cut 2 running uses`; None: they were not counted."""
    counted = "live tokens, too many to count" if tokens is None else _many(tokens, "live token")
    return f"{counted}, and cut {_many(uses, 'running use')}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _open(watched: Watched, committed: pb.RevocationCommitted) -> list[str]:
    bound = shown(committed.bound.ToNanoseconds() / 1e9)
    lines = []
    if committed.bound.ToNanoseconds():
        lines.append(f"no verifier accepts a matching token for longer than {bound} from then")
    if watched.is_reported:
        lines.append(f"not complete yet: {progress_line(watched)}")
    if committed.awaits_completion:
        lines.append(f"its completion: broker revoke show {committed.index} --wait")
    return lines


def _closed(complete: pb.RevocationComplete, index: int, exported: Path | None) -> list[str]:
    took = shown(complete.took.ToNanoseconds() / 1e9)
    since = f" (in force at {instant(complete.in_force_at)})" if complete.HasField("in_force_at") else ""
    lines = [f"complete after {took}: no verifier accepts a matching token any more{since}"]
    outcomes = slowest_first(complete)
    if outcomes:
        one = outcomes[0]
        lines.append(
            f"slowest of {len(outcomes)}: {one.verifier} in {one.realm}, {how(one)} after "
            f"{shown(one.after.ToNanoseconds() / 1e9)}"
        )
    else:
        lines.append("nobody listens: there was no verifier that could have accepted a matching token")
    lines.append(f"it hit {hits(_tokens(complete), complete.uses_cut)}")
    if complete.statements:
        keep = f"broker revoke show {index} --export FILE"
        if exported is not None:
            lines.append(f"the completion is ledger entry {complete.entry}, and in {exported}; check it anywhere with:")
            lines.append(f"broker audit verify-completion {shlex.quote(str(exported))} --trust trust.json")
        else:
            lines.append(f"the completion is ledger entry {complete.entry}; keep it: {keep}")
    return lines


def _tokens(complete: pb.RevocationComplete) -> int | None:
    return complete.tokens if complete.HasField("tokens") else None


def _selector(committed: pb.RevocationCommitted, selector: selector_pb2.Selector | None) -> selector_pb2.Selector:
    return committed.selector if selector is None else selector


def _progress(watched: Watched) -> dict[str, object] | None:
    state = watched.progress
    if not watched.is_reported:
        return None
    return {
        "listening": state.listening,
        "acknowledged": state.acknowledged,
        "lapsed": state.lapsed,
        "waiting": state.waiting,
        "waiting_for": list(state.waiting_for),
        "waits_for": state.waits_for,
    }


def _completion(complete: pb.RevocationComplete) -> dict[str, object]:
    return {
        "took_ms": milliseconds(complete.took),
        "in_force_at": instant(complete.in_force_at) if complete.HasField("in_force_at") else None,
        "entry": complete.entry,
        "tokens": _tokens(complete),
        "uses_cut": complete.uses_cut,
        "verifiers": [
            {
                "verifier": one.verifier,
                "realm": one.realm,
                "state": one.state or ("acknowledged" if one.acknowledged else "lapsed"),
                "acknowledged": one.acknowledged,
                "after_ms": milliseconds(one.after),
                "uses_cut": one.uses_cut,
            }
            for one in slowest_first(complete)
        ],
        "statements": list(complete.statements),
    }


def _outcomes(complete: pb.RevocationComplete) -> Table:
    return table(
        ["VERIFIER", "REALM", "HOW", "AFTER", "USES CUT"],
        [
            (one.verifier, one.realm, how(one), f"{milliseconds(one.after):.1f} ms", one.uses_cut)
            for one in slowest_first(complete)
        ],
    )
