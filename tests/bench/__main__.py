"""`make bench`: run all benchmarks, or those named as arguments."""

import sys
import tempfile
from pathlib import Path

from tests.bench import appends, asking, minting, receipts, revoking, verifying
from tests.bench.measuring import Row, report, results

BENCHES = {
    "mint": minting.run,
    "verify": verifying.run,
    "revoke": revoking.run,
    "receipts": receipts.run,
    "append": appends.run,
    "questions": asking.run,
}


def main() -> None:
    """Run them one after the other."""
    rows: list[Row] = []
    for name in sys.argv[1:] or BENCHES:
        with tempfile.TemporaryDirectory(prefix="broker-bench-") as folder:
            (Path(folder) / "served").mkdir()
            rows += BENCHES[name](Path(folder))
    report(rows, results())


if __name__ == "__main__":
    main()
