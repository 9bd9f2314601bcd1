"""The policy file: YAML in, a policy out, or every problem with its line."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from broker.domain.policy import Environment, Grant, Limits, Partner, Policy, Principal, Realm, Role
from broker.errors import ConfigInvalid, Invalid
from broker.token.identifiers import bare_name, identifier, model_name, principal_uri

MAX_BYTES = 1 << 20
MAX_TTL_S = 7 * 86_400
_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ISSUER = re.compile(r"https://[a-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~-]+)*", re.ASCII)
_IDENTIFIER_SCHEMA = r"^[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?$"

_MODEL_SCHEMA = {"type": "string", "pattern": r"^[a-z0-9][a-z0-9._@-]*$", "maxLength": 257}
_URI_SCHEMA = {"type": "string", "pattern": r"^spiffe://[a-z0-9.-]+(/[A-Za-z0-9._-]+)+$"}

Path = tuple[str | int, ...]


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
    if not _ISSUER.fullmatch(text):
        raise Invalid(field, f"{text!a} is not an issuer", hint="use an https URL without query or final slash")
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
    """A principal. A harness has a partner, a verifier a realm, the others neither."""

    id: Uri
    role: Literal["harness", "verifier", "admin", "auditor"]
    partner: Name | None = None
    realm: Name | None = None


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
    if len(document.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigInvalid(source, (f"{source}:1: document: is larger than {MAX_BYTES} bytes; split it",))
    value, lines = _parse(document, source)
    try:
        form = PolicyForm.model_validate(value)
    except ValidationError as invalid:
        raise ConfigInvalid(source, tuple(_shape_problems(invalid, lines, source))) from invalid
    problems = tuple(
        f"{source}:{_line(lines, path)}: {_dotted(path)}: {problem}" for path, problem in _meaning_problems(form)
    )
    if problems:
        raise ConfigInvalid(source, problems)
    return _policy(form)


def _parse(document: str, source: str) -> tuple[Any, Mapping[Path, int]]:
    lines: dict[Path, int] = {}
    problems: list[str] = []

    def build(node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        lines[path] = line
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key, child in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                    problems.append(f"{source}:{key.start_mark.line + 1}: {_dotted(path)}: a name must be a string")
                    continue
                if key.value in mapping:
                    where = _dotted((*path, key.value))
                    problems.append(f"{source}:{key.start_mark.line + 1}: {where}: is there twice; remove one")
                mapping[key.value] = build(child, (*path, key.value))
                lines[(*path, key.value)] = key.start_mark.line + 1
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [build(child, (*path, position)) for position, child in enumerate(node.value)]
        return _scalar(node)

    try:
        _refuse_aliases(document)
        loader = yaml.SafeLoader(document)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
        value = build(root, ()) if root is not None else None
    except yaml.YAMLError as bad:
        mark = getattr(bad, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        what = getattr(bad, "problem", None) or str(bad).splitlines()[0]
        raise ConfigInvalid(source, (f"{source}:{line}: document: {what}; mend the YAML",)) from bad
    except RecursionError as bad:
        raise ConfigInvalid(source, (f"{source}:1: document: is nested too deeply",)) from bad
    if value is None:
        raise ConfigInvalid(source, (f"{source}:1: document: is empty; an empty policy allows nothing",))
    if problems:
        raise ConfigInvalid(source, tuple(problems))
    return value, lines


class _Refused(yaml.YAMLError):
    """YAML that could be read, and must not be."""

    def __init__(self, problem: str, event: yaml.Event) -> None:
        super().__init__(problem)
        self.problem = problem
        self.problem_mark = event.start_mark


def _refuse_aliases(document: str) -> None:
    # A few lines of aliases can stand for gigabytes, and a tag can name code.
    for event in yaml.parse(document, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Refused("anchors and aliases are not allowed", event)
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) is not None:
            raise _Refused("tags are not allowed", event)


def _scalar(node: yaml.Node) -> Any:
    if node.tag == "tag:yaml.org,2002:int" and re.fullmatch(r"-?[0-9]{1,15}", node.value):
        return int(node.value)
    if node.tag == "tag:yaml.org,2002:null":
        return None
    if node.tag == "tag:yaml.org,2002:bool":
        # YAML 1.1 reads `no` and `on` as booleans; as names they are what they look like.
        return node.value if node.value.lower() not in ("true", "false") else node.value.lower() == "true"
    return node.value


def _shape_problems(invalid: ValidationError, lines: Mapping[Path, int], source: str) -> Iterator[str]:
    fixes = {"missing": "add it", "extra_forbidden": "remove it; it is not a field"}
    for error in invalid.errors():
        path = tuple(part for part in error["loc"] if part != "[key]")
        message = error["msg"].removeprefix("Value error, ")
        fix = fixes.get(error["type"])
        text = f"{message[:1].lower()}{message[1:]}" + (f"; {fix}" if fix else "")
        yield f"{source}:{_line(lines, path)}: {_dotted(path)}: {text}"


def _line(lines: Mapping[Path, int], path: Path) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _dotted(path: Sequence[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text or "document"


def _meaning_problems(form: PolicyForm) -> Iterator[tuple[Path, str]]:
    yield from _realm_problems(form)
    yield from _partner_problems(form)
    for position, grant in enumerate(form.grants):
        yield from _grant_problems(form, grant, ("grants", position))
    yield from _repeats(((("grants", n, "id"), grant.id) for n, grant in enumerate(form.grants)), "a grant id")
    yield from _repeats(((("models", n), model) for n, model in enumerate(form.models)), "a model")
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
        users, workloads = list(enumerate(partner.users)), list(enumerate(partner.workloads))
        yield from _repeats(
            iter(
                [((*at, "users", n), user) for n, user in users]
                + [((*at, "workloads", n), workload) for n, workload in workloads]
            ),
            "a user or workload",
        )
        places += [
            ((*at, "environments", env, "certificate"), e.certificate) for env, e in partner.environments.items()
        ]
    yield from _repeats(iter(places), "an environment's certificate")


def _grant_problems(form: PolicyForm, grant: GrantForm, at: Path) -> Iterator[tuple[Path, str]]:
    partner, realm = form.partners.get(grant.partner), form.realms.get(grant.realm)
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
        principals={p.id: Principal(p.id, Role(p.role), p.partner, p.realm) for p in form.principals},
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
