"""A token that may be used so often only: each verifier counts, and refuses beyond it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from broker.errors import Malformed, NotAllowed, UsedUp
from broker.sdk.spending import SWEEP_FIRST, Spending
from broker.token.claims import decode_claims, encode_claims
from tests.realm_keys import RealmKeys
from tests.unit.sdk.test_verifier import KEYS as HELD
from tests.unit.sdk.test_verifier import verifier

KEYS = RealmKeys()
LIMITED = KEYS.claims(uses=3)


def test_p7_a_token_is_refused_beyond_its_uses_and_others_are_not_touched():
    one = verifier()
    token, free = HELD.mint(uses=2), HELD.mint()
    for _ in range(2):
        assert one.verify(token, "mythos").claims.uses == 2
    for _ in range(2):
        with pytest.raises(UsedUp) as caught:
            one.verify(token, "mythos")
        assert (caught.value.http_status, caught.value.grpc_code) == (403, "PERMISSION_DENIED")
    with pytest.raises(UsedUp):
        one.use(token, "mythos").__enter__()
    for _ in range(5):
        one.verify(free, "mythos")
    one.verify(HELD.mint(uses=1), "mythos")


def test_a_use_that_lasts_is_one_use_however_often_it_is_judged():
    one = verifier()
    token = HELD.mint(uses=2)
    with one.use(token, "mythos") as use:
        for _ in range(5):
            use.check()
            one._uses.recheck()
        assert not use.cancelled.is_set()
        one.verify(token, "mythos")
        with pytest.raises(UsedUp):
            one.verify(token, "mythos")
        one._uses.recheck()
        assert not use.cancelled.is_set()
    one.close()


def test_a_refused_use_is_none():
    one = verifier()
    token = HELD.mint(uses=1)
    with pytest.raises(NotAllowed):
        one.verify(token, "another")
    one.verify(token, "mythos")


def test_64_racing_threads_get_exactly_the_uses_there_are():
    spending = Spending(lambda: 0.0)
    ready = threading.Barrier(64)

    def race(_: int) -> bool:
        ready.wait(20)
        try:
            spending.spend(replace(LIMITED, uses=10))
        except UsedUp:
            return False
        return True

    with ThreadPoolExecutor(64) as pool:
        assert sum(pool.map(race, range(64))) == 10


def test_what_has_expired_is_forgotten():
    now_s = [0.0]
    spending = Spending(lambda: now_s[0])
    for number in range(SWEEP_FIRST - 1):
        spending.spend(replace(LIMITED, jti=f"token-{number:08}"))
    now_s[0] = float(LIMITED.exp)
    spending.spend(replace(LIMITED, jti="token-of-today", exp=LIMITED.exp + 60))
    assert len(spending) == 1
    spending.forget_after_fork()
    spending.spend(replace(LIMITED, jti="token-of-today", exp=LIMITED.exp + 60))


def test_nothing_is_forgotten_by_who_knows_no_time():
    spending = Spending(lambda: None)
    for number in range(SWEEP_FIRST + 10):
        spending.spend(replace(LIMITED, jti=f"token-{number:08}"))
    assert len(spending) == SWEEP_FIRST + 10


def test_t11_the_number_of_uses_has_one_spelling():
    spelled = encode_claims(LIMITED)
    assert b'"uses":3' in spelled
    assert decode_claims(spelled) == LIMITED
    assert b"uses" not in encode_claims(KEYS.claims())
    for bad in (b"0", b"-1", b'"3"', b"3.0", b"03", b"true", b"null", b"9" * 17, b"9999999999999999", b"1e3"):
        with pytest.raises(Malformed):
            decode_claims(spelled.replace(b'"uses":3', b'"uses":' + bad))
    for wrong in (0, -1, True, 1.0, "3", 2**53):
        with pytest.raises(Malformed):
            KEYS.claims(uses=wrong)


def test_children_do_not_multiply_the_uses_of_their_parent():
    spending = Spending(lambda: 0.0)
    child, other = (replace(LIMITED, jti=f"child-{name}-0001", parents=(LIMITED.jti,)) for name in "ab")
    grandchild = replace(LIMITED, jti="grandchild-0001", parents=(LIMITED.jti, child.jti), uses=2)
    spending.spend(child)
    spending.spend(grandchild)
    with pytest.raises(UsedUp):
        spending.spend(grandchild)
    spending.spend(other)
    for each in (LIMITED, child, other):
        with pytest.raises(UsedUp):
            spending.spend(each)
    spending.spend(replace(LIMITED, jti="another-token"))


def test_what_a_child_used_is_remembered_as_long_as_its_parent_can_live():
    now_s = [0.0]
    spending = Spending(lambda: now_s[0])
    spending.spend(replace(LIMITED, jti="child-0001", parents=(LIMITED.jti,), uses=1))
    now_s[0] = float(LIMITED.exp + 10)
    for number in range(SWEEP_FIRST):
        spending.spend(replace(LIMITED, jti=f"token-{number:08}"))
    with pytest.raises(UsedUp):
        spending.spend(replace(LIMITED, uses=1))
