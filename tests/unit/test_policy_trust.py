"""Trust rules that would let in a stranger some day, or two at once, are refused when the policy is stored."""

import json
import random
import unicodedata

import pytest

from broker.adapters.policy_file import load_policy
from broker.errors import ConfigInvalid
from tests.unit.test_policy_demands import GOOD
from tests.unit.test_policy_file import problems_of

UID = "6f1d9c3e-0b1a-4c5d-8e2f-3a4b5c6d7e8f"


def with_principal(identity, **fields):
    """The good policy and one principal more, whose problems are told at principals[-1]."""
    more = "".join(f", {name}: {value}" for name, value in fields.items())
    text = f"  - {{id: one-more, role: harness, partner: acme{more}, identity: {identity}}}\n"
    head, principals, rest = GOOD.partition("principals:\n")
    return f"{head}{principals}{text}{rest}"


@pytest.mark.parametrize(
    ("identity", "field", "problem"),
    [
        ("{provider: github, claims: {repository: octo-org/octo-repo}}", "claims", "repository_id"),
        ('{provider: github, claims: {repository_id: "456"}}', "claims", "repository_owner_id"),
        ('{provider: github, claims: {repository_owner_id: "123"}}', "claims", "repository_id"),
        ('{provider: github, claims: {sub: "repo:octo-org/octo-repo:ref:refs/heads/main"}}', "claims", "repository_id"),
        ('{provider: github, claims: {repository_id: octo, repository_owner_id: "123"}}', "claims.repository_id", "number"),
        ('{provider: github, claims: {repository_id: "0456", repository_owner_id: "1"}}', "claims.repository_id", "number"),
        ('{provider: github, claims: {repository_id: "4 56", repository_owner_id: "1"}}', "claims.repository_id", "number"),
        ("{provider: cluster, claims: {namespace: acme, serviceaccount: evals}}", "claims", "uid"),
        ("{provider: cluster, claims: {uid: evals}}", "claims.uid", "kubectl"),
        (f"{{provider: cluster, claims: {{uid: {UID.upper()}}}}}", "claims.uid", "kubectl"),
        ("{provider: sso, claims: {email: a@example.com}}", "claims", "sub"),
        ('{provider: sso, claims: {sub: "repo:octo-org/octo-repo:ref:x"}}', "claims.sub", "kind github"),
        ('{provider: sso, claims: {sub: "system:serviceaccount:acme:evals"}}', "claims.sub", "kind kubernetes"),
        ('{provider: sso, claims: {sub: "project_path:acme/evals:ref_type:branch:ref:main"}}', "claims.sub", "project_id"),
        ('{provider: sso, claims: {sub: "u-*"}}', "claims.sub", "exactly"),
        ('{provider: sso, claims: {sub: ""}}', "claims.sub", "exactly"),
        ("{provider: sso, claims: {}}", "claims", "empty"),
        ("{provider: nobody, claims: {sub: u-1}}", "provider", "add it under providers"),
    ],
)  # fmt: skip
def test_b17_a_rule_without_an_immutable_subject_is_refused_with_its_field_and_what_to_add(identity, field, problem):
    told = problems_of(with_principal(identity, user="bob" if "sso" in identity else "null"))
    at = [line for line in told if f": principals[0].identity.{field}: " in line]
    assert at, told
    assert problem in at[0]
    # With the line, so that an editor finds it.
    assert at[0].split(":")[1].isdecimal()


def test_a_subject_of_gitlab_is_taken_with_its_numbers():
    claims = '{sub: "project_path:acme/evals:ref:main", project_id: "7", namespace_id: "8"}'
    assert load_policy(with_principal(f"{{provider: sso, claims: {claims}}}", user="bob"))


def test_github_under_another_kind_is_refused():
    """As plain OIDC its `sub` would do, which names can be recycled in (Sub:jugation)."""
    text = GOOD.replace("https://sso.example", "https://token.actions.githubusercontent.com/octo-enterprise")
    assert any("providers.sso.kind" in line and "write github" in line for line in problems_of(text))


OVERLAPS = [
    ('{repository_id: "9", repository_owner_id: "1"}', '{repository_id: "9", repository_owner_id: "1"}'),
    ('{repository_id: "9", repository_owner_id: "1"}', '{repository_id: "9", repository_owner_id: "1", ref: main}'),
    (
        '{repository_id: "9", repository_owner_id: "1", ref: main}',
        '{repository_id: "9", repository_owner_id: "1", environment: prod}',
    ),
]
APART = [
    ('{repository_id: "9", repository_owner_id: "1"}', '{repository_id: "10", repository_owner_id: "1"}'),
    (
        '{repository_id: "9", repository_owner_id: "1", ref: main}',
        '{repository_id: "9", repository_owner_id: "1", ref: next}',
    ),
]


def two_principals(first, second):
    text = "".join(
        f"  - {{id: two-{n}, role: harness, partner: acme, identity: {{provider: github, claims: {claims}}}}}\n"
        for n, claims in enumerate((first, second))
    )
    head, principals, rest = GOOD.partition("principals:\n")
    return f"{head}{principals}{text}{rest}"


def two_places(first, second):
    text = "".join(
        f"      two-{n}: {{identity: {{provider: github, claims: {claims}}}}}\n"
        for n, claims in enumerate((first, second))
    )
    return GOOD.replace("      lab: {", f"{text}      lab: {{", 1)


@pytest.mark.parametrize("document", [two_principals, two_places])
@pytest.mark.parametrize(("first", "second"), OVERLAPS)
def test_rules_that_one_identity_could_fulfil_together_are_refused(document, first, second):
    for one, other in ((first, second), (second, first)):
        told = problems_of(document(one, other))
        assert any("one identity is one" in line and "two-0" in line for line in told), told


@pytest.mark.parametrize("document", [two_principals, two_places])
@pytest.mark.parametrize(("first", "second"), APART)
def test_rules_that_a_claim_tells_apart_are_taken(document, first, second):
    assert load_policy(document(first, second))


def near_misses(text, rng):
    """Hundreds of spellings that somebody's comparison has taken for `text`."""
    marks = "\u200d\u200b\ufeff\u00ad\u2060\u202e\u0301\u034f\0\t\n\r\v \u00a0\u2028"
    for mark in marks:
        for place in (0, 1, len(text) // 2, len(text)):
            yield text[:place] + mark + text[place:]
    for more in (
        ".",
        "/",
        "/.",
        "/..",
        "//",
        "\\",
        "%00",
        "%2e",
        "%20",
        "#",
        "?",
        "*",
        "@",
        ":443",
        ";",
        ",",
        "'",
        '"',
        "-evil",
        "evil",
        "0",
    ):
        yield from (f"{text}{more}", f"{more}{text}")
    yield from (
        text.upper(),
        text.lower(),
        text.title(),
        text.swapcase(),
        text[:-1],
        text[1:],
        text * 2,
        "",
        "*",
        ".*",
        f"^{text}$",
    )
    yield from (
        unicodedata.normalize("NFD", text + "é"),
        f"{text},{text}",
        f"[{text}]",
        f"user@{text}",
        f"{text}@evil.example",
    )
    # Cyrillic, a hyphen that is none, an ideographic full stop, the Kelvin sign.
    alike = dict(zip("aeoicps-.k", "\u0430\u0435\u043e\u0456\u0441\u0440\u0455\u2010\u3002\u212a", strict=True))
    digits = {str(n): chr(base + n) for base in (0xFF10, 0x0660, 0x0966) for n in range(10)}
    for place, letter in enumerate(text):
        for other in {alike.get(letter), digits.get(letter), chr(ord(letter) ^ 0x20), chr(ord(letter) + 0xFEE0)} - {
            None
        }:
            yield text[:place] + str(other) + text[place + 1 :]
        yield text[:place] + f"%{ord(letter):02x}" + text[place + 1 :]
    while True:
        place, letters = rng.randrange(len(text)), rng.choices("abcxyz0189-._:/*", k=rng.randint(1, 3))
        yield text[:place] + "".join(letters) + text[place + rng.randrange(2) :]


def test_b16_five_hundred_near_misses_of_every_claim_are_somebody_else():
    policy = load_policy(GOOD)
    known = [principal for principal in policy.principals.values() if principal.rule is not None]
    assert known
    rng = random.Random(16)
    for principal in known:
        claims = dict(principal.rule.claims)
        assert policy.principals_proven(principal.rule.provider, claims) == (principal,)
        for name, value in claims.items():
            spellings = near_misses(value, rng)
            near = set()
            while len(near) < 500:
                near |= {next(spellings)} - {value}
            others = {one.id for one in known} - {principal.id}
            for spelled in near:
                found = policy.principals_proven(principal.rule.provider, {**claims, name: spelled})
                # A near miss of one may be another whom the policy knows; never the one whom it misses.
                assert {one.id for one in found} <= others, (name, spelled)


def test_b16_near_misses_of_names_cannot_even_be_written():
    rng = random.Random(17)
    spellings = near_misses("acme", rng)
    written = {next(spellings) for _ in range(300)}
    # What has only letters that names have is another name, but for these.
    ours = set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    refused = {near for near in written if not set(near) <= ours} | {"acme.", ".acme", "acme-", "ac..me", ""}
    assert len(refused) > 150
    for near in refused:
        spelled = json.dumps(near)
        text = GOOD.replace("  acme:\n", f"  {spelled}:\n", 1).replace("partner: acme", f"partner: {spelled}")
        with pytest.raises(ConfigInvalid):
            pytest.fail(repr((near, load_policy(text))))
