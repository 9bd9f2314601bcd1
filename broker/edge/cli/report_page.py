"""The page of an access report: one file, no script, which prints; the signed data is in it."""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

from broker.edge.cli.report_charts import bars
from broker.edge.cli.report_rows import last_use, names, review_words, span_text, subject, watched

_STYLE = """
:root{color-scheme:light}
body{font:14px/1.45 system-ui,sans-serif;color:#1d2530;background:#fff;margin:2rem auto;max-width:1120px;padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid #d5dbe3}
p.sub{color:#55606e;margin:.1rem 0}
.tiles{display:flex;flex-wrap:wrap;gap:.6rem;margin:1.2rem 0}
.tile{border:1px solid #d5dbe3;border-radius:6px;padding:.5rem .9rem;min-width:7rem}
.tile b{display:block;font-size:1.5rem}.tile.bad b{color:#a4161a}.tile.warn b{color:#8a5a00}
.charts{display:flex;flex-wrap:wrap;gap:1.2rem}
.chart text{font:12px system-ui,sans-serif;fill:#1d2530}.chart .name{font-weight:600}
.rail{fill:#eef1f5}.good{fill:#2a7f62}.warn{fill:#d08700}.bad{fill:#a4161a}.flat{fill:#6b7a8f}
table{border-collapse:collapse;width:100%;font-size:13px;margin:0 0 1rem}
th,td{text-align:left;vertical-align:top;padding:.3rem .5rem;border-bottom:1px solid #e4e8ee;overflow-wrap:break-word}
th{background:#f5f7fa;font-weight:600}td.n{white-space:nowrap}
.tag{border-radius:3px;padding:0 .35rem;font-size:12px;border:1px solid}
.tag.bad{color:#a4161a;background:#fdeeee}.tag.warn{color:#8a5a00;background:#fff6e0}.tag.good{color:#1c5c46;background:#eaf6f1}
.tag.flat{color:#4a5666;background:#f2f4f7}
ul{margin:.3rem 0;padding-left:1.2rem}code,pre{font:12px ui-monospace,monospace}
pre{background:#f5f7fa;padding:.6rem;overflow-wrap:anywhere;white-space:pre-wrap}
@media print{body{margin:0;max-width:none;font-size:11px}table{font-size:10px}tr,.tile,.chart{break-inside:avoid}
h2{break-after:avoid}thead{display:table-header-group}}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_EMBEDDED = re.compile(r'<script type="application/json" id="(report|note)">([^<]*)</script>')
_ESCAPED = str.maketrans({one: f"\\u{ord(one):04x}" for one in "<>&"})
_SHOWN_NEVER = 40
_AGES = (("in the last day", 1), ("in the last 7 days", 7), ("in the last 30 days", 30), ("in the last 90 days", 90))
_REVIEWS = {"overdue-closed": "bad", "overdue": "bad", "soon": "warn", "later": "good", "none": "flat"}


def page(report: Mapping[str, Any], note: str) -> str:
    """Return the page of a report. The same report makes the same page, letter by letter."""
    title = "Access report: " + ", ".join(f"{name} {value}" for name, value in report["scope"].items() if value)
    body = [
        f"<h1>{escape(title)}</h1>",
        _made(report),
        _tiles(report["summary"]),
        _charts(report),
        *_needs_a_look(report),
        *_paths(report),
        *_grants(report),
        *_verifiers(report),
        *_people(report),
        *_check(report, note),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            *body,
            f'<script type="application/json" id="report">{_embedded(report)}</script>',
            f'<script type="application/json" id="note">"{base64.b64encode(note.encode()).decode()}"</script>',
            "</body></html>",
            "",
        ]
    )


def read_page(text: str) -> tuple[dict[str, Any], str]:
    """Return the report that a page holds, and its note. Raises ValueError, TypeError."""
    found = _EMBEDDED.findall(text)
    if [name for name, _ in found] != ["report", "note"]:
        raise ValueError("it is no page of a report")
    report, note = (json.loads(data) for _, data in found)
    if not isinstance(report, dict) or not isinstance(note, str):
        raise TypeError("it is no page of a report")
    return report, base64.b64decode(note, validate=True).decode()


def _made(report: Mapping[str, Any]) -> str:
    return (
        f'<p class="sub">Made {_at(report["made_at"])} for {escape(report["made_for"])}, as of ledger entry '
        f"{report['ledger']['size'] - 1} and policy version {report['policy']['version']}.</p>"
    )


def _embedded(report: Mapping[str, Any]) -> str:
    return json.dumps(report, separators=(",", ":")).translate(_ESCAPED)


def _tiles(summary: Mapping[str, int]) -> str:
    within = summary["review_within_days"]
    tiles = [
        ("paths", summary["paths"], ""),
        ("used", summary["used"], ""),
        ("minted, never used", summary["minted_and_never_used"], ""),
        ("never minted", summary["never_minted"], "warn" if summary["never_minted"] else ""),
        ("closed now", summary["closed_now"], ""),
        ("reviews overdue", summary["reviews_overdue"], "bad" if summary["reviews_overdue"] else ""),
        (
            f"due in {within} days",
            summary["reviews_soon"],
            "warn" * bool(summary["reviews_soon"]),
        ),
        ("had, not granted now", summary["not_granted_now"], "warn" if summary["not_granted_now"] else ""),
    ]
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile {kind}"><b>{count}</b>{escape(label)}</div>' for label, count, kind in tiles)
        + "</div>"
    )


def _charts(report: Mapping[str, Any]) -> str:
    made = datetime.fromisoformat(report["made_at"])
    aged = dict.fromkeys([label for label, _ in _AGES], 0) | {"longer ago": 0, "never": 0, "not known": 0}
    seen = watched(report)
    for path in report["paths"]:
        if not path["used"]:
            aged["never" if path["realm"] in seen else "not known"] += 1
            continue
        ago = made - datetime.fromisoformat(path["used"]["last_at"])
        label = next((label for label, days in _AGES if ago <= timedelta(days=days)), "longer ago")
        aged[label] += 1
    colors = {"never": "bad", "longer ago": "warn", "not known": "flat"}
    reviews = [one["review"] for one in report["grants"]]
    return (
        '<div class="charts">'
        + bars("Paths by their last use", [(label, count, colors.get(label, "good")) for label, count in aged.items()])
        + bars(
            "Grants by their review",
            [(review_words(state), reviews.count(state), color) for state, color in _REVIEWS.items()],
        )
        + "</div>"
    )


def _needs_a_look(report: Mapping[str, Any]) -> Iterable[str]:
    found = [
        f"Grant <b>{escape(one['grant'])}</b>: {escape(_review(one))}."
        for one in report["grants"]
        if one["review"] in ("overdue", "overdue-closed", "soon")
    ]
    found += [
        f"Realm {escape(one['realm'])} demands no receipts of its verifiers: what is used there is not known."
        for one in report["realms"]
        if one["receipts"] == "none"
    ]
    never = [one for one in report["paths"] if not one["minted"] and not one["closed_by"]]
    found += [
        f"Never had a token: {escape(subject(one))} of {escape(one['partner'])} for {escape(one['model'])} in "
        f"{escape(one['realm'])} (grant {escape(one['grant'])})."
        for one in never[:_SHOWN_NEVER]
    ]
    if len(never) > _SHOWN_NEVER:
        found.append(f"and {len(never) - _SHOWN_NEVER} more that never had a token; see the table")
    for one in report["verifiers"]:
        if one["state"] in ("lapsed", "suspended", "never seen"):
            found.append(f"Verifier {escape(one['verifier'])} in {escape(one['realm'])}: {escape(one['state'])}.")
        elif one["realm"] in watched(report) and not one["keeps_receipts"]:
            found.append(
                f"Verifier {escape(one['verifier'])} in {escape(one['realm'])} keeps no receipts: what it accepts is "
                "not seen here."
            )
    if not found:
        return ["<h2>What needs a look</h2><p>Nothing.</p>"]
    return ["<h2>What needs a look</h2><ul>", *(f"<li>{one}</li>" for one in found), "</ul>"]


def _paths(report: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>Who can reach what</h2>"
    seen = watched(report)
    if not report["paths"]:
        yield "<p>Nobody.</p>"
    else:
        rows = [
            [
                escape(one["partner"]),
                escape(subject(one)),
                escape(one["model"]),
                escape(one["realm"]),
                escape(one["grant"]),
                escape(names(one["environments"])),
                escape(names(one["harnesses"])),
                _times(one["minted"], "never"),
                _times(one["used"], last_use(one, seen)),
                _tag("bad", f"closed by {one['closed_by']}") if one["closed_by"] else _tag("good", "open"),
            ]
            for one in report["paths"]
        ]
        yield _table(
            ["Partner", "Who", "Model", "Realm", "Grant", "From", "Asked for by", "Last token", "Last use", "Now"], rows
        )
    if report["not_granted_now"]:
        yield "<h2>Had in the past, not granted now</h2>"
        yield _table(
            ["Partner", "Who", "Model", "Realm", "Grant", "From", "Last token", "Last use"],
            [
                [
                    *(escape(one[name]) for name in ("partner",)),
                    escape(subject(one)),
                    *(escape(one[name]) for name in ("model", "realm", "grant", "environment")),
                    _times(one["minted"], "never"),
                    _times(one["used"], last_use(one, seen)),
                ]
                for one in report["not_granted_now"]
            ],
        )


def _grants(report: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>By whose leave</h2>"
    rows = [
        [
            f"<b>{escape(one['grant'])}</b><br>{escape(names(one['partners']))} in {escape(one['realm'])}",
            escape(names([*one["models"], *(f"label {label}" for label in one["model_labels"])])),
            _origin(one),
            _approvals(one),
            "<br>".join(escape(text) for text in _terms(one)),
            f"{_tag(_REVIEWS[one['review']], review_words(one['review']))} {escape(one['review_by'] or '')}",
        ]
        for one in report["grants"]
    ]
    yield _table(["Grant", "Models", "Who put it there", "Who approved", "Terms", "Review"], rows)


def _verifiers(report: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>Which verifiers serve it</h2>"
    states = {"fresh": "good", "never seen": "flat"}
    yield _table(
        ["Verifier", "Realm", "State", "Seen", "Version", "Receipts"],
        [
            [
                escape(one["verifier"]),
                escape(one["realm"]),
                _tag(states.get(one["state"], "bad"), one["state"])
                + ("" if one["in_policy"] else " not in the policy"),
                _at(one["seen_at"]),
                escape(one["version"]),
                "kept" if one["keeps_receipts"] else _tag("warn", "none"),
            ]
            for one in report["verifiers"]
        ],
    )


def _people(report: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>How each is proven, and who can change it</h2>"
    yield _table(
        ["Environment", "Partner", "Proven by"],
        [[escape(one[name]) for name in ("environment", "partner", "proven_by")] for one in report["environments"]],
    )
    yield _table(
        ["Harness", "Who that is"], [[escape(one["principal"]), escape(one["is"])] for one in report["harnesses"]]
    )
    yield _table(
        ["By", "Who", "What they can do"],
        [[escape(one[name]) for name in ("by", "who", "what")] for one in report["changers"]],
    )


def _check(report: Mapping[str, Any], note: str) -> Iterable[str]:
    yield "<h2>Check it</h2>"
    ledger = report["ledger"]
    yield (
        "<p>This page holds the data that it shows, and the ledger's signature of it. "
        "<code>broker report verify FILE --trust trust.json</code> checks both, and that the page shows nothing else. "
        f"The ledger had {ledger['size']} entries with the root <code>{escape(ledger['root'])}</code>; "
        f"the policy has the SHA-256 <code>{escape(report['policy']['sha256'])}</code>.</p>"
    )
    yield f"<pre>{escape(note)}</pre>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _tag(kind: str, text: str) -> str:
    return f'<span class="tag {kind}">{escape(text)}</span>'


def _at(text: str | None) -> str:
    if text is None:
        return "-"
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d&nbsp;%H:%M&nbsp;UTC")


def _times(times: Mapping[str, Any] | None, never: str) -> str:
    if times is None:
        return _tag("flat", never)
    return f"{_at(times['last_at'])}<br>{times['count']} in all, entry {times['last_index']}"


def _origin(grant: Mapping[str, Any]) -> str:
    granted, changed = grant["granted"], grant["changed"]
    lines = [_version("granted", granted)]
    return "<br>".join(lines if granted and granted == changed else [*lines, _version("changed", changed)])


def _version(word: str, one: Mapping[str, Any] | None) -> str:
    if one is None:
        return f"{word} longer ago than was looked"
    because = f": {escape(one['reason'])}" if one["reason"] else ""
    return f"{word} by {escape(one['by'])}, {_at(one['at'])} (version {one['version']}, entry {one['index']}){because}"


def _approvals(grant: Mapping[str, Any]) -> str:
    if not grant["approvers"] and not grant["approved"]:
        return "needs none"
    lines = [f"may: {escape(names(grant['approvers']))}"]
    lines += [
        f"{escape(names(one['by'] or []))}, {_at(one['at'])}, for a {escape(str(one['for']))} (entry {one['index']})"
        for one in grant["approved"]
    ]
    return "<br>".join(lines)


def _review(grant: Mapping[str, Any]) -> str:
    return f"{review_words(grant['review'])}, {grant['review_by']}"


def _terms(grant: Mapping[str, Any]) -> Iterable[str]:
    yield f"for up to {span_text(grant['max_ttl_s'])}"
    yield from grant["demands"]
    if grant["delegation"]:
        yield f"children {grant['delegation']} deep"
    if grant["mode"] == "audit":
        yield "mode audit: what it demands is only noted"
