"""ReportService: who can reach what, by whose leave, and what of it is used; signed by the log's key."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker import stranger
from broker.edge.cli.report_page import page, read_page
from broker.edge.cli.report_rows import rows_csv
from broker.errors import NotProven
from broker.ledger.note import KeyKind, VerifierKey, parse_note
from broker.sdk import Client, ReceiptPace, Verifier
from broker.sdk.failures import failure_of
from broker.v1 import policy_pb2, reports_pb2, revocations_pb2, selector_pb2, status_pb2
from tests.authority import Authority
from tests.edge.test_approvals import RUN, Board
from tests.issuer import Issuer
from tests.served import ADMIN, BROKER, POLICY, Served, request_id, wait_until

TODAY = datetime.now(UTC).date()
REVIEWED = (
    POLICY.replace("heartbeat: 1s}", "heartbeat: 1s, receipts: each}", 1)
    .replace(
        "users: [alice], workloads: [nightly], ttl: {default: 10m, max: 1h}}",
        f"users: [alice], workloads: [nightly], ttl: {{default: 10m, max: 1h}}, review_by: {TODAY + timedelta(days=10)}}}",
        1,
    )
    .replace("ttl: {default: 10m, max: 30m}}", f"ttl: {{default: 10m, max: 30m}}, review_by: {TODAY - timedelta(days=1)}}}")
)  # fmt: skip
QUICK = ReceiptPace(send_every_s=0.05, sums_every_s=0.2, denials_every_s=0.1, answer_within_s=2.0, again_after_s=0.1)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("served"), policy=REVIEWED) as served:
        yield served


@pytest.fixture(scope="module")
def verifier(broker: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verifier]:
    with broker.verifier(state_dir=tmp_path_factory.mktemp("verifier") / "state", receipt_pace=QUICK) as verifier:
        yield verifier


def trust(broker: Served) -> str:
    return str(broker.status().GetTrust(status_pb2.GetTrustRequest(), timeout=10).document)


def report(broker: Served, **scope: Any) -> dict[str, Any]:
    """Return a report, checked by a stranger."""
    answer = broker.reports().Access(reports_pb2.AccessRequest(**scope), timeout=20)
    return dict(stranger.check_report(answer.document, answer.note, trust(broker)))


def path(told: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    [found] = [one for one in told["paths"] if all(one[name] == value for name, value in wanted.items())]
    return dict(found)


def refused(broker: Served, **scope: Any) -> tuple[str, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        report(broker, **scope)
    failure = failure_of(caught.value)
    return failure.reason, failure.message, failure.hint or ""


def test_each_path_is_told_with_when_it_was_used_last_or_that_it_never_was(broker: Served, verifier: Verifier) -> None:
    minted = broker.mint(models=["mythos"])
    broker.until_accepted(verifier, minted.token, "mythos")
    unused = broker.mint("globex", partner="globex", user="bob", models=["mythos"])
    wait_until(lambda: not verifier.state().receipts_waiting)
    told = wait_until(
        lambda: found if path(found := report(broker, model="mythos"), user="alice")["used"] else None,
    )
    alice = path(told, user="alice")
    assert (alice["partner"], alice["realm"], alice["model"]) == ("acme", "evaluation", "mythos")
    assert (alice["grant"], alice["environments"], alice["seen_from"]) == ("acme-evaluation", ["acme-ci"], ["acme-ci"])
    assert alice["harnesses"] == ["spiffe://acme.example/ci"]
    assert alice["minted"]["last_index"] == minted.index
    assert alice["used"]["count"] >= 1
    assert alice["closed_by"] is None
    bob = path(told, user="bob")
    assert (bob["minted"]["last_index"], bob["used"]) == (unused.index, None)
    nightly = path(told, workload="nightly")
    assert (nightly["user"], nightly["minted"], nightly["used"]) == (None, None, None)
    assert told["summary"] == {
        "paths": 3, "used": 1, "minted_and_never_used": 1, "never_minted": 1, "closed_now": 0, "grants": 2,
        "review_within_days": 30, "reviews_soon": 1, "reviews_overdue": 1, "grants_without_review": 0,
        "not_granted_now": 0,
    }  # fmt: skip
    assert {one["environment"]: one["proven_by"] for one in told["environments"]} == {
        "acme-ci": "certificate spiffe://acme.example/ci",
        "globex-cluster": "certificate spiffe://globex.example/cluster",
    }
    [gateway] = [one for one in told["verifiers"] if one["verifier"] == "spiffe://lab.example/gateway"]
    assert (gateway["realm"], gateway["state"], gateway["in_policy"], gateway["keeps_receipts"]) == (
        "evaluation", "fresh", True, True,
    )  # fmt: skip
    assert gateway["last_receipts"] is not None
    research = [one for one in told["verifiers"] if one["realm"] == "research"]
    assert [(one["state"], one["keeps_receipts"]) for one in research] == [("never seen", False)]
    assert any(one["who"] == ADMIN and one["by"] == "policy" for one in told["changers"])


def test_a_scope_leaves_out_what_is_not_in_it(broker: Served) -> None:
    of_acme = report(broker, partner="acme")
    assert {one["partner"] for one in of_acme["paths"]} == {"acme"}
    assert {one["grant"] for one in of_acme["grants"]} == {"acme-evaluation", "acme-research"}
    of_research = report(broker, realm="research")
    assert {(one["realm"], one["model"]) for one in of_research["paths"]} == {("research", "oracle")}
    assert {one["realm"] for one in of_research["verifiers"]} == {"research"}
    narrow = report(broker, realm="evaluation", partner="globex", model="mythos")
    assert [(one["user"], one["grant"]) for one in narrow["paths"]] == [("bob", "globex-evaluation")]
    assert report(broker, partner="globex", model="oracle")["paths"] == []
    # An instance is reached by whoever reaches its name.
    assert {one["model"] for one in report(broker, model="mythos@eu-1")["paths"]} == {"mythos@eu-1"}


def test_who_granted_who_changed_and_when_a_review_is_due(tmp_path_factory: pytest.TempPathFactory) -> None:
    first = REVIEWED.replace(
        "  - {id: globex-evaluation", "  - {id: gone, partner: globex, realm: research, models: [oracle], "
        "environments: [globex-cluster], users: [bob], ttl: {default: 10m, max: 30m}}\n  - {id: globex-evaluation",
    )  # fmt: skip
    with Served(tmp_path_factory.mktemp("granted"), policy=first) as broker:
        broker.apply(REVIEWED)
        broker.apply(first.replace("max: 1h}, review_by", "max: 50m}, review_by"))
        # A block moves the version, and grants nothing.
        selector = selector_pb2.Selector(partner="globex")
        request = revocations_pb2.RevokeRequest(request_id=request_id(), selector=selector, reason="ended")
        list(broker.revocations("admin").Revoke(request, timeout=20))
        told = report(broker, realm="evaluation") | {"of_research": report(broker, realm="research")}
        grants = {one["grant"]: one for one in (*told["grants"], *told["of_research"]["grants"])}
        versions = broker.policies("auditor").ListPolicyVersions(policy_pb2.ListPolicyVersionsRequest()).versions
        newest, _, oldest = versions[0], versions[1], versions[-1]
        changed = grants["acme-evaluation"]
        assert (changed["granted"]["version"], changed["changed"]["version"]) == (oldest.version, newest.version)
        assert (changed["granted"]["by"], changed["granted"]["index"]) == (ADMIN, oldest.index)
        assert changed["review"] == "soon"
        same = grants["globex-evaluation"]
        assert same["granted"]["version"] == same["changed"]["version"] == oldest.version
        assert (same["review"], same["review_by"]) == ("overdue", str(TODAY - timedelta(days=1)))
        # Taken out once, and put in again.
        assert grants["gone"]["granted"]["version"] == newest.version
        assert report(broker, partner="acme", soon_days=9)["summary"]["reviews_soon"] == 0
        bob = path(told, user="bob")
        assert bob["closed_by"] == "block partner=globex"
        assert told["summary"]["closed_now"] == 1
        assert told["ledger"]["size"] > newest.index


def test_what_was_used_and_is_not_open_any_more_stays_in_sight(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Served(tmp_path_factory.mktemp("past"), policy=POLICY) as broker:
        minted = broker.mint(models=["oracle"])
        broker.apply(
            POLICY.replace(
                "models: [mythos, oracle], environments: [acme-ci]", "models: [mythos], environments: [acme-ci]"
            )
        )
        told = report(broker, partner="acme", realm="evaluation")
        assert {one["model"] for one in told["paths"]} == {"mythos"}
        [past] = told["not_granted_now"]
        assert (past["model"], past["user"], past["grant"], past["environment"]) == (
            "oracle", "alice", "acme-evaluation", "acme-ci",
        )  # fmt: skip
        assert past["minted"]["last_index"] == minted.index
        broker.kill()
        broker.start()
        # The index is kept with the store, and goes on.
        assert report(broker, partner="acme", realm="evaluation")["not_granted_now"] == [past]


def test_whoever_approved_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("board")
    papers = Authority(folder / "issuers").server()
    with ExitStack() as stack:
        issuers = [stack.enter_context(Issuer(papers, path=path)) for path in ("/sso", "/github", "/cluster")]
        broker = stack.enter_context(Board(folder, *issuers))
        client = stack.enter_context(Client.connect(broker.endpoint, identity=broker.identity("acme")))
        spent = client.request_approval(purpose="run", **RUN)
        for voter in (broker.carol(), broker.dana()):
            broker.vote(voter, spent.id)
        with client.run(**RUN, approval=spent.id) as run:
            run.token(models=["mythos"])
        waiting = client.request_approval(purpose="run", **RUN)
        told = report(broker, partner="acme", realm="evaluation", model="mythos")
        [grant] = [one for one in told["grants"] if one["approvers"]]
        assert grant["approvers"] == ["carol", "dana"]
        assert any("2 of group board must approve" in one for one in grant["demands"])
        [approved] = grant["approved"]
        assert (approved["approval"], approved["by"], approved["for"]) == (spent.id, ["carol", "dana"], "run")
        assert waiting.id != spent.id


def test_no_byte_of_it_can_be_changed(broker: Served) -> None:
    answer = broker.reports().Access(reports_pb2.AccessRequest(partner="acme"), timeout=20)
    pinned = trust(broker)
    stranger.check_report(answer.document, answer.note, pinned)
    for position in range(0, len(answer.document), 97):
        changed = bytearray(answer.document)
        changed[position] ^= 1
        with pytest.raises(NotProven, match="not the one that was signed"):
            stranger.check_report(bytes(changed), answer.note, pinned)
    other = json.loads(pinned)
    with pytest.raises(NotProven, match="is of the ledger"):
        other["log"]["origin"] = "another/log"
        other["log"]["keys"] = [another_key("another/log")]
        stranger.check_report(answer.document, answer.note, json.dumps(other))
    # A checkpoint, signed by the same key, vouches for no report.
    checkpoint = json.loads(answer.document)["ledger"]["checkpoint"].encode()
    with pytest.raises(NotProven, match="not of an access report"):
        stranger.check_report(answer.document, checkpoint, pinned)
    unsigned = answer.note.replace(parse_note(answer.note).signatures[0].name.encode(), b"nobody")
    with pytest.raises(NotProven):
        stranger.check_report(answer.document, unsigned, pinned)


def another_key(name: str) -> str:
    return str(VerifierKey(name, KeyKind.NOTE, Ed25519PrivateKey.generate().public_key().public_bytes_raw()))


def test_what_cannot_be_reported_on_is_refused(broker: Served) -> None:
    reason, message, hint = refused(broker)
    assert (reason, "no bounds" in message, "name a partner" in hint) == ("INVALID", True, True)
    for scope, said in (
        ({"partner": "nobody"}, "no partner nobody"),
        ({"realm": "nowhere"}, "no realm nowhere"),
        ({"model": "nothing"}, "no model nothing"),
    ):
        reason, message, _ = refused(broker, **scope)
        assert (reason, said in message) == ("NOT_FOUND", True)
    for scope in ({"partner": "No Name"}, {"model": "a b"}, {"partner": "acme", "soon_days": 3_651}):
        assert refused(broker, **scope)[0] == "INVALID"


def run(broker: Served, *arguments: str, who: str = "auditor") -> subprocess.CompletedProcess[str]:
    papers = broker.papers[who]
    calls = () if arguments[1] == "verify" else (
        "--endpoint", broker.endpoint, "--ca", str(papers.ca), "--cert", str(papers.certificate),
        "--cert-key", str(papers.key),
    )  # fmt: skip
    return subprocess.run(
        [BROKER, *arguments, *calls], capture_output=True, text=True, timeout=60, cwd=broker.folder, check=False
    )


@pytest.fixture(scope="module")
def saved(broker: Served) -> Path:
    """Return a folder with a report in each form, and the trust file."""
    folder = broker.folder / "review"
    done = run(broker, "report", "access", "--realm", "evaluation", "--save", str(folder))
    assert done.returncode == 0, done.stderr
    (folder / "trust.json").write_text(trust(broker))
    return folder


def verify(broker: Served, file: Path, *, pinned: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run(broker, "report", "verify", str(file), "--trust", str(pinned or file.parent / "trust.json"))


@pytest.mark.parametrize("form", ["html", "csv", "json"])
def test_what_was_handed_on_is_checked_without_a_broker_in_each_form(broker: Served, saved: Path, form: str) -> None:
    done = verify(broker, saved / f"access.{form}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "good: access report on realm evaluation" in done.stdout


@pytest.mark.parametrize("form", ["html", "csv", "json"])
def test_a_handed_on_report_that_shows_anything_else_is_found(broker: Served, saved: Path, form: str) -> None:
    folder = saved / f"changed-{form}"
    folder.mkdir()
    for one in ("access.html", "access.csv", "access.json", "trust.json"):
        (folder / one).write_bytes((saved / one).read_bytes())
    file = folder / f"access.{form}"
    good = file.read_text()
    for said, instead in (("alice", "mallory"), ("acme-evaluation", "none"), ("globex", "nobody")):
        assert said in good
        for count in (1, -1):
            file.write_text(good.replace(said, instead, count))
            done = verify(broker, file)
            assert (done.returncode, done.stdout) == (1, ""), (said, count)
            assert "Traceback" not in done.stderr
    for end in (0, 1, len(good) // 2, len(good) - 2):
        file.write_text(good[:end])
        assert verify(broker, file).returncode == 1, end
    # What it shows is changed, and what it holds is not.
    if form == "html":
        for said in ("Who can reach what", "<td>acme</td>", "review overdue", "</body>"):
            file.write_text(good.replace(said, "", 1))
            assert verify(broker, file).returncode == 1, said
        file.write_text(good.replace("</body>", "<p>and one thing more</p></body>"))
        assert "does not show just that" in verify(broker, file).stderr
    if form == "json":
        file.write_text(good.replace('{\n  "report":', '{\n  "report": {"paths": []},\n  "report":', 1))
        assert "is no access report" in verify(broker, file).stderr


def test_a_report_is_of_its_own_ledger(broker: Served, saved: Path, tmp_path: Path) -> None:
    pinned = json.loads((saved / "trust.json").read_text())
    for change in (
        {"log": {"origin": "another/log", "keys": [another_key("another/log")], "witnesses": []}},
        {"log": {**pinned["log"], "keys": [another_key(pinned["log"]["origin"])]}},
    ):
        other = tmp_path / "trust.json"
        other.write_text(json.dumps({**pinned, **change}))
        done = verify(broker, saved / "access.html", pinned=other)
        assert (done.returncode, done.stdout) == (1, "")
    other.write_text(json.dumps({name: value for name, value in pinned.items() if name != "log"}))
    assert "says nothing of the log" in verify(broker, saved / "access.html", pinned=other).stderr


def test_the_page_is_one_file_without_scripts_or_anything_from_elsewhere(saved: Path) -> None:
    text = (saved / "access.html").read_text()
    assert "default-src 'none'" in text
    assert re.findall(r"<script(?! type=\"application/json\")", text) == []
    assert re.findall(r"(?:src|href|url)\s*[=(]", text) == []
    assert text.count("<svg") == 2
    assert "review overdue" in text
    assert "review due soon" in text


def test_names_that_are_code_are_shown_and_not_run(saved: Path) -> None:
    told = json.loads((saved / "access.json").read_text())
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: poisoned(one) for name, one in value.items()}
        if isinstance(value, list):
            return [poisoned(one) for one in value]
        is_time = isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value)
        return evil if isinstance(value, str) and not is_time and value not in _WORDS else value

    report = poisoned(told["report"])
    text = page(report, told["note"])
    assert "<img" not in text
    assert "<script>" not in text
    assert read_page(text) == (report, told["note"])
    report["paths"][0]["partner"] = "=HYPERLINK(1)"
    assert "'=HYPERLINK(1)" in rows_csv(report)


_WORDS = ("none", "each", "summed", "soon", "later", "overdue", "overdue-closed", "fresh", "lapsed", "enforce", "audit")


def test_nothing_is_overwritten_and_nothing_half_done(broker: Served, saved: Path, tmp_path: Path) -> None:
    before = {one.name: one.read_bytes() for one in saved.glob("access.*")}
    done = run(broker, "report", "access", "--partner", "acme", "--save", str(saved))
    assert done.returncode == 2
    assert "is there already" in done.stderr
    assert {one.name: one.read_bytes() for one in saved.glob("access.*")} == before
    done = run(broker, "report", "access", "--partner", "nobody", "--save", str(tmp_path / "new"))
    assert done.returncode == 1
    assert "no partner nobody" in done.stderr
    assert list((tmp_path / "new").glob("*")) == []
    shown = run(broker, "report", "access", "--partner", "acme")
    assert shown.returncode == 0
    assert "user alice" in shown.stdout
    as_json = json.loads(run(broker, "report", "access", "--partner", "acme", "-o", "json").stdout)
    assert sorted(as_json) == ["note", "report"]
