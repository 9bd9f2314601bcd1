"""What nearly is a name, an audience or a model is another one or none (B1, B16, P8)."""

import itertools
import json
import string
import unicodedata
from urllib.parse import quote

import pytest

from broker.errors import Failure, Invalid, Malformed, NotAllowed, WrongRealm
from broker.token.claims import TOKEN_TYP, encode_claims
from broker.token.identifiers import identifier, label, model_name, opaque_id, principal_uri
from broker.token.jws import assemble, signing_input
from broker.token.keys import Purpose, check_certificate
from broker.token.revocation import Matcher, Revocation, Selector, facts_of
from broker.token.verification import Time, check_signature, check_use, checked_model
from tests.realm_keys import RealmKeys, sign

KEYS = RealmKeys()
TRUSTED = check_certificate(KEYS.token.certificate, KEYS.trust, Purpose.TOKEN)
HELD = {TRUSTED.kid: TRUSTED}
NOW = Time(KEYS.now_s * 1000, KEYS.now_s * 1000)
AUDIENCE = "evaluation.models"
HOMOGLYPHS = {
    "a": "\u0430\u0251\u03b1\uff41\U0001d41a\u00e0",
    "c": "\u0441\u03f2\uff43\U0001d41c\u00e7",
    "m": "\uff4d\U0001d426\u217f\u1e43",
    "e": "\u0435\uff45\U0001d41e\u00e9",
}
UNSEEN = (
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u202e\u2066\u180e\u00a0\u2003\u3000\x00\x01\x1b\x7f\t\n\r\x0b\x85\u2028"
)


def near_misses(name: str) -> list[str]:
    """Other texts that somebody may take, or some program may make, for `name`."""
    found = [
        name.upper(),
        name.title(),
        name.swapcase(),
        *(name[:at] + name[at].upper() + name[at + 1 :] for at in range(len(name))),
    ]
    for at, character in enumerate(name):
        found += [name[:at] + other + name[at + 1 :] for other in HOMOGLYPHS.get(character, "")]
        found += [name[:at] + other + name[at:] for other in UNSEEN]
        found += [
            name[:at] + f"%{ord(character):02x}" + name[at + 1 :],
            name[:at] + f"\\u{ord(character):04x}" + name[at + 1 :],
        ]
        found += [
            name[:at] + name[at + 1 :],
            name[:at] + character + name[at:],
            name[:at] + character + "\u0301" + name[at + 1 :],
        ]
        found += [
            name[:at] + f"&#{ord(character)};" + name[at + 1 :],
            name[:at] + "*" + name[at + 1 :],
            name[:at] + "?",
        ]
    for other in (
        *UNSEEN,
        " ",
        ".",
        "..",
        "/",
        "//",
        "/.",
        "/..",
        ":443",
        "@x",
        "@",
        "=",
        "*",
        "?",
        "#",
        ",",
        ";",
        "|",
        "'",
        '"',
        "\\",
        "-",
        "_",
    ):
        found += [name + other, other + name, other + name + other]
    found += [f"{name}{join}{more}" for join in ".-_/:@ *" for more in ("evil", "2", "a", name)]
    found += [f"{more}{join}{name}" for join in ".-_/:@ *" for more in ("evil", "2", "a")]
    found += [
        "https://" + name,
        "//" + name,
        f"[{name}]",
        f"({name})",
        f"{{{name}}}",
        f'"{name}"',
        f"^{name}$",
        f"{name}|x",
        f".*{name}",
    ]
    found += [
        name + "%2e",
        name + "%00",
        name + "%0a",
        quote(name + "\n"),
        name[::-1],
        name * 2,
        "",
        "*",
        "%",
        ".",
        "..",
        "null",
        "0",
    ]
    found += [
        "".join(map(chr, (ord(c) + 0xFEE0 for c in name if c in string.ascii_lowercase))),
        "xn--" + name,
        name + "\u0301",
    ]
    found += [
        unicodedata.normalize("NFD", name.replace("e", "\u00e9").replace("a", "\u00e0")),
        name.encode().hex(),
        repr(name),
    ]
    return [one for one in dict.fromkeys(found) if one != name]


def test_the_corpus_is_large():
    assert len(near_misses("acme")) >= 300
    assert len(near_misses("acme")) + len(near_misses(AUDIENCE)) >= 900


def complaint(text: str) -> str | None:
    try:
        assert identifier("partner", text) == text
    except Invalid as bad:
        return str(bad)
    return None


def test_b16_no_near_miss_of_a_name_is_that_name():
    """Either refused as a name, or a name of its own by its bytes: nothing is folded, trimmed or decoded."""
    matcher = Matcher()
    matcher.add(Revocation(9, Selector.of(partner="acme")), 10**18)
    matcher.add(Revocation(9, Selector.of(environment="acme", model="mythos")), 10**18)
    names = 0
    for text in near_misses("acme"):
        said = complaint(text)
        if said is not None:
            # Quoted short and in ASCII, so that it cannot forge a line of a log.
            assert said.isascii()
            assert said.isprintable()
            with pytest.raises(Malformed):
                KEYS.claims(partner=text, sub=f"{text}/user/bob")
            continue
        names += 1
        assert all(character in string.ascii_lowercase + string.digits + "._-" for character in text)
        facts = facts_of(KEYS.claims(partner=text, sub=f"{text}/user/bob", env=text), TRUSTED.kid)
        assert matcher.find(facts, 5) is None, text
    assert names > 20


def test_b16_each_rule_refuses_each_character_that_is_not_its_own():
    """Every character below 256 and some beyond, in front, within and behind."""
    own = {
        identifier: string.ascii_lowercase + string.digits + "._-",
        model_name: string.ascii_lowercase + string.digits + "._-@",
        label: string.ascii_lowercase + string.digits + "._-",
        opaque_id: string.ascii_letters + string.digits + "_-",
        principal_uri: string.ascii_letters + string.digits + "._-/",
    }
    good = {
        identifier: "acme",
        model_name: "acme",
        label: "acme=acme",
        opaque_id: "acmeacme",
        principal_uri: "spiffe://a/acme",
    }
    for rule, characters in own.items():
        assert rule("field", good[rule]) == good[rule]
        for character in (*map(chr, range(256)), *"\u0430\u0661\u2028\uff41\ud800\U0001f511"):
            for text in (character + good[rule], good[rule][:-2] + character + good[rule][-2:], good[rule] + character):
                try:
                    rule("field", text)
                except Invalid:
                    continue
                assert character in characters, (rule, text)


def refusal(token: str, model: str = "mythos") -> type[Failure] | None:
    try:
        check_use(check_signature(token, HELD), checked_model(model), trust=KEYS.trust, keys=HELD, time=NOW)
    except Failure as failure:
        return type(failure)
    return None


def minted(name: str, value: object) -> str:
    """Truly signed, also if it could not be minted."""
    claims = json.loads(encode_claims(KEYS.claims(jti="a" * 22)))
    claims[name] = value
    payload = json.dumps(claims, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
    message = signing_input(typ=TOKEN_TYP, kid=KEYS.token.kid, payload=payload)
    return assemble(message, sign(KEYS.token.private, message))


@pytest.mark.parametrize("name", ["aud", "realm", "iss"])
def test_b1_p8_no_near_miss_of_audience_realm_or_issuer_is_accepted(name):
    good = {"aud": AUDIENCE, "realm": "evaluation", "iss": KEYS.trust.issuer}[name]
    assert refusal(minted(name, good)) is None
    others: list[object] = [*near_misses(good), "production", "https://production.example.org", "production.models"]
    others += [
        [good],
        [good, "evil"],
        [],
        {good: 1},
        None,
        True,
        0,
        good.encode().hex(),
        f"{good} evil",
        f"{good},{good}",
    ]
    answers = [refusal(minted(name, other)) for other in others]
    assert set(answers) == {Malformed, WrongRealm}
    assert len(answers) >= 300


def test_b1_no_near_miss_of_a_model_is_covered():
    token = KEYS.mint(models=("mythos", "oracle@eu"), scope="model:mythos model:oracle@eu")
    assert [refusal(token, model) for model in ("mythos", "mythos@eu", "mythos@x", "oracle@eu")] == [None] * 4
    allowed = {"mythos@x"}
    for asked in itertools.chain(near_misses("mythos"), near_misses("oracle@eu"), ["oracle", "eu", "oracle@us", "@eu"]):
        answer = refusal(token, asked)
        # An instance of a model that is covered whole is covered; nothing else is.
        if asked.startswith("mythos@") and answer is None:
            allowed.add(asked)
            assert model_name("model", asked)
        else:
            assert answer is NotAllowed, asked
    assert len(allowed) < 10


def test_b16_a_principal_has_at_most_512_characters():
    longest = "spiffe://a/" + "b" * 501
    assert principal_uri("field", longest) == longest
    with pytest.raises(Invalid):
        principal_uri("field", longest + "b")


@pytest.mark.parametrize("rule", [identifier, model_name, label, principal_uri, opaque_id])
def test_t10_a_refusal_quotes_what_was_sent_short_and_in_one_line(rule):
    for text, quoted in (
        ("", "''"),
        ("!" * 40, "'" + "!" * 40 + "'"),
        ("!" * 41, "'" + "!" * 40 + "...'"),
        ("!" * 10_000, "'" + "!" * 40 + "...'"),
        ("a\nroot logged in", "'a\\nroot logged in'"),
        ("\x1b[2J\u202e", "'\\x1b[2J\\u202e'"),
    ):
        with pytest.raises(Invalid) as caught:
            rule("field", text)
        assert caught.value.problem.startswith(quoted + " is not ")
        assert len(str(caught.value)) < 250
