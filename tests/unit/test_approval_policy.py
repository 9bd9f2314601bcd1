"""A policy whose approvals mean nothing, or that nobody could ever give, is refused when it is loaded."""

import pytest

from broker.adapters.policy_file import load_policy
from broker.domain.policy import ApprovalRule
from broker.errors import ConfigInvalid
from tests.served import POLICY as SERVED

# Nobody in it may approve anything.
POLICY = "".join(line for line in SERVED.splitlines(keepends=True) if "role: approver" not in line)

GROUPS = "groups: {board: [carol, dave]}\n"
PEOPLE = """\
  - {id: "spiffe://lab.example/carol", role: approver, person: carol}
  - {id: "spiffe://lab.example/dave", role: approver, person: dave}
"""
GRANT = "- {id: acme-evaluation, "


def with_approvals(approvals: str, *, groups: str = GROUPS, people: str = PEOPLE) -> str:
    assert GRANT in POLICY
    return POLICY.replace("grants:\n", f"{groups}grants:\n").replace(GRANT, f"{GRANT}approvals: {approvals}, ") + people


def problems_of(document: str) -> list[str]:
    with pytest.raises(ConfigInvalid) as refused:
        load_policy(document)
    return list(refused.value.problems)


def test_approvals_are_read_as_they_are_written():
    rule = "{needed: 2, group: board, window: 30m, valid: 2h, login: 5m}"
    grant = load_policy(with_approvals(rule)).grant("acme-evaluation")
    assert grant is not None
    assert grant.approvals == ApprovalRule(needed=2, group="board", window_s=1800, valid_s=7200, login_s=300)
    assert load_policy(POLICY).grant("acme-evaluation").approvals is None


@pytest.mark.parametrize(
    ("approvals", "groups", "people", "place"),
    [
        ("{needed: 0, group: board}", GROUPS, PEOPLE, "needed"),
        ("{needed: -1, group: board}", GROUPS, PEOPLE, "needed"),
        ("{group: board}", GROUPS, PEOPLE, "needed"),
        ("{needed: 1}", GROUPS, PEOPLE, "group"),
        ("{}", GROUPS, PEOPLE, "needed"),
        ("{needed: 3, group: board}", GROUPS, PEOPLE, "needed"),
        ("{needed: 1, group: council}", GROUPS, PEOPLE, "group"),
        ("{needed: 1, group: board}", "", PEOPLE, "group"),
        ("{needed: 1, group: board}", "groups: {board: []}\n", PEOPLE, "groups"),
        ("{needed: 1, group: board}", GROUPS, "", "board"),
        ("{needed: 1, group: board, window: 0s}", GROUPS, PEOPLE, "window"),
        ("{needed: 1, group: board, quorum: 0}", GROUPS, PEOPLE, "quorum"),
        ("{needed: true, group: board}", GROUPS, PEOPLE, "needed"),
        # Somebody is carol, but nobody of that name may approve.
        ("{needed: 2, group: board}", GROUPS, PEOPLE.replace("approver", "auditor", 1), "approvals"),
    ],
)
def test_p7_approvals_that_are_open_or_impossible_are_refused_with_their_field(approvals, groups, people, place):
    told = problems_of(with_approvals(approvals, groups=groups, people=people))
    assert any(place in problem for problem in told), told
