"""Bad input through the real door: a clear error, nothing lost, nothing half-done."""

import ssl
import threading

import grpc
import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from google.rpc import status_pb2 as rpc_status

from broker.v1 import (
    feed_pb2,
    feed_pb2_grpc,
    policy_pb2,
    revocations_pb2,
    runs_pb2,
    selector_pb2,
    status_pb2,
    tokens_pb2,
)
from tests.served import POLICY, Served, request_id, settled_head, wait_until

INVALID = "INVALID"
NOT_GRANTED = "NOT_GRANTED"
CODES = {
    "INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "NOT_GRANTED": grpc.StatusCode.PERMISSION_DENIED,
    "FORBIDDEN": grpc.StatusCode.PERMISSION_DENIED,
    "NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "POLICY_MOVED": grpc.StatusCode.ABORTED,
}
NAMES = (
    "Acme",
    "ac me",
    " acme",
    "acme\n",
    "\u0430cme",
    "acme\u200d",
    "a..b",
    "..",
    "../acme",
    "a\x00b",
    "*",
    "acme*",
    "-a",
    "a-",
    "a" * 129,
    "a" * 300,
    "a" * 100_000,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served")) as one:
        settled_head(one.status())
        yield one


@pytest.fixture(scope="module")
def stubs(served):
    """One connection for each, because there are many calls."""
    return {
        "tokens": served.tokens(),
        "runs": served.runs(),
        "revocations": served.revocations(),
        "policies": served.policies(),
        "status": served.status(),
    }


@pytest.fixture
def refused(stubs):
    """Return a function that makes a call, which must be refused with `reason` and write nothing."""

    def head():
        return stubs["status"].GetStatus(status_pb2.GetStatusRequest(), timeout=10).head

    def refuse(call, reason, field=None):
        size = head()
        with pytest.raises(grpc.RpcError) as caught:
            call()
        trailers = dict(caught.value.trailing_metadata())
        status = rpc_status.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (info.domain, info.reason) == ("broker", reason)
        assert caught.value.code() is CODES[reason]
        # What to do next is in the hint or, where a rule of the policy decides, in the sentence.
        assert info.metadata["hint"] or "; " in status.message
        if reason == INVALID:
            assert info.metadata["field"]
        if field is not None:
            assert info.metadata["field"] == field
        assert len(status.message) < 2100
        assert head() == size
        return status.message, dict(info.metadata)

    return refuse


def mint(stubs, spec):
    return stubs["tokens"].Mint(tokens_pb2.MintRequest(request_id=request_id(), spec=spec), timeout=10)


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"realm": "production"}, NOT_GRANTED, None),
        ({"models": ["unheard-of"]}, NOT_GRANTED, None),
        ({"models": ["mythos", "unheard-of"]}, NOT_GRANTED, None),
        ({"user": "mallory"}, NOT_GRANTED, None),
        ({"user": ""}, INVALID, "user"),
        ({"workload": ""}, INVALID, "workload"),
        ({"workload": "weekly"}, NOT_GRANTED, None),
        ({"realm": "research"}, NOT_GRANTED, None),
        # Unknown and another's are the same to a harness: it may act for its own partner only.
        ({"partner": "initech"}, "FORBIDDEN", None),
        ({"partner": "globex"}, "FORBIDDEN", None),
        ({"realm": ""}, INVALID, "realm"),
        ({"partner": ""}, INVALID, "partner"),
        ({"models": []}, INVALID, "models"),
        ({"models": [""]}, INVALID, "models"),
        ({"models": ["mythos", "mythos"]}, INVALID, "models"),
        ({"models": [f"m{n}" for n in range(17)]}, INVALID, "models"),
        ({"models": [f"mythos@{n}{'x' * 100}" for n in range(16)]}, INVALID, "models"),
        ({"models": ["mythos/../oracle"]}, INVALID, "models"),
        ({"models": ["mythos@"]}, INVALID, "models"),
        ({"test": "case-7"}, INVALID, "test"),
        ({"run": "short"}, INVALID, "run"),
        ({"run": "x" * 65}, INVALID, "run"),
        ({"run": "no-such-run-000000000"}, "NOT_FOUND", None),
        ({"run": "no-such-run-000000000", "test": "Case"}, INVALID, "test"),
        ({"lifetime": Duration()}, INVALID, "lifetime"),
        ({"lifetime": Duration(seconds=-5)}, INVALID, "lifetime"),
        ({"lifetime": Duration(seconds=60, nanos=1)}, INVALID, "lifetime"),
        ({"lifetime": Duration(nanos=-1)}, INVALID, "lifetime"),
        # Above the grant and the realm (both 1h), the server (1d), and anything that ends.
        ({"lifetime": Duration(seconds=3601)}, INVALID, "lifetime"),
        ({"lifetime": Duration(seconds=86_401)}, INVALID, "lifetime"),
        ({"lifetime": Duration(seconds=2**62)}, INVALID, "lifetime"),
        ({"lifetime": Duration(seconds=-(2**62))}, INVALID, "lifetime"),
    ],
)
def test_p7_a_bad_ask_is_refused_with_its_field_and_writes_nothing(served, stubs, refused, changes, reason, field):
    refused(lambda: mint(stubs, served.spec(**changes)), reason, field)


def test_an_ask_without_a_principal_is_refused_from_a_caller_who_is_no_workload(served, refused):
    spec = tokens_pb2.TokenSpec(realm="evaluation", partner="globex", models=["mythos"])
    refused(lambda: mint({"tokens": served.tokens("globex")}, spec), INVALID, "principal")


@pytest.mark.parametrize("field", ["realm", "partner", "user", "workload"])
def test_b16_names_outside_the_alphabet_are_refused_and_not_repeated_at_length(served, stubs, refused, field):
    for name in NAMES:
        spec = served.spec(**({"user": None} if field == "workload" else {}), **{field: name})
        message, _ = refused(lambda spec=spec: mint(stubs, spec), INVALID, field)
        assert len(message) < 300
        assert message.isprintable()


@pytest.mark.parametrize("text", ["", "short", "x" * 65, "with space but long enough", "é" * 20, "a\x00" * 10])
def test_p7_a_request_id_of_another_form_is_refused_on_every_write(served, stubs, refused, text):
    selector = selector_pb2.Selector(token="A" * 22)
    calls = [
        lambda: stubs["tokens"].Mint(tokens_pb2.MintRequest(request_id=text, spec=served.spec())),
        lambda: stubs["tokens"].MintBatch(tokens_pb2.MintBatchRequest(request_id=text, specs=[served.spec()])),
        lambda: stubs["runs"].OpenRun(
            runs_pb2.OpenRunRequest(request_id=text, realm="evaluation", partner="acme", models=["mythos"])
        ),
        lambda: stubs["runs"].KeepRun(runs_pb2.KeepRunRequest(request_id=text, run="r" * 22)),
        lambda: stubs["runs"].CloseRun(runs_pb2.CloseRunRequest(request_id=text, run="r" * 22)),
        lambda: list(
            stubs["revocations"].Revoke(revocations_pb2.RevokeRequest(request_id=text, selector=selector, reason="x"))
        ),
        lambda: stubs["revocations"].Reinstate(
            revocations_pb2.ReinstateRequest(request_id=text, selector=selector, reason="x")
        ),
        lambda: stubs["policies"].ApplyPolicy(policy_pb2.ApplyPolicyRequest(request_id=text, document=POLICY)),
    ]
    for call in calls:
        refused(call, INVALID, "request_id")


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_that_is_empty_or_too_large_is_refused(served, stubs, refused, count):
    request = tokens_pb2.MintBatchRequest(request_id=request_id(), specs=[served.spec()] * count)
    refused(lambda: stubs["tokens"].MintBatch(request), INVALID, "specs")


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ({"user": "mallory"}, NOT_GRANTED),
        ({"user": "Alice"}, INVALID),
        ({"partner": "globex", "user": "bob"}, "FORBIDDEN"),
    ],
)
def test_a_batch_with_one_bad_spec_is_refused_whole_and_says_which(served, stubs, refused, spoilt, reason):
    specs = [served.spec() for _ in range(7)]
    specs[4] = served.spec(**spoilt)
    request = tokens_pb2.MintBatchRequest(request_id=request_id(), specs=specs)
    message, metadata = refused(lambda: stubs["tokens"].MintBatch(request), reason)
    if reason != "FORBIDDEN":
        assert "specs[4]" in f"{message} {metadata}"


# Revoking.


def revoke(stubs, *, reason="a test", whole_realm=False, **selector):
    request = revocations_pb2.RevokeRequest(
        request_id=request_id(),
        selector=selector_pb2.Selector(**selector),
        reason=reason,
        whole_realm=whole_realm,
    )
    events = list(stubs["revocations"].Revoke(request, timeout=10))
    # Its completion is an entry of its own.
    settled_head(stubs["status"])
    return events


def reinstate(stubs, *, reason="a test", **selector):
    request = revocations_pb2.ReinstateRequest(
        request_id=request_id(), selector=selector_pb2.Selector(**selector), reason=reason
    )
    return stubs["revocations"].Reinstate(request, timeout=10)


def test_p7_an_empty_selector_is_refused_because_it_would_be_everything(stubs, refused):
    for act in (revoke, reinstate):
        message, metadata = refused(lambda act=act: act(stubs), INVALID, "selector")
        assert "everything" in message
        assert metadata["hint"]
    refused(lambda: revoke(stubs, whole_realm=True), INVALID, "selector")


@pytest.mark.parametrize(
    ("dimension", "value"),
    [
        ("realm", "Evaluation"),
        ("partner", "ACME"),
        ("partner", "acme*"),
        ("partner", "a" * 300),
        ("user", "a..b"),
        ("workload", "\u0430lice"),
        ("environment", "a\x00b"),
        ("model", "mythos/oracle"),
        ("model", "mythos@"),
        ("run", "short"),
        ("run", "../../../../etc"),
        ("test", "Case"),
        ("token", "x" * 65),
        ("parent", "short"),
        ("key", "short"),
        ("key", "k" * 44),
        ("label", "no-value"),
        ("label", "a=b=c"),
    ],
)
def test_p7_a_malformed_selector_is_refused_and_its_dimension_named(stubs, refused, dimension, value):
    other = "user" if dimension != "user" else "partner"
    for act in (revoke, reinstate):
        refused(lambda act=act: act(stubs, **{dimension: value}), INVALID, f"selector.{dimension}")
        # Beside a good one, too: a selector is never read in part.
        refused(lambda act=act: act(stubs, **{dimension: value, other: "alice"}), INVALID, f"selector.{dimension}")


@pytest.mark.parametrize("also", [{}, {"partner": "acme"}, {"user": "alice", "model": "mythos"}])
def test_p7_a_realm_that_nobody_has_is_refused_with_the_names_of_those_that_are(stubs, refused, also):
    for whole in (False, True):
        call = lambda whole=whole: revoke(stubs, realm="evaluatoin", whole_realm=whole, **also)  # noqa: E731 - one call
        if also or whole:
            _, metadata = refused(call, INVALID, "selector.realm")
            assert "evaluation, research" in metadata["hint"]
        else:
            refused(call, INVALID, "selector")


def test_a_whole_realm_is_revoked_only_when_it_is_spelled_out(served, stubs, refused):
    _, metadata = refused(lambda: revoke(stubs, realm="research"), INVALID, "selector")
    assert "--yes" in metadata["hint"]
    assert revoke(stubs, realm="research", whole_realm=True)[0].committed.blocks
    assert reinstate(stubs, realm="research").lifted


def test_p4_a_partner_a_user_or_an_environment_that_left_the_policy_is_revocable(served, stubs):
    own = tokens_pb2.TokenSpec(realm="evaluation", partner="globex", user="bob", models=["mythos"])
    verifier = served.verifier()
    request = tokens_pb2.MintRequest(request_id=request_id(), spec=own)
    token = served.tokens("globex").Mint(request, timeout=10).token.token
    wait_until(lambda: accepts(verifier, token))
    served.apply("\n".join(line for line in POLICY.splitlines() if "globex" not in line and "bob" not in line) + "\n")
    # Removing it from the policy ends minting, and nothing that was minted.
    assert accepts(verifier, token)
    served.revoke(wait=True, partner="globex")
    assert not accepts(verifier, token)
    for selector in ({"user": "bob"}, {"environment": "globex-cluster"}, {"model": "sphinx"}, {"label": "tier=gone"}):
        assert revoke(stubs, **selector)[0].committed.index
        assert reinstate(stubs, **selector).lifted
    assert reinstate(stubs, partner="globex").lifted
    served.apply(POLICY)
    verifier.close()


def accepts(verifier, token):
    from broker.errors import Rejected

    try:
        verifier.verify(token, model="mythos")
    except Rejected:
        return False
    return True


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501, "two\nlines", "a\x00b", "\u202eevil"])
def test_a_reason_that_is_empty_long_or_more_than_a_line_is_refused(stubs, refused, reason):
    for act in (revoke, reinstate):
        refused(lambda act=act: act(stubs, partner="acme", reason=reason), INVALID, "reason")


# Runs, lists and policies.


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"realm": "production"}, NOT_GRANTED, None),
        ({"models": ["unheard-of"]}, NOT_GRANTED, None),
        ({"partner": "initech"}, "FORBIDDEN", None),
        ({"realm": "Evaluation"}, INVALID, "realm"),
        ({"partner": "a..b"}, INVALID, "partner"),
        ({"models": []}, INVALID, "models"),
        ({"models": ["mythos", "mythos"]}, INVALID, "models"),
        ({"models": [f"m{n}" for n in range(17)]}, INVALID, "models"),
        ({"models": ["*"]}, INVALID, "models"),
        ({"lease": Duration()}, INVALID, "lease"),
        ({"lease": Duration(seconds=-1)}, INVALID, "lease"),
        ({"lease": Duration(seconds=9)}, INVALID, "lease"),
        ({"lease": Duration(seconds=86_401)}, INVALID, "lease"),
        ({"lease": Duration(seconds=60, nanos=5)}, INVALID, "lease"),
    ],
)
def test_p7_a_run_that_cannot_be_meant_is_not_opened(stubs, refused, changes, reason, field):
    wanted = {"realm": "evaluation", "partner": "acme", "models": ["mythos"], **changes}
    request = runs_pb2.OpenRunRequest(request_id=request_id(), **wanted)
    refused(lambda: stubs["runs"].OpenRun(request, timeout=10), reason, field)


def test_p7_a_run_that_never_was_is_neither_kept_nor_closed(stubs, refused):
    for name in ("KeepRun", "CloseRun"):
        for run, reason in (("r" * 22, "NOT_FOUND"), ("", INVALID), ("r" * 300, INVALID), ("../../etc", INVALID)):
            request = getattr(runs_pb2, f"{name}Request")(request_id=request_id(), run=run)
            refused(lambda name=name, request=request: getattr(stubs["runs"], name)(request), reason)


def test_a_page_out_of_range_is_refused_and_one_beyond_the_end_is_empty(stubs, refused):
    refused(lambda: stubs["runs"].ListRuns(runs_pb2.ListRunsRequest(limit=1001)), INVALID, "limit")
    refused(lambda: stubs["runs"].ListRuns(runs_pb2.ListRunsRequest(partner="A")), INVALID, "partner")
    listing = stubs["revocations"].ListRevocations
    refused(lambda: listing(revocations_pb2.ListRevocationsRequest(limit=2**32 - 1)), INVALID, "limit")
    for after in (2**53, 2**63 - 1, 2**63, 2**64 - 1):
        assert not listing(revocations_pb2.ListRevocationsRequest(after=after)).revocations


@pytest.mark.parametrize(
    "document",
    [
        "",
        "\n \n",
        "version: 1\n",
        "not: [yaml",
        POLICY.replace("partner: acme,", "partner: nobody,"),
        POLICY.replace("max_ttl: 1h", "max_ttl: 2d"),
        POLICY + "".join(f"unknown-{n}: 1\n" for n in range(1000)),
        "[" * 1_000_000,
        "#" * (1 << 20) + "#",
    ],
    ids=[
        "empty",
        "blank",
        "half",
        "no YAML",
        "unknown partner",
        "above the server",
        "1000 problems",
        "nested",
        "large",
    ],
)
def test_p7_a_bad_policy_is_refused_and_the_old_one_stays(stubs, refused, document):
    before = stubs["policies"].ShowPolicy(policy_pb2.ShowPolicyRequest())
    request = policy_pb2.ApplyPolicyRequest(request_id=request_id(), document=document)
    _, metadata = refused(lambda: stubs["policies"].ApplyPolicy(request, timeout=20), INVALID)
    assert metadata["hint"]
    assert stubs["policies"].ShowPolicy(policy_pb2.ShowPolicyRequest()) == before


@pytest.mark.parametrize("off", [-1, 1, 2**63])
def test_p3_a_policy_for_another_version_is_refused(stubs, refused, off):
    version = stubs["policies"].ShowPolicy(policy_pb2.ShowPolicyRequest()).version
    request = policy_pb2.ApplyPolicyRequest(request_id=request_id(), document=POLICY, expected_version=version + off)
    refused(lambda: stubs["policies"].ApplyPolicy(request), "POLICY_MOVED")


@pytest.mark.parametrize("realm", ["production", "Evaluation", "\x00", "a" * 300])
def test_p8_the_trust_of_a_realm_that_is_none_is_not_found(stubs, refused, realm):
    refused(lambda: stubs["status"].GetTrust(status_pb2.GetTrustRequest(realm=realm)), "NOT_FOUND")


# What is no message of ours.


def raw(served, method, data, *, metadata=(), name="acme"):
    with grpc.secure_channel(served.endpoint, served.identity(name).credentials()) as channel:
        return channel.unary_unary(f"/broker.v1.{method}", bytes, bytes)(data, timeout=10, metadata=metadata)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"\x0a\xff\xff\xff\xff\x0f",  # a length beyond the end
        b"\x0a\x02\xc3\x28",  # a string that is not UTF-8
        b"\x08" + b"\xff" * 11,  # a varint without end
        b"\x0b" * 200,  # groups that are never closed
    ],
    ids=["byte", "length", "UTF-8", "varint", "groups"],
)
@pytest.mark.parametrize("method", ["TokenService/Mint", "PolicyService/Explain"])
def test_malformed_protobuf_is_refused_as_invalid_and_tells_nothing_of_the_inside(served, refused, method, data):
    message, _ = refused(lambda: raw(served, method, data), INVALID, "request")
    assert "Traceback" not in message


def test_a_malformed_message_on_a_stream_is_refused_as_invalid(served, refused):
    def call():
        with grpc.secure_channel(served.endpoint, served.identity("gateway").credentials()) as channel:
            list(channel.stream_stream("/broker.v1.FeedService/Listen", bytes, bytes)(iter([b"\xff"]), timeout=10))

    refused(call, INVALID)


def test_a_message_above_the_size_is_refused_and_the_connection_goes_on(served, stubs):
    before = settled_head(stubs["status"])
    request = policy_pb2.ApplyPolicyRequest(request_id=request_id(), document="#" * (3 << 20))
    with pytest.raises(grpc.RpcError) as caught:
        stubs["policies"].ApplyPolicy(request, timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert settled_head(stubs["status"]) == before


def test_more_metadata_than_fits_is_refused_and_the_broker_goes_on(served, stubs):
    before = settled_head(stubs["status"])
    metadata = [(f"x-{n}", "v" * 1000) for n in range(100)]
    with pytest.raises(grpc.RpcError) as caught:
        raw(served, "TokenService/Mint", b"", metadata=metadata)
    assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    assert settled_head(stubs["status"]) == before


@pytest.mark.parametrize("method", ["TokenService/Nothing", "NoService/Mint", "TokenService/mint"])
def test_a_method_that_is_none_is_unimplemented(served, method):
    with pytest.raises(grpc.RpcError) as caught:
        raw(served, method, b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# The feed.


class Stream:
    """A verifier that says what the test wants."""

    def __init__(self, served, *first):
        self._more = threading.Event()
        self._over = threading.Event()
        self._first = first
        self.later = []
        self._channel = served.channel("gateway")
        self.answers = feed_pb2_grpc.FeedServiceStub(self._channel).Listen(self._said(), timeout=15)

    def _said(self):
        yield from self._first
        self._more.wait(15)
        yield from self.later
        self._over.wait(15)

    def say(self, *messages):
        self.later = messages
        self._more.set()

    def close(self):
        self._more.set()
        self._over.set()
        self.answers.cancel()


HELLO = feed_pb2.ListenRequest(hello=feed_pb2.Hello(realm="evaluation", version="test"))


@pytest.mark.parametrize(
    "first",
    [
        feed_pb2.ListenRequest(),
        feed_pb2.ListenRequest(ack=feed_pb2.Ack(head=1)),
        feed_pb2.ListenRequest(echo=feed_pb2.Echo(nonce=b"n" * 16)),
    ],
    ids=["nothing", "ack", "echo"],
)
def test_p7_a_stream_that_does_not_begin_with_hello_is_refused(served, refused, first):
    stream = Stream(served, first)
    refused(lambda: list(stream.answers), INVALID, "message")
    stream.close()


@pytest.mark.parametrize(
    ("later", "field"),
    [
        (HELLO, "message"),
        (feed_pb2.ListenRequest(), "message"),
        (feed_pb2.ListenRequest(echo=feed_pb2.Echo(nonce=b"short")), "echo.nonce"),
        (feed_pb2.ListenRequest(echo=feed_pb2.Echo(nonce=b"n" * 17)), "echo.nonce"),
    ],
    ids=["hello again", "nothing", "short nonce", "long nonce"],
)
def test_p7_what_a_stream_must_not_say_ends_it(served, refused, later, field):
    stream = Stream(served, HELLO)
    stream.say(later)
    refused(lambda: list(stream.answers), INVALID, field)
    stream.close()


def listening(stubs):
    found = stubs["status"].ListVerifiers(status_pb2.ListVerifiersRequest(realm="evaluation")).verifiers
    return [one for one in found if one.version == "test"]


def test_p6_an_acknowledgement_of_another_incarnation_or_of_the_future_settles_nothing(served, stubs):
    stream = Stream(served, HELLO)
    next(stream.answers)
    status = stubs["status"].GetStatus(status_pb2.GetStatusRequest())
    acks = [
        feed_pb2.Ack(head=status.head, incarnation="f" * 32),
        feed_pb2.Ack(head=status.head, incarnation=""),
        feed_pb2.Ack(head=2**64 - 1, incarnation=status.incarnation),
    ]
    stream.say(
        *(feed_pb2.ListenRequest(ack=ack) for ack in acks[:2]),
        feed_pb2.ListenRequest(nack=feed_pb2.Nack(reason="R" * 10_000)),
    )
    wait_until(lambda: [one for one in listening(stubs) if one.last_nack])
    assert {(one.head, one.last_nack) for one in listening(stubs) if one.last_nack} == {(0, "R" * 64)}
    stream.close()
    ahead = Stream(served, HELLO)
    next(ahead.answers)
    ahead.say(feed_pb2.ListenRequest(ack=acks[2]))
    # Nobody can have applied what was not published.
    found = wait_until(lambda: [one for one in listening(stubs) if one.head])
    assert found[0].head <= stubs["status"].GetStatus(status_pb2.GetStatusRequest()).head
    events = served.revoke(wait=True, token="A" * 22)
    mine = [one for one in events[-1].complete.verifiers if one.verifier == "spiffe://lab.example/gateway"]
    assert mine
    assert not any(one.acknowledged for one in mine)
    ahead.close()


# The HTTP door.


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/realms/production/jwks.json", 404),
        ("GET", "/realms/..%2fevaluation/jwks.json", 404),
        ("GET", "/realms/%00/jwks.json", 404),
        ("GET", f"/realms/{'a' * 3000}/jwks.json", 404),
        ("GET", "/nothing", 404),
        ("POST", "/realms/evaluation/jwks.json", 405),
        ("DELETE", "/metrics", 405),
    ],
)
def test_what_the_http_door_does_not_have_it_says_so(served, method, path, status):
    context = ssl.create_default_context(cafile=served.authority.ca)
    answer = httpx.request(method, f"https://127.0.0.1:{served.http_port}{path}", verify=context)
    assert answer.status_code == status
    assert "Traceback" not in answer.text
