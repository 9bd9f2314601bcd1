"""P1, P2, P11: whoever is killed at whatever moment, nothing acknowledged is lost and nothing is done twice."""

import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from broker.v1 import revocations_pb2, selector_pb2, tokens_pb2
from tests.kept_record import Record
from tests.postgresql import PostgreSql
from tests.served import Served, request_id
from tests.store_minter import BATCH
from tests.stores import Home

pytest_plugins = ["tests.fixtures_stores"]

ROOT = Path(__file__).parent.parent.parent
SQLITE_KILLS = 200
LOOK_EVERY = 5
POSTGRESQL_KILLS = 30
BACKEND_KILLS = 12
SERVER_KILLS = 8
SERVED_KILLS = 24


class Victims:
    """Brokers of tests.store_minter, one after another, and what they said."""

    def __init__(self, url: str, folder: Path) -> None:
        self.record = Record(batch=BATCH)
        self.pid = 0
        self._rest = b""
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.store_minter", url, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    def begin(self) -> None:
        """Start a broker, that first repeats what nobody heard the answer of and some of what was answered."""
        answered = [(known, self.record.asked[known]) for known in list(self.record.answered)[-3:]]
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps({"repeat": [*self.record.unanswered, *answered]}).encode() + b"\n")
        self._parent.stdin.flush()
        self.hear_until(lambda words: "pid" in words)

    def hear_until(self, wanted: Callable[[dict[str, Any]], bool], *, within_s: float = 30.0) -> bool:
        """Take in what is said until a line is `wanted`; return False when the time is over."""
        assert self._parent.stdout is not None
        pipe, deadline = self._parent.stdout.fileno(), time.monotonic() + within_s
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                if wanted(self._heard(json.loads(line))):
                    return True
                continue
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
            data = os.read(pipe, 1 << 16)
            assert data, "the parent of the brokers has ended"
            self._rest += data

    def hear_answers(self, count: int) -> None:
        left = itertools.count(1)
        assert self.hear_until(lambda words: "answered" in words and next(left) > count), f"not {count} answers in time"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.hear_until(lambda words: "gone" in words)
        self.pid = 0

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.stdout.close()
        self._parent.wait(10)

    def _heard(self, words: dict[str, Any]) -> dict[str, Any]:
        assert "failed" not in words, words["failed"]
        self.pid = words.get("pid", self.pid)
        self.record.hear(words)
        return words


@pytest.fixture
def chance() -> random.Random:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def victims(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Home], Victims]]:
    begun: list[Victims] = []

    def begin(home: Home) -> Victims:
        begun.append(Victims(home.url, tmp_path))
        return begun[-1]

    yield begin
    for each in begun:
        each.end()


def kill_at_any_moment(victims: Victims, chance: random.Random) -> None:
    """Start a broker and kill it: in the middle of its start, or after any number of answers."""
    victims.begin()
    if chance.random() < 0.2:
        victims.hear_until(lambda words: "ready" in words, within_s=chance.uniform(0, 0.15))
    else:
        victims.hear_answers(chance.randrange(60))
        # And into what it does next, of which a commit takes about this long.
        victims.hear_until(lambda _: False, within_s=chance.uniform(0, 0.002))
    victims.kill()


def test_p1_p2_p11_a_broker_on_sqlite_is_killed_hundreds_of_times(
    sqlite_home: Home, victims: Callable[[Home], Victims], chance: random.Random
) -> None:
    brokers = victims(sqlite_home)
    for count in range(1, SQLITE_KILLS + 1):
        kill_at_any_moment(brokers, chance)
        # Looking repairs the file as a broker's start does, so most starts come without a look before.
        if count % LOOK_EVERY == 0:
            brokers.record.check(sqlite_home)
    brokers.begin()
    brokers.hear_answers(50)
    brokers.kill()
    brokers.record.check_all(sqlite_home)


def test_p1_p2_p11_a_broker_on_postgresql_is_killed(
    postgresql_home: Home, victims: Callable[[Home], Victims], chance: random.Random
) -> None:
    brokers = victims(postgresql_home)
    brokers.begin()
    brokers.hear_answers(1)
    brokers.kill()
    for _ in range(POSTGRESQL_KILLS):
        kill_at_any_moment(brokers, chance)
        brokers.record.check(postgresql_home)
    brokers.record.check_all(postgresql_home)


def test_p1_p2_p11_postgresql_is_killed_under_a_broker_that_goes_on_by_itself(
    own_postgresql: PostgreSql, victims: Callable[[Home], Victims], chance: random.Random
) -> None:
    home = Home("postgresql", own_postgresql.url(own_postgresql.new_database()))
    brokers = victims(home)
    brokers.begin()
    kills: list[Callable[[], object]] = [own_postgresql.kill_backends] * BACKEND_KILLS
    kills += [lambda: (own_postgresql.kill(), own_postgresql.start())] * SERVER_KILLS
    chance.shuffle(kills)
    for kill in kills:
        brokers.hear_answers(chance.randrange(40))
        kill()
        # What it said before is not what is waited for: it must go on by itself, without a restart.
        brokers.hear_until(lambda _: False, within_s=0)
        brokers.hear_answers(40)
        brokers.record.check(home)
    brokers.kill()
    brokers.record.check_all(home)


def test_p1_p2_p11_a_served_broker_is_killed_under_its_clients(tmp_path: Path, chance: random.Random) -> None:
    record, lock = Record(), threading.Lock()
    home = Home("sqlite", f"sqlite:///{tmp_path / 'data' / 'ledger.db'}")

    def mint(broker: Served, asked: str) -> dict[str, Any]:
        ask = tokens_pb2.MintRequest(request_id=asked, spec=broker.spec())
        token = broker_stubs["minting"].Mint(ask, timeout=10).token
        return {"index": token.index, "token": token.token}

    def revoke(_broker: Served, asked: str) -> dict[str, Any]:
        ask = revocations_pb2.RevokeRequest(
            request_id=asked, selector=selector_pb2.Selector(token="t" * 22), reason="a test"
        )
        return {"index": next(iter(broker_stubs["revoking"].Revoke(ask, timeout=10))).committed.index}

    calls = {"minting": mint, "revoking": revoke}

    def ask(broker: Served, asked: str, kind: str) -> None:
        with lock:
            record.hear({"asking": asked, "kind": kind})
        answer = calls[kind](broker, asked)
        with lock:
            record.hear({"answered": asked, **answer})

    def client(broker: Served, kind: str, enough: threading.Semaphore) -> None:
        try:
            while True:
                ask(broker, request_id(), kind)
                enough.release()
        except grpc.RpcError:
            return

    with Served(tmp_path) as broker:
        for _ in range(SERVED_KILLS):
            broker_stubs = {"minting": broker.tokens(), "revoking": broker.revocations()}
            for asked, kind in [
                *record.unanswered,
                *((known, record.asked[known]) for known in [*record.answered][-2:]),
            ]:
                ask(broker, asked, kind)
            enough = threading.Semaphore(0)
            with ThreadPoolExecutor(4) as pool:
                clients = [pool.submit(client, broker, kind, enough) for kind in ("minting",) * 3 + ("revoking",)]
                for _ in range(chance.randrange(30)):
                    assert enough.acquire(timeout=20)
                broker.kill()
                for done in clients:
                    done.result(20)
            broker.start()
        broker.kill()
        record.check_all(home)
