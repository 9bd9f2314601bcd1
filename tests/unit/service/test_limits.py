"""Which limits a write must keep, and what it counts: only for those who have limits."""

from datetime import UTC, datetime

import pytest

from broker.adapters.policy_file import load_policy
from broker.errors import LimitReached, Overloaded, RunProofRefused
from broker.service.known_runs import KnownRuns
from broker.service.limit_ports import Counted, Scope
from broker.service.limits import limits_of_mint, limits_of_run, note_limits
from broker.service.metering import Unmetered
from broker.service.run_keys import RunKeys, SeenOnce, checked_key
from tests.realm_keys import RealmKeys
from tests.served import POLICY

NOW = datetime(2026, 11, 23, tzinfo=UTC)
KEYS = RealmKeys(now_s=int(NOW.timestamp()))
LIMITS = (
    "{mints_per_minute: 60, live_tokens: 500, live_runs: 5, tokens_per_run: 2000, user: {live_tokens: 7, live_runs: 1}}"
)


def policy(limits="", partner="", mode=""):
    text = POLICY.replace("ttl: {default: 10m, max: 1h}}", f"ttl: {{default: 10m, max: 1h}}{limits}{mode}}}", 1)
    return load_policy(text.replace("    users: [alice]\n", f"    users: [alice]\n{partner}", 1))


def claims(**changed):
    named = {"partner": "acme", "user": "alice", "workload": None, "sub": "acme/user/alice", "run": None, "test": None}
    return KEYS.claims(**{**named, **changed})


def flat(guards):
    [guard] = guards
    return {(limit.counted, limit.scope.text): (limit.most, limit.wanted) for limit in guard.limits}


def test_who_has_no_limits_is_not_counted():
    assert limits_of_mint([(claims(), "acme-evaluation")], policy(), NOW) == ((), ())
    assert limits_of_run(["acme-evaluation"], "acme", "alice", None, policy(), NOW) == ()
    assert limits_of_mint([(claims(), "acme-research")], policy(f", limits: {LIMITS}"), NOW) == ((), ())


def test_each_limit_counts_what_it_is_about():
    limited = policy(f", limits: {LIMITS}", "    limits: {mints_per_minute: 600, live_runs: 20}\n")
    run = claims(run="run-00000001")
    guards, [effect] = limits_of_mint([(run, "acme-evaluation")] * 3 + [(claims(), "acme-evaluation")], limited, NOW)
    assert flat(guards) == {
        (Counted.MINTS_PER_MINUTE, "partner acme"): (600, 4),
        (Counted.MINTS_PER_MINUTE, "grant acme-evaluation"): (60, 4),
        (Counted.LIVE_TOKENS, "grant acme-evaluation"): (500, 4),
        (Counted.LIVE_TOKENS, "grant acme-evaluation for acme/user/alice"): (7, 4),
        (Counted.TOKENS_PER_RUN, "grant acme-evaluation"): (2000, 3),
    }
    assert effect.runs == (("run-00000001", 3),)
    by_run = {(one.scope.text, one.run): one.tokens for one in effect.counts}
    assert by_run["partner acme", "run-00000001"] == 3
    assert by_run["grant acme-evaluation for acme/user/alice", None] == 1
    assert {one.ends_at for one in effect.counts} == {datetime.fromtimestamp(run.exp, UTC)}
    assert flat(limits_of_run(["acme-evaluation"] * 2, "acme", "alice", None, limited, NOW)) == {
        (Counted.LIVE_RUNS, "partner acme"): (20, 1),
        (Counted.LIVE_RUNS, "grant acme-evaluation"): (5, 1),
        (Counted.LIVE_RUNS, "grant acme-evaluation for acme/user/alice"): (1, 1),
    }


def test_users_and_workloads_are_counted_each_by_itself_and_partners_apart():
    limited = policy(f", limits: {LIMITS}")
    alice, nightly = claims(), claims(user=None, workload="nightly", sub="acme/workload/nightly")
    guards, _ = limits_of_mint([(alice, "acme-evaluation"), (nightly, "acme-evaluation")], limited, NOW)
    found = flat(guards)
    for subject in ("acme/user/alice", "acme/workload/nightly"):
        assert found[Counted.LIVE_TOKENS, f"grant acme-evaluation for {subject}"] == (7, 1)
    # A run for nobody in particular counts for no subject.
    assert all(
        "for" not in scope for _, scope in flat(limits_of_run(["acme-evaluation"], "acme", None, None, limited, NOW))
    )


def test_a_partners_own_limits_hold_where_its_grant_is_only_audited():
    limited = policy(f", limits: {LIMITS}", "    limits: {live_tokens: 3}\n", ", mode: audit")
    [guard], _ = limits_of_mint([(claims(), "acme-evaluation")], limited, NOW)
    assert {limit.scope.text: limit.is_audit_only for limit in guard.limits} == {
        "partner acme": False,
        "grant acme-evaluation": True,
        "grant acme-evaluation for acme/user/alice": True,
    }


def test_what_an_audited_grant_would_have_refused_is_noted_and_raises_nothing():
    reached = LimitReached("full", metadata={"limit": "live_tokens", "grant": "acme-evaluation"})
    noted = []

    class Noting(Unmetered):
        def __getattribute__(self, name):
            return (lambda *told: noted.append(told)) if name == "would_deny" else super().__getattribute__(name)

    note_limits([reached], policy(f", limits: {LIMITS}", mode=", mode: audit"), Noting())
    assert noted == [("acme-evaluation", "live_tokens")]
    # Enforced meanwhile, or gone: the write was done, so nothing is refused any more.
    note_limits([reached], policy(f", limits: {LIMITS}"), Noting())
    note_limits([replace_grant(reached)], policy(), Noting())
    assert len(noted) == 1


def replace_grant(reached):
    return LimitReached(reached.message, metadata={**reached.metadata, "grant": "gone"})


def test_scopes_have_one_spelling_and_no_two_are_one():
    scopes = [
        Scope(partner="acme"),
        Scope(grant="acme"),
        Scope(grant="acme", subject="acme/user/a"),
        Scope(grant="acme", subject="acme/workload/a"),
    ]
    assert len({scope.text for scope in scopes}) == len(scopes)


def test_b3_what_is_used_once_is_forgotten_only_after_the_window():
    seen = SeenOnce(100.0, capacity=3)
    assert seen.is_first("a", 0.0)
    assert not seen.is_first("a", 99.9)
    assert seen.is_first("b", 50.0)
    assert seen.is_first("c", 60.0)
    # P7: what cannot be remembered is not taken.
    with pytest.raises(Overloaded):
        seen.is_first("d", 99.0)
    assert seen.is_first("d", 100.0)
    assert seen.is_first("a", 160.0)


def test_a_key_that_is_none_is_refused():
    for bad in ({}, [], None, "x", {"kty": "EC"}):
        with pytest.raises(RunProofRefused, match="run_key"):
            checked_key(bad)


def test_a_run_without_key_proves_nobody(world):
    keys = RunKeys(KnownRuns(world.ledger), world.clock)
    run = world.open_run(world.acme)
    for known in (run, None):
        with pytest.raises(RunProofRefused, match="of no run that has a key"):
            keys.caller("x", known, method="TokenService/Mint", request=b"", network="")
    with pytest.raises(RunProofRefused, match="does not prove"):
        keys.must_prove(None, key={}, method="TokenService/Mint", run=run.id, request=b"")
