"""The one thing that would change the answer: done, it changes it; and where there is one, it is found."""

from dataclasses import replace

from hypothesis import given

from broker.domain.asking import Ask
from broker.domain.decision import Allowed, Denied, decide
from broker.domain.remedy import AskOtherwise, Extend, Lift, also_allowed_by, extended, remedy
from broker.token.revocation import Selector
from tests.unit.domain.worlds import asks, blocks, granted, policies


@given(asks(), policies(), blocks)
def test_what_is_said_to_change_the_answer_changes_it(ask, policy, in_force):
    match remedy(ask, policy, in_force):
        case AskOtherwise(ask=other):
            assert isinstance(decide(other, policy, in_force), Allowed)
        case Lift(block=block):
            assert isinstance(decide(ask, policy, {one: at for one, at in in_force.items() if one != block}), Allowed)
        case Extend() as extension:
            assert isinstance(decide(ask, extended(policy, extension), in_force), Allowed)
        case None:
            return
    assert isinstance(decide(ask, policy, in_force), Denied)


@given(granted())
def test_a_lone_block_on_what_is_granted_is_the_one_thing(world):
    ask, policy = world
    if isinstance(decide(ask, policy, {}), Allowed):
        block = Selector.of(partner=ask.partner)
        assert remedy(ask, policy, {block: 7}) == Lift(block)
        assert remedy(ask, policy, {}) is None


@given(granted())
def test_what_a_grant_lacks_in_one_thing_is_that_one_thing(world):
    ask, policy = world
    if not isinstance(decide(ask, policy, {}), Allowed):
        return
    alone = replace(
        policy,
        grants=tuple(
            replace(grant, models=frozenset({"sphinx"}), model_labels=frozenset())
            for grant in policy.grants
            if grant.id == "covering"
        ),
        models=policy.models | {"sphinx"},
    )
    found = remedy(ask, alone, {})
    assert found == Extend("covering", "models", frozenset(ask.models)), found


@given(granted())
def test_all_grants_that_allow_an_ask_are_named(world):
    ask, policy = world
    verdict = decide(ask, policy, {})
    if isinstance(verdict, Allowed):
        names = {verdict.grant, *also_allowed_by(ask, policy, verdict.grant)}
        for grant in policy.grants:
            alone = decide(ask, replace(policy, grants=(grant,)), {})
            assert isinstance(alone, Allowed) == (grant.id in names)


def test_each_remedy_is_a_sentence_for_people():
    ask = Ask("evaluation", "acme", "alice", None, ("mythos",), "ci")
    assert AskOtherwise(ask, "ask from environment ci").text == "ask from environment ci"
    assert Lift(Selector.of(partner="acme")).text == "an admin reinstates partner=acme"
    assert Extend("g", "users", frozenset({"bob"})).text == "an admin adds bob to users of grant g"
