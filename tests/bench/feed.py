"""`make bench-feed`: the feed at scale, as a table, as JSON, and as pictures.

About ten minutes at most. ARGS="--quick" is a small run of a minute; ARGS="--verifiers 1000 --tokens 0" is a part.
"""

import argparse
import resource
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.bench import feeding, plots, storming
from tests.bench.measuring import Row, report, results

# What is begun is brought to its end, so that nothing is left behind; nothing is begun after that.
ENOUGH_S = 480.0
# Beyond so many, a heartbeat each second would take more than a core by itself.
MANY = 2000


def main() -> None:
    """Measure each number of verifiers, then the storm; bounded, and cleaned up after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verifiers", help="numbers of verifiers, with commas")
    parser.add_argument("--sdk", help="numbers of verifiers also played by gRPC's own client")
    parser.add_argument("--grpc", help="numbers of verifiers also played at the door of gRPC")
    parser.add_argument("--tokens", type=int, help="single tokens in the storm; 0 leaves it out")
    parser.add_argument("--rounds", type=int, help="revocations for each number of verifiers")
    parser.add_argument(
        "--heartbeat", type=float, help="seconds, the lease is five; unset: 1, beyond 2,000 verifiers 6"
    )
    parser.add_argument("--names", type=int, default=10_000, help="names in the policy; beyond, verifiers share them")
    parser.add_argument("--quick", action="store_true", help="small numbers where none are given: does it run?")
    parser.set_defaults(verifiers="10,100,1000,10000", sdk="1000", grpc="1000", tokens=1_000_000, rounds=10)
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(verifiers="10,50,200", sdk="50", grpc="50", tokens=20_000, rounds=3)
    options = parser.parse_args()
    _prepare()
    began = time.monotonic()
    runs = [
        (players, count)
        for players, numbers in (("light", options.verifiers), ("light at gRPC", options.grpc), ("sdk", options.sdk))
        for count in _numbers(numbers)
    ]
    largest = max([count for _, count in runs], default=0)
    scales: list[feeding.Scale] = []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as folder:
        if options.tokens:
            failure = storming.measure(Path(folder) / "storm", options.tokens, rows)
            print(f"revoked {options.tokens:,} tokens {failure}", flush=True)
        for players, count in runs:
            if time.monotonic() - began > ENOUGH_S:
                print(f"no time left for {count:,} verifiers ({players})", flush=True)
                continue
            scale = feeding.measure(
                Path(folder) / f"{players}-{count}",
                count,
                rounds=options.rounds,
                with_kill=count >= largest // 10,
                players=players,
                names=options.names,
                heartbeat_s=options.heartbeat or (1.0 if count <= MANY else 6.0),
            )
            scales.append(scale)
            rows += feeding.rows_of(scale)
            print(f"measured {count:,} verifiers ({players}) {scale.failure}", flush=True)
    path = results("feed-")
    report(rows, path, scales=[asdict(scale) for scale in scales], took_s=time.monotonic() - began)
    for picture in plots.draw(scales, path):
        print(f"drawn to {picture}")


def _prepare() -> None:
    """Let many sockets be open, also in the processes that are started; end in good order when told to."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


if __name__ == "__main__":
    main()
