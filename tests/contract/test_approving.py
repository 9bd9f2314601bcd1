"""Approvals from the wish to the token, with two brokers on one store, on each engine (B3, B15, B20)."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.domain.approval import Standing
from broker.errors import (
    ApprovalMismatch,
    ApprovalNeeded,
    ApprovalOver,
    BindingNeeded,
    Blocked,
    Failure,
    Forbidden,
    Invalid,
    LimitReached,
    LoginTooOld,
    NotFound,
    NotGranted,
    RequestReused,
    VotedAlready,
)
from broker.ledger.entry import Kind
from broker.service.approving import MAX_WAITING
from broker.service.metering import Unmetered
from broker.service.revoke import Revocations, Revoke
from broker.service.voting import Signed
from broker.token.approval import Decision, Wanted, check_statement, encode_request, request_hash
from broker.token.jws import assemble, signing_input
from broker.token.keys import Purpose, thumbprint
from broker.token.revocation import Selector
from tests.asked import Person
from tests.boards import BOARD, CI, FOR_ALICE, LAPTOP, PEOPLE, RULE, Desk, open_desk, request
from tests.served import ADMIN
from tests.stores import Home, assert_whole
from tests.waiting import eventually, succeeds

pytest_plugins = ["tests.fixtures_stores"]

RACERS = 64


@pytest.fixture
def desk(sqlite_home: Home, tmp_path: Path) -> Iterator[Desk]:
    made = open_desk(sqlite_home, tmp_path / "keys")
    yield made
    made.signer.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def desks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Desk, Desk]]:
    home = request.getfixturevalue(f"{request.param}_home")
    one = open_desk(home, tmp_path / "keys")
    two = open_desk(home, tmp_path / "keys", one.people)
    yield one, two
    one.signer.close()
    two.signer.close()
    assert_whole(home)


def refused_by(kind: type[Failure], desk: Desk, work: Any) -> Failure:
    """Return the refusal; nothing was written by it."""
    size = desk.ledger.head().size
    with pytest.raises(kind) as refused:
        work()
    assert type(refused.value) is kind
    # What happened, and what to do.
    assert "; " in str(refused.value)
    assert desk.ledger.head().size == size
    return refused.value


def test_two_of_the_board_approve_and_one_token_is_minted(desks: tuple[Desk, Desk]) -> None:
    one, two = desks
    approval = one.ask()
    assert two.vote("carol", approval).judged.standing is Standing.WAITING
    refused_by(ApprovalNeeded, one, lambda: one.minting(approval))
    assert one.vote("dave", approval).judged.standing is Standing.APPROVED
    [minted] = two.minting(approval)
    assert minted.grant == "acme-evaluation"
    assert one.standing(approval) is Standing.SPENT
    [record] = one.ledger.approvals.approvals_by_id([approval])
    assert record.approval.ended is not None
    assert record.approval.ended.on == minted.id


def test_the_ledger_tells_who_asked_what_letter_by_letter_who_signed_it_and_what_it_was_spent_on(desk: Desk) -> None:
    approval = desk.ask()
    desk.vote("carol", approval)
    desk.vote("dave", approval)
    [minted] = desk.minting(approval)
    [asked], given = desk.entries(Kind.APPROVAL_REQUESTED), desk.entries(Kind.APPROVAL_GIVEN)
    document = json.dumps(asked.body["asked"], sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(document).hexdigest()
    assert asked.by == CI
    assert [(entry.by, entry.body["person"]) for entry in given] == [
        (PEOPLE["carol"], "carol"),
        (PEOPLE["dave"], "dave"),
    ]
    for entry in given:
        # A stranger with the ledger alone can check what was signed, and by which key.
        kept: Any = entry.body["statement"]
        message = signing_input(typ="approval+jwt", kid=thumbprint(kept["key"]), payload=kept["payload"].encode())
        stated = check_statement(assemble(message, bytes.fromhex(kept["signature"])), kept["key"])
        assert (stated.request, stated.decision, stated.approver) == (digest, Decision.APPROVE, entry.by)
    [spent] = desk.entries(Kind.APPROVAL_SPENT)
    assert spent.body["on"] == minted.id
    assert spent.body["approvers"] == ["carol", "dave"]
    for entry in (asked, *given, spent):
        # So that the trail of a partner, a user or a model has them, too.
        about = {name: entry.body[name] for name in ("approval", "realm", "partner", "models", "user", "environment")}
        assert about == {
            "approval": approval,
            "realm": "evaluation",
            "partner": "acme",
            "models": ["mythos"],
            "user": "alice",
            "environment": "acme-ci",
        }
    [entry] = desk.entries(Kind.TOKEN_MINTED)
    assert entry.body["approval"] == approval
    # In the mint's own transaction, behind it.
    assert spent.index == minted.index + 1


def test_without_an_approval_nothing_is_minted_and_it_says_what_to_ask_for(desk: Desk) -> None:
    refusal = refused_by(ApprovalNeeded, desk, lambda: desk.minting(None))
    assert "2 of group board" in refusal.message
    assert "broker approval request" in refusal.hint
    assert refusal.metadata == {"grant": "acme-evaluation", "purpose": "token"}


# Spent once.


def test_b3_of_64_mints_at_the_same_moment_on_two_brokers_exactly_one_gets_its_token(desks: tuple[Desk, Desk]) -> None:
    approval = desks[0].approved()
    size = desks[0].ledger.head().size

    def mint(number: int) -> Any:
        try:
            return desks[number % 2].minting(approval)
        except Failure as failure:
            return failure

    with ThreadPoolExecutor(RACERS) as pool:
        found = list(pool.map(mint, range(RACERS)))
    tokens = [one for one in found if not isinstance(one, Failure)]
    assert len(tokens) == 1
    assert {type(one) for one in found if isinstance(one, Failure)} == {ApprovalOver}
    # One token, and the word that it was spent on it; of the others nothing.
    assert desks[0].ledger.head().size == size + 2


def test_b3_a_mint_that_is_repeated_gets_its_token_again_and_another_does_not(desk: Desk) -> None:
    approval = desk.approved()
    key = request("mint")
    [first] = desk.minting(approval, key=key)
    [again] = desk.minting(approval, key=key)
    assert (again.id, again.index) == (first.id, first.index)
    refused_by(ApprovalOver, desk, lambda: desk.minting(approval))
    refused_by(RequestReused, desk, lambda: desk.minting(approval, key=replace(key, digest=b"x" * 32)))


def test_b3_an_approval_is_spent_after_a_restart_too(sqlite_home: Home, tmp_path: Path) -> None:
    before = open_desk(sqlite_home, tmp_path / "keys")
    approval = before.approved()
    before.minting(approval)
    before.signer.close()
    before.ledger.close()
    after = open_desk(sqlite_home, tmp_path / "keys")
    refused_by(ApprovalOver, after, lambda: after.minting(approval))
    after.signer.close()


def test_b3_one_approval_is_not_for_two_tokens_of_a_batch(desk: Desk) -> None:
    approval = desk.approved()
    refused_by(ApprovalOver, desk, lambda: desk.minting(approval, approval))
    refused_by(ApprovalNeeded, desk, lambda: desk.minting(approval, None))
    other = desk.approved()
    one, two = desk.minting(approval, other)
    assert two.index == one.index + 1
    assert {desk.standing(approval), desk.standing(other)} == {Standing.SPENT}


def test_b3_a_batch_that_is_repeated_gets_exactly_its_tokens_again(desk: Desk) -> None:
    approvals, key = (desk.approved(), desk.approved()), request("batch")
    first = desk.minting(*approvals, key=key)
    assert [one.id for one in desk.minting(*approvals, key=key)] == [one.id for one in first]


# Who may vote.


def test_b15_nobody_approves_what_they_asked_for_themselves_under_any_alias(desk: Desk) -> None:
    approval = desk.ask(by=LAPTOP)
    refusal = refused_by(Forbidden, desk, lambda: desk.vote("alice", approval))
    assert "nobody approves what is for themselves" in refusal.message
    # The harness asks for a token for alice: still it is for her.
    for_her = desk.ask()
    refused_by(Forbidden, desk, lambda: desk.vote("alice", for_her))
    # She may deny nothing of hers either; she may withdraw it.
    refused_by(Forbidden, desk, lambda: desk.vote("alice", approval, Decision.DENY))


def test_b15_somebody_who_is_not_of_the_group_learns_of_no_request(desk: Desk) -> None:
    approval = desk.ask()
    theirs = refused_by(NotFound, desk, lambda: desk.vote("outsider", approval))
    never = refused_by(NotFound, desk, lambda: desk.vote("outsider", "never-was-asked-for-00"))
    assert str(theirs) == str(never)
    refused_by(NotFound, desk, lambda: desk.approving.get(desk.caller(PEOPLE["outsider"]), approval))
    assert desk.approving.listed(desk.caller(PEOPLE["outsider"]), None, 10) == []
    assert len(desk.approving.listed(desk.caller(PEOPLE["carol"]), None, 10)) == 1


def test_a_service_account_and_every_other_role_never_votes(desk: Desk) -> None:
    approval = desk.ask()
    for uri in (CI, LAPTOP, ADMIN, "spiffe://lab.example/audit", "spiffe://globex.example/cluster"):
        person = Person(uri)
        [record] = desk.ledger.approvals.approvals_by_id([approval])
        signed = Signed(person.says(request_hash(record.document)), person.jwk)
        refused_by(
            Forbidden,
            desk,
            lambda signed=signed, uri=uri: desk.voting(
                desk.caller(uri), approval, Decision.APPROVE, signed, request(principal=uri)
            ),
        )


def test_b15_a_person_votes_once_under_whatever_name(desk: Desk) -> None:
    approval = desk.ask()
    desk.vote("carol", approval)
    refused_by(VotedAlready, desk, lambda: desk.vote("carol", approval))
    refused_by(VotedAlready, desk, lambda: desk.vote("carol-at-home", approval))
    assert desk.standing(approval) is Standing.WAITING
    # The same call again is the same vote.
    other, key = desk.ask(), request(principal=PEOPLE["dave"])
    first = desk.vote("dave", other, key=key)
    assert desk.vote("dave", other, key=key).record == first.record


def test_b15_of_many_votes_of_one_person_at_the_same_moment_one_counts(desks: tuple[Desk, Desk]) -> None:
    approval = desks[0].ask()

    def vote(number: int) -> Any:
        try:
            return desks[number % 2].vote(("carol", "carol-at-home")[number // 2 % 2], approval)
        except Failure as failure:
            return failure

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(vote, range(16)))
    assert sum(not isinstance(one, Failure) for one in found) == 1
    assert {type(one) for one in found if isinstance(one, Failure)} == {VotedAlready}
    assert desks[0].standing(approval) is Standing.WAITING


def test_an_old_login_does_not_vote_and_one_that_says_no_time_neither(desk: Desk) -> None:
    approval = desk.ask()
    refusal = refused_by(LoginTooOld, desk, lambda: desk.vote("carol", approval, login_s=901))
    assert "log in again" in refusal.hint
    refused_by(LoginTooOld, desk, lambda: desk.vote("carol", approval, Decision.DENY, login_s=901))
    caller = desk.caller(PEOPLE["carol"])
    timeless = replace(caller, proof=replace(caller.proof, not_before=None))
    [record] = desk.ledger.approvals.approvals_by_id([approval])
    signed = Signed(desk.people["carol"].says(request_hash(record.document)), desk.people["carol"].jwk)
    key = request(principal=PEOPLE["carol"])
    refused_by(LoginTooOld, desk, lambda: desk.voting(timeless, approval, Decision.APPROVE, signed, key))
    assert desk.vote("carol", approval, login_s=899).judged.standing is Standing.WAITING


# What was signed.


def test_b15_whoever_was_shown_one_request_has_not_approved_another(desk: Desk) -> None:
    shown, swapped = desk.ask(), desk.ask(replace(FOR_ALICE, models=("oracle",)))
    [seen] = desk.ledger.approvals.approvals_by_id([shown])
    refusal = refused_by(Invalid, desk, lambda: desk.vote("carol", swapped, saw=seen.document))
    assert refusal.metadata["field"] == "statement"
    assert "another request" in refusal.message
    altered = encode_request(replace(seen.approval.request, models=("mythos", "oracle")))
    refused_by(Invalid, desk, lambda: desk.vote("carol", shown, saw=altered))


def test_b15_a_statement_is_the_caller_s_own_of_now_and_of_this_decision(desk: Desk) -> None:
    approval = desk.ask()
    [record] = desk.ledger.approvals.approvals_by_id([approval])
    digest, now_s = request_hash(record.document), int(desk.now().timestamp())
    carol, dave = desk.people["carol"], desk.people["dave"]
    for statement in (
        dave.says(digest, iat=now_s),
        carol.says(digest, iat=now_s, approver=PEOPLE["dave"]),
        carol.says(digest, Decision.DENY, iat=now_s),
        carol.says(digest, iat=now_s - 301),
        carol.says(digest, iat=now_s + 120),
        carol.says(digest, iat=now_s)[:-1],
        "",
        "eyJhbGciOiJub25lIn0..",
    ):
        refusal = refused_by(
            Invalid, desk, lambda statement=statement: desk.vote("carol", approval, statement=statement)
        )
        assert refusal.metadata["field"] == "statement"
    assert desk.vote("carol", approval).record.approval.votes


# What it is for.


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"models": ("oracle",)}, "models"),
        ({"models": ("mythos", "oracle")}, "models"),
        ({"models": ("mythos@a",)}, "models"),
        ({"user": None, "workload": "nightly"}, "user"),
        ({"user": "alice", "workload": "nightly"}, "workload"),
        ({"ttl_s": 601}, "lifetime"),
        ({"ttl_s": 1}, "lifetime"),
        ({"environment": "laptop"}, "environment"),
        ({"run": "a-run-of-its-own-00"}, "run"),
    ],
)
def test_b15_an_approval_is_for_exactly_what_was_asked(desk: Desk, changed: dict[str, Any], field: str) -> None:
    approval = desk.approved()
    refusal = refused_by(ApprovalMismatch, desk, lambda: desk.minting(approval, **changed))
    assert refusal.metadata == {"field": field}
    assert desk.standing(approval) is Standing.APPROVED
    assert desk.minting(approval, ttl_s=600)


def test_b15_an_approval_of_a_run_is_for_no_token_and_somebody_else_s_for_nobody(desk: Desk) -> None:
    for_run = desk.approved(replace(FOR_ALICE, purpose=Wanted.RUN))
    assert refused_by(ApprovalMismatch, desk, lambda: desk.minting(for_run)).metadata == {"field": "purpose"}
    # Asked for by alice at her laptop: the machine beside hers has none.
    hers = desk.approved(by=LAPTOP)
    refusal = refused_by(ApprovalMismatch, desk, lambda: desk.minting(hers, environment="laptop"))
    assert refusal.metadata == {"field": "requester"}
    assert desk.minting(hers, by=LAPTOP, environment="laptop")


def test_b20_an_approval_of_another_partner_is_as_unknown_as_one_that_never_was(desk: Desk) -> None:
    approval, globex = desk.approved(), "spiffe://globex.example/cluster"
    caller = desk.caller(globex)
    asked = {"by": globex, "partner": "globex", "user": "bob", "environment": "globex-cluster"}
    never = "never-was-asked-for-00"
    for work in (
        lambda one: desk.minting(one, **asked),
        lambda one: desk.approving.get(caller, one),
        lambda one: desk.approving.withdraw(caller, one, request(principal=globex)),
    ):
        theirs = refused_by(NotFound, desk, lambda work=work: work(approval))
        assert str(theirs) == str(refused_by(NotFound, desk, lambda work=work: work(never)))
    assert desk.approving.listed(caller, None, 10) == []
    refused_by(Forbidden, desk, lambda: desk.approving.listed(caller, "acme", 10))
    refused_by(Forbidden, desk, lambda: desk.approving.request(caller, FOR_ALICE, request(principal=globex)))
    assert desk.minting(approval)


def test_an_id_cannot_be_guessed(desk: Desk) -> None:
    ids = [desk.ask() for _ in range(20)]
    assert len(set(ids)) == 20
    # 128 random bits each, and no counter in them.
    assert all(len(one) == 22 for one in ids)
    assert all(sum(a == b for a, b in zip(one, ids[0], strict=True)) < 12 for one in ids[1:])


# Changed, over, taken back.


def test_b15_a_member_who_leaves_between_the_vote_and_the_mint_has_not_approved(desks: tuple[Desk, Desk]) -> None:
    one, two = desks
    approval = one.approved()
    one.apply(BOARD.replace("[carol, dave, erin, alice]", "[carol, erin, alice]"))
    # The other broker has not heard of it, and is told at the append.
    refusal = refused_by(ApprovalNeeded, two, lambda: two.minting(approval))
    assert "1 of 2" in refusal.message
    assert one.vote("erin", approval).judged.standing is Standing.APPROVED
    assert two.minting(approval)
    [spent] = one.entries(Kind.APPROVAL_SPENT)
    assert spent.body["approvers"] == ["carol", "erin"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (RULE, RULE.replace("needed: 2", "needed: 3")),
        (RULE, RULE.replace("needed: 2", "needed: 1")),
        (RULE, RULE.replace("login: 15m", "login: 16m")),
        (f"approvals: {RULE}", f"binding: mtls, approvals: {RULE}"),
        (f"approvals: {RULE}", f"delegation: 1, approvals: {RULE}"),
        (f"approvals: {RULE}, ", ""),
        ("id: acme-evaluation, ", "id: acme-evaluation-2, "),
    ],
)
def test_b15_an_approval_of_a_grant_that_demands_something_else_by_now_is_void(desk: Desk, old: str, new: str) -> None:
    approval, waiting = desk.approved(), desk.ask()
    assert old in BOARD
    desk.apply(BOARD.replace(old, new))
    assert desk.standing(approval) is Standing.VOID
    if "binding" in new:
        # That the token is not bound is told before.
        refused_by(BindingNeeded, desk, lambda: desk.minting(approval))
    else:
        refusal = refused_by(ApprovalOver, desk, lambda: desk.minting(approval))
        assert refusal.metadata["state"] == "void"
    refused_by(ApprovalOver, desk, lambda: desk.vote("carol", waiting))
    # Nobody has to remember it: as it was, it is good again.
    desk.apply(BOARD)
    assert desk.minting(approval)


def test_p3_a_vote_for_what_is_not_granted_or_blocked_by_now_is_refused(desk: Desk) -> None:
    approval = desk.ask()
    desk.apply(BOARD.replace("models: [mythos, oracle], environments: [acme-ci, laptop]", "models: [oracle], environments: [acme-ci, laptop]"))  # fmt: skip
    refused_by(NotGranted, desk, lambda: desk.vote("carol", approval))
    desk.apply(BOARD)
    revoke = Revoke(desk.ledger, desk.policies, Revocations(desk.clock, timedelta(days=1)), Unmetered())
    selector = Selector.of(partner="acme")
    revoke(desk.caller(ADMIN), selector, reason="x", whole_realm=False, request=request(principal=ADMIN))
    refused_by(Blocked, desk, lambda: desk.vote("carol", approval))
    # A no is always heard.
    assert desk.vote("carol", approval, Decision.DENY).judged.standing is Standing.DENIED


def test_p3_what_was_approved_before_a_block_mints_nothing_after_it(desks: tuple[Desk, Desk]) -> None:
    one, two = desks
    approval = one.approved()
    revoke = Revoke(one.ledger, one.policies, Revocations(one.clock, timedelta(days=1)), Unmetered())
    selector = Selector.of(user="alice")
    revoke(one.caller(ADMIN), selector, reason="x", whole_realm=False, request=request(principal=ADMIN))
    refused_by(Blocked, two, lambda: two.minting(approval))
    assert two.standing(approval) is Standing.APPROVED


def test_a_no_ends_it_also_after_enough_people_said_yes(desk: Desk) -> None:
    approval = desk.approved()
    assert desk.vote("erin", approval, Decision.DENY).judged.standing is Standing.DENIED
    assert refused_by(ApprovalOver, desk, lambda: desk.minting(approval)).metadata["state"] == "denied"
    refused_by(ApprovalOver, desk, lambda: desk.vote("carol-at-home", approval))
    [denied] = desk.entries(Kind.APPROVAL_DENIED)
    assert denied.body["person"] == "erin"


def test_whoever_said_yes_can_still_say_no(desk: Desk) -> None:
    approval = desk.ask()
    desk.vote("carol", approval)
    shown = desk.vote("carol", approval, Decision.DENY)
    assert shown.judged.standing is Standing.DENIED
    assert [vote.decision for vote in shown.record.approval.votes] == [Decision.DENY]


def test_whoever_asked_takes_it_back_and_nobody_else_does(desk: Desk) -> None:
    approval = desk.approved()
    refused_by(Forbidden, desk, lambda: desk.approving.withdraw(desk.caller(LAPTOP), approval, request()))
    refused_by(Forbidden, desk, lambda: desk.approving.withdraw(desk.caller(PEOPLE["carol"]), approval, request()))
    for _ in range(2):
        shown = desk.approving.withdraw(desk.caller(CI), approval, request())
        assert shown.judged.standing is Standing.WITHDRAWN
    assert len(desk.entries(Kind.APPROVAL_WITHDRAWN)) == 1
    refused_by(ApprovalOver, desk, lambda: desk.minting(approval))
    spent = desk.approved()
    desk.minting(spent)
    refused_by(ApprovalOver, desk, lambda: desk.approving.withdraw(desk.caller(CI), spent, request()))


def test_too_few_in_time_and_it_expires_unused_in_time_and_it_lapses(sqlite_home: Home, tmp_path: Path) -> None:
    desk = open_desk(sqlite_home, tmp_path / "keys")
    late, lapsing = desk.ask(), desk.approved()
    desk.vote("carol", late)
    desk.clock.advance(3601)
    assert desk.standing(late) is Standing.EXPIRED
    refused_by(ApprovalOver, desk, lambda: desk.vote("dave", late))
    desk.signer.wake()
    eventually(lambda: succeeds(lambda: desk.signer.current("evaluation", Purpose.TOKEN)), "a new key")
    refused_by(ApprovalOver, desk, lambda: desk.minting(late))
    assert desk.standing(lapsing) is Standing.APPROVED
    desk.clock.advance(3600)
    desk.signer.wake()
    eventually(lambda: succeeds(lambda: desk.signer.current("evaluation", Purpose.TOKEN)), "a new key")
    assert refused_by(ApprovalOver, desk, lambda: desk.minting(lapsing)).metadata["state"] == "lapsed"
    desk.signer.close()


# Runs.

FOR_RUN = replace(FOR_ALICE, purpose=Wanted.RUN)


def test_a_run_needs_the_approval_and_its_tokens_need_no_other(desks: tuple[Desk, Desk]) -> None:
    one, two = desks
    refusal = refused_by(ApprovalNeeded, one, lambda: one.open_run(None))
    assert refusal.metadata == {"grant": "acme-evaluation", "purpose": "run"}
    approval = two.approved(FOR_RUN)
    run = one.open_run(approval)
    assert run.approval == approval
    [record] = two.ledger.approvals.approvals_by_id([approval])
    assert record.approval.ended is not None
    assert record.approval.ended.on == run.id
    # As many as it likes, on every broker, of each instance.
    assert len(two.minting(*[None] * 5, run=run.id)) == 5
    assert one.minting(None, run=run.id, models=("mythos@a",), ttl_s=7)
    assert {entry.body["approval"] for entry in one.entries(Kind.TOKEN_MINTED, Kind.RUN_OPENED)} == {approval}
    # Opened already, it goes on when the grant demands more.
    one.apply(BOARD.replace("needed: 2", "needed: 3"))
    two.policies.refresh()
    assert two.minting(None, run=run.id)


def test_b15_an_approved_run_is_for_whom_and_for_what_it_was_approved(desk: Desk) -> None:
    run = desk.open_run(desk.approved(FOR_RUN))
    for changed in ({"user": None, "workload": "nightly"}, {"models": ("oracle",)}, {"workload": "nightly"}):
        refused_by(ApprovalNeeded, desk, lambda changed=changed: desk.minting(None, run=run.id, **changed))
    # A run that was opened when nobody had to approve it is no approved one.
    desk.apply(BOARD.replace(f"approvals: {RULE}, ", ""))
    free = desk.open_run(None)
    assert desk.minting(None, run=free.id)
    desk.apply(BOARD)
    refused_by(ApprovalNeeded, desk, lambda: desk.minting(None, run=free.id))


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"models": ("oracle",)}, "models"),
        ({"models": ("mythos", "oracle")}, "models"),
        ({"user": None, "workload": "nightly"}, "user"),
        ({"lease_s": 299}, "lifetime"),
        ({"lease_s": 3000}, "lifetime"),
    ],
)
def test_b15_an_approval_is_for_exactly_the_run_that_was_asked_for(
    desk: Desk, changed: dict[str, Any], field: str
) -> None:
    approval = desk.approved(FOR_RUN)
    refusal = refused_by(ApprovalMismatch, desk, lambda: desk.open_run(approval, **changed))
    assert refusal.metadata == {"field": field}
    assert desk.open_run(approval, lease_s=300)


def test_b15_an_approval_of_a_token_or_of_another_partner_opens_no_run(desk: Desk) -> None:
    approval = desk.approved()
    assert refused_by(ApprovalMismatch, desk, lambda: desk.open_run(approval)).metadata == {"field": "purpose"}
    refused_by(NotFound, desk, lambda: desk.open_run("never-was-asked-for-00"))
    globex = {"by": "spiffe://globex.example/cluster", "partner": "globex", "user": "bob"}
    for_run = desk.approved(FOR_RUN)
    theirs = refused_by(NotFound, desk, lambda: desk.open_run(for_run, **globex))
    assert str(theirs) == str(refused_by(NotFound, desk, lambda: desk.open_run("never-was-asked-for-00", **globex)))


def test_b3_of_64_runs_that_open_with_it_on_two_brokers_exactly_one_does(desks: tuple[Desk, Desk]) -> None:
    approval = desks[0].approved(FOR_RUN)
    size = desks[0].ledger.head().size

    def open_run(number: int) -> Any:
        try:
            return desks[number % 2].open_run(approval)
        except Failure as failure:
            return failure

    with ThreadPoolExecutor(RACERS) as pool:
        found = list(pool.map(open_run, range(RACERS)))
    assert sum(not isinstance(one, Failure) for one in found) == 1
    assert {type(one) for one in found if isinstance(one, Failure)} == {ApprovalOver}
    assert desks[0].ledger.head().size == size + 2
    assert len(desks[1].ledger.runs("acme", 100)) == 1


def test_b3_the_run_that_is_opened_again_with_the_same_request_id_is_the_same(desk: Desk) -> None:
    approval, key = desk.approved(FOR_RUN), request("open")
    first = desk.open_run(approval, key=key)
    assert desk.open_run(approval, key=key).id == first.id
    refused_by(ApprovalOver, desk, lambda: desk.open_run(approval))


def test_a_run_for_nobody_in_particular_is_opened_without_and_each_token_of_it_needs_one(desk: Desk) -> None:
    run = desk.open_run(None, user=None)
    refused_by(ApprovalNeeded, desk, lambda: desk.minting(None, run=run.id))
    # Without a name it is for whom the caller is, as the request was.
    wish = replace(FOR_RUN, user=None, workload="nightly")
    assert desk.open_run(desk.approved(wish), user=None).workload == "nightly"


# Asking.


def test_what_is_not_granted_or_needs_no_approval_is_not_asked_for(desk: Desk) -> None:
    def ask(**changed: Any) -> Any:
        return lambda: desk.ask(replace(FOR_ALICE, **changed))

    refused_by(NotGranted, desk, ask(models=("unheard-of",)))
    refused_by(NotGranted, desk, ask(user="nobody"))
    refused_by(Invalid, desk, ask(lifetime_s=3601))
    refused_by(Invalid, desk, ask(purpose=Wanted.RUN, lifetime_s=9))
    refused_by(Invalid, desk, ask(purpose=Wanted.RUN, lifetime_s=86_401))
    refused_by(Invalid, desk, ask(user=None))
    refusal = refused_by(Invalid, desk, ask(realm="research", models=("oracle",)))
    assert "needs no approval" in refusal.message
    # A human asks for themselves alone.
    refused_by(Forbidden, desk, lambda: desk.ask(replace(FOR_ALICE, user=None, workload="nightly"), by=LAPTOP))


def test_what_is_asked_for_says_the_lifetime_that_it_will_have_and_what_is_demanded(desk: Desk) -> None:
    [record] = desk.ledger.approvals.approvals_by_id([desk.ask()])
    asked = record.approval.request
    assert (asked.lifetime_s, asked.grant, asked.environment, asked.person) == (600, "acme-evaluation", "acme-ci", None)
    assert (asked.needed, asked.group, asked.window_s, asked.valid_s, asked.login_s) == (2, "board", 3600, 7200, 900)
    [record] = desk.ledger.approvals.approvals_by_id([desk.ask(replace(FOR_ALICE, purpose=Wanted.RUN))])
    assert record.approval.request.lifetime_s == 300
    [record] = desk.ledger.approvals.approvals_by_id([desk.ask(by=LAPTOP)])
    assert record.approval.request.person == "alice"


def test_asking_again_with_the_same_request_id_asks_for_nothing_more(desk: Desk) -> None:
    key = request("a wish")
    caller = desk.caller(CI)
    first = desk.approving.request(caller, FOR_ALICE, key)
    again = desk.approving.request(caller, FOR_ALICE, key)
    assert again.record == first.record
    assert len(desk.entries(Kind.APPROVAL_REQUESTED)) == 1


def test_a_harness_cannot_bury_people_in_requests(desk: Desk) -> None:
    for _ in range(MAX_WAITING):
        last = desk.ask()
    refusal = refused_by(LimitReached, desk, desk.ask)
    assert refusal.metadata == {"limit": "waiting approvals"}
    desk.approving.withdraw(desk.caller(CI), last, request())
    assert desk.ask()


def test_a_grant_that_is_only_audited_mints_without_and_notes_it(
    sqlite_home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = open_desk(sqlite_home, tmp_path / "keys")
    desk.apply(BOARD.replace("id: acme-evaluation, ", "id: acme-evaluation, mode: audit, "))
    assert desk.minting(None)
    assert "would be denied" in caplog.text
    assert not desk.entries(Kind.APPROVAL_SPENT)
    # What is approved is spent all the same.
    approval = desk.approved()
    assert desk.minting(approval)
    assert desk.standing(approval) is Standing.SPENT
    desk.signer.close()


def test_a_policy_that_this_broker_has_not_heard_of_is_the_one_that_counts(desks: tuple[Desk, Desk]) -> None:
    one, two = desks
    approval = one.ask()
    one.apply(BOARD.replace("[carol, dave, erin, alice]", "[dave, erin, alice]"))
    refusal = refused_by(Forbidden, two, lambda: two.vote("carol", approval))
    assert "not in the group" in refusal.message
