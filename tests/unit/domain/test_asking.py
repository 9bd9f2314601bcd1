"""An ask is well-formed from its constructor, or it is not made."""

import pytest

from broker.domain.asking import MAX_MODELS_BYTES, Ask
from broker.errors import Invalid
from broker.token.claims import MAX_MODELS

GOOD = {
    "realm": "evaluation",
    "partner": "acme",
    "user": "alice",
    "workload": None,
    "models": ("mythos",),
    "environment": "ci",
}

NEAR_MISSES = (
    "",
    " ",
    "Acme",
    "acme ",
    " acme",
    "acme\n",
    "acme\x00",
    "ac\x00me",
    "\u0430cme",  # Cyrillic a
    "\uff41cme",  # full width
    "acme\u200d",  # zero width joiner
    "a\u0301cme",
    "acme.",
    ".acme",
    "-acme",
    "acme-",
    "_acme",
    "a..b",
    "..",
    "../acme",
    "acme/..",
    "acme%2e",
    "acme*",
    "*",
    "acme\\evil",
    "acme,globex",
    "acme;drop",
    "acme'",
    'acme"',
    "\u0661",  # an Arabic digit
    "a" * 129,
    "a" * 300,
    "a" * 100_000,
)


@pytest.mark.parametrize("name", NEAR_MISSES)
@pytest.mark.parametrize("field", ["realm", "partner", "user", "environment"])
def test_b16_names_outside_the_alphabet_are_refused_and_the_field_is_named(field, name):
    with pytest.raises(Invalid) as caught:
        Ask(**{**GOOD, field: name})
    assert caught.value.field == field
    assert caught.value.hint
    # What a stranger sent is not repeated at length, and cannot forge a line of a log.
    assert len(str(caught.value)) < 300
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [*NEAR_MISSES, "mythos@", "@a", "mythos@@a", "mythos@a@b", "mythos@A", "mythos@.."])
def test_b16_models_outside_the_alphabet_are_refused(name):
    with pytest.raises(Invalid, match="models"):
        Ask(**{**GOOD, "models": (name,)})


@pytest.mark.parametrize("name", ["a", "0", "a.b-c_d", "a" * 128, "acme--evil", "1.5"])
def test_names_of_the_alphabet_are_accepted(name):
    assert Ask(**{**GOOD, "partner": name}).partner == name


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"user": None}, "principal"),
        ({"workload": "Nightly"}, "workload"),
        ({"user": None, "workload": "Nightly"}, "workload"),
        ({"models": ()}, "models"),
        ({"models": ("mythos", "mythos")}, "models"),
        ({"models": tuple(f"m{n}" for n in range(MAX_MODELS + 1))}, "models"),
        ({"models": tuple(f"m{n}" + "x" * 120 for n in range(10))}, "models"),
        ({"run": "short"}, "run"),
        ({"run": "a" * 65}, "run"),
        ({"run": "../../../etc"}, "run"),
        ({"run": "a" * 22, "test": "Case"}, "test"),
        ({"test": "case-7"}, "test"),
        ({"ttl_s": 0}, "lifetime"),
        ({"ttl_s": -1}, "lifetime"),
        ({"ttl_s": -(2**63)}, "lifetime"),
    ],
)
def test_p7_what_is_missing_doubled_or_out_of_range_is_refused(changes, field):
    with pytest.raises(Invalid) as caught:
        Ask(**{**GOOD, **changes})
    assert caught.value.field == field
    assert caught.value.hint


def test_the_most_models_that_may_be_asked_for_are_accepted():
    models = tuple(f"m{n:02}" + "x" * (MAX_MODELS_BYTES // MAX_MODELS - 3) for n in range(MAX_MODELS))
    assert Ask(**{**GOOD, "models": models}).models == models
