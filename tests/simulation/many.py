"""Many runs on all cores."""

import logging
import multiprocessing
import time
from collections import Counter

from tests.simulation.scenario import run

AT_ONCE = 25
TELL_EVERY_S = 10.0
MOST_TOLD = 20


def run_many(first: int, count: int, workers: int) -> int:
    """Run seeds in `workers` processes, tell how it goes; return 0 when no promise was broken."""
    started_s = told_s = time.monotonic()
    chunks = [range(at, min(at + AT_ONCE, first + count)) for at in range(first, first + count, AT_ONCE)]
    done, totals, failed = 0, Counter[str](), []
    # A new process now and then, so that what leaks does not add up.
    with multiprocessing.get_context("spawn").Pool(workers, _begin, maxtasksperchild=40) as pool:
        for seeds, violations, counts in pool.imap_unordered(_chunk, chunks):
            done += seeds
            totals += counts
            for seed, violation in violations:
                failed.append(seed)
                print(
                    f"seed {seed}: {violation[:300]}\n  again: python -m tests.simulation --seed {seed} --trace",
                    flush=True,
                )
            if time.monotonic() - told_s > TELL_EVERY_S or done == count:
                told_s = time.monotonic()
                rate = done / (told_s - started_s)
                left_s = (count - done) / rate
                print(f"{done} of {count} seeds, {rate:.1f}/s, {len(failed)} failed, {left_s:.0f} s left", flush=True)
    print(", ".join(f"{what}: {number}" for what, number in sorted(totals.items())))
    if failed:
        print(f"FAILED: {len(failed)} of {count} seeds: {sorted(failed)[:MOST_TOLD]}")
        return 1
    print(f"{count} seeds from {first} on, and no promise was broken")
    return 0


def _begin() -> None:
    logging.getLogger("broker").setLevel(logging.ERROR)


def _chunk(seeds: range) -> "tuple[int, list[tuple[int, str]], Counter[str]]":
    broken, totals = [], Counter[str]()
    for seed in seeds:
        result = run(seed)
        totals.update(result.counts)
        if result.violations:
            broken.append((seed, result.violations[0]))
    return len(seeds), broken, totals
