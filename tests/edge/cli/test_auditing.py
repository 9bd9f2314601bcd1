"""`broker audit verify-completion`: offline, and every byte counts."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.edge.cli.conftest import Program

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "completions.json").read_text("ascii"))
GOOD = {vector["name"]: vector for vector in VECTORS["good"]}


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    file = tmp_path / "trust.json"
    file.write_text(json.dumps(VECTORS["trust"]))
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "revocation.jws"
    made.write_text(GOOD["two realms"]["document"])
    return made


def check(file: Path, trust: Path, *more: str) -> tuple[str, ...]:
    return ("audit", "verify-completion", str(file), "--trust", str(trust), *more)


def test_p6_a_good_file_says_what_is_in_force_and_since_when(bare: Program, file: Path, trust: Path) -> None:
    """No context file, no broker."""
    done = bare(*check(file, trust))
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0] == "good: signed for evaluation, production, by keys that their roots certified"
    first, second = done.stdout.split("realm production")
    facts = {line[:18].strip(): line[18:].strip() for line in first.splitlines()}
    assert facts["revoked"] == "model=mythos partner=acme"
    assert facts["because"] == 'contract "ended" \\ café 🔑'
    assert facts["by"] == "spiffe://example.org/admin"
    assert facts["at index"] == "4711 of ledger 0123456789abcdef0123456789abcdef"
    assert facts["committed"] == "2027-01-15T07:59:58.250Z"
    assert facts["in force"] == "2027-01-15T08:00:03.250Z, 5 s later"
    assert facts["blocks new mints"] == "yes"
    assert facts["it hit"] == "3 live tokens, and cut 2 running uses"
    assert facts["verifiers"] == "4: 2 acknowledged, 1 by the end of their lease, 1 left"
    assert facts["slowest"] == "spiffe://example.org/verifier/slow, lease ran out after 5 s"
    table = [line.split() for line in first.splitlines() if "spiffe://example.org/verifier/" in line][1:]
    assert [row[0].rpartition("/")[2] for row in table] == ["slow", "b", "a", "z"]
    assert table[2][1:] == ["acknowledged", "12", "ms", "2"]
    assert "too many to count" in second


def test_a_good_file_as_json_is_what_was_signed(bare: Program, file: Path, trust: Path) -> None:
    answer = bare.json(*check(file, trust))
    assert list(answer) == ["good", "file", "took_ms", "statements"]
    assert (answer["good"], answer["took_ms"]) == (True, 5000)
    assert answer["statements"] == [json.loads(payload) for payload in GOOD["two realms"]["payloads"]]


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("nobody listened", ["nobody listens", "1.5 s later, of which 1.5 s for verifiers unknown to it"]),
        ("three single tokens", ["3 single tokens of realm=evaluation"]),
        ("one token", ["token=abcdefghijklmnopqrstuv"]),
    ],
)
def test_other_good_files_are_told_as_what_they_are(
    bare: Program, file: Path, trust: Path, name: str, texts: list[str]
) -> None:
    file.write_text(GOOD[name]["document"])
    done = bare(*check(file, trust))
    assert done.exit_code == 0
    assert [text for text in texts if text not in done.stdout] == []


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda vector: vector["name"])
def test_b14_a_bad_file_is_1_and_says_which_rule_and_which_line(
    bare: Program, file: Path, trust: Path, vector: Any
) -> None:
    file.write_bytes(vector["document"].encode())
    code, error = bare.error(*check(file, trust))
    assert (code, error["reason"]) == (1, vector["reason"])
    assert error["message"].startswith(f"{file} proves nothing: ")
    document = vector["document"]
    if document.endswith("\n") and "realm" not in vector["name"] and "line" not in vector["name"]:
        assert "line 1" in error["message"] or document.count("\n") > 1
    done = bare(*check(file, trust))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_b14_bytes_of_any_kind_are_refused_one_by_one(bare: Program, file: Path, trust: Path) -> None:
    good = file.read_bytes()
    for at in range(0, len(good), 307):
        for other in (b"", b"\x00", b"\xff", b"\r\n", b"\xc3\xa9", good[at : at + 1] * 2):
            file.write_bytes(good[:at] + other + good[at + 1 :])
            assert bare(*check(file, trust)).exit_code == 1
    # What a text file's reader would take for the same line's end.
    file.write_bytes(good.replace(b"\n", b"\r"))
    assert bare(*check(file, trust)).exit_code == 1
    file.write_bytes(good)
    assert bare(*check(file, trust)).exit_code == 0


def test_p8_another_trust_file_does_not_believe_it(bare: Program, broker: Program, file: Path, tmp_path: Path) -> None:
    code, error = broker.error("audit", "verify-completion", str(file))
    assert (code, error["reason"]) == (1, "UNTRUSTED")
    assert "line 1" in error["message"]
    swapped = dict(VECTORS["trust"]["realms"])
    swapped["evaluation"], swapped["production"] = swapped["production"], swapped["evaluation"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"realms": swapped}))
    assert bare.error(*check(file, other))[0] == 1


def test_the_trust_file_of_the_context_is_taken_when_none_is_named(
    broker: Program, file: Path, home: Path, context: Any
) -> None:
    context.trust.write_text(json.dumps(VECTORS["trust"]))
    assert broker("audit", "verify-completion", str(file)).exit_code == 0
    config = home / "broker" / "context.json"
    assert broker("audit", "verify-completion", str(file), "--context", str(config)).exit_code == 0


def test_without_trust_there_is_nothing_to_believe(bare: Program, file: Path, tmp_path: Path) -> None:
    code, error = bare.error("audit", "verify-completion", str(file))
    assert (code, error["reason"]) == (1, "CONTEXT")
    rubbish = tmp_path / "rubbish.json"
    for content in ("", "{}", '{"realms": {}, "realms": {}}', "x" * 2_000_000):
        rubbish.write_text(content)
        code, error = bare.error(*check(file, rubbish))
        assert (code, error["reason"]) == (1, "FILE")
        assert "broker trust" in error["hint"]
    rubbish.write_text('{"realms": {}}')
    assert bare.error(*check(file, rubbish))[1]["reason"] == "UNTRUSTED"


def test_files_that_are_not_there_are_failures(bare: Program, file: Path, trust: Path, tmp_path: Path) -> None:
    for arguments in (check(tmp_path / "none.jws", trust), check(file, tmp_path / "none.json")):
        code, error = bare.error(*arguments)
        assert (code, error["reason"]) == (1, "FILE")
        assert "none.j" in error["message"]


def test_t10_a_file_without_end_is_not_read_to_its_end(bare: Program, trust: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge.jws"
    huge.touch()
    os.truncate(huge, 70 << 20)
    code, error = bare.error(*check(huge, trust))
    assert (code, error["reason"]) == (1, "MALFORMED")
    assert "longer than" in error["message"]
