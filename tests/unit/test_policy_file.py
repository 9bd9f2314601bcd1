"""The policy file: what is wrong is told with its line, its field and what to do; what is right is read exactly."""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.adapters import policy_yaml
from broker.adapters.policy_file import load_policy
from broker.adapters.policy_meaning import MAX_TTL_S
from broker.adapters.policy_yaml import MAX_BYTES, MAX_PROBLEMS
from broker.domain.asking import MAX_MODELS_BYTES, Ask
from broker.domain.policy import Environment, Limits, Principal, Realm, Role
from broker.errors import ConfigInvalid
from broker.token.claims import MAX_LABELS, MAX_MODELS, TOKEN_TYP, Claims, encode_claims
from broker.token.jws import MAX_TOKEN_BYTES, assemble, signing_input

GOOD = """\
version: 1
realms:
  evaluation:
    issuer: "https://broker.example/evaluation"
    audience: models.evaluation
    max_ttl: 1h
  research:
    issuer: "https://broker.example/research"
    audience: models.research
    max_ttl: 8h
models: [mythos, oracle]
partners:
  acme:
    labels: {jurisdiction: us}
    users: [alice]
    workloads: [nightly]
    environments:
      acme-ci:
        certificate: "spiffe://acme.example/ci"
  globex:
    users: [bob]
    environments:
      cluster:
        certificate: "spiffe://globex.example/cluster"
grants:
  - id: acme-evaluation
    partner: acme
    realm: evaluation
    models: [mythos]
    environments: [acme-ci]
    users: [alice]
    workloads: [nightly]
    ttl:
      default: 10m
      max: 1h
    limits: {batch: 10}
principals:
  - {id: "spiffe://acme.example/ci", role: harness, partner: acme}
  - {id: "spiffe://lab.example/gateway", role: verifier, realm: evaluation}
  - {id: "spiffe://lab.example/ops", role: admin}
"""
# source:line: field: problem; fix
TOLD = re.compile(r"p\.yaml:([1-9][0-9]*): ((?:'[^']*'|[^:'])+): [^;]+; .+", re.ASCII)


def problems_of(document):
    with pytest.raises(ConfigInvalid) as caught:
        load_policy(document, source="p.yaml")
    assert caught.value.problems
    for problem in caught.value.problems:
        assert TOLD.fullmatch(problem), problem
        assert problem.isprintable()
    return caught.value.problems


def places_of(document):
    """Return (line, field) of each problem."""
    found = [TOLD.fullmatch(problem) for problem in problems_of(document)]
    return [(int(match[1]), match[2]) for match in found]


def with_(old, new):
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def test_a_good_policy_is_read_exactly():
    policy = load_policy(GOOD)
    assert policy.realms["evaluation"] == Realm(
        "evaluation", "https://broker.example/evaluation", "models.evaluation", 3600, 5000, 1000
    )
    acme = policy.partners["acme"]
    assert acme.labels == ("jurisdiction=us",)
    assert acme.users == {"alice"}
    assert acme.workloads == {"nightly"}
    assert acme.environments == {"acme-ci": Environment("acme-ci", "spiffe://acme.example/ci")}
    [grant] = policy.grants
    assert (grant.default_ttl_s, grant.max_ttl_s, grant.limits) == (600, 3600, Limits(batch=10))
    assert policy.principals["spiffe://lab.example/gateway"] == Principal(
        "spiffe://lab.example/gateway", Role.VERIFIER, None, "evaluation"
    )
    assert policy.environment_of("spiffe://acme.example/ci") == ("acme", "acme-ci")


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        # Names that are nowhere.
        ("    partner: acme\n", "    partner: acmee\n", (27, "grants[0].partner")),
        ("    realm: evaluation\n", "    realm: evaluations\n", (28, "grants[0].realm")),
        ("models: [mythos]\n", "models: [mythos, sphinx]\n", (29, "grants[0].models[1]")),
        ("environments: [acme-ci]", "environments: [cluster]", (30, "grants[0].environments[0]")),
        ("    users: [alice]\n    workloads: [nightly]\n    ttl", "    users: [bob]\n    ttl", (31, "grants[0].users[0]")),
        ("role: harness, partner: acme", "role: harness, partner: initech", (38, "principals[0].partner")),
        ("role: verifier, realm: evaluation", "role: verifier, realm: production", (39, "principals[1].realm")),
        # What a role needs, and what it must not have.
        ("role: harness, partner: acme", "role: harness", (38, "principals[0]")),
        ("role: harness, partner: acme", "role: harness, partner: acme, realm: research", (38, "principals[0].realm")),
        ("role: verifier, realm: evaluation", "role: verifier", (39, "principals[1]")),
        ("role: admin", "role: admin, partner: acme", (40, "principals[2].partner")),
        ("role: admin", "role: root", (40, "principals[2].role")),
        ("role: admin", "role: Admin", (40, "principals[2].role")),
        # Unknown and missing fields.
        ("    audience: models.evaluation\n", "", (3, "realms.evaluation.audience")),
        ("    max_ttl: 1h\n", "    max_ttl: 1h\n    maxttl: 1h\n", (7, "realms.evaluation.maxttl")),
        ("version: 1\n", "version: 2\n", (1, "version")),
        ("version: 1\n", "version: '1'\n", (1, "version")),
        ("models: [mythos, oracle]\n", "", (1, "models")),
        ("  - id: acme-evaluation\n    partner", "  - partner", (26, "grants[0].id")),
        # Lifetimes.
        ("default: 10m", "default: 0s", (34, "grants[0].ttl.default")),
        ("default: 10m", "default: -10m", (34, "grants[0].ttl.default")),
        ("default: 10m", "default: 600", (34, "grants[0].ttl.default")),
        ("default: 10m", "default: 1.5h", (34, "grants[0].ttl.default")),
        ("default: 10m", "default: 010m", (34, "grants[0].ttl.default")),
        ("default: 10m", "default: \u06610m", (34, "grants[0].ttl.default")),
        ("default: 10m", "default: 10m ago", (34, "grants[0].ttl.default")),
        ("default: 10m", "default: 61m", (34, "grants[0].ttl.default")),
        ("      max: 1h", "      max: 3601s", (35, "grants[0].ttl.max")),
        ("    max_ttl: 8h", "    max_ttl: 169h", (10, "realms.research.max_ttl")),
        ("    max_ttl: 8h", "    max_ttl: 9999999d", (10, "realms.research.max_ttl")),
        ("    max_ttl: 8h", "    max_ttl: 8h\n    lease: 61s", (11, "realms.research.lease")),
        ("    max_ttl: 8h", "    max_ttl: 8h\n    lease: 2s", (7, "realms.research.heartbeat")),
        ("    max_ttl: 8h", "    max_ttl: 8h\n    heartbeat: 3s", (11, "realms.research.heartbeat")),
        # Limits.
        ("batch: 10", "batch: 0", (36, "grants[0].limits.batch")),
        ("batch: 10", "batch: 1001", (36, "grants[0].limits.batch")),
        ("batch: 10", "batch: -1", (36, "grants[0].limits.batch")),
        ("batch: 10", "batch: 010", (36, "grants[0].limits.batch")),
        ("batch: 10", "batch: 1_0", (36, "grants[0].limits.batch")),
        ("batch: 10", "batch: 0x10", (36, "grants[0].limits.batch")),
        ("batch: 10", "batch: 1e1", (36, "grants[0].limits.batch")),
        ("batch: 10", "batch: '10'", (36, "grants[0].limits.batch")),
        ("batch: 10", "batch: true", (36, "grants[0].limits.batch")),
        ("batch: 10", "batch: 99999999999999999999", (36, "grants[0].limits.batch")),
        ("batch: 10", "btch: 10", (36, "grants[0].limits.btch")),
        # A grant that would be open or empty.
        ("    models: [mythos]\n", "    models: []\n", (29, "grants[0].models")),
        ("environments: [acme-ci]", "environments: []", (30, "grants[0].environments")),
        ("    users: [alice]\n    workloads: [nightly]\n    ttl", "    ttl", (26, "grants[0]")),
        # Twice.
        ("models: [mythos, oracle]", "models: [mythos, oracle, mythos]", (11, "models[2]")),
        ("    users: [alice]\n    workloads: [nightly]\n    environments", "    users: [alice]\n    workloads: [alice, nightly]\n    environments", (16, "partners.acme.workloads[0]")),
        ("environments: [acme-ci]", "environments: [acme-ci, acme-ci]", (30, "grants[0].environments[1]")),
        ('"https://broker.example/research"', '"https://broker.example/evaluation"', (8, "realms.research.issuer")),
        ("audience: models.research", "audience: models.evaluation", (9, "realms.research.audience")),
        ('certificate: "spiffe://globex.example/cluster"', 'certificate: "spiffe://acme.example/ci"', (24, "partners.globex.environments.cluster.certificate")),
        ('{id: "spiffe://lab.example/ops"', '{id: "spiffe://acme.example/ci"', (40, "principals[2].id")),
        # A harness of one partner with the papers of another.
        ("role: harness, partner: acme", "role: harness, partner: globex", (38, "principals[0].id")),
        # Spellings.
        ("models: [mythos, oracle]", "models: [mythos, Oracle]", (11, "models[1]")),
        ("models: [mythos, oracle]", "models: [mythos, 'oracle*']", (11, "models[1]")),
        ("models: [mythos, oracle]", "models: [mythos, '*']", (11, "models[1]")),
        ("models: [mythos, oracle]", "models: [mythos, 'oracle@']", (11, "models[1]")),
        ("    audience: models.research", "    audience: models..research", (9, "realms.research.audience")),
        ('"https://broker.example/research"', '"http://broker.example/research"', (8, "realms.research.issuer")),
        ('"https://broker.example/research"', '"https://broker.example/research/"', (8, "realms.research.issuer")),
        ('"https://broker.example/research"', '"https://broker.example/research?x=1"', (8, "realms.research.issuer")),
        ('"https://broker.example/research"', '"https://user@broker.example/research"', (8, "realms.research.issuer")),
        ('"https://broker.example/research"', f'"https://broker.example/{"r" * 300}"', (8, "realms.research.issuer")),
        ('certificate: "spiffe://acme.example/ci"', 'certificate: "spiffe://acme.example/"', (19, "partners.acme.environments.acme-ci.certificate")),
        ('certificate: "spiffe://acme.example/ci"', 'certificate: "https://acme.example/ci"', (19, "partners.acme.environments.acme-ci.certificate")),
        ('certificate: "spiffe://acme.example/ci"', 'certificate: "spiffe://acme.example/../ci"', (19, "partners.acme.environments.acme-ci.certificate")),
        ("labels: {jurisdiction: us}", "labels: {Jurisdiction: us}", (14, "partners.acme.labels.Jurisdiction")),
        ("labels: {jurisdiction: us}", "labels: {jurisdiction: US}", (14, "partners.acme.labels.jurisdiction")),
        ("labels: {jurisdiction: us}", "labels: {jurisdiction: true}", (14, "partners.acme.labels.jurisdiction")),
        ("labels: {jurisdiction: us}", "labels: {jurisdiction: [us]}", (14, "partners.acme.labels.jurisdiction")),
        ("labels: {jurisdiction: us}", "labels: {jurisdiction: }", (14, "partners.acme.labels.jurisdiction")),
        ("labels: {jurisdiction: us}", "labels: [us]", (14, "partners.acme.labels")),
        # An environment that is called like the absence of one.
        ("      cluster:\n", "      unrecognised:\n", (23, "partners.globex.environments.unrecognised")),
        # Other shapes than those wanted.
        ("    users: [bob]\n", "    users: bob\n", (21, "partners.globex.users")),
        ("    users: [bob]\n", "    users:\n", (21, "partners.globex.users")),
        ("    users: [bob]\n", "    users: {bob: true}\n", (21, "partners.globex.users")),
        ("    users: [bob]\n", "    users: [bob, 7]\n", (21, "partners.globex.users[1]")),
        ("    limits: {batch: 10}\n", "    limits:\n", (36, "grants[0].limits")),
        ("models: [mythos, oracle]", "models: mythos", (11, "models")),
    ],
)  # fmt: skip
def test_each_wrong_thing_is_told_with_its_line_its_field_and_a_fix(old, new, place):
    assert places_of(with_(old, new)) == [place]


def test_an_unknown_partner_of_a_grant_is_one_problem_and_names_itself():
    [problem] = problems_of(with_("    partner: acme\n", "    partner: initech\n"))
    assert problem == "p.yaml:27: grants[0].partner: there is no partner initech; add it under partners"


def test_all_problems_are_told_together():
    document = with_("    partner: acme\n", "    partner: initech\n").replace(
        "role: admin", "role: admin, realm: research"
    )
    assert places_of(document) == [(27, "grants[0].partner"), (40, "principals[2].realm")]


@pytest.mark.parametrize(
    "name",
    ["\u0430cme", "ac\u200dme", "ACME", "a..b", "..", "../x", "a/b", "a b", "*", "-a", "a-", "a" * 129, "a" * 300],
)
def test_b16_names_outside_the_alphabet_are_refused_wherever_they_stand(name):
    for old, new in (
        ("users: [bob]", f'users: ["{name}"]'),
        ("  globex:\n", f'  "{name}":\n'),
        ("  research:\n", f'  "{name}":\n'),
        ("      cluster:\n", f'      "{name}":\n'),
        ("  - id: acme-evaluation\n", f'  - id: "{name}"\n'),
        ("models: [mythos, oracle]", f'models: [mythos, "{name}"]'),
    ):
        assert len(problems_of(with_(old, new))) == 1


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ("models: [mythos, oracle]", "models: [mythos, broker-drill-canary]", "models[1]"),
        ("models: [mythos, oracle]", "models: [mythos, broker-drill-canary@one]", "models[1]"),
        ("  globex:\n", "  broker-drill:\n", "partners.broker-drill"),
    ],
)
def test_no_policy_can_name_a_canary(before, after, field):
    """So no grant covers one, and none opens what is granted."""
    with pytest.raises(ConfigInvalid) as caught:
        load_policy(GOOD.replace(before, after))
    assert [problem for problem in caught.value.problems if field in problem and "kept for drills" in problem]


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x7f", "\ufffe", "\ud800"])
def test_text_that_yaml_does_not_know_is_refused_with_its_line(character):
    assert places_of(with_("oracle]", f"ora{character}cle]")) == [(11, "document")]


@pytest.mark.parametrize("name", [r"a\nforged:1: x: y; z", r"a\x00b", r"a\e[31mb", r"a\u202eb", "a" * 5000])
def test_a_name_cannot_forge_a_line_of_the_answer(name):
    for old, new in (("  globex:\n", f'  "{name}":\n'), ("users: [bob]", f'users: ["{name}"]')):
        [problem] = problems_of(with_(old, new))
        assert problem.isascii()
        assert len(problem) < 400


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ("", (1, "document")),
        ("\n\n# nothing\n", (1, "document")),
        ("---\n", (1, "document")),
        ("null", (1, "document")),
        ("[]", (1, "document")),
        ("text", (1, "document")),
        ("42", (1, "document")),
        ("a: 1\n---\nb: 2\n", (2, "document")),
        ("a: [1\n", (2, "document")),
        ("a: 1\n\tb: 2\n", (2, "document")),
        ("a: b: c\n", (1, "document")),
        ("a: 'open\n", (2, "document")),
        ("%YAML 9.9\n---\na: 1\n", (1, "document")),
        ("\n\na: &x 1\n", (3, "document")),
        ("\na: *x\n", (2, "document")),
        ("a: !!python/object/apply:os.system ['true']\n", (1, "document")),
        ("a: !!python/name:os.system\n", (1, "document")),
        ("a: !!str 1\n", (1, "document")),
        ("a: !x 1\n", (1, "document")),
        ("a: ! 1\n", (1, "document")),
        ("!!binary a: 1\n", (1, "document")),
        ("a: 1\n<<: {b: 2}\n", (2, "'<<'")),
        ("? [a, b]\n: 1\n", (1, "'?'")),
        ("no: 1\n", (1, "no")),
        ("1: 1\n", (1, "1")),
        ("~: 1\n", (1, "'~'")),
        ("2020-01-01: 1\n", (1, "2020-01-01")),
        ("1.5: 1\n", (1, "1.5")),
        ("a: 1\nb: 2\na: 3\n", (3, "a")),
        ("a:\n  b: 1\n  b: 2\n", (3, "a.b")),
        ("\ufeff", (1, "document")),
    ],
)
def test_p7_what_is_no_policy_at_all_is_refused_with_its_line(document, place):
    assert places_of(document) == [place]


def test_a_partner_that_is_there_twice_is_refused_and_not_replaced_by_the_last():
    document = GOOD.replace("grants:\n", "  acme:\n    users: [mallory]\ngrants:\n")
    assert places_of(document) == [(25, "partners.acme")]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("1e3", "1e3"),
        ("2026-11-23", "2026-11-23"),
        ("1.5", "1.5"),
        ("0o7", "0o7"),
    ],
)
def test_a_word_that_yaml_reads_as_something_else_is_the_name_that_it_looks_like(written, meant):
    policy = load_policy(with_("users: [bob]", f"users: [{written}]"))
    assert policy.partners["globex"].users == {meant}


@pytest.mark.parametrize("written", ["true", "False", "7", "0", "-1", "null", "~", ""])
def test_a_word_that_looks_like_no_name_is_refused_where_a_name_is_wanted(written):
    assert places_of(with_("users: [bob]", f"users: [bob, {written or '{}'}]")) == [(21, "partners.globex.users[1]")]


def test_b19_a_bomb_of_anchors_is_refused_before_it_is_built():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert places_of("\n".join(lines)) == [(1, "document")]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_b19_a_document_that_is_nested_without_end_is_refused_at_once(opening):
    [problem] = problems_of(opening * ((MAX_BYTES - 10) // len(opening)))
    assert "nested too deeply" in problem


def test_a_document_above_the_size_is_refused_unread():
    [problem] = problems_of("#" * (MAX_BYTES + 1))
    assert str(MAX_BYTES) in problem
    assert places_of("é" * (MAX_BYTES // 2 + 1)) == [(1, "document")]
    assert load_policy(GOOD + "#" * (MAX_BYTES - len(GOOD)))


def test_so_many_problems_are_told_that_a_person_can_read_them():
    found = problems_of(GOOD + "".join(f"unknown-{n}: 1\n" for n in range(500)))
    assert len(found) == MAX_PROBLEMS + 1
    assert "400 more" in found[-1]


@pytest.mark.parametrize(
    "labels",
    [
        {f"label-{n}": "v" for n in range(MAX_LABELS + 1)},
        {f"label-{n}" + "x" * 100: "v" * 100 for n in range(6)},
    ],
)
def test_labels_that_no_token_could_carry_are_refused(labels):
    [problem] = problems_of(with_("labels: {jurisdiction: us}", f"labels: {json.dumps(labels)}"))
    assert "partners.acme.labels: " in problem


def test_the_largest_token_that_a_policy_allows_is_one_that_verifiers_read():
    """What passes the policy and the ask must never be recorded as a token that nobody can use."""
    long = {name: name[0] * 128 for name in ("realm", "partner", "user", "environment", "audience", "test")}
    uri = "spiffe://" + "d" * 200 + "/" + "p" * (512 - 210)
    labels = {f"l{n:02}" + "x" * 28: "v" * 32 for n in range(MAX_LABELS)}
    labels = {name: value[: 1024 // MAX_LABELS - len(name) - 1] for name, value in labels.items()}
    document = {
        "version": 1,
        "realms": {
            long["realm"]: {
                "issuer": "https://" + "i" * (256 - 8),
                "audience": long["audience"],
                "max_ttl": "7d",
            }
        },
        "models": ["m"],
        "partners": {
            long["partner"]: {
                "labels": labels,
                "users": [long["user"]],
                "environments": {long["environment"]: {"certificate": uri}},
            }
        },
        "grants": [],
        "principals": [{"id": uri, "role": "harness", "partner": long["partner"]}],
    }
    policy = load_policy(json.dumps(document))
    models = tuple(f"m@{n:02}" + "x" * (MAX_MODELS_BYTES // MAX_MODELS - 4) for n in range(MAX_MODELS))
    ask = Ask(long["realm"], long["partner"], long["user"], None, models, long["environment"], "r" * 64, long["test"])
    realm = policy.realms[ask.realm]
    claims = Claims(
        iss=realm.issuer,
        sub=f"{ask.partner}/user/{ask.user}",
        aud=realm.audience,
        client_id=uri,
        iat=2**33,
        nbf=2**33 - 5,
        exp=2**33 + MAX_TTL_S,
        jti="j" * 22,
        scope=" ".join(f"model:{model}" for model in ask.models),
        realm=ask.realm,
        partner=ask.partner,
        user=ask.user,
        workload=None,
        run=ask.run,
        test=ask.test,
        models=ask.models,
        env=ask.environment,
        labels=policy.labels_of(ask.partner),
        parents=(),
        idx=2**52,
        cnf=None,
        act=None,
    )
    token = assemble(signing_input(typ=TOKEN_TYP, kid="k" * 43, payload=encode_claims(claims)), b"s" * 64)
    assert len(token) <= MAX_TOKEN_BYTES


@settings(max_examples=150)
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda data: data.decode("latin-1"))))
def test_p7_any_text_is_a_list_of_problems_and_never_another_exception(text):
    assert problems_told(text)


PIECES = [
    "a",
    "b",
    "no",
    "1",
    "'x'",
    '"y"',
    ": ",
    ":",
    "- ",
    "\n",
    "\n  ",
    "\n    ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "#",
    "|",
    ">",
    "? ",
]


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="this PyYAML has no libyaml")
@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.just(GOOD))
def test_libyaml_reads_no_other_value_and_no_other_line_than_the_loader_in_python(text):
    """It lets in a few odd spellings more, as `{a? }`; what both let in means the same."""
    read = []
    for loader in (yaml.CSafeLoader, yaml.SafeLoader):
        try:
            read.append(policy_yaml._built(policy_yaml._root(text, loader), "p.yaml"))
        except (yaml.YAMLError, ConfigInvalid):
            return
    assert read[0] == read[1]


def problems_told(text):
    with pytest.raises(ConfigInvalid) as caught:
        load_policy(text, source="p.yaml")
    return caught.value.problems
