"""`make bench-feed`: the feed at scale, as a table, as JSON, and as pictures."""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.bench import feeding, plots, storming
from tests.bench.measuring import report

RESULTS = Path("bench-results")


def main() -> None:
    """Measure each number of verifiers, then the storm; bounded, and cleaned up after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verifiers", default="10,100,1000,10000", help="numbers of verifiers, with commas")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="single tokens in the storm; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=10, help="revocations for each number of verifiers")
    options = parser.parse_args()
    scales, rows = [], []
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as folder:
        for count in (int(text) for text in options.verifiers.split(",") if text):
            scale = feeding.measure(
                Path(folder) / f"verifiers-{count}", count, rounds=options.rounds, with_kill=count >= 1000
            )
            scales.append(scale)
            rows += feeding.rows_of(scale)
            print(f"measured {count:,} verifiers", flush=True)
        if options.tokens:
            rows += storming.run(Path(folder) / "storm", tokens=options.tokens)
    report(rows, RESULTS)
    if scales:
        stem = f"feed-{time.strftime('%Y%m%d-%H%M%S')}"
        for path in plots.draw(scales, RESULTS, stem):
            print(f"drawn to {path}")
        path = RESULTS / f"{stem}.json"
        path.write_text(json.dumps([asdict(scale) for scale in scales]) + "\n")


if __name__ == "__main__":
    main()
