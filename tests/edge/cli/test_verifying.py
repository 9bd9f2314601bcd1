"""`broker token verify`, with the SDK's verifier on a real feed."""

import json
import time
from pathlib import Path

import pytest

from broker import errors
from broker.edge.cli.context import Context
from broker.edge.cli.verifying import RULES, rule_of
from broker.token.revocation import Selector
from tests.edge.cli.conftest import Program
from tests.edge.cli.feeding import HEAD, Realm

VERIFY = ("token", "verify", "--realm", "evaluation", "--model", "mythos")


def test_a_good_token_is_accepted_and_every_rule_is_named(broker: Program, realm: Realm) -> None:
    result = broker(*VERIFY, stdin=realm.token() + "\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("accepted: acme/user/alice may use mythos in evaluation")
    for rule in RULES.values():
        assert rule in result.stdout


def test_the_answer_as_json_has_stable_keys(broker: Program, realm: Realm) -> None:
    answer = broker.json(*VERIFY, stdin=realm.token(workload="ci", user=None, sub="acme/workload/ci"))
    assert answer["accepted"] is True
    assert answer["head"] == HEAD
    assert (answer["user"], answer["workload"]) == (None, "ci")
    assert answer["expires_at"].endswith("Z")
    assert list(answer) == [
        "accepted",
        "rules",
        "id",
        "realm",
        "model",
        "partner",
        "user",
        "workload",
        "run",
        "test",
        "environment",
        "key",
        "index",
        "expires_at",
        "head",
        "fresh_for_ms",
    ]


def test_the_answer_does_not_hold_the_token(broker: Program, realm: Realm) -> None:
    """P12."""
    token = realm.token()
    for form in ("text", "json"):
        result = broker(*VERIFY, "-o", form, stdin=token)
        assert token.split(".")[2][:16] not in result.output


def test_a_revoked_token_is_denied_by_the_rule_of_revocation(broker: Program, realm: Realm) -> None:
    """P4."""
    realm.revoked.append(Selector.of(partner="acme"))
    result = broker(*VERIFY, stdin=realm.token())
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith("broker: denied: the token was revoked at index 50 (partner=acme)")
    assert "(rule: revocation)" in result.stderr
    code, error = broker.error(*VERIFY, stdin=realm.token())
    assert (code, error["reason"]) == (3, "REVOKED")
    assert broker(*VERIFY, stdin=realm.token(idx=60)).exit_code == 0


def test_an_expired_token_is_denied_as_expired(broker: Program, realm: Realm) -> None:
    now = int(time.time())
    code, error = broker.error(*VERIFY, stdin=realm.token(exp=now - 1, iat=now - 9, nbf=now - 9))
    assert (code, error["reason"]) == (3, "EXPIRED")
    assert "(rule: " in error["message"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"models": ("fable",), "scope": "model:fable"}, "NOT_ALLOWED"),
        ({"realm": "production"}, "WRONG_REALM"),
        ({"aud": "production"}, "WRONG_REALM"),
    ],
)
def test_each_refusal_is_a_denial_with_its_reason(
    broker: Program, realm: Realm, change: dict[str, object], reason: str
) -> None:
    code, error = broker.error(*VERIFY, stdin=realm.token(**change))
    assert (code, error["reason"]) == (3, reason)
    assert "(rule: " in error["message"]


@pytest.mark.parametrize(
    "stdin",
    ["", "\n", "   \n ", "rubbish", "a.b.c", "\x00", "é" * 50, b"\xff\xfe\x00", "x" * 8193, "x" * 100_000],
)
def test_what_is_no_token_is_denied(broker: Program, stdin: str | bytes) -> None:
    """P7."""
    code, error = broker.error(*VERIFY, stdin=stdin)
    assert (code, error["reason"]) == (3, "MALFORMED")


def test_a_token_of_another_realm_is_denied(broker: Program) -> None:
    """P8."""
    code, error = broker.error(*VERIFY, stdin=Realm("production").token())
    assert (code, error["reason"]) == (3, "UNTRUSTED")


@pytest.mark.parametrize("gap", ["\n", " " * 20_000])
def test_two_tokens_are_not_one(broker: Program, realm: Realm, gap: str) -> None:
    assert broker(*VERIFY, stdin=f"{realm.token()}{gap}{realm.token()}\n").exit_code == 3


@pytest.mark.parametrize("model", ["nothing", "MYTHOS", "mythos ", "mythos@@", "*"])
def test_a_model_that_is_not_covered_is_denied(broker: Program, realm: Realm, model: str) -> None:
    assert broker(*VERIFY[:-1], model, stdin=realm.token()).exit_code == 3


def test_an_instance_is_covered_by_its_model(broker: Program, realm: Realm) -> None:
    assert broker(*VERIFY[:-1], "mythos@eu-1", stdin=realm.token()).exit_code == 0


def test_a_verifier_that_hears_nothing_denies_within_the_deadline(broker: Program, realm: Realm) -> None:
    """P7."""
    code, error = broker.error(*VERIFY, "--endpoint", "localhost:1", "--deadline", "1s", stdin=realm.token())
    assert (code, error["reason"]) == (3, "STALE")
    assert "localhost:1" in error["message"]


def test_a_feed_of_another_root_is_never_fresh(broker: Program, realm: Realm, tmp_path: Path) -> None:
    """P7, P8."""
    other = tmp_path / "other.json"
    other.write_text(Realm().document)
    code, error = broker.error(*VERIFY, "--trust", str(other), "--deadline", "1s", stdin=realm.token())
    assert (code, error["reason"]) == (3, "STALE")


def test_a_realm_without_a_verifier_is_a_usage_error(broker: Program, realm: Realm) -> None:
    result = broker("token", "verify", "--realm", "research", "--model", "mythos", stdin=realm.token())
    assert result.exit_code == 2
    assert "evaluation" in result.stderr


def test_a_trust_file_that_is_not_there_or_damaged_is_told(
    broker: Program, realm: Realm, context: Context, tmp_path: Path
) -> None:
    code, error = broker.error(*VERIFY, "--trust", str(tmp_path / "none.json"), stdin=realm.token())
    assert code == 1
    assert "none.json" in error["message"]
    context.trust.write_text("{}")
    assert broker.error(*VERIFY, stdin=realm.token())[0] == 1


def test_the_sdks_log_does_not_disturb_stderr(broker: Program, realm: Realm) -> None:
    result = broker(*VERIFY, "--endpoint", "localhost:1", "--deadline", "1s", "-o", "json", stdin=realm.token())
    assert result.stderr.count("\n") == 1
    json.loads(result.stderr)


def test_each_refusal_has_a_rule() -> None:
    kinds = errors.Rejected.__subclasses__()
    assert {kind for kind in kinds if kind.__module__ == errors.__name__} == set(RULES)
    assert all(rule_of(kind("x")) == rule for kind, rule in RULES.items())


def test_a_refusal_of_a_new_kind_is_closed_by_default() -> None:
    """P7."""
    assert rule_of(errors.Rejected("new")) == "closed by default"
