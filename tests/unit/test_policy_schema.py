"""The published JSON Schema: what the loader accepts, an editor that knows the schema accepts."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.adapters import policy_file
from broker.adapters.policy_file import json_schema, load_policy
from broker.adapters.policy_yaml import read_yaml
from tests.unit.test_policy_file import GOOD, problems_of, with_

EXAMPLE = Path(__file__).parents[2] / "deploy" / "policy.example.yaml"
PUBLISHED = Path(policy_file.__file__).with_name("policy.schema.json")


def is_published(document):
    value, _ = read_yaml(document, "p.yaml")
    return jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text())).is_valid(value)


def test_the_published_schema_is_the_one_that_the_loader_has():
    assert json.loads(PUBLISHED.read_text()) == json_schema()
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("document", [EXAMPLE.read_text(), GOOD], ids=["example", "test"])
def test_the_published_schema_accepts_what_the_loader_accepts(document):
    assert load_policy(document)
    assert is_published(document)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version: 1\n", "version: 2\n"),
        ("    max_ttl: 1h\n", "    max_ttl: 0s\n"),
        ("    max_ttl: 1h\n", "    max_ttl: 1h\n    unknown: 1\n"),
        ("role: admin", "role: root"),
        ("models: [mythos]\n", "models: []\n"),
        ("batch: 10", "batch: 1001"),
        ("models: [mythos, oracle]\n", ""),
    ],
)
def test_the_published_schema_refuses_other_shapes(old, new):
    problems_of(with_(old, new))
    assert not is_published(with_(old, new))


names = st.from_regex(re.compile(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", re.ASCII), fullmatch=True).filter(
    lambda name: name != "unrecognised"
)
durations = st.builds(lambda number, unit: f"{number}{unit}", st.integers(1, 9), st.sampled_from("mh"))


@st.composite
def documents(draw):
    """Policies of every shape that the loader accepts."""
    realms = draw(st.lists(names, max_size=3, unique=True))
    models = draw(st.lists(names, max_size=4, unique=True))
    partners = {}
    for name in draw(st.lists(names, max_size=3, unique=True)):
        people = draw(st.lists(names, max_size=4, unique=True))
        half = draw(st.integers(0, len(people)))
        partners[name] = {
            "labels": draw(st.dictionaries(names, names, max_size=3)),
            "users": people[:half],
            "workloads": people[half:],
            "environments": {
                place: {"certificate": f"spiffe://{name.replace('_', '-')}.example/{number}/{place}"}
                for number, place in enumerate(draw(st.lists(names, max_size=3, unique=True)))
            },
        }
    grants = []
    for number in range(draw(st.integers(0, 3))):
        able = [name for name, one in partners.items() if one["environments"] and one["users"] + one["workloads"]]
        if able and realms and models:
            partner = draw(st.sampled_from(able))
            one = partners[partner]
            grants.append(
                {
                    "id": f"grant-{number}",
                    "partner": partner,
                    "realm": draw(st.sampled_from(realms)),
                    "models": [draw(st.sampled_from(models)) + draw(st.sampled_from(["", "@blue"]))],
                    "environments": list(one["environments"]),
                    "users": one["users"],
                    "workloads": one["workloads"],
                    "ttl": {"default": draw(durations), "max": "9h"},
                    **draw(st.sampled_from([{}, {"limits": {}}, {"limits": {"batch": 1000}}])),
                }
            )
    roles = draw(st.lists(st.sampled_from(["admin", "auditor"]), max_size=2))
    return {
        "version": 1,
        "realms": {
            name: {
                "issuer": f"https://{number}.example/{name}",
                "audience": name,
                "max_ttl": "9h",
                **draw(st.sampled_from([{}, {"lease": "3s"}, {"lease": "60s", "heartbeat": "20s"}])),
            }
            for number, name in enumerate(realms)
        },
        "models": models,
        "partners": partners,
        "grants": grants,
        "principals": [{"id": f"spiffe://lab.example/{n}", "role": role} for n, role in enumerate(roles)]
        + [{"id": f"spiffe://gate.example/{name}", "role": "verifier", "realm": name} for name in realms]
        + [{"id": f"spiffe://ci.example/{name}", "role": "harness", "partner": name} for name in partners],
    }


@settings(max_examples=60)
@given(documents())
def test_what_the_loader_accepts_the_published_schema_accepts_and_nothing_is_lost_on_the_way(document):
    text = json.dumps(document)
    policy = load_policy(text)
    assert is_published(text)
    assert {*policy.realms} == {*document["realms"]}
    assert [grant.id for grant in policy.grants] == [grant["id"] for grant in document["grants"]]
    for grant, written in zip(policy.grants, document["grants"], strict=True):
        assert [*grant.models] == written["models"]
        assert {*grant.users, *grant.workloads} == {*written["users"], *written["workloads"]}
    assert {*policy.principals} == {one["id"] for one in document["principals"]}
