"""A bound token at a verifier: refused without its proof, whatever was accepted before."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker.errors import Malformed, NotAllowed, NotHolder, Stale, UsedUp
from broker.sdk import DpopKey
from broker.sdk.bearer import NoToken, Sent, sent_token
from broker.sdk.holding import Holding
from broker.sdk.showing import certificate_in_header, checked_origin
from broker.token.binding import Bound, ShownCertificate, ShownProof
from broker.token.verification import Time
from tests.unit.sdk.test_verifier import KEYS, verifier

URL = "https://models.example/v1"
HOLDER = DpopKey()
MINE, THEIRS = ShownCertificate.of_der(b"mine"), ShownCertificate.of_der(b"theirs")


def to_key(**changes) -> str:
    return KEYS.mint(cnf={"jkt": HOLDER.thumbprint}, **changes)


def to_certificate(**changes) -> str:
    return KEYS.mint(cnf=Bound.to_certificate(MINE.sha256).cnf, **changes)


def shown(token: str, key: DpopKey = HOLDER, *, made_for: str = URL, method: str = "POST") -> ShownProof:
    return ShownProof(key.proof(method, made_for, token), "POST", URL)


def test_a_bound_token_passes_with_its_proof_as_often_as_a_proof_is_made():
    one, token = verifier(), to_key()
    for _ in range(3):
        assert one.verify(token, "mythos", proof=shown(token)).claims.cnf == {"jkt": HOLDER.thumbprint}
        assert one.verify(to_certificate(), "mythos", proof=MINE)
    with one.use(token, "mythos", proof=shown(token)) as use:
        # Judged anew while it lasts, without a further proof.
        use.check()
        one._uses.recheck()
        assert not use.cancelled.is_set()
    one.close()


def test_p7_a_stolen_token_is_refused_also_where_its_holder_was_just_accepted():
    """The look-up of what was seen before never answers for a proof."""
    one, token, bound = verifier(), to_key(), to_certificate()
    for _ in range(3):
        one.verify(token, "mythos", proof=shown(token))
        one.verify(bound, "mythos", proof=MINE)
        for stolen, by in (
            (token, None),
            (token, MINE),
            (token, shown(token, DpopKey())),
            (token, shown(to_key())),
            (token, shown(token, made_for="https://other.example/v1")),
            (token, shown(token, method="GET")),
            (bound, None),
            (bound, THEIRS),
            (bound, shown(bound)),
            (KEYS.mint(), shown(KEYS.mint())),
        ):
            with pytest.raises(NotHolder) as caught:
                one.verify(stolen, "mythos", proof=by)
            assert (caught.value.http_status, caught.value.grpc_code) == (401, "UNAUTHENTICATED")
            assert stolen not in str(caught.value)
            with pytest.raises(NotHolder), one.use(stolen, "mythos", proof=by):
                pytest.fail("it began")
    one.close()


def test_b3_of_64_racing_shows_of_one_proof_exactly_one_is_accepted():
    one, token = verifier(), to_key()
    proof, start = shown(token), threading.Barrier(16)

    def show(turn: int) -> bool:
        if turn < 16:
            start.wait(10)
        try:
            one.verify(token, "mythos", proof=proof)
        except NotHolder:
            return False
        return True

    # So that threads meet where they must not.
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(show, range(64))) == 1
    finally:
        sys.setswitchinterval(before)


def test_b3_a_proof_of_a_refused_use_is_not_spent_and_a_refused_proof_uses_up_nothing():
    one, token = verifier(), to_key(uses=1)
    proof = shown(token)
    with pytest.raises(NotAllowed):
        one.verify(token, "other", proof=proof)
    for _ in range(3):
        with pytest.raises(NotHolder):
            one.verify(token, "mythos")
    one.verify(token, "mythos", proof=proof)
    with pytest.raises(UsedUp):
        one.verify(token, "mythos", proof=shown(token))


def test_a_use_that_has_not_begun_can_not_be_judged():
    with pytest.raises(RuntimeError):
        verifier().use(to_key(), "mythos").check()


def test_t14_a_request_has_one_authorization_of_one_of_two_schemes():
    assert sent_token(["Bearer a.b.c"]) == sent_token([b"bearer a.b.c"], ["beside"]) == Sent("a.b.c")
    assert sent_token(["DPoP a.b.c"], [b"proof"]) == Sent("a.b.c", "proof")
    with pytest.raises(NoToken):
        sent_token([], ["proof"])
    for bad in (["Basic a"], ["Bearer"], ["DPoP a b"], ["Bearer a", "DPoP a"], ["BearerX a"], ["DPoP  a"]):
        with pytest.raises(Malformed):
            sent_token(bad, ["proof"])
    for proofs in ([], ["one", "two"]):
        with pytest.raises(NotHolder):
            sent_token(["DPoP a.b.c"], proofs)


def test_an_origin_is_a_scheme_and_a_host():
    from broker.errors import ConfigInvalid

    assert checked_origin("") == ""
    assert checked_origin("HTTPS://Models.Example:443/") == checked_origin("https://models.example")
    for bad in ("models.example", "https://models.example/v1", "https://models.example/?a", "ftp://models.example"):
        with pytest.raises(ConfigInvalid):
            checked_origin(bad)


def test_what_is_no_certificate_in_a_header_shows_nothing():
    for value in ("", "::", ":!:", ":YQ:", ":YQ:YQ:", "a" * 40_000, "-----BEGIN CERTIFICATE-----"):
        assert certificate_in_header(value) is None
    assert certificate_in_header(":bWluZQ==:") == MINE


def test_p7_a_proof_ends_with_its_minute():
    one = verifier(wall_ms=int(time.time() * 1000) + 90_000)
    token = to_key()
    with pytest.raises(NotHolder, match="too old"):
        one.verify(token, "mythos", proof=shown(token))
    ahead = verifier(wall_ms=int(time.time() * 1000) - 40_000)
    early = to_key(iat=int(time.time()) - 60, nbf=int(time.time()) - 60)
    with pytest.raises(NotHolder, match="future"):
        ahead.verify(early, "mythos", proof=shown(early))


def test_p7_without_the_brokers_time_nothing_is_judged_and_a_fork_forgets_no_proof():
    token = to_key()
    claims = verifier().verify(token, "mythos", proof=shown(token)).claims
    with pytest.raises(Stale):
        Holding(lambda: None).check(token, claims, shown(token))
    now_ms = int(time.time() * 1000)
    held, proof = Holding(lambda: Time(now_ms, now_ms)), shown(token)
    held.check(token, claims, proof)
    held.forget_after_fork()
    with pytest.raises(NotHolder, match="before"):
        held.check(token, claims, proof)
