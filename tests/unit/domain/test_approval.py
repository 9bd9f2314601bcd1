"""Who may approve, what counts, and when it is over (B3, B15; design.md: zero approvals were open)."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.approval import (
    Approval,
    Ended,
    Standing,
    Vote,
    changed_since,
    demands_of,
    difference,
    interested,
    is_recent,
    is_within_run,
    judge,
    problems,
    refusal,
)
from broker.domain.asking import Ask
from broker.domain.policy import Binding, Principal, Role
from broker.token.approval import Decision, Wanted
from tests.asked import AT, GRANT, PRINCIPALS, RULE, after, asked, policy

POLICY = policy()


def vote(person: str, principal: str, seconds: float, *, login: float | None = None, decision=Decision.APPROVE) -> Vote:
    return Vote(person, principal, decision, after(seconds), after(seconds - 60 if login is None else login))


ALICE = vote("alice", "alice", 10)
CAROL = vote("carol", "spiffe://lab.example/carol", 20)
DAVE = vote("dave", "spiffe://lab.example/dave", 30)


def standing(*votes: Vote, at: float = 60, ended: Ended | None = None, under=POLICY, **changed) -> Standing:
    return judge(Approval(asked(**changed), votes, ended), under, after(at)).standing


def test_so_many_different_people_as_the_grant_needs_and_it_is_approved():
    assert standing() is Standing.WAITING
    assert standing(ALICE) is Standing.WAITING
    assert standing(ALICE, CAROL) is Standing.APPROVED
    assert standing(ALICE, CAROL, DAVE) is Standing.APPROVED
    judged = judge(Approval(asked(), (ALICE, CAROL)), POLICY, after(60))
    assert [one.person for one in judged.counted] == ["alice", "carol"]
    assert judged.until == after(20 + 7200)


def test_b15_a_person_counts_once_under_whatever_name():
    again = vote("carol", "spiffe://lab.example/carol-at-home", 25)
    assert standing(CAROL, again) is Standing.WAITING
    assert standing(CAROL, again, ALICE) is Standing.APPROVED


def test_it_waits_for_its_window_and_not_longer():
    assert standing(ALICE, at=3599.9) is Standing.WAITING
    assert standing(ALICE, at=3600) is Standing.EXPIRED
    late = vote("carol", "spiffe://lab.example/carol", 3600)
    assert standing(ALICE, late, at=3601) is Standing.EXPIRED


def test_what_was_approved_lapses_unless_it_is_used():
    assert standing(ALICE, CAROL, at=20 + 7199.9) is Standing.APPROVED
    assert standing(ALICE, CAROL, at=20 + 7200) is Standing.LAPSED


@pytest.mark.parametrize("how", [Standing.DENIED, Standing.WITHDRAWN, Standing.SPENT])
def test_what_has_ended_has_ended_for_ever(how):
    assert standing(ALICE, CAROL, ended=Ended(how, after(40))) is how
    assert standing(ALICE, CAROL, ended=Ended(how, after(40)), at=10**7) is how


def test_a_no_counts_for_no_yes():
    assert standing(ALICE, vote("carol", "spiffe://lab.example/carol", 20, decision=Decision.DENY)) is Standing.WAITING


def test_b15_who_has_left_the_group_has_not_approved():
    without = policy(board={"alice", "dave", "bob"})
    assert standing(ALICE, CAROL, under=without) is Standing.WAITING
    assert standing(ALICE, CAROL, DAVE, under=without) is Standing.APPROVED
    assert standing(ALICE, CAROL, at=3600, under=without) is Standing.EXPIRED


def test_b15_who_is_known_as_somebody_else_by_now_has_not_approved():
    renamed = tuple(
        replace(one, person="dave") if one.id == "spiffe://lab.example/carol" else one for one in PRINCIPALS
    )
    assert standing(ALICE, CAROL, under=policy(principals=renamed)) is Standing.WAITING
    demoted = tuple(
        replace(one, role=Role.AUDITOR) if one.id == "spiffe://lab.example/carol" else one for one in PRINCIPALS
    )
    assert standing(ALICE, CAROL, under=policy(principals=demoted)) is Standing.WAITING
    gone = tuple(one for one in PRINCIPALS if one.id != "spiffe://lab.example/carol")
    assert standing(ALICE, CAROL, under=policy(principals=gone)) is Standing.WAITING


def test_a_vote_after_an_old_login_does_not_count():
    old = vote("carol", "spiffe://lab.example/carol", 1000, login=99)
    assert standing(ALICE, old, at=1100) is Standing.WAITING
    assert standing(ALICE, replace(old, login_at=after(100)), at=1100) is Standing.APPROVED
    assert is_recent(asked(), after(0), after(900))
    assert not is_recent(asked(), after(0), after(900.001))
    # From the future: a clock that is wrong proves no login.
    assert is_recent(asked(), after(60), after(0))
    assert not is_recent(asked(), after(61), after(0))


CHANGES = {
    "it is gone": (),
    "it is another partner's": (replace(GRANT, partner="globex"),),
    "it needs none": (replace(GRANT, approvals=None),),
    "needed": (replace(GRANT, approvals=replace(RULE, needed=1)),),
    "group": (replace(GRANT, approvals=replace(RULE, group="other")),),
    "window_s": (replace(GRANT, approvals=replace(RULE, window_s=3601)),),
    "valid_s": (replace(GRANT, approvals=replace(RULE, valid_s=7201)),),
    "login_s": (replace(GRANT, approvals=replace(RULE, login_s=901)),),
    "binding": (replace(GRANT, binding=Binding.DPOP),),
    "delegation": (replace(GRANT, delegation=1),),
}


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_b15_a_request_whose_grant_demands_something_else_by_now_is_void(what):
    changed = policy(grants=CHANGES[what])
    assert standing(ALICE, CAROL, under=changed) is Standing.VOID
    why = changed_since(asked(), changed)
    assert "acme-restricted" in why
    assert not changed_since(asked(), POLICY)
    if what in demands_of(GRANT):
        assert f"({what})" in why


CI = asked().requester


@pytest.mark.parametrize(
    "principals",
    [
        [one for one in PRINCIPALS if one.id != CI],
        [replace(one, partner="globex") if one.id == CI else one for one in PRINCIPALS],
        [replace(one, role=Role.AUDITOR) if one.id == CI else one for one in PRINCIPALS],
        [replace(one, person="dave") if one.id == CI else one for one in PRINCIPALS],
    ],
    ids=["gone", "another partner's", "another role", "somebody else"],
)
def test_b15_a_request_of_somebody_who_is_not_who_they_were_is_void(principals):
    assert standing(ALICE, CAROL, under=policy(principals=principals)) is Standing.VOID
    assert CI in changed_since(asked(), policy(principals=principals))


# Who may vote.


def may(principal_id: str, under=POLICY, **changed) -> str:
    return refusal(asked(**changed), under.principals[principal_id], under)


def test_a_member_of_the_group_may_vote():
    assert not may("alice")
    assert not may("spiffe://lab.example/carol")
    assert "not in the group" in may("alice", policy(board={"carol", "dave"}))
    assert "not in the group" in may("alice", group="another")


@pytest.mark.parametrize("principal", ["spiffe://acme.example/ci", "spiffe://lab.example/ops", "bob"])
def test_another_role_may_not_vote(principal):
    assert "role approver" in may(principal)


@pytest.mark.parametrize("principal", ["robot", "spiffe://lab.example/unnamed"])
def test_a_program_never_votes_though_it_is_in_the_group(principal):
    assert "only people" in may(principal)


def test_whoever_a_provider_that_is_gone_vouched_for_is_nobody():
    under = replace(POLICY, providers={})
    assert "only people" in refusal(asked(), under.principals["alice"], under)


def test_a_workload_never_votes_whatever_person_it_claims_to_be():
    forged = Principal("spiffe://lab.example/bot", Role.APPROVER, workload="ci", person="alice")
    assert "only people" in refusal(asked(), forged, POLICY)


def test_b15_nobody_approves_what_is_for_themselves_under_any_alias():
    # Bob asks as himself, and approves by the certificate that names him robert.
    assert "themselves" in may("spiffe://lab.example/robert", requester="bob", person="bob", user=None)
    # The harness asks for a token for bob.
    assert "themselves" in may("spiffe://lab.example/robert")
    # Bob asked for somebody else: still he asked.
    assert "themselves" in may("spiffe://lab.example/robert", requester="bob", person="bob", user="eve")
    # Under a name that the request does not even say.
    assert "themselves" in may("spiffe://lab.example/robert", requester="bob", person=None, user=None)
    assert not may("spiffe://lab.example/robert", user="eve")


def test_b15_a_user_of_whom_the_policy_says_nothing_else_is_the_person_of_that_name():
    """A harness speaks for bob, who has no login of his own: by his alias he approves nothing all the same."""
    under = policy(principals=tuple(one for one in PRINCIPALS if one.id != "bob"))
    assert "themselves" in refusal(asked(), under.principals["spiffe://lab.example/robert"], under)
    assert not refusal(asked(user=None), under.principals["spiffe://lab.example/robert"], under)


def test_b15_who_asked_and_is_gone_gains_all_the_same():
    assert interested(asked(requester="gone", person="zoe"), POLICY) == {"zoe", "bob"}


def test_only_what_waits_or_is_approved_goes_on():
    assert [one for one in Standing if not one.is_over] == [Standing.WAITING, Standing.APPROVED]


def test_b15_the_user_s_person_is_looked_up_as_the_policy_knows_them_now():
    other = tuple(replace(one, person="dave") if one.id == "bob" else one for one in PRINCIPALS)
    under = policy(principals=other)
    assert "themselves" in refusal(asked(), under.principals["spiffe://lab.example/dave"], under)
    # A user of the same name at another partner is somebody else.
    elsewhere = tuple(replace(one, partner="globex", person="dave") if one.id == "bob" else one for one in PRINCIPALS)
    under = policy(principals=elsewhere)
    assert not refusal(asked(), under.principals["spiffe://lab.example/dave"], under)


def test_b15_the_votes_of_those_whom_it_is_for_do_not_count_either():
    bob = vote("bob", "spiffe://lab.example/robert", 15)
    assert standing(ALICE, bob) is Standing.WAITING
    assert standing(ALICE, bob, user="eve") is Standing.APPROVED


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(
        st.builds(
            lambda who, at, login, yes: Vote(
                who.person or "", who.id, Decision.APPROVE if yes else Decision.DENY, after(at), after(at - login)
            ),
            st.sampled_from(PRINCIPALS),
            st.integers(-10, 4000),
            st.integers(-100, 1200),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.sets(st.sampled_from(["alice", "bob", "carol", "dave", "robot"]), min_size=1),
    st.integers(-10, 20_000),
)
def test_whatever_is_voted_approved_means_enough_people_of_the_group_who_do_not_gain(votes, board, at):
    under = policy(board=board)
    judged = judge(Approval(asked(), tuple(votes)), under, after(at))
    people = [one.person for one in judged.counted]
    assert len(set(people)) == len(people)
    assert set(people) <= board - interested(asked(), under) - {"robot"}
    if judged.standing is Standing.APPROVED:
        assert len(people) >= 2
        assert at < 4000 + 7200
    assert judged.standing in (Standing.WAITING, Standing.APPROVED, Standing.EXPIRED, Standing.LAPSED)


# What may be done with it.

ASK = Ask("evaluation", "acme", "bob", "ci", ("mythos",), "acme-ci")


def other_than(ask: Ask = ASK, **changed) -> str:
    given_ = {"wanted": Wanted.TOKEN, "grant": "acme-restricted", "lifetime_s": 600, "requester": asked().requester}
    return difference(asked(), ask, **{**given_, **changed})


def test_b15_what_is_used_must_be_what_was_approved_in_every_part():
    assert not other_than()
    assert not difference(
        asked(models=("fable", "mythos")), replace(ASK, models=("mythos", "fable")), Wanted.TOKEN, "acme-restricted", 600,
        asked().requester,
    )  # fmt: skip
    assert other_than(replace(ASK, models=("mythos", "oracle"))) == "models"
    assert other_than(replace(ASK, models=("mythos@a",))) == "models"
    assert other_than(replace(ASK, user="eve")) == "user"
    assert other_than(replace(ASK, user=None)) == "user"
    assert other_than(replace(ASK, workload=None)) == "workload"
    assert other_than(replace(ASK, environment="elsewhere")) == "environment"
    assert other_than(replace(ASK, realm="research")) == "realm"
    assert other_than(replace(ASK, partner="globex")) == "partner"
    assert other_than(wanted=Wanted.RUN) == "purpose"
    assert other_than(grant="another") == "grant"
    assert other_than(lifetime_s=601) == "lifetime"
    assert other_than(requester="bob") == "requester"


def test_a_token_of_an_approved_run_is_for_the_run_s_own_people_place_and_models():
    run = asked(purpose=Wanted.RUN)
    assert is_within_run(run, ASK, "acme-restricted")
    assert is_within_run(run, replace(ASK, models=("mythos@a",)), "acme-restricted")
    assert not is_within_run(asked(), ASK, "acme-restricted")
    assert not is_within_run(run, ASK, "another")
    for changed in ({"user": None}, {"user": "eve"}, {"workload": None}, {"environment": "x"}, {"models": ("oracle",)}):
        assert not is_within_run(run, replace(ASK, **changed), "acme-restricted")
    assert not is_within_run(asked(purpose=Wanted.RUN, models=("mythos@a",)), ASK, "acme-restricted")


# What a policy may demand.


def test_design_md_zero_approvals_are_an_error_and_never_open():
    none = replace(GRANT, approvals=replace(RULE, needed=0))
    [(grant, problem)] = problems(policy(grants=(none,)))
    assert grant == "acme-restricted"
    assert "zero approvals" in problem
    # And a request that says zero cannot even be made.
    with pytest.raises(Exception, match="needed"):
        asked(needed=0)


def test_approvals_that_nobody_could_give_are_an_error():
    assert not list(problems(policy()))
    assert not list(problems(policy(grants=(replace(GRANT, approvals=replace(RULE, needed=4)),))))
    [(_, problem)] = problems(policy(grants=(replace(GRANT, approvals=replace(RULE, needed=5)),)))
    # Of the five in the group, one is a robot.
    assert "group board has 4" in problem
    [(_, problem)] = problems(policy(grants=(replace(GRANT, approvals=replace(RULE, group="none")),)))
    assert "has 0" in problem
    assert not list(problems(policy(grants=(replace(GRANT, approvals=None),))))


def test_a_request_knows_when_it_was_made():
    assert asked().created_at == AT
