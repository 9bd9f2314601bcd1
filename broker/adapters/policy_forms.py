"""The shape of the policy file: which fields there are, and what each may hold by itself."""

import re
from collections.abc import Callable
from datetime import date
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from broker.adapters.policy_yaml import shown
from broker.domain.trust import Network
from broker.errors import Invalid
from broker.token.claims import ISSUER
from broker.token.identifiers import client_id, identifier, model_name, principal_uri

# Every token of a realm or partner carries these; it must fit the size above which verifiers read nothing.
MAX_ISSUER_BYTES = 256
MAX_CLAIM_BYTES = 512
_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ISSUER = re.compile(ISSUER, re.ASCII)
_CLAIM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:-]{0,127}", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_IDENTIFIER_SCHEMA = r"^[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?$"
_SPIFFE_SCHEMA = r"spiffe://[a-z0-9.-]+(/[A-Za-z0-9._-]+)+"

_MODEL_SCHEMA = {"type": "string", "pattern": r"^[a-z0-9][a-z0-9._@-]*$", "maxLength": 257}


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


def _claim_name(field: str, text: str) -> str:
    if not _CLAIM_NAME.fullmatch(text):
        raise Invalid(field, f"{shown(text)} is not the name of a claim", hint="write it as the provider spells it")
    return text


def _claim_value(field: str, text: str) -> str:
    # A star would look like a pattern, and is compared as a letter like any other.
    if not text or len(text) > MAX_CLAIM_BYTES or not text.isprintable() or not text.isascii() or "*" in text:
        raise Invalid(
            field, f"{shown(text)} is not a claim's value", hint="write the whole value; claims are compared exactly"
        )
    return text


def _network(text: object) -> Network:
    try:
        return ip_network(text if isinstance(text, str) else "", strict=True)
    except ValueError as bad:
        raise ValueError(f"{shown(str(text))} is not a network; write 10.0.0.0/8 or 2001:db8::/32") from bad


def _date(text: object) -> date:
    try:
        return date.fromisoformat(text if isinstance(text, str) and _DATE.fullmatch(text) else "")
    except ValueError as bad:
        raise ValueError(f"{shown(str(text))} is not a date; write 2027-01-31 in quotes") from bad


Name = Annotated[str, _rule(identifier), WithJsonSchema({"type": "string", "pattern": _IDENTIFIER_SCHEMA})]
Model = Annotated[str, _rule(model_name), WithJsonSchema(_MODEL_SCHEMA)]
Uri = Annotated[str, _rule(principal_uri), WithJsonSchema({"type": "string", "pattern": f"^{_SPIFFE_SCHEMA}$"})]
PrincipalId = Annotated[
    str,
    _rule(client_id),
    WithJsonSchema({"type": "string", "pattern": f"^(?:{_SPIFFE_SCHEMA}|{_IDENTIFIER_SCHEMA.strip('^$')})$"}),
]
Issuer = Annotated[str, _rule(_issuer), WithJsonSchema({"type": "string", "pattern": r"^https://"})]
ClaimName = Annotated[str, _rule(_claim_name), WithJsonSchema({"type": "string", "minLength": 1})]
ClaimValue = Annotated[
    str, _rule(_claim_value), WithJsonSchema({"type": "string", "minLength": 1, "pattern": r"^[^*]+$"})
]
Net = Annotated[object, BeforeValidator(_network), WithJsonSchema({"type": "string"})]
Day = Annotated[object, BeforeValidator(_date), WithJsonSchema({"type": "string", "format": "date"})]
Seconds = Annotated[
    str,
    AfterValidator(_seconds),
    WithJsonSchema({"type": "string", "pattern": r"^[1-9][0-9]{0,6}(s|m|h|d)$"}),
]
Most = Annotated[int, Field(ge=1, le=1_000_000_000)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ProviderForm(_Form):
    """One issuer of identities, of humans or of workloads. `review`: a Kubernetes API server that reviews tokens."""

    kind: Literal["oidc", "github", "kubernetes"]
    for_: Annotated[Literal["humans", "workloads"], Field(alias="for")]
    issuer: Issuer
    audience: Annotated[str, _rule(_claim_value), WithJsonSchema({"type": "string", "minLength": 1})]
    review: Issuer | None = None


class IdentityForm(_Form):
    """An identity: a provider, and claims that are compared exactly. It needs the provider's immutable ones."""

    provider: Name
    claims: Annotated[dict[ClaimName, ClaimValue], Field(min_length=1, max_length=16)]


class RealmForm(_Form):
    """A realm. Lease: 1s to 60s. Heartbeat: less than half the lease. Subjects: user and workload both, or one."""

    issuer: Issuer
    audience: Name
    max_ttl: Seconds
    lease: Seconds = Field(default="5s", validate_default=True)
    heartbeat: Seconds = Field(default="1s", validate_default=True)
    receipts: Literal["none", "summed", "each"] = "none"
    subjects: Literal["one", "both"] = "one"
    labels: dict[Name, Name] = {}


class ModelForm(_Form):
    """A model with labels."""

    name: Model
    labels: dict[Name, Name] = {}


# A model without labels is written as its name alone.
ListedModel = Annotated[
    ModelForm,
    BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
    WithJsonSchema(
        {
            "anyOf": [
                _MODEL_SCHEMA,
                {
                    "type": "object",
                    "properties": {
                        "name": _MODEL_SCHEMA,
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    },
                    "required": ["name"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class EnvironmentForm(_Form):
    """An environment, recognised by the URI SAN of a client certificate or by an identity, and by its networks."""

    certificate: Uri | None = None
    identity: IdentityForm | None = None
    networks: list[Net] = []


class QuotaForm(_Form):
    """Bounds on what there may be at a time."""

    mints_per_minute: Most | None = None
    live_tokens: Most | None = None
    live_runs: Most | None = None


class PartnerForm(_Form):
    """A partner."""

    labels: dict[Name, Name] = {}
    users: list[Name] = []
    workloads: list[Name] = []
    environments: dict[Name, EnvironmentForm] = {}
    limits: QuotaForm = QuotaForm()


class TtlForm(_Form):
    """Lifetimes."""

    default: Seconds
    max: Seconds


class LimitsForm(QuotaForm):
    """Optional limits of a grant; those below `user` are for each user or workload by itself."""

    batch: Annotated[int, Field(ge=1, le=1000)] | None = None
    tokens_per_run: Most | None = None
    uses_per_token: Most | None = None
    user: QuotaForm = QuotaForm()


class ApprovalsForm(_Form):
    """So many different people of a group must approve, after a login not older than `login`."""

    needed: Annotated[int, Field(ge=1, le=16)]
    group: Name
    window: Seconds = Field(default="1h", validate_default=True)
    valid: Seconds = Field(default="8h", validate_default=True)
    login: Seconds = Field(default="15m", validate_default=True)


class GrantForm(_Form):
    """A grant: for a partner, or for each that has all of `partner_labels`."""

    id: Name
    partner: Name | None = None
    partner_labels: dict[Name, Name] = {}
    realm: Name
    models: Annotated[list[Model], Field(min_length=1)] | None = None
    model_labels: dict[Name, Name] = {}
    environments: Annotated[list[Name], Field(min_length=1)]
    users: list[Name] = []
    workloads: list[Name] = []
    ttl: TtlForm
    limits: LimitsForm = LimitsForm()
    mode: Literal["enforce", "audit"] = "enforce"
    binding: Literal["none", "mtls", "dpop", "any"] = "none"
    delegation: Annotated[int, Field(ge=0, le=8)] = 0
    approvals: ApprovalsForm | None = None
    review_by: Day | None = None


class PrincipalForm(_Form):
    """A principal. A harness and a partner-admin have a partner, a verifier a realm, an approver is a person."""

    id: PrincipalId
    role: Literal["harness", "verifier", "admin", "security", "approver", "operator", "auditor", "partner-admin"]
    partner: Name | None = None
    realm: Name | None = None
    workload: Name | None = None
    user: Name | None = None
    person: Name | None = None
    identity: IdentityForm | None = None


class PolicyForm(_Form):
    """Policy of the credential broker. What it does not say is denied."""

    version: Literal[1]
    overdue_grants: Literal["allow", "deny"] = "allow"
    providers: dict[Name, ProviderForm] = {}
    groups: dict[Name, Annotated[list[Name], Field(min_length=1)]] = {}
    realms: dict[Name, RealmForm]
    models: list[ListedModel]
    partners: dict[Name, PartnerForm]
    grants: list[GrantForm]
    principals: list[PrincipalForm]


def s(duration: object) -> int:
    """Return a duration's seconds, which the form's validator made of its text."""
    assert isinstance(duration, int)  # noqa: S101 - the validator turned it into seconds
    return duration


def labels_of(labels: dict[str, str]) -> tuple[str, ...]:
    """Return labels as tokens spell them, sorted."""
    return tuple(sorted(f"{name}={value}" for name, value in labels.items()))
