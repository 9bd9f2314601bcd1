"""The verdict, without a connection: a follower is fed by hand, the clock is the machine's."""

import pickle
import time

import pytest

from broker.errors import (
    Expired,
    Malformed,
    NotAllowed,
    NotHolder,
    NotYetValid,
    Revoked,
    Stale,
    Untrusted,
    WrongRealm,
)
from broker.sdk.feed import Connection
from broker.sdk.outside import boottime_ns
from broker.sdk.stream import Pace
from broker.sdk.uses import Proof
from broker.sdk.verifier import MAX_MODELS_PER_TOKEN, Verifier
from broker.token.keys import Purpose, TrustedKey
from broker.token.revocation import Matcher, Revocation, Selector
from tests.realm_keys import RealmKeys, entry

KEYS = RealmKeys.of_today()
NONCE = b"n" * 16


def verifier(*, wall_ms: int | None = None, cached_tokens: int = 1000, **snapshot) -> Verifier:
    """Fresh for a minute, at head 10; the broker's clock is this machine's."""
    one = Verifier(Connection(("localhost:1",), KEYS.realm, None, Pace()), KEYS.trust, cached_tokens=cached_tokens)
    now_ns = boottime_ns()
    one._follower.ask_echo(NONCE, now_ns)
    one._follower.take(KEYS.echo(nonce=NONCE, verifier_clock_ns=now_ns, broker_clock_ns=now_ns), now_ns)
    fields = {"as_of_ns": now_ns, "wall_ms": wall_ms or int(time.time() * 1000), "lease_ms": 60_000, **snapshot}
    one._follower.take(KEYS.snapshot(**fields), now_ns)
    return one


def revoke(one: Verifier, index: int, **conditions: str) -> None:
    frame = KEYS.delta(
        previous_head=one._follower.state.head,
        head=index + 1,
        as_of_ns=boottime_ns(),
        wall_ms=int(time.time() * 1000),
        revocations=[entry(index, **conditions)],
    )
    one._follower.take(frame, boottime_ns())


def test_a_proof_says_what_was_accepted_and_cannot_be_changed():
    one = verifier()
    proof = one.verify(KEYS.mint(jti="a-token-id-of-ours"), "mythos@one")
    assert (proof.claims.jti, proof.kid, proof.model) == ("a-token-id-of-ours", KEYS.token.kid, "mythos@one")
    with pytest.raises(AttributeError):
        proof.model = "other"  # type: ignore[misc]


@pytest.mark.parametrize("seen_before", [False, True])
@pytest.mark.parametrize(
    ("changed", "model", "why"),
    [
        ({"iat": KEYS.now_s - 700, "nbf": KEYS.now_s - 705, "exp": KEYS.now_s - 5}, "mythos", Expired),
        ({"iat": KEYS.now_s + 300, "nbf": KEYS.now_s + 295}, "mythos", NotYetValid),
        ({"iss": "https://production.example.org"}, "mythos", WrongRealm),
        ({"aud": "production.models"}, "mythos", WrongRealm),
        ({"realm": "production"}, "mythos", WrongRealm),
        ({}, "other", NotAllowed),
        ({}, "", NotAllowed),
        ({}, "Mythos", NotAllowed),
        ({}, None, NotAllowed),
        ({"cnf": {"jkt": "x" * 43}}, "mythos", NotHolder),
        ({"cnf": {"x5t#S256": "x" * 43}}, "mythos", NotHolder),
        ({"iat": KEYS.now_s - 7200, "nbf": KEYS.now_s - 7200}, "mythos", Untrusted),
    ],
)
def test_p7_what_is_wrong_is_refused_on_first_sight_and_after(seen_before, changed, model, why):
    # By the broker's time when the tokens were made, however long ago this file was read.
    one = verifier(wall_ms=KEYS.now_s * 1000)
    token = KEYS.mint(**changed)
    for _ in range(1 + seen_before):
        with pytest.raises(why) as caught:
            one.verify(token, model)
        assert type(caught.value) is why
        assert token not in str(caught.value)


@pytest.mark.parametrize("token", ["", "a.b.c", None, b"bytes", 7, [], "x" * 9000])
def test_p7_what_is_no_token_is_malformed(token):
    with pytest.raises(Malformed):
        verifier().verify(token, "mythos")


def test_p8_a_token_by_a_key_of_another_realm_is_refused():
    other = RealmKeys.of_today("production")
    with pytest.raises(Untrusted):
        verifier().verify(other.mint(), "mythos")
    # Nor when it says that it is of this one.
    with pytest.raises(Untrusted):
        verifier().verify(KEYS.mint(by=other.token), "mythos")


def test_p8_a_feed_key_signs_no_token():
    with pytest.raises(Untrusted):
        verifier().verify(KEYS.mint(by=KEYS.feed), "mythos")


def test_p4_a_token_that_was_accepted_is_refused_once_it_is_revoked_for_any_model():
    one = verifier()
    token = KEYS.mint(models=("mythos", "saga"), scope="model:mythos model:saga")
    one.verify(token, "mythos")
    one.verify(token, "saga@two")
    revoke(one, 10, model="mythos@two")  # neither was asked for
    one.verify(token, "mythos")
    revoke(one, 11, model="saga@two")
    with pytest.raises(Revoked):
        one.verify(token, "saga@two")
    one.verify(token, "saga")
    revoke(one, 12, partner="acme")
    for model in ("mythos", "saga", "saga@two"):
        with pytest.raises(Revoked):
            one.verify(token, model)


def test_p4_a_snapshot_in_place_of_the_state_is_compared_anew():
    one = verifier()
    token = KEYS.mint()
    one.verify(token, "mythos")
    # The new matcher has the same generation as the old one had.
    revoke(one, 10, user="al")
    one.verify(token, "mythos")
    now = {"as_of_ns": boottime_ns(), "wall_ms": int(time.time() * 1000)}
    one._follower.take(KEYS.snapshot(head=20, revocations=[entry(15, partner="acme")], **now), boottime_ns())
    assert one._follower.state.matcher.generation == 1
    with pytest.raises(Revoked):
        one.verify(token, "mythos")


def test_a_token_of_which_the_key_ended_is_refused_though_it_was_accepted():
    ends = KEYS.certified(Purpose.TOKEN, expires=KEYS.now_s + 40_000, signs_until=KEYS.now_s + 30_000)
    one = verifier(keys=[ends.certificate])
    token = KEYS.mint(by=ends)
    one.verify(token, "mythos")
    one._follower.state.keys.pop(ends.kid)  # type: ignore[attr-defined]
    with pytest.raises(Untrusted):
        one.verify(token, "mythos")


def test_p5_before_a_lease_and_after_it_everything_is_stale():
    one = Verifier(Connection(("localhost:1",), KEYS.realm, None, Pace()), KEYS.trust)
    with pytest.raises(Stale):
        one.verify(KEYS.mint(), "mythos")
    lapsed = verifier(lease_ms=1)
    while boottime_ns() <= lapsed._follower.state.accept_until_ns:
        pass
    # A key that is not known may be one that was not heard of.
    for token in (KEYS.mint(), KEYS.mint(by=KEYS.certified(Purpose.TOKEN))):
        with pytest.raises(Stale):
            lapsed.verify(token, "mythos")


def test_errors_say_what_to_answer():
    one = verifier()
    revoke(one, 10, partner="acme")
    with pytest.raises(Revoked) as caught:
        one.verify(KEYS.mint(), "mythos")
    assert (caught.value.http_status, caught.value.grpc_code, caught.value.reason) == (
        403,
        "PERMISSION_DENIED",
        "REVOKED",
    )


def test_the_expired_are_told_so_even_when_they_are_revoked():
    one = verifier()
    revoke(one, 10, partner="acme")
    with pytest.raises(Expired):
        one.verify(KEYS.mint(iat=KEYS.now_s - 700, nbf=KEYS.now_s - 705, exp=KEYS.now_s - 5), "mythos")


class _Interrupted(dict[str, TrustedKey]):
    """Keys that let something happen in the middle of a verification, as another thread would."""

    def __init__(self, keys, happens) -> None:
        super().__init__(keys)
        self.happens = happens
        self.left = 0

    def get(self, key, default=None):
        self.left -= 1
        if self.left == 0:
            self.happens()
        return super().get(key, default)


@pytest.mark.parametrize("seen_before", [False, True])
def test_p4_a_revocation_that_arrives_during_a_verification_is_not_missed(seen_before):
    one = verifier()
    token = KEYS.mint()
    keys = _Interrupted(one._follower.state.keys, lambda: revoke(one, 10, partner="acme"))
    one._follower._contents.keys = keys
    object.__setattr__(one._follower.state, "keys", keys)
    if seen_before:
        one.verify(token, "mythos")
    keys.left = 1 if seen_before else 2
    with pytest.raises(Revoked):
        one.verify(token, "mythos")


def test_p4_a_snapshot_that_arrives_during_a_verification_is_not_missed():
    one = verifier()
    token = KEYS.mint()

    def resync() -> None:
        now = {"as_of_ns": boottime_ns(), "wall_ms": int(time.time() * 1000)}
        one._follower.take(KEYS.snapshot(head=20, revocations=[entry(15, partner="acme")], **now), boottime_ns())

    keys = _Interrupted(one._follower.state.keys, resync)
    object.__setattr__(one._follower.state, "keys", keys)
    one.verify(token, "mythos")
    keys.left = 1
    with pytest.raises(Revoked):
        one.verify(token, "mythos")


def test_p5_a_lease_that_was_renewed_meanwhile_is_judged_with_what_came_with_it():
    one = verifier(lease_ms=1)
    while boottime_ns() <= one._follower.state.accept_until_ns:
        pass
    token = KEYS.mint()

    def renew(**conditions: str) -> None:
        now_ns = boottime_ns()
        frame = KEYS.delta(
            as_of_ns=now_ns,
            lease_ms=60_000,
            wall_ms=int(time.time() * 1000),
            previous_head=10,
            head=11,
            revocations=[entry(10, **conditions)],
        )
        one._follower.take(frame, now_ns)

    keys = _Interrupted(one._follower.state.keys, lambda: renew(partner="acme"))
    one._follower._contents.keys = keys
    object.__setattr__(one._follower.state, "keys", keys)
    keys.left = 2
    with pytest.raises(Revoked):
        one.verify(token, "mythos")


def test_the_cache_is_bounded_and_answers_the_same():
    one = verifier(cached_tokens=10)
    tokens = [KEYS.mint() for _ in range(30)]
    for _ in range(2):
        for token in tokens:
            one.verify(token, "mythos")
            one.verify(tokens[0], "mythos")
            assert len(one._young) <= 5
            assert len(one._old) <= 5
    # What is used goes on being found.
    assert tokens[0] in {**one._young, **one._old}


def test_models_of_one_token_do_not_fill_the_memory():
    one = verifier()
    token = KEYS.mint()
    for number in range(3 * MAX_MODELS_PER_TOKEN):
        one.verify(token, f"mythos@{number}")
    assert len(one._young[token].asked) == MAX_MODELS_PER_TOKEN
    revoke(one, 10, model="mythos@90")
    with pytest.raises(Revoked):
        one.verify(token, "mythos@90")


def test_p4_absolute_revocation_by_key_kills_what_was_accepted_at_any_index():
    one = verifier()
    token = KEYS.mint(idx=2**40)
    one.verify(token, "mythos")
    revoke(one, 10, key=KEYS.token.kid)
    with pytest.raises(Revoked):
        one.verify(token, "mythos")


def test_p12_neither_proof_nor_use_shows_the_token():
    one = verifier()
    token = KEYS.mint()
    use = one.use(token, "mythos")
    with use:
        for shown in (repr(use), repr(use.proof), str(use.proof)):
            assert token.rpartition(".")[2] not in shown
    assert isinstance(use.proof, Proof)
    assert pickle.loads(pickle.dumps(use.proof.model)) == "mythos"  # noqa: S301 - our own bytes
    one.close()


def test_a_matcher_that_is_added_to_behind_the_back_of_the_state_only_makes_more_dead():
    one = verifier()
    token = KEYS.mint()
    one.verify(token, "mythos")
    matcher: Matcher = one._follower.state.matcher
    matcher.add(Revocation(10, Selector.of(user="bob")), boottime_ns() + 10**12)
    with pytest.raises(Revoked):
        one.verify(token, "mythos")
