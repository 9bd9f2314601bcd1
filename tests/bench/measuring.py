"""Measuring: load loops, percentiles, the table and the JSON."""

import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Row:
    """One measured thing. `ratio` compares it with the peer or the baseline that `against` names.

    `wanted` is the most that design.md allows, in the same unit.
    """

    bench: str
    what: str
    value: float
    unit: str
    against: str = ""
    ratio: float | None = None
    more: dict[str, float] = field(default_factory=dict)
    wanted: float | None = None

    @property
    def verdict(self) -> str:
        """Say what is wanted, and whether it is reached; nothing when nothing is."""
        if self.wanted is None:
            return ""
        return f"<= {self.wanted:g}, {'reached' if self.value <= self.wanted else 'MISSED'}"


def per_call_us(call: Callable[[], object], *, seconds: float = 1.0, rounds: int = 5) -> float:
    """Return the best of `rounds` means, in microseconds of one thread."""
    best = float("inf")
    for _ in range(rounds):
        count, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds / rounds:
            for _ in range(100):
                call()
            count += 100
        best = min(best, elapsed / count * 1e6)
    return best


def load(make_call: Callable[[], Callable[[], int]], *, workers: int, seconds: float) -> tuple[float, list[float]]:
    """Call from `workers` threads for `seconds`; return done per second, and latencies in ms, sorted.

    `make_call` is called in each thread and returns a call that returns how many were done.
    """
    done: list[int] = []
    latencies: list[float] = []
    lock = threading.Lock()
    begin = threading.Barrier(workers + 1)
    stop = threading.Event()

    def work() -> None:
        try:
            call = make_call()
            call()
        except BaseException:
            begin.abort()
            raise
        mine, count = [], 0
        begin.wait()
        while not stop.is_set():
            started = time.perf_counter()
            count += call()
            mine.append((time.perf_counter() - started) * 1000)
        with lock:
            done.append(count)
            latencies.extend(mine)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    begin.wait()
    started = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started), sorted(latencies)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of sorted values."""
    return values[min(len(values) - 1, int(len(values) * percent / 100))] if values else float("nan")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and max of sorted values."""
    return {"p50": percentile(values, 50), "p99": percentile(values, 99), "max": values[-1] if values else float("nan")}


def report(rows: Sequence[Row], path: Path, **besides: object) -> None:
    """Print the table and write it as JSON to `path`, with what else there is to keep."""
    width = max(len(row.what) for row in rows)
    bench = ""
    for row in rows:
        if row.bench != bench:
            bench = row.bench
            print(f"\n{bench}")
        ratio = f"{row.ratio:6.2f} x {row.against}" if row.ratio is not None else row.verdict
        more = "  ".join(f"{name} {value:.2f}" for name, value in row.more.items())
        print(f"  {row.what:<{width}}  {row.value:>12,.1f} {row.unit:<9} {ratio:<28} {more}".rstrip())
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows], **besides}) + "\n")
    print(f"\nwritten to {path}")


def results(prefix: str = "") -> Path:
    """Return where the results of a run that ends now go."""
    return Path("bench-results") / f"{prefix}{time.strftime('%Y%m%d-%H%M%S')}.json"


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return statistics.fmean(values)
