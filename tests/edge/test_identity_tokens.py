"""Tokens of other issuers: which are accepted, and that no hostile issuer stops, floods or fools the broker."""

import json
import threading
import time
from concurrent.futures import Future
from functools import partial

import pytest

from broker.adapters import issuer_keys
from broker.adapters.identity_tokens import MAX_REMEMBERED, IdentityTokens, Outside
from broker.domain.trust import Provider, ProviderKind
from broker.errors import IssuerUnavailable, Overloaded, Unauthenticated
from broker.https import Reach, ask, is_public
from tests.authority import Authority
from tests.issuer import AUDIENCE, UID, Issuer, SigningKey
from tests.moved_clock import MovedClock
from tests.waiting import eventually

WELL_KNOWN = "/.well-known/openid-configuration"
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca")).server()


@pytest.fixture
def issuer(papers):
    with Issuer(papers) as issuer:
        yield issuer


@pytest.fixture
def clock():
    return MovedClock()


def provider(issuer, kind=ProviderKind.OIDC, **changes):
    fields = {
        "name": "sso",
        "kind": kind,
        "for_humans": kind is ProviderKind.OIDC,
        "issuer": issuer.url,
        "audience": AUDIENCE,
    }
    return Provider(**{**fields, **changes})


def identities(clock, issuer, *more, kind=ProviderKind.OIDC, private=None, **outside):
    issuers = [issuer, *(one for one in more if isinstance(one, Issuer))]
    reach = Reach(frozenset(one.place for one in issuers) if private is None else private, issuer.papers.ca)
    made = IdentityTokens(Outside(reach, **outside), clock)
    made.configure([provider(issuer, kind), *(one for one in more if isinstance(one, Provider))])
    return made


def proven(tokens, token, within_s=10):
    return tokens.prove(token).result(within_s)


def refusal(tokens, token):
    with pytest.raises(Unauthenticated) as caught:
        proven(tokens, token)
    assert caught.value.hint
    assert token not in str(caught.value)
    return caught.value.message


def test_a_good_token_proves_its_claims_and_the_key_that_its_login_is_bound_to(issuer, clock):
    tokens = identities(clock, issuer)
    thumbprint = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    proof = proven(tokens, issuer.token(nonce=thumbprint, auth_time=1_700_000_000, email="a@x", admin=True, n=1.5))
    assert proof.provider == "sso"
    assert proof.claims["sub"] == "u-1"
    assert proof.claims["email"] == "a@x"
    # A rule compares texts; `true` is none.
    assert "admin" not in proof.claims
    assert proof.key == thumbprint
    assert proof.authenticated_at is not None
    assert proof.authenticated_at.timestamp() == 1_700_000_000
    assert proven(tokens, issuer.token(nonce="n-1")).key is None
    assert proven(tokens, issuer.token()).authenticated_at is None


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256"])
def test_the_algorithms_of_real_issuers_are_accepted(papers, clock, alg):
    with Issuer(papers, path="/a/tenant") as issuer:
        issuer.keys = [SigningKey("k", alg)]
        assert proven(identities(clock, issuer), issuer.token(aud=[AUDIENCE])).claims["sub"] == "u-1"


def wrong_tokens(issuer):
    now = int(time.time())
    yield "another audience", issuer.token(aud="other")
    yield "several audiences", issuer.token(aud=[AUDIENCE, "other"])
    yield "no audience", issuer.token(aud=None)
    yield "an empty audience", issuer.token(aud=[])
    yield "a nested audience", issuer.token(aud=[[AUDIENCE]])
    yield "a slash more", issuer.token(iss=issuer.url + "/")
    yield "another issuer", issuer.token(iss="https://sso.example")
    yield "no issuer", issuer.token(iss=None)
    yield "an issuer in upper case", issuer.token(iss=issuer.url.upper())
    yield "a list of issuers", issuer.token(iss=[issuer.url])
    yield "over", issuer.token(iat=now - 700, nbf=now - 700, exp=now - 60)
    yield "no end", issuer.token(exp=None)
    yield "no beginning", issuer.token(iat=None)
    yield "an end in text", issuer.token(exp=str(now + 600))
    yield "an end that is true", issuer.token(exp=True)
    yield "an end with a fraction", issuer.token(exp=now + 600.5)
    yield "an end before time", issuer.token(exp=-1)
    yield "an end beyond all numbers", issuer.token(exp=10**30)
    yield "a life of years", issuer.token(exp=now + 366 * 86_400)
    yield "from the future", issuer.token(iat=now + 120, nbf=now + 120)
    yield "not before the future", issuer.token(nbf=now + 120)
    yield "no subject", issuer.token(sub=None)
    yield "an empty subject", issuer.token(sub="")
    yield "a subject that is a number", issuer.token(sub=1)
    yield "an endless subject", issuer.token(sub="x" * 600)
    yield "a login time that is none", issuer.token(auth_time="yesterday")
    yield "a login in the future", issuer.token(auth_time=now + 3600)
    yield "16 KiB and more", issuer.token(much="x" * 16_384)


def wrong_forms(issuer):
    key, good = issuer.keys[0], issuer.token()
    header = {"alg": "ES256", "kid": key.kid, "typ": "JWT"}
    claims = issuer.claims()
    head, body, signature = good.split(".")
    for name, value in (
        ("jku", "https://evil.example/jwks"),
        ("jwk", key.jwk()),
        ("x5u", "https://evil.example/x"),
        ("x5c", ["AAAA"]),
        ("crit", ["exp"]),
        ("crit", []),
        ("b64", False),
        ("zip", "DEF"),
        ("cty", "JWT"),
        ("anything", 1),
    ):
        yield f"{name} in the header", key.sign(claims, header={**header, name: value})
    for typ in ("at+jwt", "dpop+jwt", "key-certificate+jwt", "logout+jwt", "jwt+at", 1, None):
        yield f"typ {typ}", key.sign(claims, header={**header, "typ": typ})
    for alg in ("none", "None", "noNE", "HS256", "es256", "RS256", "PS256", "ES384", "EdDSA", 1, None):
        yield f"alg {alg}", key.sign(claims, header={**header, "alg": alg})
    for kid in (None, 1, "", "two", "o" * 300, "../../one", "one\0", "one ", ["one"]):
        yield f"kid {str(kid)[:20]!r}", key.sign(claims, header={**header, "kid": kid})
    text = json.dumps(claims)
    yield "a claim twice", key.sign(('{"sub":"u-2",' + text[1:]).encode())
    yield "an escaped name twice", key.sign(('{"\\u0073ub":"u-2",' + text[1:]).encode())
    yield "alg twice", key.sign(claims, header=('{"alg":"none",' + json.dumps(header)[1:]).encode())
    yield "NaN", key.sign((text[:-1] + ',"n":NaN}').encode())
    yield "1e999", key.sign((text[:-1] + ',"n":1e999}').encode())
    yield "half a character", key.sign((text[:-1] + ',"n":"\\ud800"}').encode())
    yield "UTF-16", key.sign(text.encode("utf-16"))
    yield "a byte order mark", key.sign(b"\xef\xbb\xbf" + text.encode())
    yield "more behind it", key.sign(text.encode() + b"{}")
    yield "a list", key.sign(b"[]")
    yield "deep", key.sign(b"[" * 5000 + b"]" * 5000)
    yield "two segments", f"{head}.{body}"
    yield "four segments", f"{good}.{signature}"
    yield "no signature", f"{head}.{body}."
    yield "padding", f"{good}="
    yield "a space before", f" {good}"
    yield "a line after", f"{good}\n"
    yield "JSON serialization", json.dumps({"protected": head, "payload": body, "signature": signature})
    yield "somebody else's signature", f"{head}.{body}.{issuer.token(sub='u-2').split('.')[2]}"
    yield "half a signature", f"{head}.{body}.{signature[:43]}"
    yield "a signature of zeros", f"{head}.{body}.{'A' * 86}"
    yield "nothing", ""
    yield "no ASCII", good.replace("e", "é", 1)


@pytest.mark.parametrize("make", [wrong_tokens, wrong_forms])
def test_t1_to_t13_what_is_not_exactly_a_token_of_a_provider_for_us_is_refused(issuer, clock, make):
    tokens = identities(clock, issuer)
    assert proven(tokens, issuer.token())
    seen = 0
    for name, token in make(issuer):
        with pytest.raises(Unauthenticated):
            pytest.fail(f"{name}: {proven(tokens, token)}")
        seen += 1
    assert seen > 25


def test_b16_no_near_miss_of_an_audience_or_an_issuer_gets_in(issuer, clock):
    tokens = identities(clock, issuer)
    host = issuer.url.removeprefix("https://")
    misses = [near for near in near_misses(AUDIENCE) if near != AUDIENCE]
    for near in misses:
        with pytest.raises(Unauthenticated):
            pytest.fail(f"{near!r}: {proven(tokens, issuer.token(aud=near))}")
    spelled = [f"https://{near}" for near in near_misses(host) if near != host]
    spelled += [f"http://{host}", f"https://{host}/", f"https://{host}/.", f"https://{host}//", f"https://@{host}"]
    spelled += [f"https://{host}?", f"https://{host}#", f"https://{host}%2f", f"HTTPS://{host}", host]
    for near in spelled:
        with pytest.raises(Unauthenticated):
            pytest.fail(f"{near!r}: {proven(tokens, issuer.token(iss=near))}")
    assert len(misses) + len(spelled) > 100


def near_misses(text):
    """Spellings that somebody's comparison has taken for `text`."""
    yield from (
        text.upper(),
        text.capitalize(),
        f"{text}.",
        f".{text}",
        f"{text} ",
        f" {text}",
        f"{text}\t",
        f"{text}\n",
    )
    yield from (
        f"{text}/",
        f"/{text}",
        f"//{text}",
        f"{text}//",
        f"{text}/..",
        f"./{text}",
        f"x/../{text}",
        f"{text}\0",
    )
    yield from (f"{text}\0x", f"{text}-evil", f"{text}evil", f"evil-{text}", text[:-1], text[1:], f"{text}{text}", "*")
    yield from (
        f"{text[:-1]}*",
        f"*{text[1:]}",
        f"{text}*",
        f"*{text}",
        "?" * len(text),
        f"^{text}$",
        ".*",
        f"{text}|x",
    )
    yield from (
        f"{text}%00",
        f"{text}%20",
        f"%{ord(text[0]):02x}{text[1:]}",
        f"{text},",
        f"{text},x",
        f"x,{text}",
        f'"{text}"',
    )
    yield from (
        f"{text}@",
        f"@{text}",
        f"user@{text}",
        f"{text}:443",
        f"{text}#",
        f"{text}?",
        f"{text};x",
        f"[{text}]",
        "",
    )
    for mark in ("\u200d", "\u200b", "\ufeff", "\u00ad", "\u2060", "\u202e", "\u0301", "\u034f"):
        yield from (f"{text}{mark}", f"{mark}{text}", f"{text[0]}{mark}{text[1:]}")
    # Greek, Cyrillic, full width, Arabic, the Kelvin sign, an ideographic full stop.
    for letter, alike in zip("ooeai14k.", "\u03bf\u043e\u0435\u0430\u0456\uff11\u0664\u212a\u3002", strict=True):
        if letter in text:
            yield text.replace(letter, alike, 1)
    # Full width, which NFKC folds.
    yield "".join(chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character for character in text)


# The key set.


def test_a_token_of_another_issuer_with_the_same_kid_is_not_confused(papers, clock):
    with Issuer(papers, path="/a") as one, Issuer(papers, path="/b") as two:
        tokens = identities(clock, one, two, provider(two, name="other"))
        assert proven(tokens, one.token()).provider == "sso"
        assert proven(tokens, two.token()).provider == "other"
        # Both call their key `one`.
        assert "no key" in refusal(tokens, one.token(key=two.keys[0]))
        assert "no key" in refusal(tokens, two.token(key=one.keys[0]))


def test_a_rotated_key_is_learnt_at_its_first_token_and_one_taken_back_is_forgotten(issuer, clock):
    tokens = identities(clock, issuer)
    old = issuer.token()
    assert proven(tokens, old)
    issuer.keys = [SigningKey("two")]
    clock.advance(issuer_keys.UNKNOWN_KEY_EVERY_S)
    assert proven(tokens, issuer.token())
    # It had been verified, and was remembered: its key is in the set no more.
    assert "no key" in refusal(tokens, old)


def test_a_key_of_the_same_name_is_not_the_same_key(issuer, clock):
    tokens = identities(clock, issuer)
    old = issuer.token()
    assert proven(tokens, old)
    issuer.keys = [SigningKey("one")]
    clock.advance(issuer_keys.REFRESH_AFTER_S + 1)
    proven(tokens, old)
    eventually(lambda: issuer.fetches() == 2, "the set is fetched in the background")
    eventually(lambda: not accepted(tokens, old), "the key is another")


def accepted(tokens, token):
    try:
        return bool(proven(tokens, token))
    except Unauthenticated:
        return False


def test_t10_unknown_key_ids_make_no_storm_at_the_issuer(issuer, clock):
    tokens = identities(clock, issuer)
    assert proven(tokens, issuer.token())
    before = issuer.fetches()
    for number in range(200):
        refusal(tokens, issuer.token(key=SigningKey("one"), header={"alg": "ES256", "kid": f"k{number}"}))
    assert issuer.fetches() - before <= 1
    # And who has a good token is not made to wait for it.
    assert proven(tokens, issuer.token())


@pytest.mark.parametrize(
    "member",
    [
        {"kty": "EC", "kid": "one"},
        {"kty": "unheard-of", "kid": "one"},
        {"kty": "oct", "kid": "one", "k": "AAAA"},
    ],
)
def test_a_set_that_names_a_key_twice_is_refused(issuer, clock, member):
    issuer.more_keys = [member]
    tokens = identities(clock, issuer)
    with pytest.raises(IssuerUnavailable, match="twice"):
        proven(tokens, issuer.token())


def test_keys_of_unknown_kinds_and_for_other_uses_are_passed_over(issuer, clock):
    other = SigningKey("other")
    for number, changes in enumerate(
        (
            {"use": "enc"},
            {"key_ops": ["sign"]},
            {"alg": "ES384"},
            {"alg": "HS256"},
            {"d": "AAAA"},
            {"crv": "P-384"},
            {"x": "AA"},
            {"y": other.jwk()["x"]},
        )
    ):
        issuer.more_keys.append(other.jwk(kid=f"not-{number}", **changes))
    issuer.more_keys += [
        {"kty": "AKP", "kid": "pq", "alg": "ML-DSA-65"},
        {"kty": "oct", "kid": "mac", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "short", "n": "AQAB", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        "text",
        None,
    ]
    tokens = identities(clock, issuer)
    assert proven(tokens, issuer.token())
    for number in range(8):
        refusal(tokens, issuer.token(key=other, header={"alg": "ES256", "kid": f"not-{number}"}))


@pytest.mark.parametrize("issuer_says", ["https://sso.example", "", None, 1])
def test_a_discovery_document_about_another_issuer_is_refused(issuer, clock, issuer_says):
    issuer.discovery = {"issuer": issuer_says}
    with pytest.raises(IssuerUnavailable, match="not about the issuer"):
        proven(identities(clock, issuer), issuer.token())


@pytest.mark.parametrize(
    "uri",
    [
        None,
        1,
        "http://127.0.0.1/jwks",
        "file:///etc/passwd",
        "https://user@sso.example/",
        "//x",
        "https://127.0.0.1:1/",
    ],
)
def test_a_key_set_that_is_not_at_an_https_address_that_may_be_asked_is_refused(issuer, clock, uri):
    issuer.discovery = {"jwks_uri": uri}
    with pytest.raises(IssuerUnavailable):
        proven(identities(clock, issuer), issuer.token())


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[],"keys":[]}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_key_set_is_refused(issuer, clock, body):
    issuer.answers["/jwks"] = lambda request: issuer.reply(request, body)
    with pytest.raises(IssuerUnavailable):
        proven(identities(clock, issuer), issuer.token())


# Issuers that are away or hostile.


def test_an_issuer_that_is_down_stops_nobody_whom_it_vouched_for_and_is_not_believed_for_ever(issuer, clock):
    tokens = identities(clock, issuer)
    assert proven(tokens, issuer.token())
    issuer.read_now = lambda: clock.now().timestamp()
    late = issuer.token(exp=int(time.time()) + 80_000)
    issuer.stop()
    clock.advance(issuer_keys.REFRESH_AFTER_S + 1)
    assert proven(tokens, issuer.token())
    eventually(tokens.problems, "what is wrong is told")
    assert issuer.url in tokens.problems()[0] or issuer.place in tokens.problems()[0]
    assert proven(tokens, late)
    clock.advance(issuer_keys.BELIEVED_S)
    for token in (issuer.token(), late):
        with pytest.raises(IssuerUnavailable):
            proven(tokens, token)
    issuer.start()
    clock.advance(issuer_keys.LONGEST_REST_S)
    assert proven(tokens, late)
    assert tokens.problems() == ()


def test_an_issuer_that_is_down_is_asked_less_and_less(issuer, clock):
    issuer.answers[WELL_KNOWN] = lambda request: issuer.reply(request, {}, status=503)
    tokens = identities(clock, issuer)
    for _ in range(100):
        with pytest.raises(IssuerUnavailable):
            proven(tokens, issuer.token())
        # A minute in all.
        clock.advance(0.6)
    assert 2 <= len(issuer.asked) <= 8


@pytest.mark.parametrize("where", [WELL_KNOWN, "/jwks"])
@pytest.mark.parametrize("how", ["hang", "trickle"])
def test_an_issuer_that_is_slow_is_given_two_seconds_and_holds_up_nobody_else(papers, clock, where, how):
    with Issuer(papers, path="/quick") as quick, Issuer(papers) as slow:
        slow.answers[where] = getattr(slow, how)
        tokens = identities(clock, quick, slow, provider(slow, name="slow"))
        assert proven(tokens, quick.token())
        waiting: list[Future[object]] = [tokens.prove(slow.token())]
        assert not waiting[0].done(), "who asks does not wait"
        waiting += [tokens.prove(slow.token(sub=f"u-{n}")) for n in range(50)]
        assert tokens.prove(quick.token(sub="another")).done(), "keys in hand are enough"
        for one in waiting:
            with pytest.raises(IssuerUnavailable, match="no answer in time"):
                one.result(20)
        assert slow.asked.count(WELL_KNOWN) == 1, "all of them waited for one answer"


def test_those_who_wait_for_an_issuer_are_not_without_number(issuer, clock):
    issuer.answers[WELL_KNOWN] = issuer.hang
    tokens = identities(clock, issuer)
    token = issuer.token()
    waiting = [tokens.prove(token) for _ in range(1002)]
    failures = [type(one.exception(20)) for one in waiting]
    assert failures.count(Overloaded) == 2


@pytest.mark.parametrize("says_so", [True, False])
def test_ten_megabytes_of_keys_are_refused_without_being_read(issuer, clock, says_so):
    issuer.answers["/jwks"] = partial(issuer.huge, says_so=says_so)
    with pytest.raises(IssuerUnavailable, match="more than 1048576 bytes"):
        proven(identities(clock, issuer), issuer.token())
    # What is under way in sockets was sent, too.
    assert issuer.sent < 8 << 20


@pytest.mark.parametrize("where", [WELL_KNOWN, "/jwks"])
def test_a_redirect_is_not_followed(papers, clock, where):
    with Issuer(papers) as other, Issuer(papers) as issuer:
        issuer.answers[where] = lambda request: issuer.redirect(request, f"{other.url}/jwks")
        with pytest.raises(IssuerUnavailable, match="redirects"):
            proven(identities(clock, issuer, private=frozenset({issuer.place, other.place})), issuer.token())
        assert other.asked == []


def test_an_issuer_at_a_private_address_is_not_asked_unless_the_configuration_says_so(issuer, clock):
    for private in (frozenset(), frozenset({"127.0.0.1:1"}), frozenset({f"localhost:{issuer.port}"})):
        with pytest.raises(IssuerUnavailable, match="private address") as caught:
            proven(identities(clock, issuer, private=private), issuer.token())
        assert "allow_private" in caught.value.hint
    assert issuer.asked == []


def test_the_address_that_is_connected_to_is_the_one_that_was_checked(issuer, monkeypatch):
    """No DNS rebinding: the name is looked up once, and then not asked for any more."""
    import socket

    asked = []
    real = socket.getaddrinfo

    def lookup(host, port, *rest, **more):
        asked.append(host)
        return real(host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    reach = Reach(frozenset({f"localhost:{issuer.port}"}), issuer.papers.ca)
    assert ask(f"https://localhost:{issuer.port}/jwks", reach).status == 200
    assert asked.count("localhost") == 1


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "::ffff:100.64.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::", "192.0.2.1",
    ],
)  # fmt: skip
def test_private_addresses_are_known_in_every_spelling(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "140.82.112.3", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are_public(address):
    assert is_public(address)


def test_an_issuer_whose_certificate_is_of_another_authority_is_not_believed(issuer, clock, tmp_path):
    other = Authority(tmp_path / "other")
    tokens = IdentityTokens(Outside(Reach(frozenset({issuer.place}), other.ca)), clock)
    tokens.configure([provider(issuer)])
    with pytest.raises(IssuerUnavailable, match="certificate"):
        proven(tokens, issuer.token())


# What is remembered.


def test_a_token_seen_before_is_not_verified_again_and_ends_when_it_ends(issuer, clock):
    tokens = identities(clock, issuer)
    token = issuer.token()
    first = proven(tokens, token)
    assert tokens.prove(token).result(0) is first
    clock.advance(660)
    assert "ended" in refusal(tokens, token)


def test_what_is_remembered_is_bounded(issuer, clock):
    tokens = identities(clock, issuer)
    tokens._remembered.update({str(n).encode(): None for n in range(MAX_REMEMBERED)})
    proven(tokens, issuer.token())
    assert len(tokens._remembered) == MAX_REMEMBERED


def test_p3_a_provider_that_the_policy_takes_out_or_changes_vouches_for_nobody_any_more(issuer, clock):
    tokens = identities(clock, issuer)
    token = issuer.token()
    assert proven(tokens, token)
    tokens.configure([provider(issuer, audience="another")])
    assert "not for this broker" in refusal(tokens, token)
    tokens.configure([])
    assert "no provider" in refusal(tokens, token)
    tokens.configure([provider(issuer, name="renamed")])
    assert proven(tokens, token).provider == "renamed"


def test_many_threads_ask_at_once(issuer, clock):
    tokens = identities(clock, issuer)
    texts = [issuer.token(sub=f"u-{n % 10}") for n in range(40)]
    found, failed = [], []

    def work(text):
        try:
            found.append(proven(tokens, text).claims["sub"])
        except Exception as failure:
            failed.append(failure)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failed
    assert sorted(found) == sorted(f"u-{n % 10}" for n in range(40))
    assert issuer.fetches() == 1


# GitHub and Kubernetes.


@pytest.mark.parametrize(
    "sub",
    [
        "repo:octo-org/octo-repo:ref:refs/heads/main",
        "repo:octo-org@123/octo-repo@456:ref:refs/heads/main",
        "repo:octo-org/octo-repo:environment:prod",
        "repo:octo-org@123/octo-repo@456:pull_request",
    ],
)
def test_b17_both_spellings_of_githubs_subject_are_read(issuer, clock, sub):
    tokens = identities(clock, issuer, kind=ProviderKind.GITHUB)
    proof = proven(tokens, issuer.github_token(sub=sub))
    assert (proof.claims["repository_id"], proof.claims["repository_owner_id"]) == ("456", "123")


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": "repo:octo-org@124/octo-repo@456:ref:x"},
        {"sub": "repo:octo-org@123/octo-repo@457:ref:x"},
        {"sub": "repo:octo-org@123/octo-repo:ref:x"},
        {"sub": "repo:octo-org/octo-repo@456:ref:x"},
        {"sub": "repo:octo-org@0123/octo-repo@456:ref:x"},
        {"sub": "repo:octo-org@/octo-repo@:ref:x"},
        {"sub": "repo:octo-org@123@123/octo-repo@456:ref:x"},
        {"sub": "repo:octo-orgs/octo-repo:ref:x"},
        {"sub": "repo:octo-org/octo-repos:ref:x"},
        {"sub": "repo:octo-org/octo-repo/x:ref:x"},
        {"sub": "repo:octo-org/octo-repo"},
        {"sub": "repo:octo-org/octo-repo:"},
        {"sub": "repo:octo-org/octo-repo:ref\n:x"},
        {"sub": "REPO:octo-org/octo-repo:ref:x"},
        {"sub": "xrepo:octo-org/octo-repo:ref:x"},
        {"sub": "repo:octo-org/*:ref:x"},
        {"sub": "repository_owner:octo-org"},
        {"repository": "octo-org/other"},
        {"repository": None},
        {"repository_owner": "other"},
        {"repository_id": None},
        {"repository_owner_id": None},
        {"repository_id": 456},
        {"repository_id": "0456"},
        {"repository_id": "٤٥٦"},
    ],
)
def test_b17_a_github_token_whose_parts_disagree_is_refused(issuer, clock, changes):
    refusal(identities(clock, issuer, kind=ProviderKind.GITHUB), issuer.github_token(**changes))


def test_a_service_accounts_token_proves_its_uid(issuer, clock):
    tokens = identities(clock, issuer, kind=ProviderKind.KUBERNETES)
    assert proven(tokens, issuer.pod_token()).claims == {
        "iss": issuer.url,
        "sub": "system:serviceaccount:acme:evals",
        "namespace": "acme",
        "serviceaccount": "evals",
        "uid": UID,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": "system:serviceaccount:acme:other"},
        {"sub": "system:serviceaccount:other:evals"},
        {"sub": "system:node:evals"},
        {"sub": "system:serviceaccount:acme:evals:x"},
        {"kubernetes.io": None},
        {"kubernetes.io": "x"},
        {"kubernetes.io": {"namespace": "acme", "serviceaccount": {"name": "evals"}}},
        {"kubernetes.io": {"namespace": "acme", "serviceaccount": {"name": "evals", "uid": UID.upper()}}},
        {"kubernetes.io": {"serviceaccount": {"name": "evals", "uid": UID}}},
        {"kubernetes.io": {"namespace": "acme", "serviceaccount": []}},
    ],
)
def test_a_service_accounts_token_whose_parts_disagree_is_refused(issuer, clock, changes):
    refusal(identities(clock, issuer, kind=ProviderKind.KUBERNETES), issuer.pod_token(**changes))


def reviewed(issuer, clock, tmp_path, status, seen):
    """Identities whose one provider asks `issuer` for TokenReviews."""
    credentials = tmp_path / "token"
    credentials.write_text("ours-one\n")
    issuer.answers[REVIEWS] = lambda request: issuer.review(request, status, seen=seen)
    tokens = IdentityTokens(
        Outside(Reach(frozenset({issuer.place}), issuer.papers.ca), {"cluster": credentials}), clock
    )
    tokens.configure([provider(issuer, ProviderKind.KUBERNETES, name="cluster", review=issuer.url)])
    return tokens, credentials


USER = {"username": "system:serviceaccount:acme:evals", "uid": UID, "groups": ["system:serviceaccounts"]}


def test_a_token_review_names_our_audience_and_its_answer_is_believed_for_seconds(issuer, clock, tmp_path):
    seen = []
    tokens, credentials = reviewed(
        issuer, clock, tmp_path, {"authenticated": True, "audiences": [AUDIENCE], "user": USER}, seen
    )
    token = issuer.pod_token()
    assert proven(tokens, token).claims["uid"] == UID
    assert seen[0][0] == "Bearer ours-one"
    assert seen[0][1]["spec"] == {"token": token, "audiences": [AUDIENCE]}
    assert proven(tokens, token)
    assert len(seen) == 1
    # Credentials are rotated in their file.
    credentials.write_text("ours-two")
    clock.advance(11)
    assert proven(tokens, token)
    assert [one[0] for one in seen] == ["Bearer ours-one", "Bearer ours-two"]


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": False, "error": "no"},
        {"authenticated": "true", "audiences": [AUDIENCE], "user": USER},
        {"authenticated": True, "user": USER},
        {"authenticated": True, "audiences": [], "user": USER},
        {"authenticated": True, "audiences": ["https://kubernetes.default.svc"], "user": USER},
        {"authenticated": True, "audiences": f"{AUDIENCE}s", "user": USER},
        {"authenticated": True, "audiences": [AUDIENCE]},
        {"authenticated": True, "audiences": [AUDIENCE], "user": {**USER, "uid": ""}},
        {"authenticated": True, "audiences": [AUDIENCE], "user": {**USER, "username": "kubernetes-admin"}},
        {"authenticated": True, "audiences": [AUDIENCE], "user": USER, "error": "half"},
    ],
)
def test_a_token_review_that_does_not_vouch_for_it_to_us_is_a_refusal(issuer, clock, tmp_path, status):
    tokens, _ = reviewed(issuer, clock, tmp_path, status, [])
    refusal(tokens, issuer.pod_token())


@pytest.mark.parametrize("status", [None, [], "x"])
def test_a_token_review_that_says_nothing_is_no_answer(issuer, clock, tmp_path, status):
    tokens, _ = reviewed(issuer, clock, tmp_path, status, [])
    with pytest.raises(IssuerUnavailable):
        proven(tokens, issuer.pod_token())


def test_a_cluster_that_does_not_let_us_ask_is_no_answer(issuer, clock, tmp_path):
    tokens, credentials = reviewed(issuer, clock, tmp_path, {}, [])
    for body, status in ((b"{}", 403), (b"{}", 401), (b"not json", 201), (b"[]", 200)):
        issuer.answers[REVIEWS] = lambda request, body=body, status=status: issuer.reply(request, body, status=status)
        with pytest.raises(IssuerUnavailable, match="TokenReview"):
            proven(tokens, issuer.pod_token())
    credentials.unlink()
    with pytest.raises(IssuerUnavailable, match="credentials"):
        proven(tokens, issuer.pod_token())
    without = IdentityTokens(Outside(Reach(frozenset({issuer.place}), issuer.papers.ca)), clock)
    without.configure([provider(issuer, ProviderKind.KUBERNETES, name="cluster", review=issuer.url)])
    with pytest.raises(IssuerUnavailable, match="no credentials") as caught:
        proven(without, issuer.pod_token())
    assert "review_token_files" in caught.value.hint


@pytest.mark.parametrize("where", [WELL_KNOWN, "/jwks"])
@pytest.mark.parametrize("status", [204, 404, 500])
def test_an_answer_that_is_no_success_is_no_key_set(issuer, clock, where, status):
    issuer.answers[where] = lambda request: issuer.reply(request, issuer.key_set(), status=status)
    with pytest.raises(IssuerUnavailable):
        proven(identities(clock, issuer), issuer.token())


def test_a_token_with_more_claims_than_anybody_needs_is_refused(issuer, clock):
    refusal(identities(clock, issuer), issuer.token(**{f"c{n}": "x" for n in range(101)}))


def test_a_token_for_another_audience_is_not_even_shown_to_the_cluster(issuer, clock, tmp_path):
    seen = []
    tokens, _ = reviewed(issuer, clock, tmp_path, {"authenticated": True, "audiences": [AUDIENCE], "user": USER}, seen)
    refusal(tokens, issuer.pod_token(aud="https://kubernetes.default.svc"))
    refusal(tokens, issuer.pod_token(exp=None))
    assert seen == []
