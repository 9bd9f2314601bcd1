"""The key of a run, its file, and what a run asks: what is damaged, readable by others, or in the way."""

import json
import os
import pickle
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from broker.errors import ConfigInvalid, Invalid, LimitReached, NotFound, RunEnded, RunProofRefused, Untrusted
from broker.sdk.asking import Spec
from broker.sdk.retrying import Attempts
from broker.sdk.run_key import KeptRun, RunKey, keep_run, must_be_free, read_kept_run
from broker.sdk.run_state import RunState
from broker.v1 import runs_pb2

KEPT = KeptRun("run-00000001", RunKey.new(), "evaluation", "acme", ("mythos", "oracle@blue"), "alice", None)


def test_a_kept_run_comes_back_as_it_went(tmp_path):
    file = tmp_path / "run.key"
    must_be_free(file)
    keep_run(KEPT, file)
    back = read_kept_run(file)
    assert (back.run, back.realm, back.partner, back.models, back.user, back.workload) == (
        KEPT.run, KEPT.realm, KEPT.partner, KEPT.models, "alice", None,
    )  # fmt: skip
    assert back.key.thumbprint == KEPT.key.thumbprint
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["run.key"]


def test_p12_a_key_does_not_show_itself_and_is_not_copied():
    assert "PRIVATE" not in repr(KEPT)
    assert repr(KEPT.key) == f"RunKey({KEPT.key.thumbprint})"
    with pytest.raises(TypeError, match="not copied"):
        pickle.dumps(KEPT.key)


def test_the_key_of_another_run_is_never_overwritten(tmp_path):
    file = tmp_path / "run.key"
    keep_run(KEPT, file)
    before = file.read_bytes()
    for write in (lambda: keep_run(KEPT, file), lambda: must_be_free(file)):
        with pytest.raises(ConfigInvalid, match="is there already"):
            write()
    assert file.read_bytes() == before
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigInvalid, match="is there already"):
        keep_run(KEPT, dangling)
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(ConfigInvalid, match="No such file"):
        keep_run(KEPT, tmp_path / "no" / "folder")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "run.key"]


def rewritten(file, **changes):
    document = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in document.items() if value is not ...}))


def pem_of(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "x"},
        {"key": None},
        {"key": pem_of(rsa.generate_private_key(65537, 2048))},
        {"key": pem_of(ec.generate_private_key(ec.SECP384R1()))},
        {"run": ""},
        {"run": 5},
        {"run": ...},
        {"models": None},
        {"models": [1]},
        {"user": 5},
        {"more": 1},
    ],
)
def test_p7_a_damaged_key_file_is_refused_without_being_quoted(tmp_path, changes):
    file = tmp_path / "run.key"
    keep_run(KEPT, file)
    rewritten(file, **changes)
    with pytest.raises(ConfigInvalid, match="is not a run's key file") as caught:
        read_kept_run(file)
    assert caught.value.__cause__ is None
    assert "PRIVATE" not in str(caught.value)


def test_p7_a_key_file_that_others_can_use_is_refused(tmp_path):
    file = tmp_path / "run.key"
    keep_run(KEPT, file)
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(ConfigInvalid, match="chmod 600"):
            read_kept_run(file)
    file.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(file, 12345, -1)
        with pytest.raises(ConfigInvalid, match="belongs to another user"):
            read_kept_run(file)
    for text in ("", "[]", "5", "{", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(ConfigInvalid):
            read_kept_run(file)
    with pytest.raises(ConfigInvalid, match="No such file"):
        read_kept_run(tmp_path / "none")


def test_a_wrong_clock_is_set_right_once_by_what_the_broker_told():
    key = RunKey(ec.generate_private_key(ec.SECP256R1()), now_s=lambda: 1000.0)
    attempts = Attempts(10.0)
    told = RunProofRefused("from the future", metadata={"now": "5000"})
    assert not attempts.may_prove_again(told, None)
    assert not attempts.may_prove_again(Untrusted("x"), key)
    assert not attempts.may_prove_again(RunProofRefused("another key"), key)
    assert attempts.may_prove_again(told, key)
    assert not attempts.may_prove_again(told, key)
    assert not key.learn_clock("5000")
    for bad in ("", "x", "-5", "1" * 13, "\u0665"):
        assert not key.learn_clock(bad)


def state(**options):
    one = RunState(Spec("evaluation", "acme", ["mythos"], "alice"), 60, None, **options)
    one.begun(runs_pb2.Run(id="run-00000001"))
    return one


def test_what_cannot_be_wanted_is_refused_before_others_have_to_bear_it():
    run = RunState(Spec("evaluation", "acme", ["mythos"]), None, None)
    with pytest.raises(RunEnded, match="is not open"):
        run.want("case-1", None)
    run = state()
    for test in ("", "Case 1", "../x", "x" * 200):
        with pytest.raises(Invalid):
            run.want(test, None)
    with pytest.raises(Invalid):
        run.want(None, ["My Model"])
    assert run.want(None, "mythos").models == run.want(None, ["mythos"]).models == ("mythos",)


def test_what_means_that_a_run_is_over():
    run = state()
    assert not run.is_over(LimitReached("full", metadata={"limit": "batch"}))
    assert run.is_batch_limit(LimitReached("full", metadata={"limit": "batch"}))
    assert not run.is_batch_limit(LimitReached("full", metadata={"limit": "live_tokens"}))
    assert run.room(LimitReached("full", metadata={"room": "7"})) == 7
    for failure in (
        LimitReached("full"),
        LimitReached("full", metadata={"room": "-1"}),
        LimitReached("full", metadata={"room": "9" * 100}),
        NotFound("x", metadata={"room": "7"}),
    ):
        assert run.room(failure) == 0
    ended = NotFound("there is no such run of yours")
    assert run.is_over(ended)
    assert run.is_over(RunEnded("closed"))
    with pytest.raises(NotFound):
        run.want("case-1", None)


def test_a_run_is_opened_for_whom_it_is_with_its_key_and_the_users_own_token():
    name, request = RunState(
        Spec("evaluation", "acme", ["mythos"], "alice", "ci"), 60, None, user_token="a.b.c"
    ).beginning()
    assert (name, request.user, request.workload, request.user_token) == ("OpenRun", "alice", "ci", "a.b.c")
    assert (json.loads(request.run_key)["crv"], request.lease.seconds) == ("P-256", 60)
