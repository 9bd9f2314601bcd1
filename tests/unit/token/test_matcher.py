"""The matcher beside a naive one, and P4 over any order of minting, revoking, reinstating and expiring."""

import subprocess
import sys
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.adapters.policy_file import load_policy
from broker.domain.asking import Ask
from broker.domain.decision import Allowed, Denied, decide
from broker.domain.policy import Policy
from broker.errors import Invalid
from broker.token.claims import Claims
from broker.token.revocation import Dimension, Matcher, Revocation, Selector, facts_of
from tests.realm_keys import RealmKeys

KEYS = RealmKeys()
KID, OTHER_KID = "K" * 43, "L" * 43
NS = 1_000_000_000
FOREVER_NS = 10**18

VALUES: dict[str, list[str]] = {
    "realm": ["evaluation", "research"],
    "partner": ["acme", "globex"],
    "user": ["alice", "bob"],
    "workload": ["nightly"],
    "environment": ["ci", "lab"],
    "model": ["mythos", "mythos@eu", "mythos@us", "oracle"],
    "run": ["run-0001", "run-0002"],
    "test": ["case-1", "case-2"],
    "token": ["token-01", "token-02", "token-03"],
    "parent": ["token-91", "token-92"],
    "key": [KID, OTHER_KID],
    "label": ["tier=gold", "tier=lead", "where=eu"],
}
assert set(VALUES) == {dimension.name.lower() for dimension in Dimension}

selectors = st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.builds(
        lambda *values: Selector.of(**dict(zip(names, values, strict=True))),
        *(st.sampled_from(VALUES[name]) for name in names),
    )
)


@st.composite
def tokens(draw: st.DrawFn) -> tuple[Claims, str, str | None]:
    """Claims, the kid that signed them, and the model that is asked for."""
    partner, is_user = draw(st.sampled_from(VALUES["partner"])), draw(st.booleans())
    who = draw(st.sampled_from(VALUES["user"])) if is_user else "nightly"
    models = tuple(draw(st.lists(st.sampled_from(VALUES["model"]), min_size=1, max_size=3, unique=True)))
    run = draw(st.none() | st.sampled_from(VALUES["run"]))
    claims = KEYS.claims(
        sub=f"{partner}/{'user' if is_user else 'workload'}/{who}",
        realm=draw(st.sampled_from(VALUES["realm"])),
        partner=partner,
        user=who if is_user else None,
        workload=None if is_user else who,
        env=draw(st.sampled_from(VALUES["environment"])),
        models=models,
        scope=" ".join(f"model:{model}" for model in models),
        run=run,
        test=draw(st.none() | st.sampled_from(VALUES["test"])) if run else None,
        jti=draw(st.sampled_from(VALUES["token"])),
        parents=tuple(draw(st.lists(st.sampled_from(VALUES["parent"]), max_size=2, unique=True))),
        labels=tuple(sorted(draw(st.sets(st.sampled_from(VALUES["label"]))))),
        idx=draw(st.integers(1, 60)),
    )
    return claims, draw(st.sampled_from([KID, OTHER_KID])), draw(st.none() | st.sampled_from(VALUES["model"]))


def naive_says_dead(revocation: Revocation, claims: Claims, kid: str, asked: str | None) -> bool:
    """Condition by condition, straight from the words of the design."""
    models = {*claims.models, *({asked} if asked else ())}
    for dimension, value in revocation.selector.conditions:
        name = dimension.name.lower()
        holds = {
            "realm": claims.realm == value,
            "partner": claims.partner == value,
            "user": claims.user == value,
            "workload": claims.workload == value,
            "environment": claims.env == value,
            "model": any(model == value or model.split("@")[0] == value for model in models),
            "run": claims.run == value,
            "test": claims.test == value,
            "token": claims.jti == value,
            "parent": value in claims.parents,
            "key": kid == value,
            "label": value in claims.labels,
        }[name]
        if not holds:
            return False
    only_the_key = [dimension for dimension, _ in revocation.selector.conditions] == [Dimension.KEY]
    return only_the_key or claims.idx < revocation.index


@dataclass(frozen=True)
class Add:
    selector: Selector
    index: int
    keep_s: int


@dataclass(frozen=True)
class Prune:
    after_s: int


steps = st.lists(
    st.one_of(st.builds(Add, selectors, st.integers(1, 60), st.integers(1, 50)), st.builds(Prune, st.integers(0, 30))),
    max_size=40,
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(steps, st.lists(tokens(), min_size=1, max_size=12))
def test_p4_the_matcher_agrees_with_a_naive_one_over_additions_and_prunings(steps, asked):
    matcher = Matcher()
    added: list[tuple[Revocation, int]] = []
    now_s = 0
    for step in steps:
        if isinstance(step, Add):
            revocation = Revocation(step.index, step.selector)
            drop_ns = (now_s + step.keep_s) * NS
            matcher.add(revocation, drop_ns)
            added.append((revocation, drop_ns))
        else:
            now_s += step.after_s
            matcher.prune(now_s * NS)
        for claims, kid, model in asked:
            found = matcher.find(facts_of(claims, kid, model), claims.idx)
            must = [one for one, drop_ns in added if drop_ns > now_s * NS and naive_says_dead(one, claims, kid, model)]
            if found is None:
                assert not must, (claims, must)
            else:
                # It names a revocation that truly kills, perhaps one that could have been dropped already.
                assert naive_says_dead(found, claims, kid, model)
                assert any(one.selector == found.selector and one.index == found.index for one, _ in added)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.builds(Add, selectors, st.integers(1, 60), st.integers(1, 50)), max_size=30))
def test_what_may_be_dropped_is_dropped_in_the_end(steps):
    matcher = Matcher()
    for step in steps:
        matcher.add(Revocation(step.index, step.selector), step.keep_s * NS)
    assert len(matcher) == len({step.selector for step in steps})
    matcher.prune(52 * NS)
    assert len(matcher) == 0


def test_the_generation_grows_after_an_addition_is_visible():
    matcher = Matcher()
    facts = facts_of(KEYS.claims(), KID)
    before = matcher.generation
    matcher.add(Revocation(9, Selector.of(partner="acme")), FOREVER_NS)
    assert matcher.generation > before
    assert matcher.find(facts, 5) == Revocation(9, Selector.of(partner="acme"))


def test_of_two_revocations_of_one_selector_the_larger_index_and_the_longer_time_count():
    matcher = Matcher()
    selector = Selector.of(partner="acme")
    facts = facts_of(KEYS.claims(), KID)
    matcher.add(Revocation(50, selector), 10 * NS)
    matcher.add(Revocation(20, selector), 99 * NS)
    matcher.prune(50 * NS)
    assert matcher.find(facts, 49) == Revocation(50, selector)
    assert matcher.find(facts, 50) is None
    # In the other order too: a later one that is sooner over shortens nothing.
    matcher.add(Revocation(60, selector), 10 * NS)
    matcher.prune(98 * NS)
    assert matcher.find(facts, 59) == Revocation(60, selector)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 5 * NS), st.integers(0, 8 * NS))
def test_p4_to_the_nanosecond_nothing_is_dropped_before_its_time(drop_ns, now_ns):
    matcher = Matcher()
    matcher.add(Revocation(9, Selector.of(partner="acme")), drop_ns)
    matcher.prune(now_ns)
    is_kept = matcher.find(facts_of(KEYS.claims(), KID), 5) is not None
    assert is_kept or drop_ns <= now_ns
    assert not is_kept or now_ns <= drop_ns + 2 * NS


POLICY = load_policy(
    """
version: 1
realms: {evaluation: {issuer: "https://b.example/e", audience: m.e, max_ttl: 1h}, research: {issuer: "https://b.example/r", audience: m.r, max_ttl: 1h}}
models: [mythos, oracle]
partners:
  acme: {labels: {tier: gold}, users: [alice, bob], workloads: [nightly], environments: {ci: {certificate: "spiffe://acme.example/ci"}}}
  globex: {labels: {tier: lead}, users: [alice], environments: {lab: {certificate: "spiffe://globex.example/lab"}}}
grants:
  - {id: a-e, partner: acme, realm: evaluation, models: [mythos, oracle], environments: [ci], users: [alice, bob], workloads: [nightly], ttl: {default: 10m, max: 1h}}
  - {id: a-r, partner: acme, realm: research, models: [mythos], environments: [ci], users: [alice], ttl: {default: 10m, max: 1h}}
  - {id: g-e, partner: globex, realm: evaluation, models: [mythos], environments: [lab], users: [alice], ttl: {default: 10m, max: 1h}}
principals:
  - {id: "spiffe://acme.example/ci", role: harness, partner: acme}
"""
)
ASKS = [
    Ask(realm=realm, partner=partner, user=user, workload=workload, models=models, environment=environment)
    for realm in ("evaluation", "research")
    for partner, environment in (("acme", "ci"), ("globex", "lab"))
    for user, workload in (("alice", None), ("bob", None), (None, "nightly"))
    for models in (("mythos",), ("mythos@eu",), ("mythos", "oracle"))
]
BLOCKING = {"realm", "partner", "user", "workload", "environment", "model", "label"}
blocking_selectors = selectors.filter(lambda one: {d.name.lower() for d, _ in one.conditions} <= BLOCKING)


@dataclass(frozen=True)
class Token:
    claims: Claims
    expires_s: int


def mint(ask: Ask, index: int, policy: Policy) -> Claims:
    kind, who = ("user", ask.user) if ask.user else ("workload", ask.workload)
    return KEYS.claims(
        sub=f"{ask.partner}/{kind}/{who}",
        realm=ask.realm,
        partner=ask.partner,
        user=ask.user,
        workload=ask.workload,
        models=ask.models,
        scope=" ".join(f"model:{model}" for model in ask.models),
        env=ask.environment,
        labels=policy.labels_of(ask.partner),
        jti=f"token-{index:04}",
        idx=index,
    )


moves = st.lists(
    st.one_of(
        st.tuples(st.just("mint"), st.sampled_from(ASKS)),
        st.tuples(st.just("revoke"), blocking_selectors),
        st.tuples(st.just("reinstate"), st.integers(0, 9)),
        st.tuples(st.just("kill"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.integers(1, 2000)),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(moves)
def test_p3_p4_a_dead_token_stays_dead_and_nothing_is_minted_under_a_block(moves):
    """In any order. Revocations are kept for two hours, tokens live at most one."""
    now_s = 0
    matcher = Matcher()
    blocks: dict[Selector, int] = {}
    revoked: list[Revocation] = []
    living: list[Token] = []
    dead: list[Token] = []
    for index, (kind, what) in enumerate(moves, 1):
        match kind:
            case "mint":
                verdict = decide(what, POLICY, blocks)
                if isinstance(verdict, Allowed):
                    token = Token(mint(what, index, POLICY), now_s + verdict.ttl_s)
                    # P3: no block covers what was just minted.
                    facts = facts_of(token.claims, KID)
                    assert not any(selector.matches(facts) for selector in blocks)
                    living.append(token)
                else:
                    assert isinstance(verdict, Denied)
            case "revoke":
                revoked.append(Revocation(index, what))
                matcher.add(revoked[-1], (now_s + 7200) * NS)
                blocks[what] = index
            case "reinstate" if blocks:
                del blocks[sorted(blocks)[what % len(blocks)]]
            case "kill" if living:
                selector = Selector.of(token=living[what % len(living)].claims.jti)
                revoked.append(Revocation(index, selector))
                matcher.add(revoked[-1], (now_s + 7200) * NS)
            case "wait":
                now_s += what
                matcher.prune(now_s * NS)
        living = [token for token in living if token.expires_s > now_s]
        dead = [token for token in dead if token.expires_s > now_s]
        still = []
        for token in living:
            facts = facts_of(token.claims, KID)
            must_be_dead = any(one.index > token.claims.idx and one.selector.matches(facts) for one in revoked)
            assert (matcher.find(facts, token.claims.idx) is not None) == must_be_dead
            (dead if must_be_dead else still).append(token)
        living = still
        for token in dead:
            assert matcher.find(facts_of(token.claims, KID), token.claims.idx) is not None, "came back to life"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(selectors)
def test_a_selector_s_text_is_its_only_spelling(selector):
    assert Selector.from_text(selector.to_text()) == selector
    assert Selector.from_text(selector.to_text()).to_text() == selector.to_text()
    assert selector.is_blocking == ({d.name.lower() for d in selector.dimensions} <= BLOCKING)


@pytest.mark.parametrize("name", sorted(VALUES))
def test_p7_a_selector_value_that_breaks_its_rule_is_refused(name):
    for value in ("", "*", "a b", "a..b", "\u0430cme", "x" * 300, "a\x00b"):
        with pytest.raises(Invalid, match=f"selector.{name}"):
            Selector.of(**{name: value})
    with pytest.raises(Invalid):
        Selector.of(**{name: None})


def test_p7_an_empty_or_doubled_selector_is_refused():
    for conditions in (
        (),
        ((Dimension.USER, "a"), (Dimension.PARTNER, "b")),
        ((Dimension.USER, "a"), (Dimension.USER, "b")),
    ):
        with pytest.raises(Invalid):
            Selector(conditions)


MILLION = """
from pathlib import Path
from broker.token.revocation import Matcher, Revocation, Selector
from resource import getpagesize
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
matcher = Matcher()
before = resident()
for number in range(1_000_000):
    matcher.add(Revocation(2**29 + number, Selector.of(token=f"{number:022d}")), 10**18 - number)
facts = [()] * 13
facts[9] = (f"{777_777:022d}",)
found = matcher.find(facts, 2**29)
print(resident() - before, len(matcher), matcher.shapes, found.index - 2**29)
"""


def test_a_million_revoked_tokens_fit_in_150_mb_and_are_one_look_up():
    """Also half a billion entries into a ledger, where numbers are larger."""
    printed = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, timeout=120, check=True)
    grown, size, shapes, found = map(int, printed.stdout.split())
    assert (size, shapes, found) == (1_000_000, 1, 777_777)
    assert grown <= 150_000_000


def test_p4_a_drop_time_beyond_all_clocks_leaves_the_index_alone():
    matcher = Matcher()
    matcher.add(Revocation(9, Selector.of(partner="acme")), 2**63 - 1)
    matcher.prune(10**18)
    facts = facts_of(KEYS.claims(), KID)
    assert matcher.find(facts, 8) == Revocation(9, Selector.of(partner="acme"))
    assert matcher.find(facts, 9) is None


def test_p4_threads_that_look_while_others_come_and_go_never_miss_what_is_in_force():
    """One thread adds and prunes; readers take no lock, and see each addition whole or not at all."""
    matcher = Matcher()
    matcher.add(Revocation(9, Selector.of(partner="acme", model="mythos")), FOREVER_NS)
    facts = facts_of(KEYS.claims(), KID)
    stop = threading.Event()
    wrong: list[object] = []
    looked = [0]

    def look() -> None:
        while not stop.is_set():
            seen = matcher.generation
            try:
                found = matcher.find(facts, 5)
            except RuntimeError as bad:
                wrong.append(bad)
                return
            if found is None or found.index < 9:
                wrong.append((seen, found))
                return
            looked[0] += 1

    readers = [threading.Thread(target=look) for _ in range(3)]
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for reader in readers:
            reader.start()
        now_s = 0
        for number in range(12_000):
            now_s += number % 2
            matcher.add(Revocation(10 + number, Selector.of(token=f"token-{number:06}")), (now_s + 5) * NS)
            if number % 1_000 == 0:
                # A new shape now and then: the tuple of shapes is another one.
                names = list(VALUES)[: number // 1_000 + 1]
                matcher.add(Revocation(5, Selector.of(**{name: VALUES[name][-1] for name in names})), (now_s + 5) * NS)
            matcher.prune(now_s * NS)
    finally:
        sys.setswitchinterval(switching)
        stop.set()
        for reader in readers:
            reader.join(30)
    assert not wrong
    assert looked[0] > 100
