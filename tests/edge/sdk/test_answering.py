"""What a verifier tells of its uses over a real stream: cuts, canaries and surveys, in order and never twice."""

import os
from contextlib import ExitStack

import pytest

from broker.errors import ConfigInvalid
from broker.token.revocation import Dimension
from broker.v1 import feed_pb2
from tests.feed_server import eventually
from tests.mounts import fill, small_disk
from tests.waiting import eventually as timed


def cuts(server):
    return [(cut.index, cut.uses) for stream in list(server.streams) for ack in list(stream.acks) for cut in ack.cuts]


def probe(token, **changes):
    asked = feed_pb2.Probe(**{"id": "drill-1", "token": token, "model": "mythos", "hold_ms": 60_000, **changes})
    return feed_pb2.ListenResponse(probe=asked).SerializeToString()


def survey(*values, dimensions=(Dimension.PARTNER,), name="survey-1"):
    asked = feed_pb2.Survey(id=name, dimensions=dimensions, values=values)
    return feed_pb2.ListenResponse(survey=asked).SerializeToString()


def verdicts(server):
    return [
        (one.probe.verdict, one.probe.ended)
        for stream in list(server.streams)
        for one in list(stream.said)
        if one.WhichOneof("message") == "probe"
    ]


def counted(server):
    return [
        one.survey.uses
        for stream in list(server.streams)
        for one in list(stream.said)
        if one.WhichOneof("message") == "survey"
    ]


def test_p6_the_acknowledgement_that_covers_a_revocation_tells_what_it_cut(server, verifier, keys):
    with verifier.use(keys.mint(), "mythos"), verifier.use(keys.mint(), "mythos"):
        eventually(lambda: [ack.uses for ack in server.streams[-1].acks][-1:] == [2], "the number of uses")
        assert 0 < server.streams[-1].acks[-1].fresh_for_ms <= server.lease_ms
        index = server.revoke(partner="acme")
        eventually(lambda: server.acked_head > index, "the acknowledgement")
        first = next(ack for ack in server.streams[-1].acks if ack.head > index)
        assert [(cut.index, cut.uses) for cut in first.cuts] == [(index, 2)]
        assert first.uses == 0
        acks = len(server.streams[-1].acks)
        eventually(lambda: len(server.streams[-1].acks) > acks + 2, "more acknowledgements")
        assert cuts(server) == [(index, 2)]


def test_cuts_that_were_not_told_before_the_stream_broke_go_with_the_next_ones_first_acknowledgement(
    server, connect, keys, state_dir
):
    verifier = connect(server, state_dir=state_dir)
    verifier.wait_fresh(10)
    eventually(lambda: server.acked_head == 10, "the acknowledgement")
    mark = state_dir / "evaluation.mark"
    kept = mark.read_bytes()
    with verifier.use(keys.mint(), "mythos") as use:
        # What cannot be kept is not acknowledged, and so neither is the cut.
        mark.write_bytes(b"damaged")
        index = server.revoke(partner="acme")
        assert use.cancelled.wait(10)
        server.stop()
        mark.write_bytes(kept)
        server.start()
        eventually(lambda: server.acked_head > index, "the acknowledgement")
    assert cuts(server) == [(index, 1)]
    assert [(cut.index, cut.uses) for cut in server.streams[-1].acks[0].cuts] == [(index, 1)]


def test_the_end_of_a_canary_is_told_before_its_revocation_is_acknowledged(server, verifier, keys):
    server.send(probe(keys.mint(jti="c" * 22)))
    eventually(lambda: verdicts(server) == [("ACCEPTED", False)], "the verdict")
    assert verifier.state().uses == 0
    index = server.revoke(token="c" * 22)
    eventually(lambda: server.acked_head > index, "the acknowledgement")
    said = server.streams[-1].said
    kinds = [one.WhichOneof("message") if not one.ack.head > index else "covers" for one in said]
    assert verdicts(server) == [("ACCEPTED", False), ("REVOKED", True)]
    assert len(kinds) - 1 - kinds[::-1].index("probe") < kinds.index("covers")
    assert cuts(server) == []
    # It is judged anew, although the token is known by now.
    server.send(probe(keys.mint(jti="c" * 22), id="drill-2"))
    eventually(lambda: verdicts(server)[2:] == [("REVOKED", False)], "the second verdict")


def test_p5_a_canary_is_held_no_longer_than_the_lease_lasts(server, verifier, keys):
    server.send(probe(keys.mint()))
    eventually(lambda: verdicts(server) == [("ACCEPTED", False)], "the verdict")
    server.heartbeats = False
    eventually(lambda: not verifier._uses.is_holding, "the end")


@pytest.mark.parametrize(
    "nonsense",
    [
        probe("x", id=""),
        probe("x", id="i" * 65),
        survey("acme", name=""),
        survey("acme", dimensions=[99]),
        survey("acme", "x"),
        survey(),
        probe("\x00" * 9000),
    ],
    ids=["no-name", "long-name", "survey-without-name", "unknown-dimension", "two-values", "no-value", "long-token"],
)
def test_b_questions_that_make_no_sense_end_no_stream(server, verifier, keys, nonsense):
    server.send(nonsense)
    server.send(survey("acme", name="sane"))
    eventually(lambda: counted(server) == [0], "the answer to a sane question")
    index = server.revoke(user="al")
    eventually(lambda: server.acked_head > index, "the acknowledgement")
    assert len(server.streams) == 1
    assert server.nack_reasons() == []
    # What is no token gets its verdict; a question without a usable name gets no answer.
    assert verdicts(server) == ([("MALFORMED", False)] if b"\x00" * 9000 in nonsense else [])


@pytest.mark.parametrize(
    "message",
    [b"\x2a\x00", b"\x2a\x02\x0a\x00", probe("x" * (33 << 10)), b"\x1a\x7f", b""],
    ids=["a-fifth-member", "with-contents", "a-long-question", "cut-off", "empty"],
)
def test_p7_what_is_neither_frame_nor_echo_nor_question_is_refused_as_before(server, verifier, keys, message):
    server.send(message)
    eventually(lambda: "FRAME_MALFORMED" in server.nack_reasons(), "the refusal")
    eventually(lambda: len(server.streams) > 1, "another stream")


def test_ten_thousand_uses_are_counted_while_revocations_go_on_being_acknowledged(server, verifier, keys):
    token = keys.mint()
    with ExitStack() as held:
        for _ in range(10_000):
            held.enter_context(verifier.use(token, "mythos"))
        for number in range(8):
            server.send(survey("acme", name=f"survey-{number}"))
        index = server.revoke(user="al")
        took_s = timed(lambda: server.acked_head > index, "the acknowledgement", within_s=30)
        eventually(lambda: counted(server) == [10_000] * 8, "the counts", within_s=30)
        assert took_s < 5
        assert len(server.streams) == 1
        assert verifier.state().uses == 10_000
    assert verifier.state().uses == 0


def test_a_state_folder_that_is_full_is_an_error_at_once(server, connect, tmp_path):
    with small_disk(tmp_path / "disk", mib=1) as disk:
        fill(disk)
        with pytest.raises(ConfigInvalid, match="No space left"):
            connect(server, state_dir=disk)
        (disk / "ballast").unlink()
        connect(server, state_dir=disk).close()


def test_a_state_folder_that_is_read_only_or_a_file_is_an_error_at_once(server, connect, tmp_path):
    # Not even root may write to this one.
    with pytest.raises(ConfigInvalid, match="name a folder that this process can write to"):
        connect(server, state_dir="/proc/self")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigInvalid, match="state_dir"):
        connect(server, state_dir=file)
    assert server.streams == []


def test_p7_a_state_folder_that_gets_full_is_the_problem_until_it_is_not(server, connect, tmp_path):
    with small_disk(tmp_path / "disk", mib=1) as disk:
        verifier = connect(server, state_dir=disk)
        verifier.wait_fresh(10)
        eventually(lambda: server.acked_head == 10, "the acknowledgement")
        fill(disk)
        index = server.revoke(user="al")
        eventually(lambda: "cannot keep" in verifier.state().problem, "the problem")
        beats = len(server.streams[-1].echoes)
        while len(server.streams[-1].echoes) < beats + 3:
            assert "No space left" in verifier.state().problem
            os.sched_yield()
        assert server.acked_head == index
        (disk / "ballast").unlink()
        eventually(lambda: server.acked_head > index, "the acknowledgement")
        eventually(lambda: verifier.state().problem == "", "all is well")
        verifier.close()
