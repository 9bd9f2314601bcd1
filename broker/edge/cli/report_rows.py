"""An access report's rows in words: what the page, the table and the CSV share."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from broker.edge.cli.output import safe

COLUMNS = (
    "partner", "user", "workload", "realm", "model", "grant", "environments", "harnesses", "closed_by", "tokens",
    "last_token_at", "uses", "last_use_at", "seen_from", "granted_by", "granted_at", "changed_by", "changed_at",
    "last_approved_by", "last_approved_at", "review_by", "review",
)  # fmt: skip
_REVIEWS = {
    "overdue-closed": "overdue, allows nothing",
    "overdue": "review overdue",
    "soon": "review due soon",
    "later": "review later",
    "none": "no review date",
}


def review_words(state: str) -> str:
    """Return how near a review is, for people."""
    return _REVIEWS.get(state, state)


def names(several: Sequence[str]) -> str:
    """Return names in one cell."""
    return ", ".join(several)


def subject(path: Mapping[str, Any]) -> str:
    """Return for whom a path is."""
    user, workload = path["user"], path["workload"]
    return f"{workload} for {user}" if user and workload else f"user {user}" if user else f"workload {workload}"


def watched(report: Mapping[str, Any]) -> frozenset[str]:
    """Return the realms whose verifiers must keep receipts: of the others it is not known what is used."""
    return frozenset(one["realm"] for one in report["realms"] if one["receipts"] != "none")


def last_use(path: Mapping[str, Any], seen: Collection[str]) -> str:
    """Return when a path was used last, or that it never was, as far as anybody knows."""
    if path["used"]:
        return str(path["used"]["last_at"])
    return "never" if path["realm"] in seen else "not known"


def span_text(seconds: int) -> str:
    """Return a lifetime, as a policy file says it."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def rows_csv(report: Mapping[str, Any]) -> str:
    """Return a line for each path, with what is known of its grant."""
    grants = {one["grant"]: one for one in report["grants"]}
    seen = watched(report)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for path in report["paths"]:
        told = _told(path, grants.get(path["grant"], {})) | {"last_use_at": last_use(path, seen)}
        writer.writerow([safe("" if (cell := told.get(name)) is None else cell) for name in COLUMNS])
    return text.getvalue()


def _told(path: Mapping[str, Any], grant: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        name: path[name] for name in ("partner", "user", "workload", "realm", "model", "grant", "closed_by")
    }
    told |= {name: " ".join(path[name]) for name in ("environments", "harnesses", "seen_from")}
    for times, count, last in (("minted", "tokens", "last_token_at"), ("used", "uses", "last_use_at")):
        told[count] = path[times]["count"] if path[times] else 0
        told[last] = path[times]["last_at"] if path[times] else None
    for what in ("granted", "changed"):
        version = grant.get(what)
        if version:
            told |= {f"{what}_by": version["by"], f"{what}_at": version["at"]}
    if grant.get("approved"):
        newest = grant["approved"][0]
        told |= {"last_approved_by": " ".join(newest["by"] or []), "last_approved_at": newest["at"]}
    return told | {"review_by": grant.get("review_by"), "review": grant.get("review")}
