"""The numbered steps of verification, each broken by itself (P7, P8, P9)."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.errors import Expired, Malformed, NotAllowed, NotYetValid, Revoked, Untrusted, WrongRealm
from broker.token.jws import assemble, signing_input
from broker.token.keys import (
    CERTIFICATE_TYP,
    Purpose,
    RealmTrust,
    TrustedKey,
    certificate_payload,
    check_certificate,
    load_jwk,
    parse_trust,
    public_jwk,
    render_trust,
    thumbprint,
)
from broker.token.revocation import Matcher, Revocation, Selector
from broker.token.verification import Time, check_alive, check_signature, check_use, checked_model, facts_for
from tests.realm_keys import CertifiedKey, RealmKeys, sign

KEYS = RealmKeys()
NOW_MS = KEYS.now_s * 1000 + 500


def held(*keys: CertifiedKey, realm: RealmKeys = KEYS) -> dict[str, TrustedKey]:
    trusted = [check_certificate(key.certificate, realm.trust, Purpose.TOKEN) for key in keys or (realm.token,)]
    return {key.kid: key for key in trusted}


def use(
    token: str, model: str = "mythos", *, earliest_ms: int = NOW_MS, latest_ms: int = NOW_MS, **changed: Any
) -> None:
    keys = changed.pop("keys", None) or held()
    arguments = {"trust": KEYS.trust, "keys": keys, "time": Time(earliest_ms, latest_ms), **changed}
    check_use(check_signature(token, keys), checked_model(model), **arguments)


def test_a_good_token_is_accepted():
    use(KEYS.mint())


def test_p8_step_5_issuer_audience_and_realm_are_compared_whole():
    trust = KEYS.trust
    for other in (
        replace(trust, issuer=trust.issuer + "/"),
        replace(trust, issuer=trust.issuer[:-1]),
        replace(trust, issuer=trust.issuer.upper()),
        replace(trust, audience=trust.audience + "x"),
        replace(trust, audience=trust.audience[:-1]),
        replace(trust, realm="evaluation2"),
        replace(trust, realm="eval"),
    ):
        with pytest.raises(WrongRealm):
            use(KEYS.mint(), trust=other)
    for claim in ({"iss": "https://production.example.org"}, {"aud": "production.models"}, {"realm": "production"}):
        with pytest.raises(WrongRealm):
            use(KEYS.mint(**claim))


@pytest.mark.parametrize(
    "changed", [{"purpose": Purpose.FEED}, {"purpose": Purpose.COMPLETION}, {"realm": "production"}]
)
def test_p8_t13_step_6_a_key_of_another_purpose_or_realm_is_nothing_though_somebody_put_it_there(changed):
    [key] = held().values()
    with pytest.raises(Untrusted):
        use(KEYS.mint(), keys={key.kid: replace(key, **changed)})


def test_p9_step_6_a_key_vouches_only_for_its_own_time():
    now = KEYS.now_s
    early = KEYS.certified(Purpose.TOKEN, not_before=now + 10)
    ended = KEYS.certified(Purpose.TOKEN, signs_until=now - 10)
    short = KEYS.certified(Purpose.TOKEN, signs_until=now + 10, expires=now + 20)
    for key, claims in ((early, {}), (ended, {}), (short, {"exp": now + 21})):
        with pytest.raises(Untrusted):
            use(KEYS.mint(by=key, **claims), keys=held(key))
    use(KEYS.mint(by=short, exp=now + 20), keys=held(short))
    # At its end the key is over, whatever its tokens say.
    with pytest.raises(Untrusted):
        use(KEYS.mint(by=short, exp=now + 20), keys=held(short), latest_ms=(now + 20) * 1000)


def test_p9_step_6_a_key_vouches_for_its_first_and_its_last_second():
    now = KEYS.now_s
    key = KEYS.certified(Purpose.TOKEN, not_before=now, signs_until=now, expires=now + 600)
    use(KEYS.mint(by=key, iat=now, exp=now + 600), keys=held(key))
    for iat in (now - 1, now + 1):
        with pytest.raises(Untrusted):
            use(KEYS.mint(by=key, iat=iat, exp=now + 600), keys=held(key))
    use(KEYS.mint(by=key, exp=now + 600), keys=held(key), latest_ms=(now + 600) * 1000 - 1)


def test_t13_a_retired_key_is_no_key():
    signed = check_signature(KEYS.mint(), held())
    with pytest.raises(Untrusted):
        check_use(signed, "mythos", trust=KEYS.trust, keys={}, time=Time(NOW_MS, NOW_MS))


def test_step_7_a_life_ends_by_the_latest_and_begins_by_the_earliest_clock():
    exp_ms, nbf_ms = (KEYS.now_s + 600) * 1000, (KEYS.now_s - 5) * 1000
    use(KEYS.mint(), latest_ms=exp_ms - 1)
    with pytest.raises(Expired):
        use(KEYS.mint(), latest_ms=exp_ms)
    use(KEYS.mint(), earliest_ms=nbf_ms)
    with pytest.raises(NotYetValid):
        use(KEYS.mint(), earliest_ms=nbf_ms - 1)


@pytest.mark.parametrize(
    ("models", "asked", "covered"),
    [
        (("mythos",), "mythos", True),
        (("mythos",), "mythos@eu", True),
        (("mythos@eu",), "mythos@eu", True),
        (("mythos@eu",), "mythos", False),
        (("mythos@eu",), "mythos@us", False),
        (("mythos",), "mythos2", False),
        (("mythos",), "myth", False),
        (("oracle", "mythos"), "mythos", True),
    ],
)
def test_step_8_a_bare_name_covers_its_instances_and_nothing_else(models, asked, covered):
    token = KEYS.mint(models=models, scope=" ".join(f"model:{model}" for model in models))
    if covered:
        use(token, asked)
    else:
        with pytest.raises(NotAllowed):
            use(token, asked)


@pytest.mark.parametrize(
    "asked",
    ["", "*", "mythos ", "Mythos", "mythos@", "@eu", "mythos@eu@us", "../mythos", "a" * 300, None, 7, b"mythos"],
)
def test_p7_step_8_asking_for_nothing_is_not_asking_for_anything(asked):
    with pytest.raises(NotAllowed):
        checked_model(asked)


def test_p4_step_10_a_larger_index_kills_and_a_smaller_does_not():
    signed = check_signature(KEYS.mint(idx=5), held())
    facts = facts_for(signed, "mythos")
    for index, dies in ((4, False), (5, False), (6, True)):
        matcher = Matcher()
        matcher.add(Revocation(index, Selector.of(partner="acme")), 10**18)
        if dies:
            with pytest.raises(Revoked) as caught:
                check_alive(facts, 5, matcher)
            assert caught.value.metadata == {"index": str(index)}
        else:
            check_alive(facts, 5, matcher)


def test_p9_a_revoked_key_kills_at_any_index():
    signed = check_signature(KEYS.mint(idx=10**9), held())
    matcher = Matcher()
    matcher.add(Revocation(6, Selector.of(key=KEYS.token.kid)), 10**18)
    with pytest.raises(Revoked):
        check_alive(facts_for(signed, "mythos"), 10**9, matcher)


def certificate(**changed: Any) -> str:
    """A certificate signed by the root with anything in it."""
    import json

    key = ec.generate_private_key(ec.SECP256R1())
    payload = json.loads(
        certificate_payload(
            KEYS.trust,
            Purpose.TOKEN,
            public_jwk(key.public_key()),
            not_before=KEYS.now_s,
            signs_until=KEYS.now_s + 10,
            expires=KEYS.now_s + 20,
        )
    )
    payload = {name: value for name, value in {**payload, **changed}.items() if value is not ...}
    message = signing_input(
        typ=CERTIFICATE_TYP,
        kid=thumbprint(public_jwk(KEYS.root.public_key())),
        payload=json.dumps(payload, separators=(",", ":"), sort_keys=True).encode(),
    )
    return assemble(message, sign(KEYS.root, message))


def test_the_certificate_that_the_next_tests_alter_is_good():
    key = check_certificate(certificate(), KEYS.trust, Purpose.TOKEN)
    assert (key.not_before, key.signs_until, key.expires) == (KEYS.now_s, KEYS.now_s + 10, KEYS.now_s + 20)


OTHER = public_jwk(ec.generate_private_key(ec.SECP256R1()).public_key())
BIG = ec.generate_private_key(ec.SECP384R1()).public_key().public_numbers()


@pytest.mark.parametrize(
    "changed",
    [
        {"purpose": "feed"},
        {"purpose": "completion"},
        {"purpose": "Token"},
        {"purpose": ["token"]},
        {"realm": "production"},
        {"iss": "https://production.example.org"},
        {"sub": thumbprint(OTHER)},
        {"jwk": OTHER},
        {"jwk": {**OTHER, "d": "AA"}},
        {"jwk": {**OTHER, "use": "sig"}},
        {"jwk": {"kty": "oct", "k": "AA"}},
        {"jwk": {**OTHER, "crv": "P-384"}},
        {"jwk": {**OTHER, "x": OTHER["y"]}},
        {"jwk": {**OTHER, "x": OTHER["x"] + "="}},
        {"jwk": {**OTHER, "x": "AA"}},
        {"jwk": {**OTHER, "x": 7}},
        {"jwk": None},
        {"nbf": 1.5},
        {"nbf": "1"},
        {"nbf": True},
        {"nbf": 0},
        {"nbf": -1},
        {"exp": KEYS.now_s - 1},
        {"signs_until": KEYS.now_s + 30},
        {"exp": 10**30},
        {"iat": None},
        {"exp": ...},
        {"signs_until": ...},
        {"more": 1},
    ],
    ids=itertools.count(),
)
def test_p8_p9_a_certificate_says_exactly_what_it_must_though_the_root_signed_it(changed):
    with pytest.raises((Malformed, Untrusted)):
        check_certificate(certificate(**changed), KEYS.trust, Purpose.TOKEN)


def test_p8_only_a_pinned_root_certifies():
    stranger = RealmKeys()
    forged = replace_root(stranger)
    with pytest.raises(Untrusted):
        check_certificate(forged, KEYS.trust, Purpose.TOKEN)
    # A key that a root certified is no root.
    payload = certificate_payload(KEYS.trust, Purpose.TOKEN, OTHER, not_before=1, signs_until=2, expires=3)
    message = signing_input(typ=CERTIFICATE_TYP, kid=KEYS.token.kid, payload=payload)
    with pytest.raises(Untrusted):
        check_certificate(assemble(message, sign(KEYS.token.private, message)), KEYS.trust, Purpose.TOKEN)


def replace_root(stranger: RealmKeys) -> str:
    """Signed by a stranger's root under the name of ours."""
    payload = certificate_payload(KEYS.trust, Purpose.TOKEN, OTHER, not_before=1, signs_until=2, expires=3)
    message = signing_input(typ=CERTIFICATE_TYP, kid=thumbprint(public_jwk(KEYS.root.public_key())), payload=payload)
    return assemble(message, sign(stranger.root, message))


def test_a_point_off_the_curve_is_no_key():
    with pytest.raises(Malformed):
        load_jwk({**OTHER, "y": OTHER["x"]})
    with pytest.raises(Malformed):
        load_jwk({"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43})


def trust(**changed: Any) -> str:
    import json

    realm = {"issuer": "https://a.example", "audience": "a.models", "roots": [OTHER]}
    named = {name: value for name, value in {**realm, **changed}.items() if value is not ...}
    return json.dumps({"realms": {"a": named}})


def test_a_trust_file_comes_back_as_it_went():
    trusts = [KEYS.trust, RealmKeys("production").trust]
    assert parse_trust(render_trust(trusts)) == {one.realm: one for one in trusts}


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{}",
        "[]",
        '{"realms":[]}',
        '{"realms":{},"more":1}',
        trust(roots=[]),
        trust(roots=...),
        trust(roots=[OTHER, OTHER]),
        trust(roots=[{**OTHER, "d": "AA"}]),
        trust(roots="x"),
        trust(issuer=""),
        trust(issuer=7),
        trust(issuer="http://a.example"),
        trust(issuer="https://a.example/?x"),
        trust(audience=""),
        trust(audience=["a"]),
        trust(more=1),
        trust().replace('"a"', '"A"', 1),
        trust().replace('"a"', '"a..b"', 1),
        "\ud800",
    ],
    ids=itertools.count(),
)
def test_p7_a_trust_file_that_is_not_exactly_one_is_refused(document):
    with pytest.raises(Malformed):
        parse_trust(document)


def test_p8_two_realms_share_no_root_issuer_or_audience():
    one = KEYS.trust
    for other in (
        RealmTrust("b", one.issuer, "b", (OTHER,)),
        RealmTrust("b", "https://b.example", one.audience, (OTHER,)),
        RealmTrust("b", "https://b.example", "b", one.roots),
        RealmTrust("b", "https://b.example", "b", (OTHER, *one.roots)),
    ):
        with pytest.raises(Malformed, match="shares"):
            parse_trust(render_trust([one, other]))


def test_rfc_7638_s_own_kind_of_thumbprint_is_taken_over_the_required_members_only():
    assert thumbprint({**OTHER, "use": "sig", "kid": "x"}) == thumbprint(OTHER)
