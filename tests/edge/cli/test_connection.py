"""Where the broker is, as whom, for how long, and what is said when nobody answers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from broker.edge.cli.context import Context, write_context
from broker.errors import (
    Blocked,
    ClockAstray,
    Defect,
    Failure,
    Forbidden,
    Invalid,
    LimitReached,
    NotFound,
    NotGranted,
    Overloaded,
    PolicyMoved,
    RequestReused,
    RunEnded,
    SignerUnavailable,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
    Unauthenticated,
)
from broker.v1 import policy_pb2, revocations_pb2, runs_pb2, status_pb2, tokens_pb2
from tests.authority import Authority, Issued
from tests.edge.cli.conftest import DOMAIN, NAMES, Program
from tests.edge.cli.served import Hang, Served

SPEC = ("--realm", "evaluation", "--partner", "acme", "--user", "alice", "--model", "mythos")
MINT = ("token", "mint", *SPEC)


@pytest.mark.parametrize(
    ("failure", "code", "word"),
    [
        (Forbidden("only an admin may do this", hint="use another identity"), 3, "denied"),
        (NotGranted("acme may not use mythos in production (no grant)"), 3, "denied"),
        (Blocked("blocked since index 7"), 3, "denied"),
        (Invalid("lifetime", "is too long", hint="ask for less"), 2, "usage"),
        (Unauthenticated("unknown principal"), 1, "failed"),
        (NotFound("there is no such run"), 1, "failed"),
        (RunEnded("the run is over"), 1, "failed"),
        (RequestReused("the request id was used"), 1, "failed"),
        (PolicyMoved("version 8"), 1, "failed"),
        (LimitReached("batch"), 1, "failed"),
        (Overloaded("too much"), 1, "failed"),
        (StoreUnavailable("no store"), 1, "failed"),
        (StoreFull("full"), 1, "failed"),
        (StoreCorrupt("damaged"), 1, "failed"),
        (SignerUnavailable("no key"), 1, "failed"),
        (ClockAstray("an hour off"), 1, "failed"),
        (Defect("a defect"), 1, "failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Failure) else None,
)
def test_each_failure_of_the_broker_has_its_exit_code_and_its_line(
    broker: Program, served: Served, failure: Failure, code: int, word: str
) -> None:
    served.answers["GetStatus"] = failure
    told = broker("status")
    assert told.exit_code == code
    hint = f"; {failure.hint}" if failure.hint else ""
    assert told.stderr == f"broker: {word}: {failure.message}{hint}\n"
    assert told.stdout == ""
    exit_code, error = broker.error("status")
    assert exit_code == code
    assert error == {"reason": failure.reason, "message": failure.message, "hint": failure.hint}


def test_text_from_afar_cannot_steer_the_terminal(broker: Program, served: Served) -> None:
    served.answers["GetStatus"] = Forbidden("a\x1b[2Jb\nbroker: fine")
    line = broker("status").stderr
    assert "\x1b" not in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "method", "answer", "name"),
    [
        (("status",), "GetStatus", status_pb2.GetStatusResponse(), "admin"),
        (("verifiers",), "ListVerifiers", status_pb2.ListVerifiersResponse(), "admin"),
        (("trust",), "GetTrust", status_pb2.GetTrustResponse(document="{}"), "admin"),
        (("revocations",), "ListRevocations", revocations_pb2.ListRevocationsResponse(), "admin"),
        (("policy", "show"), "ShowPolicy", policy_pb2.ShowPolicyResponse(), "admin"),
        (MINT, "Mint", tokens_pb2.MintResponse(), "acme-ci"),
        (("run", "open", *SPEC[:4], "--model", "m"), "OpenRun", runs_pb2.OpenRunResponse(), "acme-ci"),
        (("run", "close", "r", "--partner", "globex"), "CloseRun", runs_pb2.CloseRunResponse(), "globex-ci"),
        (("run", "keep", "r", "--partner", "globex"), "KeepRun", runs_pb2.KeepRunResponse(), "globex-ci"),
        (("run", "list"), "ListRuns", runs_pb2.ListRunsResponse(), "admin"),
        (("run", "list", "--partner", "acme"), "ListRuns", runs_pb2.ListRunsResponse(), "acme-ci"),
        (("run", "list", "--partner", "nobody"), "ListRuns", runs_pb2.ListRunsResponse(), "admin"),
        (("explain", *SPEC), "Explain", policy_pb2.ExplainResponse(), "acme-ci"),
        (("explain", *SPEC, "--environment", "acme-ci"), "Explain", policy_pb2.ExplainResponse(), "admin"),
        (("explain", *SPEC[:3], "nobody", *SPEC[4:]), "Explain", policy_pb2.ExplainResponse(), "admin"),
        (("status", "--as", "globex-ci"), "GetStatus", status_pb2.GetStatusResponse(), "globex-ci"),
        ((*MINT, "--as", "admin"), "Mint", tokens_pb2.MintResponse(), "admin"),
    ],
)
def test_each_command_chooses_its_identity(
    broker: Program, served: Served, arguments: tuple[str, ...], method: str, answer: object, name: str
) -> None:
    served.answers[method] = answer
    result = broker(*arguments)
    assert result.exit_code == 0, result.output
    assert served.last.method == method
    assert served.last.principal == f"{DOMAIN}/{name}"


def test_the_environment_can_name_the_identity(broker: Program, served: Served) -> None:
    served.answers["GetStatus"] = status_pb2.GetStatusResponse()
    assert broker("status", BROKER_AS="verifier").exit_code == 0
    assert served.last.principal == f"{DOMAIN}/verifier"


def test_flags_alone_reach_the_broker(bare: Program, served: Served, issued: dict[str, Issued]) -> None:
    served.answers["GetStatus"] = status_pb2.GetStatusResponse()
    one = issued["admin"]
    reach = ("--endpoint", served.endpoint, "--ca", str(one.ca), "--cert", str(one.certificate))
    assert bare("status", *reach, "--cert-key", str(one.key)).exit_code == 0
    assert bare("status", *reach, "--key", str(one.key)).exit_code == 0


def test_the_environment_alone_reaches_the_broker(bare: Program, served: Served, issued: dict[str, Issued]) -> None:
    served.answers["GetStatus"] = status_pb2.GetStatusResponse()
    one = issued["admin"]
    result = bare(
        "status",
        BROKER_ENDPOINT=served.endpoint,
        BROKER_CA=str(one.ca),
        BROKER_CERT=str(one.certificate),
        BROKER_KEY=str(one.key),
    )
    assert result.exit_code == 0, result.output


def test_a_flag_is_stronger_than_the_environment_and_the_environment_than_the_file(
    broker: Program, served: Served
) -> None:
    served.answers["GetStatus"] = status_pb2.GetStatusResponse()
    assert broker("status", BROKER_ENDPOINT="localhost:1").exit_code == 1
    assert broker("status", "--endpoint", served.endpoint, BROKER_ENDPOINT="localhost:1").exit_code == 0


def test_another_context_file_can_be_named(bare: Program, served: Served, context: Context, tmp_path: Path) -> None:
    served.answers["GetStatus"] = status_pb2.GetStatusResponse()
    write_context(context, tmp_path / "other.json")
    assert bare("status", "--context", str(tmp_path / "other.json")).exit_code == 0
    assert bare("status", BROKER_CONTEXT=str(tmp_path / "other.json")).exit_code == 0


def test_a_certificate_without_its_key_is_a_usage_error(broker: Program, issued: dict[str, Issued]) -> None:
    one = issued["admin"]
    assert broker("status", "--cert", str(one.certificate)).exit_code == 2
    assert broker("status", "--cert-key", str(one.key)).exit_code == 2


def test_two_ways_of_saying_who_to_be_are_a_usage_error(broker: Program, issued: dict[str, Issued]) -> None:
    one = issued["admin"]
    arguments = ("--cert", str(one.certificate), "--cert-key", str(one.key))
    assert broker("status", "--as", "acme-ci", *arguments).exit_code == 2


def test_an_endpoint_in_the_environment_that_is_no_text_is_told(broker: Program) -> None:
    result = broker("status", BROKER_ENDPOINT="\udcff")
    assert result.exit_code == 2
    assert "is not an endpoint" in result.stderr


@pytest.mark.parametrize("option", ["--ca", "--cert", "--cert-key"])
def test_a_file_that_is_not_there_is_named(
    broker: Program, issued: dict[str, Issued], tmp_path: Path, option: str
) -> None:
    one = issued["admin"]
    files = {"--ca": one.ca, "--cert": one.certificate, "--cert-key": one.key, option: tmp_path / "missing.pem"}
    arguments = [text for name, path in files.items() for text in (name, str(path))]
    code, error = broker.error("status", *arguments)
    assert code == 1
    assert "missing.pem" in error["message"]


def test_a_file_without_a_certificate_is_named(broker: Program, issued: dict[str, Issued], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a certificate")
    code, error = broker.error("status", "--cert", str(wrong), "--cert-key", str(issued["admin"].key))
    assert code == 1
    assert "wrong.pem" in error["hint"]


def test_a_broker_that_is_not_there_is_a_failure_that_names_the_endpoint(broker: Program) -> None:
    code, error = broker.error("status", "--endpoint", "localhost:1")
    assert code == 1
    assert error["reason"] == "UNREACHABLE"
    assert "localhost:1" in error["message"]
    assert "--request-id" not in error["hint"]


def test_a_write_without_an_answer_says_how_to_repeat_it(broker: Program) -> None:
    code, error = broker.error(*MINT, "--endpoint", "localhost:1", "--request-id", "0123456789abcdef")
    assert code == 1
    assert "--request-id 0123456789abcdef" in error["hint"]


@pytest.mark.parametrize("endpoint", ["localhost:1 2", "ftp://x/y:1", ":", "localhost:99999999"])
def test_an_endpoint_that_is_none_is_told(broker: Program, endpoint: str) -> None:
    code, error = broker.error("status", "--endpoint", endpoint, "--deadline", "2s")
    assert code in {1, 2}
    assert endpoint in error["message"]


def test_a_broker_of_another_ca_is_not_believed(broker: Program, served: Served, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    code, error = broker.error("status", "--ca", str(other.ca))
    assert code == 1
    assert error["reason"] == "UNREACHABLE"
    assert served.calls == []


def test_a_certificate_of_another_ca_is_told(
    broker: Program, served: Served, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other").client(f"{DOMAIN}/admin")
    code, error = broker.error(
        "status", "--cert", str(stranger.certificate), "--cert-key", str(stranger.key), "--ca", str(authority.ca)
    )
    assert code == 1
    assert str(stranger.certificate) in error["hint"]
    assert served.calls == []


def test_an_expired_certificate_is_told(broker: Program, served: Served, authority: Authority) -> None:
    past = datetime.now(UTC) - timedelta(minutes=1)
    old = authority.client(f"{DOMAIN}/admin", name="expired", not_after=past)
    code, error = broker.error("status", "--cert", str(old.certificate), "--cert-key", str(old.key))
    assert code == 1
    assert "renew it" in error["hint"]
    assert served.calls == []


def test_a_broker_that_hangs_is_given_up_at_the_deadline(broker: Program, served: Served) -> None:
    served.answers["GetStatus"] = Hang()
    code, error = broker.error("status", "--deadline", "1s")
    assert code == 1
    assert error["reason"] == "UNREACHABLE"
    assert "Deadline" in error["message"]


def test_an_answer_of_no_broker_is_understood_by_its_code(broker: Program, served: Served) -> None:
    served.answers["GetStatus"] = grpc.StatusCode.PERMISSION_DENIED
    assert broker.error("status")[0] == 3
    served.answers["GetStatus"] = grpc.StatusCode.INTERNAL
    assert broker.error("status")[0] == 1


def test_request_ids_are_new_for_each_command_and_long_enough(broker: Program, served: Served) -> None:
    served.answers["Mint"] = tokens_pb2.MintResponse()
    for _ in range(2):
        assert broker(*MINT).exit_code == 0
    first, second = (call.request.request_id for call in served.calls)
    assert first != second
    assert len(first) == 22
    assert set(NAMES).isdisjoint({first, second})


def test_a_request_id_can_be_repeated(broker: Program, served: Served) -> None:
    served.answers["Mint"] = tokens_pb2.MintResponse()
    assert broker.json(*MINT, "--request-id", "0123456789abcdef")["request_id"] == "0123456789abcdef"
    assert served.last.request.request_id == "0123456789abcdef"
