"""Checks a log for somebody who trusts nobody: what `broker audit export`, `verify`, `verify-proof` and `tail` get."""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from broker.adapters.export_folder import ExportFolder, must_be_new, new_export
from broker.audit.export import Checked, check_export
from broker.audit.report import encode_report, open_report
from broker.audit.rules import Rules
from broker.audit.writing import ExportWriter
from broker.audit.wrong import Rule, wrong
from broker.errors import Invalid, Malformed, NotProven, StoreCorrupt
from broker.ledger.checkpoint import LogKeys, SignedCheckpoint, open_checkpoint
from broker.ledger.entry import Entry, decode_entry, leaf_hash
from broker.ledger.merkle import HASH_BYTES, Frontier
from broker.ledger.note import parse_vkey
from broker.ledger.proof import check_proof, parse_proof
from broker.token.keys import RealmTrust, parse_log_trust, parse_trust

_NO_LOG = "get one that has it with: broker trust > trust.json"
_NO_PROOF = "get one with: broker audit prove INDEX --export FILE"
_PAGE = 1000
_FETCHED = 256


class Source(Protocol):
    """A log that is served."""

    def entries(self, start: int, limit: int) -> Sequence[bytes]:
        """Return exact bytes from `start` on, at most `limit`, at least one."""

    def completion(self, index: int) -> bytes:
        """Return the document of the completion of the revocation at an index."""


def export(folder: Path, checkpoint: bytes, size: int, source: Source, progress: Callable[[int], None]) -> str:
    """Write an export of the `size` entries that `checkpoint` covers; return the root, in hexadecimal.

    Raises:
        Invalid: The folder is not new.
        NotProven: What the broker answered is not what the checkpoint says: nothing is left behind.
        OSError: It cannot be written.
    """
    must_be_new(folder)
    with new_export(folder) as files:
        writer = ExportWriter(files.put, source.completion)
        while writer.size < size:
            for data in source.entries(writer.size, min(_PAGE, size - writer.size)):
                writer.take(data)
            progress(writer.size)
        root = writer.close(checkpoint)
        if checkpoint.split(b"\n")[1:3] != [str(size).encode(), base64.b64encode(root)]:
            raise wrong("checkpoint", Rule.TREE, "the broker gave entries that it is not for", hint="tell its owner")
        return root.hex()


def verify(folder: Path, trust: str, witnesses: int | None, older: Sequence[bytes]) -> Mapping[str, Any]:
    """Check an export; return what was found good. `witnesses` None: all that the trust file names must have signed.

    Raises:
        Invalid: The trust file says nothing of a log, or has fewer witnesses.
        NotProven: Something is wrong, and what.
        Malformed: The trust file is none.
    """
    realms, log = parse_trust(trust), log_keys(trust, witnesses)
    return _told(check_export(ExportFolder(folder), realms, log, older), log)


class Follower:
    """Checks a log as it grows: each entry by the rules, each checkpoint by its signature and its tree."""

    def __init__(self, trust: str, witnesses: int | None, source: Source) -> None:
        self._log = log_keys(trust, witnesses)
        self._source = source
        self._frontier = Frontier()
        self._known: dict[int, bytes] = {}
        # Of each entry, so that what is asked for again is what was proven.
        self._leaves = bytearray()
        realms: Mapping[str, RealmTrust] = parse_trust(trust)
        self._rules = Rules(realms, self._look, source.completion)

    @property
    def size(self) -> int:
        """How many entries were checked."""
        return self._frontier.size

    def follow(self, checkpoint: bytes) -> Iterator[tuple[Entry, bytes]]:
        """Yield the entries up to a checkpoint once all of them are proven to be its. Raises NotProven."""
        signed = self._opened(checkpoint)
        size = signed.checkpoint.size
        if size < self.size:
            raise wrong("checkpoint", Rule.ROLLBACK, f"is of {size} entries, and the log had {self.size} before")
        frontier = self._frontier
        taken: list[bytes] = []
        leaves = bytearray()
        while frontier.size < size:
            page = self._source.entries(frontier.size, min(_PAGE, size - frontier.size))
            hashes = [leaf_hash(data) for data in page]
            frontier = frontier.extended(hashes)
            leaves += b"".join(hashes)
            taken += page
        if frontier.root() != signed.checkpoint.root:
            rule = Rule.FORK if self.size else Rule.TREE
            raise wrong("checkpoint", rule, "the log does not go on from the entries that were seen before")
        self._frontier = frontier
        self._leaves += leaves
        for data in taken:
            self._keep(self._rules.size, data)
            yield self._rules.take(data), data

    def _opened(self, checkpoint: bytes) -> SignedCheckpoint:
        try:
            return open_checkpoint(checkpoint, self._log)
        except NotProven as bad:
            raise wrong("checkpoint", Rule.SIGNATURE, bad.message) from bad

    def _look(self, index: int) -> bytes:
        """Return an entry that was proven before, from memory or from the broker."""
        if index not in self._known:
            [data] = self._source.entries(index, 1)
            if leaf_hash(data) != self._leaves[index * HASH_BYTES : (index + 1) * HASH_BYTES]:
                raise wrong(f"entry {index}", Rule.FORK, "the broker gives another one than it gave before")
            self._keep(index, data)
        return self._known[index]

    def _keep(self, index: int, data: bytes) -> None:
        self._known[index] = data
        if len(self._known) > _FETCHED:
            del self._known[next(iter(self._known))]


def follower(trust: str, witnesses: int | None, source: Source) -> Follower:
    """Return what checks a log from its first entry on. Raises as `verify`."""
    return Follower(trust, witnesses, source)


def check_report(document: bytes, note: bytes, trust: str) -> Mapping[str, Any]:
    """Return what an access report says, once it is known to be the log's own. Witnesses sign no report.

    Raises:
        Invalid, Malformed: The trust file says nothing of a log, or is none.
        NotProven: It was changed, or is another's.
    """
    return open_report(document, note, log_keys(trust, 0))


def check_report_of(report: Mapping[str, Any], note: str, trust: str) -> Mapping[str, Any]:
    """Check a report, whatever its layout was, as `check_report` does."""
    return check_report(encode_report(report), note.encode(), trust)


def verify_proof(document: bytes, trust: str, witnesses: int | None, entry: bytes | None = None) -> Mapping[str, Any]:
    """Check a proof file (c2sp.org/tlog-proof) of an entry, which it holds unless it is given; return what it proves.

    Raises:
        Invalid, Malformed: As `verify`.
        NotProven: The log does not vouch for just this entry by this file, and why.
    """
    log = log_keys(trust, witnesses)
    try:
        proof = parse_proof(document)
    except NotProven as bad:
        raise wrong("proof", Rule.FORM, bad.message, hint=_NO_PROOF) from bad
    data = proof.extra if entry is None else entry
    if data is None:
        raise wrong("proof", Rule.FORM, "holds no entry", hint="give the entry's exact bytes with --entry")
    if proof.extra not in (None, data):
        raise wrong("proof", Rule.FORM, "holds another entry than the one that was given")
    try:
        signed = open_checkpoint(proof.checkpoint, log)
    except NotProven as bad:
        raise wrong("checkpoint", Rule.SIGNATURE, bad.message) from bad
    where = f"entry {proof.index}"
    try:
        check_proof(proof, data, log)
    except NotProven as bad:
        raise wrong(where, Rule.TREE, bad.message) from bad
    try:
        said = decode_entry(data)
    except StoreCorrupt as bad:
        raise wrong(where, Rule.FORM, bad.message) from bad
    if said.index != proof.index:
        raise wrong(where, Rule.FORM, f"says that it is entry {said.index}")
    return {
        "good": True,
        "index": proof.index,
        "size": signed.checkpoint.size,
        "origin": signed.checkpoint.origin,
        "root": signed.checkpoint.root.hex(),
        "kind": said.kind.value,
        "at": said.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "by": said.by,
        "body": dict(said.body),
        "entry": data,
        "witnesses": list(dict.fromkeys(key.name for key in signed.cosigners)),
        "witnesses_wanted": log.quorum,
    }


def log_keys(trust: str, witnesses: int | None) -> LogKeys:
    """Return what a trust file pins of the log. Raises Invalid, Malformed."""
    log = parse_log_trust(trust)
    if log is None:
        raise Invalid("trust", "the trust file says nothing of the log", hint=_NO_LOG)
    try:
        keys = LogKeys(log.origin, tuple(map(parse_vkey, log.keys)), tuple(map(parse_vkey, log.witnesses)))
    except Invalid as bad:
        raise Malformed(f"the trust file's log: {bad.message}") from bad
    there_are = len({key.name for key in keys.witnesses})
    if witnesses is not None and witnesses > there_are:
        raise Invalid("witnesses", f"{witnesses} are wanted, and the trust file names {there_are}")
    return LogKeys(keys.origin, keys.keys, keys.witnesses, there_are if witnesses is None else witnesses)


def _told(checked: Checked, log: LogKeys) -> Mapping[str, Any]:
    return {
        "good": True,
        "origin": checked.origin,
        "incarnation": checked.incarnation,
        "size": checked.size,
        "root": checked.root.hex(),
        "kinds": dict(checked.kinds),
        "certificates": checked.certificates,
        "completions": checked.completions,
        "witnesses": list(checked.cosigners),
        "witnesses_wanted": log.quorum,
        "goes_on_from": list(checked.older),
    }
