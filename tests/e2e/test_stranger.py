"""A real broker's log, for a stranger: exported, verified without a broker, and nothing in it can be changed."""

import base64
import hashlib
import json
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from broker.audit.export import check_export
from broker.audit.wrong import Rule
from broker.errors import NotProven
from broker.ledger.checkpoint import LogKeys
from broker.ledger.entry import Kind, decode_entry, leaf_hash
from broker.ledger.merkle import Frontier, prove_inclusion
from broker.ledger.note import KeyKind
from broker.ledger.proof import TlogProof, parse_proof
from broker.sdk import Client, ReceiptPace
from broker.stranger import verify_proof
from broker.token.claims import TOKEN_TYP
from broker.token.jws import signing_input
from broker.token.keys import parse_trust
from broker.v1 import drills_pb2, runs_pb2, status_pb2
from tests.exported import Log, LogSigner, MemoryFiles, changed, renumbered
from tests.served import BROKER, POLICY, Served, request_id, settled_head, wait_until

EACH = POLICY.replace("heartbeat: 1s}", "heartbeat: 1s, receipts: each}", 1).replace(
    "ttl: {default: 10m, max: 1h}}", "ttl: {default: 10m, max: 1h}, delegation: 2}", 1
)
QUICK = ReceiptPace(send_every_s=0.05, sums_every_s=0.2, denials_every_s=0.1, answer_within_s=2.0, again_after_s=0.1)
CHANGES = 10_000


@dataclass
class Told:
    """A broker whose log tells of nearly all that can happen, and an export of it."""

    served: Served
    folder: Path
    trust: Path
    exported: Path

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        paper, home = self.served.papers["auditor"], self.folder
        return subprocess.run(
            [BROKER, "audit", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                "HOME": str(home),
                "XDG_CONFIG_HOME": str(home),
                "BROKER_ENDPOINT": self.served.endpoint,
                "BROKER_CA": str(self.served.authority.ca),
                "BROKER_CERT": str(paper.certificate),
                "BROKER_KEY": str(paper.key),
                "BROKER_TRUST": str(self.trust),
            },
        )

    def verify(self, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
        """Verify with nothing but the trust file: there is no broker that it knows of."""
        return subprocess.run(
            [BROKER, "audit", "verify", str(folder), "--trust", str(self.trust), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)},
        )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("told")
    with Served(folder / "served", policy=EACH) as served:
        _live(served, folder)
        settled_head(served.status())
        trust = folder / "trust.json"
        trust.write_text(served.status().GetTrust(status_pb2.GetTrustRequest(), timeout=10).document)
        told = Told(served, folder, trust, folder / "export")
        done = told.run("export", str(told.exported))
        assert done.returncode == 0, done.stderr
        yield told


def _live(served: Served, folder: Path) -> None:
    """Have a bit of everything happen."""
    with served.verifier(state_dir=folder / "state", receipt_pace=QUICK) as verifier:
        one = served.mint(models=["mythos", "oracle"])
        served.until_accepted(verifier, one.token)
        verifier.verify(one.token, "oracle")
        with Client.connect(served.endpoint, identity=served.identity("acme"), timeout_s=10) as client:
            child = client.exchange(one.token, models=["mythos"])
        served.until_accepted(verifier, child.text)
        other = served.mint()
        wait_until(lambda: verifier.state().head > other.index and not verifier.state().receipts_waiting)
        # A second batch, judged with a head above all of these.
        verifier.verify(one.token, "mythos")
        opened = served.runs().OpenRun(
            runs_pb2.OpenRunRequest(request_id=request_id(), realm="evaluation", partner="acme", models=["mythos"]),
            timeout=10,
        )
        served.mint(run=opened.run.id, test="case-1")
        served.runs().KeepRun(runs_pb2.KeepRunRequest(request_id=request_id(), run=opened.run.id), timeout=10)
        served.runs().CloseRun(runs_pb2.CloseRunRequest(request_id=request_id(), run=opened.run.id), timeout=10)
        served.revoke(token=other.id, wait=True)
        list(served.drills().Drill(drills_pb2.DrillRequest(request_id=request_id(), realm="evaluation"), timeout=60))
        served.revoke(partner="globex", wait=True)
        served.reinstate(partner="globex")
        served.mint("globex", partner="globex", user="bob")
        served.revoke(partner="globex", wait=True)
        wait_until(lambda: not verifier.state().receipts_waiting)


@pytest.fixture(scope="module")
def log(told: Told) -> Log:
    """The same log, signed by a key that this test has: what an insider could publish."""
    exported = {path.relative_to(told.exported).as_posix(): path.read_bytes() for path in _files(told.exported)}
    entries, at = [], 0
    [bundle] = [data for name, data in exported.items() if name.startswith("tile/entries/")]
    while at < len(bundle):
        stop = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        entries.append(bundle[at + 2 : stop])
        at = stop
    completions = {int(Path(name).stem): data for name, data in exported.items() if name.startswith("completions/")}
    log = Log(entries, completions, parse_trust(told.trust.read_text()))
    made = log.files()
    assert {name for name in made if made[name] != exported[name]} == {"checkpoint"}
    return log


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def refused(check: Callable[[], object]) -> tuple[str, str]:
    """Return where something is wrong, and by which rule."""
    with pytest.raises(NotProven) as caught:
        check()
    assert str(caught.value.metadata["where"]) in caught.value.message
    return caught.value.metadata["where"], caught.value.metadata["rule"]


def test_p10_an_export_is_verified_with_a_trust_file_and_nothing_else(told: Told) -> None:
    done = told.verify(told.exported, "-o", "json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["good"] is True
    assert result["size"] == sum(result["kinds"].values())
    assert result["completions"] >= 3
    wanted = {
        *("ledger-created", "policy-applied", "key-certified", "token-minted", "run-opened", "run-kept", "run-closed"),
        *("revoked", "reinstated", "revocation-completed", "canary-minted", "drilled", "receipt-key-enrolled"),
        "receipts-kept",
    }
    assert wanted <= set(result["kinds"])
    shown = told.verify(told.exported)
    assert shown.stdout.lstrip().startswith("good")


def test_p10_one_byte_of_an_export_is_named(told: Told, tmp_path: Path) -> None:
    copy = _copied(told.exported, tmp_path / "copy")
    [bundle] = (copy / "tile" / "entries").rglob("000.p/*")
    data = bundle.read_bytes()
    at = data.index(b'"kind":"reinstated"')
    index = next(decode_entry(one).index for one in _entries(data) if decode_entry(one).kind is Kind.REINSTATED)
    bundle.write_bytes(data[: at - 40] + bytes([data[at - 40] ^ 1]) + data[at - 39 :])
    done = told.verify(copy)
    assert done.returncode == 1
    assert f"entry {index}: its bytes in tile/entries/000.p/" in done.stderr
    assert "(rule tree)" in done.stderr


def _entries(bundle: bytes) -> list[bytes]:
    entries, at = [], 0
    while at < len(bundle):
        stop = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        entries.append(bundle[at + 2 : stop])
        at = stop
    return entries


def _copied(folder: Path, to: Path) -> Path:
    for path in _files(folder):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return to


def test_p10_ten_thousand_changes_to_an_export_are_all_found(log: Log) -> None:
    files = log.files()
    log.check(files)
    chance = random.Random(20_261_124)
    kinds = (_flip, _delete, _swap, _insert, _truncate, _fork)
    missed = []
    for number in range(CHANGES):
        change = kinds[number % len(kinds)]
        touched = change(chance, files, log)
        if touched == files:
            continue
        try:
            log.check(touched)
        except NotProven as found:
            if found.metadata["where"] and found.metadata["rule"] in set(Rule):
                continue
        missed.append((number, change.__name__))
    assert not missed


def _flip(chance: random.Random, files: dict[str, bytes], _log: Log) -> dict[str, bytes]:
    name = chance.choice(sorted(files))
    at = chance.randrange(len(files[name]))
    data = bytearray(files[name])
    data[at] ^= 1 << chance.randrange(8)
    return {**files, name: bytes(data)}


def _delete(chance: random.Random, files: dict[str, bytes], _log: Log) -> dict[str, bytes]:
    name = chance.choice(sorted(files))
    if chance.random() < 0.3:
        return {other: data for other, data in files.items() if other != name}
    at = chance.randrange(len(files[name]))
    return {**files, name: files[name][:at] + files[name][at + chance.randint(1, 64) :]}


def _swap(chance: random.Random, files: dict[str, bytes], log: Log) -> dict[str, bytes]:
    if chance.random() < 0.5:
        one, other = chance.sample(sorted(files), 2)
        return {**files, one: files[other], other: files[one]}
    entries = list(log.entries)
    one, other = chance.sample(range(len(entries)), 2)
    entries[one], entries[other] = entries[other], entries[one]
    return _with_bundle(files, entries)


def _insert(chance: random.Random, files: dict[str, bytes], log: Log) -> dict[str, bytes]:
    match chance.randrange(3):
        case 0:
            return {**files, f"{chance.choice(('completions', 'certificates', 'tile/0', 'notes'))}/0.jws": b"x"}
        case 1:
            name = chance.choice(sorted(files))
            at = chance.randrange(len(files[name]) + 1)
            return {**files, name: files[name][:at] + chance.randbytes(chance.randint(1, 40)) + files[name][at:]}
        case _:
            entries = list(log.entries)
            entries.insert(chance.randrange(len(entries)), chance.choice(entries))
            return _with_bundle(files, entries)


def _truncate(chance: random.Random, files: dict[str, bytes], log: Log) -> dict[str, bytes]:
    if chance.random() < 0.5:
        name = chance.choice(sorted(files))
        return {**files, name: files[name][: chance.randrange(len(files[name]))]}
    # Consistently: all files of a shorter log, but for the checkpoint, which nobody signed.
    return log.files(log.entries[: chance.randrange(1, len(log.entries))], files["checkpoint"])


def _fork(chance: random.Random, files: dict[str, bytes], log: Log) -> dict[str, bytes]:
    """Another past in which all is consistent, but which another key signed, or nobody did."""
    at = chance.randrange(1, len(log.entries))
    entries = [*log.entries[:at], changed(log.entries[at], note=str(chance.random())), *log.entries[at + 1 :]]
    if decode_entry(log.entries[at]).kind in (Kind.KEY_CERTIFIED, Kind.REVOCATION_COMPLETED):
        return files
    other = LogSigner().checkpoint(entries) if chance.random() < 0.5 else files["checkpoint"]
    return log.files(entries, other)


def _with_bundle(files: dict[str, bytes], entries: list[bytes]) -> dict[str, bytes]:
    [name] = [name for name in files if name.startswith("tile/entries/")]
    return {**files, name: b"".join(len(one).to_bytes(2, "big") + one for one in entries)}


def test_p10_a_fork_that_the_log_itself_signed_is_found_by_whoever_kept_a_checkpoint(log: Log) -> None:
    older = log.signer.checkpoint(log.entries[:20])
    assert log.check(log.files(), [older, log.signer.checkpoint(log.entries)]).older == (20, len(log.entries))
    shorter = log.entries[:15]
    assert refused(lambda: log.check(log.files(shorter), [older])) == ("checkpoint", "rollback")
    at = log.first(Kind.TOKEN_MINTED)
    other = [*log.entries[:at], changed(log.entries[at], note="another past"), *log.entries[at + 1 :]]
    assert log.check_entries(other).size == len(other)
    kept = log.signer.checkpoint(log.entries[: at + 1])
    assert refused(lambda: log.check(log.files(other), [kept])) == ("checkpoint", "fork")


def test_p10_a_checkpoint_of_another_log_by_another_key_or_with_one_bad_signature_is_refused(log: Log) -> None:
    entries = log.entries
    foreign = LogSigner("ledger.example/other").checkpoint(entries)
    assert refused(lambda: log.check(log.files(entries, foreign))) == ("checkpoint", "signature")
    other_key = LogSigner().checkpoint(entries)
    assert refused(lambda: log.check(log.files(entries, other_key))) == ("checkpoint", "signature")
    # Two signatures by pinned keys, of which one is bad.
    good = log.signer.checkpoint(entries).decode()
    lines = good.splitlines(keepends=True)
    bad = LogSigner().checkpoint(entries).decode().splitlines(keepends=True)[-1]
    spoilt = good + lines[-1][:-10] + ("A" if lines[-1][-10] != "A" else "B") + lines[-1][-9:]
    assert refused(lambda: log.check(log.files(entries, spoilt.encode()))) == ("checkpoint", "signature")
    # One by a key that nobody pinned is passed over.
    assert log.check(log.files(entries, (good + bad).encode())).size == len(entries)


def test_p10_a_witness_that_the_trust_file_names_must_have_signed(log: Log) -> None:
    witness = LogSigner("witness.example/w1", KeyKind.COSIGNATURE)
    keys = LogKeys(log.keys.origin, log.keys.keys, (witness.vkey,), 1)

    alone = MemoryFiles(log.files())
    assert refused(lambda: check_export(alone, log.trust, keys)) == ("checkpoint", "signature")
    signed = MemoryFiles(log.files(log.entries, log.signer.checkpoint(log.entries, [witness])))
    assert check_export(signed, log.trust, keys).cosigners == ("witness.example/w1",)


# What an insider writes who has the log's own key: each entry is in its form, and the tree is right.


def _minted(log: Log, entry: bytes, index: int, **claims: Any) -> bytes:
    """Return a mint like `entry` at another index, as whoever keeps the log could record it."""
    body = json.loads(entry)["body"]
    made = {**body["claims"], "idx": index, **claims}
    payload = json.dumps(made, sort_keys=True, separators=(",", ":")).encode()
    sha256 = hashlib.sha256(signing_input(typ=TOKEN_TYP, kid=body["kid"], payload=payload)).hexdigest()
    fields = json.loads(changed(entry, claims=made, sha256=sha256))
    fields["index"] = index
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _fresh(log: Log, number: int) -> str:
    return f"{number:022d}"


def _blocked(log: Log) -> tuple[list[bytes], str]:
    """A token for a partner that is blocked: globex, at the end."""
    at = log.first(Kind.TOKEN_MINTED, lambda body: body["claims"]["partner"] == "globex")
    index = len(log.entries)
    return [*log.entries, _minted(log, log.entries[at], index, jti=_fresh(log, 1))], f"entry {index}"


def _before_policy(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.POLICY_APPLIED)
    entries = renumbered([*log.entries[:at], log.entries[log.first(Kind.KEY_CERTIFIED)], *log.entries[at:]])
    return entries, f"entry {at}"


def _uncertified(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.TOKEN_MINTED)
    entry = json.loads(log.entries[at])
    kid = "A" * 43
    payload = json.dumps(entry["body"]["claims"], sort_keys=True, separators=(",", ":")).encode()
    sha256 = hashlib.sha256(signing_input(typ=TOKEN_TYP, kid=kid, payload=payload)).hexdigest()
    return _replaced(log, at, changed(log.entries[at], kid=kid, sha256=sha256)), f"entry {at}"


def _twice(log: Log) -> tuple[list[bytes], str]:
    at, index = log.first(Kind.TOKEN_MINTED), len(log.entries)
    return [*log.entries, _minted(log, log.entries[at], index)], f"entry {index}"


def _longer(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.TOKEN_MINTED)
    exp = log.body(at)["claims"]["exp"] + 86_400
    return _replaced(log, at, _minted(log, log.entries[at], at, exp=exp)), f"entry {at}"


def _other_hash(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.TOKEN_MINTED)
    return _replaced(log, at, changed(log.entries[at], sha256="0" * 64)), f"entry {at}"


def _foreign_audience(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.TOKEN_MINTED)
    return _replaced(log, at, _minted(log, log.entries[at], at, aud="models.research")), f"entry {at}"


def _orphan(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.TOKEN_MINTED, lambda body: body["claims"]["parents"])
    return _replaced(log, at, _minted(log, log.entries[at], at, parents=[_fresh(log, 2)])), f"entry {at}"


def _dead_parent(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.TOKEN_MINTED, lambda body: body["claims"]["parents"])
    dead = log.first(Kind.REVOKED, lambda body: "token" in body["selector"] and "realm" not in body["selector"])
    index = len(log.entries)
    parent = log.body(dead)["selector"]["token"]
    return [*log.entries, _minted(log, log.entries[at], index, jti=_fresh(log, 3), parents=[parent])], f"entry {index}"


def _in_a_closed_run(log: Log) -> tuple[list[bytes], str]:
    at, index = log.first(Kind.TOKEN_MINTED, lambda body: "run" in body["claims"]), len(log.entries)
    return [*log.entries, _minted(log, log.entries[at], index, jti=_fresh(log, 4))], f"entry {index}"


def _kept_after_the_end(log: Log) -> tuple[list[bytes], str]:
    kept = log.entries[log.first(Kind.RUN_KEPT)]
    return renumbered([*log.entries, kept]), f"entry {len(log.entries)}"


def _lifted_twice(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.REINSTATED)
    other = changed(log.entries[at], selector={"partner": "nobody"})
    return renumbered([*log.entries, other]), f"entry {len(log.entries)}"


def _without_reason(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.REVOKED)
    return _replaced(log, at, changed(log.entries[at], reason="")), f"entry {at}"


def _blocks_nothing(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.REVOKED, lambda body: "partner" in body["selector"])
    return _replaced(log, at, changed(log.entries[at], blocks=False)), f"entry {at}"


def _completes_another(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.REVOCATION_COMPLETED)
    other = log.first(Kind.REVOKED, lambda body: body["selector"] == {"partner": "globex"})
    return _replaced(log, at, changed(log.entries[at], revocation=other)), ""


def _counts_otherwise(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.REVOCATION_COMPLETED, lambda body: body["listening"])
    listening = log.body(at)["listening"] + 1
    return _replaced(log, at, changed(log.entries[at], listening=listening)), f"entry {at}"


def _revoked_by_another(log: Log) -> tuple[list[bytes], str]:
    done = log.body(log.first(Kind.REVOCATION_COMPLETED))["revocation"]
    return _replaced(log, done, changed(log.entries[done], reason="another reason")), f"completions/{done}.jws"


def _key_of_another(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.RECEIPT_KEY_ENROLLED)
    return _replaced(log, at, changed(log.entries[at], realm="research")), ""


def _receipts_twice(log: Log) -> tuple[list[bytes], str]:
    kept = log.entries[log.first(Kind.RECEIPTS_KEPT)]
    return renumbered([*log.entries, kept]), f"entry {len(log.entries)}"


def _receipts_changed(log: Log) -> tuple[list[bytes], str]:
    at = log.first(Kind.RECEIPTS_KEPT)
    batch = log.body(at)["batch"]
    return _replaced(log, at, changed(log.entries[at], batch={**batch, "at": batch["at"] + 1})), f"entry {at}"


def _receipts_gone(log: Log) -> tuple[list[bytes], str]:
    """The first batch was never there: the second goes on from what nobody knows."""
    at = log.first(Kind.RECEIPTS_KEPT)
    entry = decode_entry(log.entries[at])
    # Another entry in its place, so that all that comes after stays where it is.
    other = json.loads(changed(log.entries[log.first(Kind.POLICY_APPLIED)]))
    other |= {"index": at, "at": json.loads(log.entries[at])["at"]}
    assert entry.index == at
    return _replaced(log, at, json.dumps(other, sort_keys=True, separators=(",", ":")).encode()), ""


def _begins_twice(log: Log) -> tuple[list[bytes], str]:
    return renumbered([*log.entries, log.entries[0]]), f"entry {len(log.entries)}"


def _restored(log: Log, **changes: Any) -> tuple[list[bytes], str]:
    """The same log, restored at its end as it says of itself, but for the changes."""
    size = len(log.entries)
    created = json.loads(log.entries[0])
    body = {
        "incarnation": "f" * 32,
        "from": created["body"]["incarnation"],
        "size": size,
        "root": Frontier().extended(map(leaf_hash, log.entries)).root().hex(),
        "reason": "a test",
        **changes,
    }
    fields = {**created, "index": size, "kind": "ledger-restored", "body": body}
    restored = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return [*log.entries, restored], f"entry {size}"


def _restored_from_another(log: Log) -> tuple[list[bytes], str]:
    return _restored(log, **{"from": "e" * 32})


def _restored_to_itself(log: Log) -> tuple[list[bytes], str]:
    return _restored(log, incarnation=log.body(0)["incarnation"])


def _restored_elsewhere(log: Log) -> tuple[list[bytes], str]:
    return _restored(log, size=len(log.entries) - 1)


def _restored_with_others(log: Log) -> tuple[list[bytes], str]:
    return _restored(log, root="00" * 32)


def _restored_without_reason(log: Log) -> tuple[list[bytes], str]:
    return _restored(log, reason="")


def test_a_log_that_was_restored_as_it_says_is_good_and_is_another_from_there_on(log: Log) -> None:
    entries, _ = _restored(log)
    restored = Log(entries, log.completions, log.trust, log.signer)
    assert restored.check(restored.files()).incarnation == "f" * 32


def _replaced(log: Log, at: int, data: bytes) -> list[bytes]:
    return [*log.entries[:at], data, *log.entries[at + 1 :]]


FORGERIES = [
    (_blocked, Rule.BLOCKED),
    (_before_policy, Rule.POLICY),
    (_uncertified, Rule.CERTIFICATE),
    (_twice, Rule.TOKEN),
    (_longer, Rule.CERTIFICATE),
    (_other_hash, Rule.TOKEN),
    (_foreign_audience, Rule.TOKEN),
    (_orphan, Rule.PARENT),
    (_dead_parent, Rule.PARENT),
    (_in_a_closed_run, Rule.RUN),
    (_kept_after_the_end, Rule.RUN),
    (_lifted_twice, Rule.REVOCATION),
    (_without_reason, Rule.REVOCATION),
    (_blocks_nothing, Rule.REVOCATION),
    (_completes_another, Rule.COMPLETION),
    (_counts_otherwise, Rule.COMPLETION),
    (_revoked_by_another, Rule.COMPLETION),
    (_key_of_another, Rule.RECEIPT),
    (_receipts_twice, Rule.RECEIPT),
    (_receipts_changed, Rule.RECEIPT),
    (_receipts_gone, Rule.RECEIPT),
    (_begins_twice, Rule.BEGINNING),
    (_restored_from_another, Rule.BEGINNING),
    (_restored_to_itself, Rule.BEGINNING),
    (_restored_elsewhere, Rule.BEGINNING),
    (_restored_with_others, Rule.BEGINNING),
    (_restored_without_reason, Rule.BEGINNING),
]


@pytest.mark.parametrize(("forge", "rule"), FORGERIES, ids=[forge.__name__.strip("_") for forge, _ in FORGERIES])
def test_p10_what_an_insider_with_the_logs_key_writes_out_of_order_is_named(
    log: Log, forge: Callable[[Log], tuple[list[bytes], str]], rule: Rule
) -> None:
    entries, where = forge(log)
    completions = {**log.completions, **dict.fromkeys(range(len(entries)), b"")}
    forged = Log(entries, {**completions, **log.completions}, log.trust, log.signer)
    found = refused(lambda: forged.check(forged.files()))
    assert found[1] == rule
    assert not where or found[0] == where


def test_p4_a_use_that_a_verifier_accepted_after_it_had_applied_the_revocation_is_named(log: Log) -> None:
    """The receipts prove it: they say with which head the verifier judged. Here a revocation is put below it."""
    [*_, minted] = [
        index
        for index, data in enumerate(log.entries)
        if decode_entry(data).kind is Kind.TOKEN_MINTED and index < log.first(Kind.RUN_OPENED)
    ]
    at = log.first(Kind.RECEIPTS_KEPT, lambda body: body["batch"]["head"] > minted)
    token, index = log.body(at)["batch"]["tokens"][0]
    assert index < minted
    # In the place of a mint that the verifier had applied, and that nothing needs.
    revoked = json.loads(log.entries[log.first(Kind.REVOKED)])
    revoked |= {"index": minted, "body": {"selector": {"token": token}, "reason": "x", "blocks": False}}
    entries = _replaced(log, minted, json.dumps(revoked, sort_keys=True, separators=(",", ":")).encode())
    assert refused(lambda: log.check_entries(entries)) == (f"entry {at}", "use")


def test_a_folder_that_is_no_export_or_not_whole_is_told_apart(told: Told, tmp_path: Path) -> None:
    for folder, words, code in (
        (tmp_path / "nothing", "is no folder", 2),
        (tmp_path, "checkpoint: is missing", 1),
    ):
        done = told.verify(folder)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
    copy = _copied(told.exported, tmp_path / "copy")
    (copy / "link").symlink_to(copy / "checkpoint")
    assert "link: is a link" in told.verify(copy).stderr
    (copy / "link").unlink()
    [tile] = (copy / "tile" / "0").rglob("000.p/*")
    tile.unlink()
    done = told.verify(copy)
    assert done.returncode == 1
    assert f"tile/0/000.p/{tile.name}: is missing" in done.stderr


def test_a_trust_file_without_a_log_or_with_other_roots_verifies_nothing(told: Told, tmp_path: Path) -> None:
    trust = json.loads(told.trust.read_text())
    without = tmp_path / "without.json"
    without.write_text(json.dumps({"realms": trust["realms"]}))
    assert "says nothing of the log" in _verify_with(told, without).stderr
    one_realm = tmp_path / "one.json"
    one_realm.write_text(json.dumps({"log": trust["log"], "realms": {"research": trust["realms"]["research"]}}))
    done = _verify_with(told, one_realm)
    assert done.returncode == 1
    assert "the trust file says nothing of realm evaluation (rule certificate)" in done.stderr
    swapped = tmp_path / "swapped.json"
    realms = trust["realms"]
    roots = (realms["evaluation"]["roots"], realms["research"]["roots"])
    realms["research"]["roots"], realms["evaluation"]["roots"] = roots
    swapped.write_text(json.dumps(trust))
    assert "is not signed by a pinned root" in _verify_with(told, swapped).stderr
    unreadable = tmp_path / "bad.json"
    unreadable.write_text("{")
    assert "is no trust file" in _verify_with(told, unreadable).stderr


def _verify_with(told: Told, trust: Path) -> "subprocess.CompletedProcess[str]":
    return Told(told.served, told.folder, trust, told.exported).verify(told.exported)


def test_an_export_is_written_once_and_a_broker_that_is_away_leaves_nothing(told: Told, tmp_path: Path) -> None:
    again = told.run("export", str(told.exported))
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    away = subprocess.run(
        [BROKER, "audit", "export", str(tmp_path / "x"), "--endpoint", "127.0.0.1:1"],
        capture_output=True, text=True, timeout=60, check=False,
        env={"HOME": str(told.folder), "BROKER_CA": str(told.served.authority.ca),
             "BROKER_CERT": str(told.served.papers["auditor"].certificate),
             "BROKER_KEY": str(told.served.papers["auditor"].key)},
    )  # fmt: skip
    assert away.returncode == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def proof(told: Told) -> Path:
    """The proof of a token that was minted, in a file."""
    file = told.folder / "minted.tlog-proof"
    bundle = next((told.exported / "tile" / "entries").rglob("000.p/*")).read_bytes()
    index = next(decode_entry(one).index for one in _entries(bundle) if decode_entry(one).kind is Kind.TOKEN_MINTED)
    done = told.run("prove", str(index), "--export", str(file))
    assert done.returncode == 0, done.stderr
    return file


def _verify_proof(told: Told, file: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Verify with nothing but the trust file: there is no broker that it knows of."""
    return subprocess.run(
        [BROKER, "audit", "verify-proof", str(file), "--trust", str(told.trust), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"HOME": str(told.folder), "XDG_CONFIG_HOME": str(told.folder)},
    )


def test_p10_a_proof_file_is_verified_with_a_trust_file_and_nothing_else(told: Told, proof: Path) -> None:
    done = _verify_proof(told, proof, "-o", "json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    entry = base64.b64decode(result["entry"])
    assert result["good"] is True
    assert (result["kind"], result["body"]["claims"]["partner"]) == ("token-minted", "acme")
    assert decode_entry(entry).index == result["index"] < result["size"]
    shown = _verify_proof(told, proof)
    assert shown.stdout.lstrip().startswith(f"good       entry {result['index']} is in the log")
    assert "token-minted" in shown.stdout


def test_p10_a_proof_of_another_entry_log_or_form_is_refused_by_name_and_rule(
    told: Told, log: Log, proof: Path, tmp_path: Path
) -> None:
    data, trust = proof.read_bytes(), told.trust.read_text()
    good = parse_proof(data)
    assert good.extra is not None

    def check(one: TlogProof | bytes, entry: bytes | None = None, trust: str = trust) -> tuple[str, str]:
        document = one if isinstance(one, bytes) else one.to_bytes()
        return refused(lambda: verify_proof(document, trust, None, entry))

    where, at = f"entry {good.index}", good.index
    assert check(replace(good, index=at + 1)) == (f"entry {at + 1}", Rule.TREE)
    assert check(replace(good, extra=log.entries[at + 1])) == (where, Rule.TREE)
    assert check(replace(good, path=good.path[:-1])) == (where, Rule.TREE)
    assert check(replace(good, checkpoint=log.signer.checkpoint(log.entries))) == ("checkpoint", Rule.SIGNATURE)
    assert check(replace(good, extra=None)) == ("proof", Rule.FORM)
    assert check(good, entry=log.entries[at + 1]) == ("proof", Rule.FORM)
    assert check(replace(good, extra=None), entry=log.entries[at + 1]) == (where, Rule.TREE)
    assert check(b"no proof") == ("proof", Rule.FORM)
    # A log that says of one of its entries that it is another, and one that is no log of ours.
    keys = {"origin": log.signer.vkey.name, "keys": [str(log.signer.vkey)], "witnesses": []}
    insider = json.dumps({**json.loads(trust), "log": keys})
    for entry, told_as in ((log.entries[1], "says that it is entry 1"), (b"anything", "cannot be read")):
        mad = _proof_of_the_first([entry, *log.entries[1:]], log)
        assert check(mad, trust=insider) == ("entry 0", Rule.FORM)
        with pytest.raises(NotProven, match=told_as):
            verify_proof(mad.to_bytes(), insider, None)

    # At the command line: the file, what is wrong, what to do.
    bare, entry_file = tmp_path / "bare.tlog-proof", tmp_path / "entry"
    bare.write_bytes(replace(good, extra=None).to_bytes())
    entry_file.write_bytes(good.extra)
    done = _verify_proof(told, bare)
    assert done.returncode == 1
    assert "holds no entry (rule form); give the entry's exact bytes with --entry" in done.stderr
    assert _verify_proof(told, bare, "--entry", str(entry_file)).returncode == 0
    assert _verify_proof(told, proof, "--witnesses", "1").returncode == 2
    assert "broker audit prove INDEX" in _verify_proof(told, entry_file).stderr


def _proof_of_the_first(entries: list[bytes], log: Log) -> TlogProof:
    """What an insider could give of such a log."""
    tree = {(0, index): leaf_hash(one) for index, one in enumerate(entries)}
    Frontier().extended(map(leaf_hash, entries), lambda height, index, found: tree.update({(height, index): found}))
    path = prove_inclusion(0, len(entries), lambda height, index: tree[height, index])
    return TlogProof(0, path, log.signer.checkpoint(entries), entries[0])


def test_p10_no_byte_of_a_proof_file_can_be_changed(told: Told, proof: Path) -> None:
    data, trust = proof.read_bytes(), told.trust.read_text()
    verify_proof(data, trust, None)
    for at in range(len(data)):
        changed_one = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(NotProven):
            verify_proof(changed_one, trust, None)
    for cut in range(0, len(data), 97):
        with pytest.raises(NotProven):
            verify_proof(data[:cut], trust, None)


def test_tail_checks_the_whole_log_and_goes_on_with_what_comes(told: Told) -> None:
    shown = told.run("tail", "-n", "3", "-o", "json")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert len(lines) == 3
    assert decode_entry(lines[-1].encode()).index == decode_entry(lines[0].encode()).index + 2
    paper = told.served.papers["auditor"]
    following = subprocess.Popen(
        [
            *(BROKER, "audit", "tail", "-f", "-n", "1", "-o", "json", "--endpoint", told.served.endpoint),
            *("--ca", told.served.authority.ca, "--cert", paper.certificate, "--cert-key", paper.key),
            *("--trust", told.trust),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"HOME": str(told.folder)},
    )
    try:
        assert following.stdout is not None
        # The newest that there is: from here on it shows all that comes.
        newest = decode_entry(following.stdout.readline().strip().encode()).index
        minted = told.served.mint(models=["oracle"])
        shown_now = [decode_entry(following.stdout.readline().strip().encode())]
        while shown_now[-1].index < minted.index:
            shown_now.append(decode_entry(following.stdout.readline().strip().encode()))
        assert [one.index for one in shown_now] == list(range(newest + 1, minted.index + 1))
        assert shown_now[-1].body["claims"]["jti"] == minted.id
    finally:
        following.kill()
        following.communicate(timeout=10)


def test_tail_ends_at_a_trust_file_of_another_log(told: Told, tmp_path: Path) -> None:
    trust = json.loads(told.trust.read_text())
    other = LogSigner(trust["log"]["origin"])
    trust["log"]["keys"] = [str(other.vkey)]
    pinned = tmp_path / "other.json"
    pinned.write_text(json.dumps(trust))
    done = Told(told.served, told.folder, pinned, told.exported).run("tail")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "(rule signature)" in done.stderr
