"""Defects to plant in the real source, one at a time, in a process of their own: the simulation must find each."""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True, slots=True)
class Defect:
    """In `module`, `before` becomes `after`. Runs of `seeds` find it, by a validator whose words begin so."""

    name: str
    module: str
    before: str
    after: str
    promise: str
    seeds: tuple[int, ...] = ()


# When the code moves on, other seeds find a defect: so many are tried.
MOST_SEEDS = 400

_PUBLISH = "broker.service.publish"
_FOLLOWING = "broker.sdk.following"
_LISTENING = "broker.service.listening"
_STREAM = "broker.sdk.stream"

DEFECTS = (
    Defect(
        "as_of is read after the head",
        _PUBLISH,
        "reading = _Reading(changes.head, as_of_ns, wall)",
        "reading = _Reading(changes.head, self._clock.boottime_ns(), wall)",
        "P5",
        (1, 16, 17, 22),
    ),
    Defect(
        "the lease is counted from the arrival",
        _FOLLOWING,
        "until_ns = accept_until_ns(best, beat.as_of_ns, beat.lease_ms * NS_PER_MS) - excess_ns",
        "until_ns = accept_until_ns(best, best.broker_ns, 0) - best.verifier_ns + beat.arrived_ns"
        " + beat.lease_ms * NS_PER_MS",
        "P5",
        (0, 1, 2, 3),
    ),
    Defect(
        "acknowledged before it is applied",
        _STREAM,
        "                step = self._follower.take(message, self._outside.boottime_ns())\n",
        "                told = feed_pb2.FrameBody.FromString(feed_pb2.ListenResponse.FromString(message).frame.body)\n"
        "                ack = feed_pb2.Ack(head=told.head, incarnation=told.incarnation)\n"
        "                await call.write(feed_pb2.ListenRequest(ack=ack))\n"
        "                await asyncio.sleep(0.02)\n"
        "                step = self._follower.take(message, self._outside.boottime_ns())\n",
        "P6",
        (2, 8, 9, 19),
    ),
    Defect(
        "resuming skips a delta",
        _PUBLISH,
        "bridge = _concerning(self._since(kept.head), realm)",
        "bridge = _concerning(self._since(kept.head + 1), realm)",
        "feed",
        (0, 1, 3, 5),
    ),
    Defect(
        "a completion does not wait for a verifier whose lease has yet to lapse",
        _LISTENING,
        "            elif now_ns >= lapses_ns:\n                has_left",
        "            elif True:\n                has_left",
        "P6",
        (2, 3, 4, 7),
    ),
    Defect(
        "a completion does not wait for a verifier that left before the commit",
        _LISTENING,
        "if listener.realm in realms and listener.holds_until_ns(now_ns) > committed_ns",
        "if listener.realm in realms and listener.left_ns is None",
        "P6",
        (2, 3, 16, 30),
    ),
    Defect(
        "a completion counts a disconnected verifier as done",
        _LISTENING,
        "            elif now_ns >= lapses_ns:\n                has_left",
        "            elif now_ns >= lapses_ns or listener.left_ns is not None:\n                has_left",
        "P6",
        (2, 3, 16),
    ),
    Defect(
        "the wall clock instead of the monotonic one",
        _PUBLISH,
        "        as_of_ns = self._clock.boottime_ns()\n",
        "        as_of_ns = int(self._clock.now().timestamp() * 1e9)\n",
        "P5",
        (0, 1, 2, 3),
    ),
    Defect("drift is ignored", "broker.token.lease", "DRIFT_PPM = 500", "DRIFT_PPM = 0", "P5", (0, 4, 6, 13)),
    Defect(
        "the mark is not on disk before the acknowledgement",
        _STREAM,
        "if self._owes or self._kept is None",
        "if self._kept is None",
        "P4",
        (0, 1, 2, 3),
    ),
    Defect(
        "what is owed to the disk is forgotten with the stream",
        _STREAM,
        "                self._keeper.owe()\n            self._wake.set()\n",
        "            self._wake.set()\n            self._keeper._owes = self._is_ack_urgent\n",
        "P4",
        (120, 294, 346),
    ),
    Defect(
        "another incarnation is accepted",
        _FOLLOWING,
        'is_other = self._mark.incarnation not in ("", body.incarnation)',
        "is_other = False",
        "feed",
        (133, 141, 187),
    ),
    Defect(
        "an echo of another boot is used",
        _FOLLOWING,
        "if echo.point.boot == beat.boot and self._is_good(",
        "if self._is_good(",
        "P5",
        (0, 36, 38),
    ),
    Defect(
        "who joins is not added to a running watch",
        _LISTENING,
        "if realm in watch.realms and not watch.is_published:",
        "if False:",
        "P6",
        (27, 115, 179),
    ),
    Defect(
        "a completion does not wait until the feed has published",
        _LISTENING,
        "now_ns >= watch.unknown_until_ns and watch.is_published",
        "now_ns >= watch.unknown_until_ns",
        "P6",
        (27, 49, 92, 115),
    ),
    Defect(
        "an older snapshot takes the place of what is newer",
        _FOLLOWING,
        "        if contents is None or contents.head < self._mark.head:\n            return Step()",
        "        if contents is None:\n            return Step()",
        "feed",
        (0, 1, 2, 3),
    ),
    Defect(
        "a heartbeat is published though the store could not be read",
        _PUBLISH,
        "        changes = self._ledger.changes(before.head.size if before else 0, now=wall)\n",
        "        try:\n"
        "            changes = self._ledger.changes(before.head.size if before else 0, now=wall)\n"
        "        except StoreUnavailable:\n"
        "            if before is None:\n"
        "                raise\n"
        "            changes = Changes(before.head, (), ())\n",
        "P5",
        (1, 3, 6, 8),
    ),
    Defect(
        "the matcher keeps the smaller index",
        "broker.token.revocation",
        "index, drop_s = max(before >> _DROP_BITS, index),",
        "index, drop_s = min(before >> _DROP_BITS, index),",
        "feed",
        (0, 1, 2, 3),
    ),
    Defect(
        "a mint does not compare the policy's version",
        "broker.service.mint",
        "            expecting=in_force.version,\n            guards=(*guards, *within, *spending",
        "            expecting=None,\n            guards=(*guards, *within, *spending",
        "P3",
        (1, 5, 6, 12),
    ),
    Defect(
        "a kept snapshot brings a lease",
        _PUBLISH,
        "without_lease = replace(stamp, lease_ms=NO_LEASE_MS)",
        "without_lease = stamp",
        "P6",
        (97, 104, 125),
    ),
    Defect(
        "a kept snapshot outlives the key that signed it",
        _PUBLISH,
        "if kept is not None and kept.kid == key.kid:",
        "if kept is not None:",
        "liveness",
        (1, 46, 50),
    ),
    Defect(
        "after a start nobody unknown is waited for",
        _LISTENING,
        "elif self._started_ns is not None:",
        "elif False:",
        "P6",
        (3, 16, 21, 25),
    ),
    Defect(
        "the verifiers of other brokers are not waited for",
        _LISTENING,
        "        if not self._is_sole:\n            unknown_until_ns",
        "        if False:\n            unknown_until_ns",
        "P6",
        (1, 5, 6, 20),
    ),
    Defect(
        "a completion is made twice",
        "broker.service.complete",
        "guards=(CompletionIsDue(index),),",
        "guards=(),",
        "P6",
        (0, 1, 6, 29),
    ),
    Defect(
        "nobody takes over what a broker did not complete",
        "broker.edge.grpc.completions",
        "                await self._take_over(record)\n",
        "                pass\n",
        "liveness",
        (0, 1, 3, 4),
    ),
    Defect(
        "the verdict does not look at the lease",
        "broker.sdk.verifier",
        "if self._is_closed or now_ns > state.accept_until_ns:",
        "if self._is_closed:",
        "P",
        (11, 80, 115),
    ),
    Defect(
        "running uses are not judged anew",
        "broker.sdk.verifier",
        "if step.has_contents and self._uses.is_holding:",
        "if False:",
        "P4",
        (0, 1, 2, 4),
    ),
    Defect(
        "a gap on a stream goes unnoticed",
        "broker.edge.grpc.subscribing",
        "if self.position is None or queued.previous_head > self.position:",
        "if self.position is None:",
        "feed",
        (13, 30, 76, 77),
    ),
)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module's source with one thing changed, and never from a cache."""

    def __init__(self, fullname: str, path: str, defect: Defect) -> None:
        super().__init__(fullname, path)
        self._defect = defect

    def path_stats(self, path: str) -> "dict[str, float]":  # type: ignore[override]
        raise OSError(path)

    def get_data(self, path: str) -> bytes:
        return planted(self._defect, super().get_data(path).decode()).encode()


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, defect: Defect) -> None:
        self._defect = defect

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._defect.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin, self._defect)
        )


def planted(defect: Defect, source: str) -> str:
    """Return the source with the defect in it. What the defect changes must be there exactly once."""
    found = source.count(defect.before)
    assert found == 1, f"{defect.name}: {defect.module} has {found} times {defect.before!r}"
    return source.replace(defect.before, defect.after)


def plant(defect: Defect) -> None:
    """From now on, import the module with the defect in it."""
    assert defect.module not in sys.modules
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, _Finder(defect))


def main() -> None:
    """Plant one defect by its name, run seeds until one finds it, and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--seeds", type=json.loads, help="a list; unset: those that found it once, then others")
    parser.add_argument("--all", action="store_true", help="go on after the first that finds it")
    arguments = parser.parse_args()
    defect = next(defect for defect in DEFECTS if defect.name == arguments.name)
    others = [seed for seed in range(MOST_SEEDS) if seed not in defect.seeds]
    plant(defect)
    from tests.simulation.scenario import run

    for seed in arguments.seeds or [*defect.seeds, *others]:
        result = run(seed)
        found = [violation for violation in result.violations if defect.promise in violation]
        if found:
            print(json.dumps({"seed": seed, "violations": found[:3]}), flush=True)
            if not arguments.all:
                return


if __name__ == "__main__":
    main()
