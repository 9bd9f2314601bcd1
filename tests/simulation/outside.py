"""What brokers and verifiers take from the outside: a store with delays and failures, keys, clocks, a disk for marks."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeVar
from unittest.mock import patch

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from broker.adapters.memory_signer import MemoryKey
from broker.errors import Failure, SignerUnavailable, StoreUnavailable
from broker.sdk import opening
from broker.sdk.remembered import Remembered
from broker.service.ports import Appended, Changes, Head, PolicyRecord, RevocationRecord, Write
from broker.token import completion, keys, verification
from broker.token.jws import assemble
from broker.token.keys import (
    Purpose,
    RealmTrust,
    certificate_payload,
    certificate_signing_input,
    public_jwk,
    raw_signature,
    thumbprint,
    verify_es256,
)
from tests.fakes import Disk, FakeLedger
from tests.simulation.jobs import SimFuture, SimLock
from tests.simulation.loop import SimLoop
from tests.simulation.nodes import NS_PER_S, Node

MS = 1_000_000
MOST_VERDICTS = 4096
EPOCH = datetime(2027, 1, 15, 8, tzinfo=UTC)
EPOCH_NS = int(EPOCH.timestamp()) * NS_PER_S
REALMS = ("evaluation", "research")
ES256 = ec.ECDSA(hashes.SHA256())
Value = TypeVar("Value")


def private_key(name: str) -> ec.EllipticCurvePrivateKey:
    """The same key in every run: only its name makes it."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(name.encode())
    return ec.derive_private_key(int.from_bytes(digest.finalize(), "big") >> 1, ec.SECP256R1())


@functools.cache
def trust_of(realm: str) -> RealmTrust:
    """What the verifiers of a realm pin."""
    root = public_jwk(private_key(f"root {realm}").public_key())
    return RealmTrust(realm, f"https://broker.example/{realm}", f"models.{realm}", (root,))


@functools.cache
def keys_of(realm: str, purpose: Purpose) -> tuple[MemoryKey, ...]:
    """The keys that a realm has for a purpose, one after the other."""
    trust, root = trust_of(realm), private_key(f"root {realm}")
    now_s = int(EPOCH.timestamp())
    made = []
    for number in range(2):
        private = private_key(f"{purpose} {realm} {number}")
        jwk = public_jwk(private.public_key())
        payload = certificate_payload(
            trust, purpose, jwk, not_before=now_s - 86_400, signs_until=now_s + 86_400, expires=now_s + 172_800
        )
        message = certificate_signing_input(thumbprint(trust.roots[0]), payload)
        certificate = assemble(message, raw_signature(root.sign(message, ES256)))
        made.append(MemoryKey(thumbprint(jwk), certificate, EPOCH + timedelta(days=1), private))
    return tuple(made)


_verdicts: dict[tuple[ec.EllipticCurvePublicNumbers, bytes, bytes], bool] = {}


def _remembered(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    what = key.public_numbers(), signature, message
    verdict = _verdicts.get(what)
    if verdict is None:
        if len(_verdicts) > MOST_VERDICTS:
            _verdicts.clear()
        verdict = _verdicts[what] = verify_es256(key, signature, message)
    return verdict


@contextlib.contextmanager
def remembered_signatures() -> Iterator[None]:
    """Check a signature over a message by a key once only, though every verifier does."""
    with contextlib.ExitStack() as patches:
        for module in (keys, opening, verification, completion):
            patches.enter_context(patch.object(module, "verify_es256", _remembered))
        yield


class SimSigner:
    """The Signer port: the first key of each realm and purpose that is not revoked, while its root answers."""

    def __init__(self) -> None:
        self.is_away = False
        self._revoked: frozenset[str] = frozenset()
        self._turns = 0

    def rotate(self) -> None:
        """Sign with the other key from now on."""
        self._turns += 1

    def current(self, realm: str, purpose: Purpose) -> MemoryKey:
        both = keys_of(realm, purpose)
        for key in both if self._turns % 2 == 0 else reversed(both):
            if not self.is_away and key.kid not in self._revoked:
                return key
        raise SignerUnavailable(f"no key for {purpose} in {realm}")

    def roots(self, realm: str) -> RealmTrust:
        return trust_of(realm)

    def forget(self, kids: frozenset[str]) -> None:
        self._revoked |= kids

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


class SimClock:
    """The Clock port on a machine: like SystemClock, the wall clock runs on from the start's reading."""

    def __init__(self, node: Node) -> None:
        self._machine = node.machine
        self._start_ns = node.machine.boottime_ns()
        self._wall_ns = EPOCH_NS + node.machine.wall_now_ns()

    def now(self) -> datetime:
        wall_ns = self._wall_ns + self._machine.boottime_ns() - self._start_ns
        return EPOCH + timedelta(microseconds=(wall_ns - EPOCH_NS) // 1000)

    def boottime_ns(self) -> int:
        return self._machine.boottime_ns()

    def is_astray(self) -> str | None:
        return None


class Database:
    """The disk with what can go wrong on the way to it. `commit` is told of each append at the instant it is done."""

    def __init__(
        self, loop: SimLoop, random: Random, disk: Disk, commit: Callable[[Write, Appended, Disk], None]
    ) -> None:
        self.loop, self.random, self.disk, self.commit = loop, random, disk, commit
        self.is_down = False
        self.slow_ns = 0
        self.failing = 0.0
        self.is_unreadable = False
        self.stores: list[SimStore] = []
        # While a backup is being put back, nothing is let in.
        self.is_held = False

    def delay_ns(self) -> int:
        return int(self.random.random() * (2 * MS + self.slow_ns)) + MS // 10

    def fails(self) -> bool:
        return self.is_down or (self.failing > 0 and self.random.random() < self.failing)

    def restore(self, disk: Disk) -> None:
        self.disk = disk
        for store in self.stores:
            store.disk = disk


class SimStore(FakeLedger):
    """One broker process's way to the database. In a job each call takes time; elsewhere it is at once."""

    def __init__(self, database: Database, node: Node, clock: SimClock, on_commit: Callable[[], None]) -> None:
        super().__init__(database.disk, clock, on_commit)
        self._database, self._node = database, node

    def append(self, write: Write) -> "Future[Appended]":
        database = self._database
        future = SimFuture(database.loop)
        database.loop.schedule(
            database.loop.world,
            database.loop.now_ns + database.delay_ns(),
            self._commit,
            (write, future),
        )
        return future

    def _commit(self, write: Write, future: SimFuture) -> None:
        database = self._database
        if self._node.is_dead and database.random.random() < 0.5:
            return
        if database.fails() or database.is_held or self.disk is not database.disk:
            self._answer(future, StoreUnavailable("the database is away"))
            return
        try:
            appended = self.disk.append(write, self._clock.now())
        except Failure as refusal:
            self._answer(future, refusal)
            return
        if not appended.is_repeat:
            database.commit(write, appended, self.disk)
        if write.effects and not appended.is_repeat:
            for store in database.stores:
                # The broker's own at once, the others by notification, which may be lost: the poll backs it up.
                if store is self:
                    self._node.call(self._on_commit)
                elif database.random.random() < 0.7:
                    store._node.call(store._on_commit, after_ns=database.delay_ns())
        if database.fails():
            self._answer(future, StoreUnavailable("the answer was lost"))
        else:
            self._answer(future, appended)

    def _answer(self, future: SimFuture, answer: Appended | Failure) -> None:
        def settle() -> None:
            if isinstance(answer, Failure):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self._node.call(settle, after_ns=self._database.delay_ns())

    def _read(self, read: Callable[[], Value]) -> Value:
        # The question takes its time, or the answer does.
        database = self._database
        delay_ns, is_late = database.delay_ns(), database.random.random() < 0.5
        if not is_late:
            database.loop.block(delay_ns)
        if database.fails():
            raise StoreUnavailable("the database is away")
        found = read()
        if is_late:
            database.loop.block(delay_ns)
        return found

    def head(self) -> Head:
        return self._read(super().head)

    def entries(self, start: int, stop: int) -> Sequence[bytes]:
        return self._read(functools.partial(super().entries, start, stop))

    def changes(self, after: int, *, now: datetime) -> Changes:
        if self._database.is_unreadable:
            self._database.loop.block(self._database.delay_ns())
            raise StoreUnavailable("this one question is not answered")
        return self._read(functools.partial(super().changes, after, now=now))

    def policy(self) -> PolicyRecord:
        # At once: it is read under a lock of threads, which take turns here.
        if self._database.fails():
            raise StoreUnavailable("the database is away")
        return super().policy()

    def revocations(self, after: int, limit: int) -> Sequence[RevocationRecord]:
        return self._read(functools.partial(super().revocations, after, limit))

    def completion(self, revocation: int) -> Any:
        return self._read(functools.partial(super().completion, revocation))

    def awaited(self) -> Any:
        return self._read(super().awaited)

    def known(self, realm: str | None) -> Any:
        return self._read(functools.partial(super().known, realm))

    def minted(self, containing: Sequence[bytes], *, since: datetime) -> Iterator[bytes]:
        yield from self._read(lambda: list(FakeLedger.minted(self, containing, since=since)))

    def note(self, sightings: Any) -> None:
        self._read(functools.partial(super().note, sightings))


class StateFolder:
    """A verifier's disk: what was written outlives its processes, until it is lost."""

    def __init__(self, database: Database) -> None:
        self.data: bytes | None = None
        self.is_full = False
        self.lock = SimLock(database.loop)
        self._random, self._loop = database.random, database.loop

    def write(self, node: Node, data: bytes) -> None:
        self._loop.block(int(self._random.random() * 30 * MS))
        if self.is_full:
            raise OSError(28, "No space left on device")
        if not node.is_dead:
            self.data = data
        self._loop.block(int(self._random.random() * 10 * MS))


class SimRemembered(Remembered):
    """The real one, but for the file system."""

    def __init__(self, folder: StateFolder, node: Node, realm: str) -> None:
        self._state, self._node, self._realm = folder, node, realm
        self._folder = self  # type: ignore[assignment]
        self._file = self  # type: ignore[assignment]

    def mkdir(self, **_: object) -> None:
        pass

    def read_bytes(self) -> bytes:
        if self._state.data is None:
            raise FileNotFoundError
        return self._state.data

    def _write(self, data: bytes) -> None:
        self._state.write(self._node, data)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._state.lock:
            yield


@functools.lru_cache(maxsize=64)
def policy_document(leases_s: tuple[tuple[str, int, int], ...]) -> str:
    """A policy: who may have tokens for what, who verifies, and how long leases are."""
    lines = ["version: 1", "realms:"]
    for realm, lease_s, heartbeat_s in leases_s:
        lines.append(
            f'  {realm}: {{issuer: "https://broker.example/{realm}", audience: models.{realm}, max_ttl: 1h, '
            f"lease: {lease_s}s, heartbeat: {heartbeat_s}s}}"
        )
    lines += ["models: [mythos, oracle]", "partners:"]
    for partner, country in PARTNERS.items():
        lines += [
            f"  {partner}:",
            f"    labels: {{jurisdiction: {country}}}",
            "    users: [alice, bob]",
            f'    environments: {{ci: {{certificate: "{harness(partner)}"}}}}',
        ]
    lines.append("grants:")
    for (realm, _, _), partner in itertools.product(leases_s, PARTNERS):
        lines.append(
            f"  - {{id: {partner}-{realm}, partner: {partner}, realm: {realm}, models: [mythos, oracle], "
            "environments: [ci], users: [alice, bob], ttl: {default: 1h, max: 1h}}"
        )
    lines.append("principals:")
    lines += [f'  - {{id: "{harness(partner)}", role: harness, partner: {partner}}}' for partner in PARTNERS]
    for (realm, _, _), number in itertools.product(leases_s, range(MOST_VERIFIERS)):
        lines.append(f'  - {{id: "spiffe://lab.example/{realm}-{number}", role: verifier, realm: {realm}}}')
    lines.append(f'  - {{id: "{ADMIN}", role: admin}}')
    return "\n".join(lines) + "\n"


MOST_VERIFIERS = 5
PARTNERS = {"acme": "us", "globex": "eu", "initech": "us"}
ADMIN = "spiffe://lab.example/ops"


def harness(partner: str) -> str:
    """Return the principal of a partner's harness."""
    return f"spiffe://{partner}.example/ci"
