"""`python -m tests.simulation --seed N --trace`, or `--seeds N` for many."""

import argparse
import sys
import time

from tests.simulation.scenario import run

p = argparse.ArgumentParser()
p.add_argument("--seed", type=int)
p.add_argument("--trace", action="store_true")
p.add_argument("--seeds", type=int, default=100)
p.add_argument("--first", type=int, default=0)
a = p.parse_args()
if a.seed is not None:
    r = run(a.seed)
    if a.trace:
        print(r.history.text())
    print(r.digest, r.counts)
    print("\n".join(r.violations[:20]))
    sys.exit(bool(r.violations))
t = time.process_time()
bad = 0
tot = {}
for seed in range(a.first, a.first + a.seeds):
    r = run(seed)
    for k, v in r.counts.items():
        tot[k] = tot.get(k, 0) + v
    if r.violations:
        bad += 1
        print(seed, len(r.violations), r.violations[0][:300])
print(tot)
print(bad, "bad", (time.process_time() - t) / a.seeds * 1000, "ms/seed")
