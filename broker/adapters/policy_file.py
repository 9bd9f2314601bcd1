"""The policy file: YAML in, a policy out, or every problem with its line."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from broker.adapters.policy_yaml import Path, read_yaml, shown, unusable
from broker.domain.asking import UNRECOGNISED
from broker.domain.policy import (
    CANARY_MODEL,
    CANARY_PARTNER,
    Environment,
    Grant,
    Limits,
    Partner,
    Policy,
    Principal,
    Realm,
    Role,
)
from broker.errors import Invalid
from broker.token.claims import ISSUER, MAX_LABELS
from broker.token.identifiers import bare_name, identifier, model_name, principal_uri

MAX_TTL_S = 7 * 86_400
# Every token of a realm or partner carries these; it must fit the size above which verifiers read nothing.
MAX_ISSUER_BYTES = 256
MAX_LABELS_BYTES = 1024
_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ISSUER = re.compile(ISSUER, re.ASCII)
_IDENTIFIER_SCHEMA = r"^[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?$"

_MODEL_SCHEMA = {"type": "string", "pattern": r"^[a-z0-9][a-z0-9._@-]*$", "maxLength": 257}
_URI_SCHEMA = {"type": "string", "pattern": r"^spiffe://[a-z0-9.-]+(/[A-Za-z0-9._-]+)+$"}


def _rule(check: Callable[[str, str], str]) -> AfterValidator:
    def apply(text: str) -> str:
        try:
            return check("", text)
        except Invalid as bad:
            raise ValueError(f"{bad.problem}; {bad.hint}") from bad

    return AfterValidator(apply)


def _seconds(text: object) -> int:
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError("is not a duration; write 90s, 10m, 1h or 7d")
    return int(match[1]) * _UNIT_S[match[2]]


def _issuer(field: str, text: str) -> str:
    if len(text) > MAX_ISSUER_BYTES or not _ISSUER.fullmatch(text):
        raise Invalid(
            field,
            f"{shown(text)} is not an issuer",
            hint=f"use an https URL of at most {MAX_ISSUER_BYTES} characters, without query or final slash",
        )
    return text


Name = Annotated[str, _rule(identifier), WithJsonSchema({"type": "string", "pattern": _IDENTIFIER_SCHEMA})]
Model = Annotated[str, _rule(model_name), WithJsonSchema(_MODEL_SCHEMA)]
Uri = Annotated[str, _rule(principal_uri), WithJsonSchema(_URI_SCHEMA)]
Issuer = Annotated[str, _rule(_issuer), WithJsonSchema({"type": "string", "pattern": r"^https://"})]
Seconds = Annotated[
    str,
    AfterValidator(_seconds),
    WithJsonSchema({"type": "string", "pattern": r"^[1-9][0-9]{0,6}(s|m|h|d)$"}),
]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RealmForm(_Form):
    """A realm. Lease: 1s to 60s. Heartbeat: less than half the lease."""

    issuer: Issuer
    audience: Name
    max_ttl: Seconds
    lease: Seconds = Field(default="5s", validate_default=True)
    heartbeat: Seconds = Field(default="1s", validate_default=True)


class EnvironmentForm(_Form):
    """An environment, recognised by the URI SAN of a client certificate."""

    certificate: Uri


class PartnerForm(_Form):
    """A partner."""

    labels: dict[Name, Name] = {}
    users: list[Name] = []
    workloads: list[Name] = []
    environments: dict[Name, EnvironmentForm] = {}


class TtlForm(_Form):
    """Lifetimes."""

    default: Seconds
    max: Seconds


class LimitsForm(_Form):
    """Optional limits."""

    batch: Annotated[int, Field(ge=1, le=1000)] | None = None


class GrantForm(_Form):
    """A grant."""

    id: Name
    partner: Name
    realm: Name
    models: Annotated[list[Model], Field(min_length=1)]
    environments: Annotated[list[Name], Field(min_length=1)]
    users: list[Name] = []
    workloads: list[Name] = []
    ttl: TtlForm
    limits: LimitsForm = LimitsForm()


class PrincipalForm(_Form):
    """A principal. A harness has a partner, and may be one of its workloads; a verifier has a realm."""

    id: Uri
    role: Literal["harness", "verifier", "admin", "auditor"]
    partner: Name | None = None
    realm: Name | None = None
    workload: Name | None = None


class PolicyForm(_Form):
    """Policy of the credential broker. What it does not say is denied."""

    version: Literal[1]
    realms: dict[Name, RealmForm]
    models: list[Model]
    partners: dict[Name, PartnerForm]
    grants: list[GrantForm]
    principals: list[PrincipalForm]


def json_schema() -> dict[str, Any]:
    """Return the published JSON Schema (draft 2020-12) of the file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **PolicyForm.model_json_schema()}


def load_policy(document: str, *, source: str = "policy") -> Policy:
    """Read a policy.

    Raises:
        ConfigInvalid: With every problem that can be told, each as `source:line: field: problem; fix`.
    """
    value, lines = read_yaml(document, source)
    try:
        form = PolicyForm.model_validate(value)
    except ValidationError as invalid:
        raise unusable(_shape_problems(invalid), lines, source) from invalid
    problems = list(_meaning_problems(form))
    if problems:
        raise unusable(problems, lines, source)
    return _policy(form)


_SHAPES = {
    "missing": "is missing; add it",
    "extra_forbidden": "is not a field; remove it",
    "string_type": "must be text; write a word, in quotes where YAML reads it as something else",
    "int_type": "must be a whole number; write it in decimal, without quotes",
    "dict_type": "must be a mapping; write `name: value` below it",
    "model_type": "must be a mapping; write `field: value` below it",
    "list_type": "must be a list; write [one, two]",
    "too_short": "is empty; name at least one",
}


def _shape_problems(invalid: ValidationError) -> Iterator[tuple[Path, str]]:
    for error in invalid.errors(include_input=False, include_url=False):
        path = error["loc"]
        if path and path[-1] == "[key]":
            path = path[:-1]
        message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
        is_told = error["type"] == "value_error"
        yield path, _SHAPES.get(error["type"]) or (message if is_told else f"{message}; change it")


def _meaning_problems(form: PolicyForm) -> Iterator[tuple[Path, str]]:
    yield from _realm_problems(form)
    yield from _partner_problems(form)
    for position, grant in enumerate(form.grants):
        yield from _grant_problems(form, grant, ("grants", position))
    yield from _repeats(((("grants", n, "id"), grant.id) for n, grant in enumerate(form.grants)), "a grant id")
    yield from _repeats(((("models", n), model) for n, model in enumerate(form.models)), "a model")
    for position, model in enumerate(form.models):
        if bare_name(model) == CANARY_MODEL:
            yield ("models", position), "is kept for drills; choose another name"
    yield from _principal_problems(form)


def _repeats(items: Iterator[tuple[Path, str]], what: str) -> Iterator[tuple[Path, str]]:
    seen: set[str] = set()
    for path, value in items:
        if value in seen:
            yield path, f"{value} is {what} that is there twice; rename or remove one"
        seen.add(value)


def _realm_problems(form: PolicyForm) -> Iterator[tuple[Path, str]]:
    realms = form.realms.items()
    yield from _repeats(((("realms", name, "issuer"), realm.issuer) for name, realm in realms), "an issuer")
    yield from _repeats(((("realms", name, "audience"), realm.audience) for name, realm in realms), "an audience")
    for name, realm in realms:
        max_ttl, lease, heartbeat = _s(realm.max_ttl), _s(realm.lease), _s(realm.heartbeat)
        if max_ttl > MAX_TTL_S:
            yield ("realms", name, "max_ttl"), "is above 7d; lower it"
        if not 1 <= lease <= 60:  # noqa: PLR2004 - the sentence says it
            yield ("realms", name, "lease"), "must be 1s to 60s; change it"
        if heartbeat * 2 >= lease:
            yield ("realms", name, "heartbeat"), "must be less than half the lease; shorten it or lengthen the lease"


def _partner_problems(form: PolicyForm) -> Iterator[tuple[Path, str]]:
    places = []
    for name, partner in form.partners.items():
        at = ("partners", name)
        if name == CANARY_PARTNER:
            yield at, "is kept for drills; choose another name"
        users, workloads = list(enumerate(partner.users)), list(enumerate(partner.workloads))
        yield from _repeats(
            iter(
                [((*at, "users", n), user) for n, user in users]
                + [((*at, "workloads", n), workload) for n, workload in workloads]
            ),
            "a user or workload",
        )
        yield from _label_problems(partner, (*at, "labels"))
        if UNRECOGNISED in partner.environments:
            yield (*at, "environments", UNRECOGNISED), "stands for no environment at all; choose another name"
        places += [
            ((*at, "environments", env, "certificate"), e.certificate) for env, e in partner.environments.items()
        ]
    yield from _repeats(iter(places), "an environment's certificate")


def _label_problems(partner: PartnerForm, at: Path) -> Iterator[tuple[Path, str]]:
    if len(partner.labels) > MAX_LABELS:
        yield at, f"are {len(partner.labels)}; keep at most {MAX_LABELS}"
    if sum(len(name) + 1 + len(value) for name, value in partner.labels.items()) > MAX_LABELS_BYTES:
        yield at, f"have more than {MAX_LABELS_BYTES} characters in all; shorten them"


def _grant_problems(form: PolicyForm, grant: GrantForm, at: Path) -> Iterator[tuple[Path, str]]:
    partner, realm = form.partners.get(grant.partner), form.realms.get(grant.realm)
    for part in ("models", "environments", "users", "workloads"):
        named = ((*at, part, n) for n in range(len(getattr(grant, part))))
        yield from _repeats(zip(named, getattr(grant, part), strict=True), "a name")
    if partner is None:
        yield (*at, "partner"), f"there is no partner {grant.partner}; add it under partners"
    else:
        for field, known in (
            ("environments", partner.environments),
            ("users", partner.users),
            ("workloads", partner.workloads),
        ):
            for position, name in enumerate(getattr(grant, field)):
                if name not in known:
                    yield (*at, field, position), f"{grant.partner} has no {name}; add it under partners"
    if realm is None:
        yield (*at, "realm"), f"there is no realm {grant.realm}; add it under realms"
    elif _s(grant.ttl.max) > _s(realm.max_ttl):
        yield (*at, "ttl", "max"), "is above the realm's max_ttl; lower it"
    if _s(grant.ttl.default) > _s(grant.ttl.max):
        yield (*at, "ttl", "default"), "is above ttl.max; lower it"
    if not grant.users and not grant.workloads:
        yield at, "has neither users nor workloads and would allow nobody; name some"
    for position, model in enumerate(grant.models):
        if model not in form.models and bare_name(model) not in form.models:
            yield (*at, "models", position), f"there is no model {model}; add it under models"


def _principal_problems(form: PolicyForm) -> Iterator[tuple[Path, str]]:
    yield from _repeats(
        ((("principals", n, "id"), principal.id) for n, principal in enumerate(form.principals)), "a principal"
    )
    needs = {"harness": "partner", "verifier": "realm"}
    places: dict[str, str] = {}
    for name, partner in form.partners.items():
        for environment in partner.environments.values():
            places.setdefault(environment.certificate, name)
    for position, principal in enumerate(form.principals):
        at: Path = ("principals", position)
        for field, known in (("partner", form.partners), ("realm", form.realms)):
            value = getattr(principal, field)
            if needs.get(principal.role) == field and value is None:
                yield at, f"a {principal.role} needs a {field}; add it"
            if needs.get(principal.role) != field and value is not None:
                yield (*at, field), f"a {principal.role} has no {field}; remove it"
            if value is not None and value not in known:
                yield (*at, field), f"there is no {field} {value}; add it under {field}s"
        if principal.workload is not None:
            own = form.partners.get(principal.partner or "")
            if principal.role != "harness":
                yield (*at, "workload"), f"a {principal.role} has no workload; remove it"
            elif own is not None and principal.workload not in own.workloads:
                yield (
                    (*at, "workload"),
                    f"{principal.partner} has no workload {principal.workload}; add it under workloads",
                )
        place = places.get(principal.id)
        if principal.partner in form.partners and place not in (None, principal.partner):
            yield (*at, "id"), f"proves an environment of {place}; give {principal.partner} a certificate of its own"


def _s(duration: object) -> int:
    assert isinstance(duration, int)  # noqa: S101 - the validator turned it into seconds
    return duration


def _policy(form: PolicyForm) -> Policy:
    return Policy(
        realms={
            name: Realm(name, r.issuer, r.audience, _s(r.max_ttl), _s(r.lease) * 1000, _s(r.heartbeat) * 1000)
            for name, r in form.realms.items()
        },
        models=frozenset(form.models),
        partners={
            name: Partner(
                name,
                tuple(sorted(f"{key}={value}" for key, value in p.labels.items())),
                frozenset(p.users),
                frozenset(p.workloads),
                {env: Environment(env, e.certificate) for env, e in p.environments.items()},
            )
            for name, p in form.partners.items()
        },
        grants=tuple(
            Grant(
                g.id,
                g.partner,
                g.realm,
                frozenset(g.models),
                frozenset(g.environments),
                frozenset(g.users),
                frozenset(g.workloads),
                _s(g.ttl.default),
                _s(g.ttl.max),
                Limits(batch=g.limits.batch),
            )
            for g in form.grants
        ),
        principals={p.id: Principal(p.id, Role(p.role), p.partner, p.realm, p.workload) for p in form.principals},
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
