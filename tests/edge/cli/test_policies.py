"""`broker policy`."""

from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from broker.errors import ConfigInvalid, Forbidden, Invalid, NotFound, PolicyMoved
from broker.v1 import policy_pb2
from tests.edge.cli.conftest import Program
from tests.edge.cli.served import Served

DOCUMENT = "realms: {}\npartners: {}\n"

WHY = ("--reason", "globex joins")


def why(command: str) -> tuple[str, ...]:
    return WHY if command == "apply" else ()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(DOCUMENT)
    return path


def test_a_valid_policy_needs_no_broker(bare: Program, file: Path) -> None:
    result = bare("policy", "validate", str(file))
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{file} is valid\n", "")
    assert bare.json("policy", "validate", str(file)) == {"valid": True, "problems": []}


def test_each_problem_is_a_line(bare: Program, file: Path) -> None:
    bare.problems += ["3: grants: names no partner; add one", "9: models: twice; remove one"]
    result = bare("policy", "validate", str(file))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"{file}:3: grants: names no partner; add one",
        f"{file}:9: models: twice; remove one",
        f"broker: failed: {file} has 2 problems; mend it and validate again",
    ]


def test_problems_as_json_are_the_result_and_an_error(bare: Program, file: Path) -> None:
    bare.problems.append("3: bad")
    result = bare("policy", "validate", str(file), "-o", "json")
    assert result.exit_code == 1
    assert result.stdout == '{\n  "valid": false,\n  "problems": [\n    "' + f"{file}:3: bad" + '"\n  ]\n}\n'
    assert '"reason": "INVALID"' in result.stderr
    assert "has 1 problem" in result.stderr


def test_a_policy_can_come_by_stdin(bare: Program) -> None:
    assert bare("policy", "validate", "-", stdin=DOCUMENT).stdout == "- is valid\n"


@pytest.mark.parametrize("command", ["validate", "apply"])
def test_a_file_that_is_not_there_is_a_usage_error(broker: Program, tmp_path: Path, command: str) -> None:
    assert broker("policy", command, str(tmp_path / "none.yaml"), *why(command)).exit_code == 2
    assert broker("policy", command, str(tmp_path), *why(command)).exit_code == 2


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x" * ((1 << 20) + 1)])
@pytest.mark.parametrize("command", ["validate", "apply"])
def test_a_file_that_can_be_no_policy_is_refused(
    broker: Program, served: Served, tmp_path: Path, command: str, content: bytes
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    code, error = broker.error("policy", command, str(path), *why(command))
    assert (code, error["reason"]) == (1, "FILE")
    assert "policy.yaml" in error["message"]
    assert served.calls == []


def test_a_policy_is_applied_as_it_is(broker: Program, served: Served, file: Path) -> None:
    served.answers["ApplyPolicy"] = policy_pb2.ApplyPolicyResponse(version=8, index=90)
    answer = broker.json("policy", "apply", str(file), *WHY)
    assert list(answer) == ["version", "index", "request_id"]
    assert (answer["version"], answer["index"]) == (8, 90)
    assert served.last.request.document == DOCUMENT
    assert served.last.request.reason == "globex joins"
    assert not served.last.request.HasField("expected_version")
    assert "version 8 is in force" in broker("policy", "apply", str(file), *WHY).stdout


@pytest.mark.parametrize("version", [0, 7])
def test_an_expected_version_is_sent(broker: Program, served: Served, file: Path, version: int) -> None:
    served.answers["ApplyPolicy"] = policy_pb2.ApplyPolicyResponse(version=8, index=90)
    assert broker("policy", "apply", str(file), *WHY, "--expected-version", str(version)).exit_code == 0
    assert served.last.request.HasField("expected_version")
    assert served.last.request.expected_version == version


def test_a_policy_that_moved_is_a_failure(broker: Program, served: Served, file: Path) -> None:
    served.answers["ApplyPolicy"] = PolicyMoved("the policy is at version 8")
    assert broker("policy", "apply", str(file), *WHY, "--expected-version", "7").exit_code == 1


@pytest.mark.parametrize(
    "failure", [ConfigInvalid("policy", ("policy:3: grants: bad",)), Invalid("policy", "is bad", hint="mend it")]
)
def test_a_policy_that_the_broker_refuses_is_a_failure_and_no_usage_error(
    broker: Program, served: Served, file: Path, failure: Exception
) -> None:
    served.answers["ApplyPolicy"] = failure
    code, error = broker.error("policy", "apply", str(file), *WHY)
    assert (code, error["reason"]) == (1, "INVALID")
    assert "policy.yaml" in error["message"]
    assert "bad" in error["message"]


def test_who_may_not_apply_is_denied(broker: Program, served: Served, file: Path) -> None:
    served.answers["ApplyPolicy"] = Forbidden("this needs the role admin")
    assert broker("policy", "apply", str(file), *WHY, "--as", "acme-ci").exit_code == 3


def test_the_policy_is_shown_as_it_was_applied(broker: Program, served: Served) -> None:
    served.answers["ShowPolicy"] = policy_pb2.ShowPolicyResponse(
        version=8,
        document=DOCUMENT,
        by="admin",
        applied_at=Timestamp(seconds=1_800_000_000),
        reason="globex joins",
        applied_version=7,
    )
    assert broker("policy", "show").stdout == DOCUMENT
    assert broker.json("policy", "show") == {
        "version": 8,
        "by": "admin",
        "applied_at": "2027-01-15T08:00:00Z",
        "document": DOCUMENT,
        "reason": "globex joins",
        "applied_version": 7,
    }
    assert not served.last.request.HasField("version")


def test_no_policy_is_told(broker: Program, served: Served) -> None:
    served.answers["ShowPolicy"] = policy_pb2.ShowPolicyResponse()
    result = broker("policy", "show")
    assert result.stdout == "\n"
    assert "nothing is allowed" in result.stderr
    assert broker.json("policy", "show")["applied_at"] is None


def test_an_earlier_policy_is_asked_for_by_its_version(broker: Program, served: Served) -> None:
    served.answers["ShowPolicy"] = policy_pb2.ShowPolicyResponse(version=0, document=DOCUMENT)
    assert broker("policy", "show", "--version", "0").stdout == DOCUMENT
    assert served.last.request.HasField("version")
    assert served.last.request.version == 0
    served.answers["ShowPolicy"] = NotFound("there is no policy version 9", hint="the newest is 8")
    assert broker.error("policy", "show", "--version", "9")[1]["hint"] == "the newest is 8"


def test_versions_are_listed_with_author_and_reason(broker: Program, served: Served) -> None:
    one = policy_pb2.PolicyVersion(
        version=7, index=90, by="spiffe://lab/ops", applied_at=Timestamp(seconds=1_800_000_000), reason="x\x1b[2J"
    )
    served.answers["ListPolicyVersions"] = policy_pb2.ListPolicyVersionsResponse(versions=[one], more=True)
    answer = broker.json("policy", "versions", "--limit", "1", "--below", "8")
    assert (served.last.request.limit, served.last.request.below) == (1, 8)
    assert answer["more"] is True
    assert answer["versions"][0]["by"] == "spiffe://lab/ops"
    assert answer["versions"][0]["applied_at"] == "2027-01-15T08:00:00Z"
    result = broker("policy", "versions")
    assert "\x1b[2J" not in result.stdout
    assert "broker policy versions --below 7" in result.stderr


def test_a_restore_sends_version_and_reason(broker: Program, served: Served) -> None:
    served.answers["RestorePolicy"] = policy_pb2.RestorePolicyResponse(version=9, index=91)
    answer = broker.json("policy", "restore", "7", *WHY, "--expected-version", "8")
    assert (answer["version"], answer["restored"]) == (9, 7)
    sent = served.last.request
    assert (sent.version, sent.reason, sent.expected_version) == (7, "globex joins", 8)
    assert "that of version 7 again" in broker("policy", "restore", "7", *WHY).stdout


def test_a_reason_that_the_broker_refuses_is_no_problem_of_the_file(
    broker: Program, served: Served, file: Path
) -> None:
    served.answers["ApplyPolicy"] = Invalid("reason", "has control characters", hint="use one line of plain text")
    code, error = broker.error("policy", "apply", str(file), *WHY)
    assert (code, error["reason"]) == (2, "INVALID")
    assert "policy.yaml" not in error["message"]


PLANNED = policy_pb2.PlanPolicyResponse(
    plan="7-" + "0" * 32,
    version=7,
    changes=[
        policy_pb2.PolicyChange(
            direction=policy_pb2.POLICY_CHANGE_DIRECTION_MORE, subject="access", text="bob gains mythos\x1b[2J"
        ),
        policy_pb2.PolicyChange(
            direction=policy_pb2.POLICY_CHANGE_DIRECTION_LESS, subject="limits", text="lower limit of live runs"
        ),
    ],
    runs=[policy_pb2.TouchedRun(run="run-1", realm="evaluation", partner="acme", lost=["oracle"])],
    tokens=3,
)


@pytest.mark.parametrize("command", [("plan",), ("apply", "--dry-run")])
def test_a_plan_is_printed_and_nothing_is_applied(
    broker: Program, served: Served, file: Path, command: tuple[str, ...]
) -> None:
    served.answers["PlanPolicy"] = PLANNED
    answer = broker.json("policy", *command, str(file))
    assert [call.method for call in served.calls] == ["PlanPolicy"]
    assert served.last.request.document == DOCUMENT
    assert (answer["plan"], answer["version"], answer["tokens"]) == (PLANNED.plan, 7, 3)
    assert [one["direction"] for one in answer["changes"]] == ["more", "less"]
    text = broker("policy", *command, str(file)).stdout
    assert "+ access: bob gains mythos" in text
    assert "- limits: lower limit of live runs" in text
    assert "\x1b[2J" not in text
    assert "3 live tokens could not be minted again" in text
    assert f"--plan {PLANNED.plan}" in text


def test_a_plan_without_changes_says_so(broker: Program, served: Served, file: Path) -> None:
    served.answers["PlanPolicy"] = policy_pb2.PlanPolicyResponse(plan="7-x", version=7)
    assert "nothing would change" in broker("policy", "plan", str(file)).stdout
    assert broker.json("policy", "plan", str(file))["tokens"] is None


def test_a_plan_of_a_file_with_problems_names_them_and_is_no_usage_error(
    broker: Program, served: Served, file: Path
) -> None:
    served.answers["PlanPolicy"] = ConfigInvalid("policy", ("policy:3: grants: bad",))
    code, error = broker.error("policy", "plan", str(file))
    assert (code, error["reason"]) == (1, "INVALID")
    assert "policy:3: grants: bad" in error["message"]


def test_what_a_plan_showed_is_applied_by_its_id(broker: Program, served: Served, file: Path) -> None:
    served.answers["ApplyPolicy"] = policy_pb2.ApplyPolicyResponse(version=8, index=90)
    assert broker("policy", "apply", str(file), *WHY, "--plan", PLANNED.plan).exit_code == 0
    assert served.last.request.plan == PLANNED.plan
    served.answers["ApplyPolicy"] = PolicyMoved("the policy is at version 8, not 7")
    code, error = broker.error("policy", "apply", str(file), *WHY, "--plan", PLANNED.plan)
    assert (code, error["reason"]) == (1, "POLICY_MOVED")
    served.answers["ApplyPolicy"] = Invalid("plan", "was made for another document", hint="plan this one")
    assert broker.error("policy", "apply", str(file), *WHY, "--plan", PLANNED.plan)[0] == 2
