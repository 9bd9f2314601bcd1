"""A process of its own that appends to a store: `python -m tests.store_writer URL COUNT THREADS`.

Prints "ready", waits for a line, appends COUNT entries from THREADS threads, prints the index of each.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from broker.adapters.clock import SystemClock
from broker.adapters.sql import open_store
from tests.stores import append, key


def main(url: str, count: int, threads: int) -> None:
    store = open_store(url, SystemClock(), is_sole=False)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    with ThreadPoolExecutor(threads) as pool:
        for appended in pool.map(lambda _: append(store, request=key()), range(count)):
            sys.stdout.write(f"{appended.indices.start}\n")
    store.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
