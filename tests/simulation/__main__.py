"""`python -m tests.simulation --seed N --trace` tells one run; with `--seeds N` it runs many on all cores."""

import argparse
import os
import sys

from tests.simulation.many import run_many
from tests.simulation.scenario import run


def main() -> int:
    """Return 0 when no promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one and say what was broken")
    parser.add_argument("--trace", action="store_true", help="with --seed: print the whole history")
    parser.add_argument("--seeds", type=int, default=2000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="from which on")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _one(arguments.seed, is_traced=arguments.trace)
    return run_many(arguments.first, arguments.seeds, arguments.workers)


def _one(seed: int, *, is_traced: bool) -> int:
    result = run(seed)
    if is_traced:
        print(result.history.text())
    print(f"seed {seed}: {len(result.history)} events, history {result.digest}")
    for violation in result.violations:
        print(f"  broken: {violation}")
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
