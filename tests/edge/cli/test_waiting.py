"""Waiting for a revocation, and `broker revoke show`."""

import io
import json
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from broker.edge.cli.exporting import export, try_export
from broker.edge.cli.problems import Misused, Unusable, problem_of
from broker.edge.cli.waiting import Watched, live, progress_line
from broker.errors import NotFound, StoreFull
from broker.v1 import revocations_pb2 as pb
from broker.v1 import selector_pb2
from tests.edge.cli.conftest import Program
from tests.edge.cli.served import Hang, Served
from tests.edge.cli.test_revoking import COMMITTED, COMPLETE, COMPLETE_KEYS, KEYS, NOBODY, PROGRESS, STATEMENTS

TOKEN = pb.RevokeResponse(
    committed=pb.RevocationCommitted(index=7, selector=selector_pb2.Selector(token="jti-1"), bound=Duration(seconds=5))
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(*events: object) -> list[object]:
    return [pb.GetRevocationResponse(event=one) if isinstance(one, pb.RevokeResponse) else one for one in events]


def test_progress_is_shown_on_a_terminal_with_who_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    watched = Watched()
    with live(watched, show=True) as update:
        watched.take(PROGRESS)
        update()
    shown = sys.stderr.getvalue()
    assert "2/3" in shown
    assert "1 acknowledged, 1 lapsed, 1 still waiting: slow" in shown


def test_names_on_the_progress_bar_do_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    watched = Watched()
    evil = pb.RevocationProgress(listening=1, waiting=1, waiting_for=["\x1b]0;x\x07[red]v"], waits_for="\x1b[5n")
    with live(watched, show=True) as update:
        watched.take(pb.RevokeResponse(progress=evil))
        update()
    shown = sys.stderr.getvalue()
    assert "\x1b]0" not in shown
    assert "\x1b[5n" not in shown
    assert "\x07" not in shown
    assert "[red]v" in shown


@pytest.mark.parametrize(("stderr", "show"), [(io.StringIO(), True), (Terminal(), False)])
def test_progress_is_not_shown_elsewhere(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, show: bool) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    watched = Watched()
    with live(watched, show=show) as update:
        watched.take(PROGRESS)
        update()
    assert stderr.getvalue() == ""


@pytest.mark.parametrize(
    ("names", "waiting", "waits_for", "line"),
    [
        ([], 0, "", "0 acknowledged, 0 lapsed, 0 still waiting"),
        (["a"], 1, "", "0 acknowledged, 0 lapsed, 1 still waiting: a"),
        (["a", "b", "c", "d"], 700, "", "0 acknowledged, 0 lapsed, 700 still waiting: a, b, c, 697 more"),
        (["a", "b", "c", "d"], 0, "", "0 acknowledged, 0 lapsed, 0 still waiting: a, b, c, 1 more"),
        ([], 0, "the feed", "0 acknowledged, 0 lapsed, 0 still waiting: the feed"),
        (["a"], 1, "the feed", "0 acknowledged, 0 lapsed, 1 still waiting: a; the feed"),
    ],
)
def test_a_few_are_named_and_the_others_counted(names: list[str], waiting: int, waits_for: str, line: str) -> None:
    watched = Watched()
    progress = pb.RevocationProgress(waiting=waiting, waiting_for=names, waits_for=waits_for)
    watched.take(pb.RevokeResponse(progress=progress))
    assert progress_line(watched) == line


def test_a_complete_revocation_is_shown_by_its_index(broker: Program, served: Served) -> None:
    served.answers["GetRevocation"] = told(COMMITTED, COMPLETE)
    result = broker("revoke", "show", "42")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "revoked partner=acme at index 42"
    assert lines[3] == "slowest of 4: gone in r, lease ran out after 5 s"
    assert [line.split()[0] for line in lines[7:]] == ["VERIFIER", "gone", "slow", "off", "fast"]
    assert (served.last.request.index, served.last.request.wait) == (42, False)
    answer = broker.json("revoke", "show", "42")
    assert list(answer) == [*KEYS, *COMPLETE_KEYS]
    assert answer["statements"] == STATEMENTS


def test_the_same_answer_comes_from_revoke_and_from_show(broker: Program, served: Served) -> None:
    served.answers["Revoke"] = [COMMITTED, COMPLETE]
    served.answers["GetRevocation"] = told(COMMITTED, COMPLETE)
    said = broker.json("revoke", "--partner", "acme", "--reason", "contract ended", "--wait")
    del said["request_id"]
    assert said == broker.json("revoke", "show", "42")
    revoked = broker("revoke", "--partner", "acme", "--reason", "contract ended", "--wait").stdout
    assert revoked == broker("revoke", "show", "42").stdout


def test_one_that_is_not_complete_says_how_far_it_is(broker: Program, served: Served) -> None:
    served.answers["GetRevocation"] = told(COMMITTED, PROGRESS)
    result = broker("revoke", "show", "42")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-2:] == [
        "not complete yet: 1 acknowledged, 1 lapsed, 1 still waiting: slow",
        "its completion: broker revoke show 42 --wait",
    ]
    answer = broker.json("revoke", "show", "42")
    assert list(answer) == KEYS
    assert (answer["complete"], answer["progress"]["waiting"]) == (False, 1)


def test_waiting_for_it_ends_when_it_is_complete(broker: Program, served: Served) -> None:
    served.answers["GetRevocation"] = told(COMMITTED, PROGRESS, NOBODY)
    result = broker("revoke", "show", "42", "--wait")
    assert result.exit_code == 0
    assert "nobody listens" in result.stdout
    assert served.last.request.wait is True


@pytest.mark.parametrize("end", [Hang(), StoreFull("full"), grpc.StatusCode.UNAVAILABLE, None])
def test_waiting_that_ends_early_is_a_failure(broker: Program, served: Served, end: object) -> None:
    served.answers["GetRevocation"] = told(COMMITTED, PROGRESS, *([] if end is None else [end]))
    result = broker("revoke", "show", "42", "--wait", "--timeout", "1s", "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["complete"] is False
    assert json.loads(result.stderr)["error"]["hint"].endswith("broker revoke show 42 --wait")


def test_an_index_that_is_no_revocation_is_not_found(broker: Program, served: Served) -> None:
    served.answers["GetRevocation"] = [NotFound("there is no revocation at index 99", hint="see: broker revocations")]
    code, error = broker.error("revoke", "show", "99")
    assert (code, error["reason"]) == (1, "NOT_FOUND")
    assert error["message"] == "there is no revocation at index 99"


@pytest.mark.parametrize("rest", [(), ("--wait",), ("--export",)])
def test_one_that_awaits_no_completion_says_so(
    broker: Program, served: Served, tmp_path: Path, rest: tuple[str, ...]
) -> None:
    served.answers["GetRevocation"] = told(TOKEN, *([NotFound("none is made")] if rest == ("--wait",) else []))
    arguments = ("revoke", "show", "7", *rest, *([str(tmp_path / "none.jws")] if "--export" in rest else []))
    result = broker(*arguments)
    assert result.exit_code == (1 if rest else 0)
    assert "revoked token=jti-1 at index 7" in result.stdout
    assert "none will be made" in result.stderr
    assert "--wait" not in result.stderr
    assert not (tmp_path / "none.jws").exists()
    served.answers["GetRevocation"] = told(TOKEN)
    assert broker.json("revoke", "show", "7")["awaits_completion"] is False


def test_what_is_not_complete_cannot_be_exported_yet(broker: Program, served: Served, tmp_path: Path) -> None:
    served.answers["GetRevocation"] = told(COMMITTED, PROGRESS)
    code, error = (
        (result := broker("revoke", "show", "42", "--export", str(tmp_path / "x.jws"), "-o", "json")).exit_code,
        json.loads(result.stderr)["error"],
    )
    assert code == 1
    assert error["hint"].endswith("broker revoke show 42 --wait")
    assert not (tmp_path / "x.jws").exists()


def test_it_is_exported(broker: Program, served: Served, tmp_path: Path) -> None:
    served.answers["GetRevocation"] = told(COMMITTED, COMPLETE)
    file = tmp_path / "kept.jws"
    assert broker("revoke", "show", "42", "--export", str(file)).exit_code == 0
    assert file.read_text() == "".join(f"{line}\n" for line in STATEMENTS)
    assert broker("revoke", "show", "42", "--export", str(file)).exit_code == 2
    assert broker("revoke", "show", "42", "--export", str(file), "--force").exit_code == 0


def test_a_file_that_came_into_being_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "kept.jws"
    file.write_text("precious")
    with pytest.raises(Misused):
        export(STATEMENTS, file, force=False)
    assert file.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "folder.jws"
    folder.mkdir()
    with pytest.raises(Unusable):
        export(STATEMENTS, folder, force=True)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_stream_of_nothing_is_a_failure(broker: Program, served: Served) -> None:
    served.answers["GetRevocation"] = []
    assert broker.error("revoke", "show", "42")[0] == 1


@pytest.mark.parametrize(
    "command", [("revoke", "--partner", "acme", "--reason", "x", "--wait"), ("revoke", "show", "42")]
)
def test_p6_what_was_done_is_told_though_its_file_cannot_be_written(
    broker: Program, served: Served, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Else a script does not know the index of a revocation that holds."""
    folder = tmp_path / "gone"

    def committed_and_the_folder_gone(_request: object) -> list[object]:
        folder.rmdir()
        return [COMMITTED, COMPLETE] if "--wait" in command else told(COMMITTED, COMPLETE)

    served.answers |= dict.fromkeys(("Revoke", "GetRevocation"), committed_and_the_folder_gone)
    folder.mkdir()
    result = broker(*command, "--export", str(folder / "x.jws"), "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["statements"] == STATEMENTS
    error = json.loads(result.stderr)["error"]
    assert error["reason"] == "FILE"
    assert "index 42" in error["message"]
    assert "broker revoke show 42 --export" in error["hint"]
    folder.mkdir()
    text = broker(*command, "--export", str(folder / "x.jws"))
    assert "keep it: broker revoke show 42 --export FILE" in text.stdout
    assert "audit verify-completion" not in text.stdout


def test_a_file_that_appears_while_it_is_waited_for_is_no_usage_error_any_more(tmp_path: Path) -> None:
    """Exit code 2 would say that nothing was done."""
    file = tmp_path / "kept.jws"
    file.write_text("precious")
    problem = try_export(STATEMENTS, file, force=False, index=42)
    assert problem is not None
    assert problem_of(problem).exit_code == 1
    assert file.read_text() == "precious"
    assert try_export(STATEMENTS, file, force=True, index=42) is None


def test_an_export_goes_through_no_link_that_waits_under_its_passing_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    monkeypatch.setattr("secrets.token_hex", lambda _size: "known")
    (tmp_path / ".known.partial").symlink_to(precious)
    with pytest.raises((Misused, Unusable)):
        export(STATEMENTS, tmp_path / "new.jws", force=True)
    assert precious.read_text() == "kept"
    assert not (tmp_path / "new.jws").exists()
