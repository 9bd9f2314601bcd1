"""Questions about the past: how long each kind takes on five million entries, and what an entry costs to index."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

from broker.adapters.event_index import SqliteEventIndex
from broker.audit.events import AccessPath, Event, facet
from broker.service.ports import Head
from broker.service.question_ports import Wanted
from tests.bench.measuring import Row

ENTRIES = 5_000_000
STEP = 20_000
BEGAN_MS = 1_790_000_000_000
WANTED_MS = 1_000.0


def run(folder: Path) -> list[Row]:
    """Measure."""
    index = SqliteEventIndex(folder / "events.db", Head("a-bench", ENTRIES, 1))
    began = time.monotonic()
    for start in range(0, ENTRIES, STEP):
        index.add(list(_events(start)), start + STEP)
    per_entry_us = (time.monotonic() - began) / ENTRIES * 1e6
    size = sum(one.stat().st_size for one in folder.glob("events.db*"))
    rows = [Row("questions", "an entry indexed", per_entry_us, "us", more={"bytes an entry": size / ENTRIES})]
    hour = 3_600_000
    for what, wanted in {
        "by token": Wanted(frozenset({facet("token", f"{ENTRIES // 4:022d}")})),
        "by run": Wanted(frozenset({facet("run", f"{1234:022d}")})),
        "by partner": Wanted(frozenset({facet("partner", "p3")})),
        "by partner, user, model, decision": Wanted(
            frozenset(
                {facet("partner", "p3"), facet("user", "u77"), facet("model", "m1"), facet("decision", "accepted")}
            )
        ),
        "by two that are common and never together": Wanted(frozenset({facet("partner", "p3"), facet("test", "odd")})),
        "by environment and test": Wanted(frozenset({facet("environment", "e3"), facet("test", "t9")})),
        "by time, an hour in the middle": Wanted(
            frozenset(), BEGAN_MS + ENTRIES // 2 * 10, BEGAN_MS + ENTRIES // 2 * 10 + hour
        ),
        "by realm, decision and the last hour": Wanted(
            frozenset({facet("realm", "evaluation"), facet("decision", "revoked")}), BEGAN_MS + ENTRIES * 10 - hour
        ),
    }.items():
        began = time.monotonic()
        refs = index.find(wanted, None, 1_000)
        took_ms = (time.monotonic() - began) * 1e3
        more = {"found": len(refs.refs), "goes on": refs.after is not None}
        rows.append(Row("questions", f"a page of up to 1,000, {what}", took_ms, "ms", f"{WANTED_MS:.0f} ms", more=more))
    began = time.monotonic()
    found = index.reached(None, "p3", None, 50_000)
    took_ms = (time.monotonic() - began) * 1e3
    rows.append(
        Row("questions", "each path of a partner", took_ms, "ms", f"{WANTED_MS:.0f} ms", more={"found": len(found)})
    )
    index.close()
    return rows


def _events(start: int) -> Iterator[Event]:
    chance = random.Random(start)
    for number in range(start, start + STEP):
        partner = chance.randrange(8)
        kind = chance.choices(("token-minted", "use", "revoked"), (50, 48, 2))[0]
        decision = {"token-minted": "granted", "use": "accepted", "revoked": "revoked"}[kind]
        facets = {
            facet("kind", kind),
            facet("decision", decision),
            facet("realm", "evaluation" if partner else "research"),
            facet("partner", f"p{partner}"),
            facet("user", f"u{partner * 25 + chance.randrange(25)}"),
            facet("environment", f"e{partner}"),
            facet("run", f"{number // 500:022d}"),
            # `odd` is never of p3.
            facet("test", "odd" if partner in (1, 5, 7) else f"t{chance.randrange(500)}"),
            facet("model", f"m{chance.randrange(4)}"),
            facet("token", f"{number // 2:022d}"),
        }
        user = f"u{partner * 25 + number % 25}"
        path = AccessPath("evaluation", f"p{partner}", user, "", f"g{partner}", f"e{partner}")
        at_ms, head = BEGAN_MS + number * 10, number if kind == "use" else -1
        yield Event(number, 0, at_ms, head, frozenset(facets), path=path)
