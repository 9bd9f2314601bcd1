"""The policy file: YAML in, a policy out, or every problem with its line."""

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from pydantic import ValidationError

from broker.adapters.policy_forms import GrantForm, IdentityForm, PartnerForm, PolicyForm, QuotaForm, labels_of, s
from broker.adapters.policy_identities import person_of
from broker.adapters.policy_meaning import meaning_problems
from broker.adapters.policy_yaml import Path, read_yaml, unusable
from broker.domain.approval import problems as approval_problems
from broker.domain.policy import (
    ApprovalRule,
    Binding,
    Environment,
    Grant,
    Limits,
    Partner,
    Policy,
    Principal,
    Quota,
    Realm,
    Receipts,
    Role,
)
from broker.domain.trust import Network, Provider, ProviderKind, TrustRule


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
        raise unusable(_shape_problems(invalid, lines), lines, source) from invalid
    problems = list(meaning_problems(form))
    if problems:
        raise unusable(problems, lines, source)
    policy = _policy(form)
    positions = {grant.id: position for position, grant in enumerate(form.grants)}
    never = [(("grants", positions[grant], "approvals"), problem) for grant, problem in approval_problems(policy)]
    if never:
        raise unusable(never, lines, source)
    return policy


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


def _shape_problems(invalid: ValidationError, lines: Mapping[Path, int]) -> Iterator[tuple[Path, str]]:
    for error in invalid.errors(include_input=False, include_url=False):
        path = error["loc"]
        if path and path[-1] == "[key]":
            path = path[:-1]
        if path[:1] == ("models",) and path not in lines:
            # It was written as a name alone.
            path = path[:2]
        message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
        is_told = error["type"] == "value_error"
        yield path, _SHAPES.get(error["type"]) or (message if is_told else f"{message}; change it")


def _policy(form: PolicyForm) -> Policy:
    return Policy(
        realms={
            name: Realm(
                name,
                r.issuer,
                r.audience,
                s(r.max_ttl),
                s(r.lease) * 1000,
                s(r.heartbeat) * 1000,
                r.subjects == "both",
                labels_of(r.labels),
                Receipts(r.receipts),
            )
            for name, r in form.realms.items()
        },
        models=frozenset(model.name for model in form.models),
        partners={name: _partner(name, partner) for name, partner in form.partners.items()},
        grants=tuple(_grant(grant) for grant in form.grants),
        principals={
            p.id: Principal(
                p.id, Role(p.role), p.partner, p.realm, p.workload, p.user, person_of(form, p), _trust(p.identity)
            )
            for p in form.principals
        },
        providers={
            name: Provider(name, ProviderKind(p.kind), p.for_ == "humans", p.issuer, p.audience, p.review or "")
            for name, p in form.providers.items()
        },
        groups={name: frozenset(members) for name, members in form.groups.items()},
        denies_overdue=form.overdue_grants == "deny",
        labels_by_model={m.name: frozenset(labels_of(m.labels)) for m in form.models if m.labels},
    )


def _partner(name: str, form: PartnerForm) -> Partner:
    return Partner(
        name,
        labels_of(form.labels),
        frozenset(form.users),
        frozenset(form.workloads),
        {
            place: Environment(place, e.certificate or "", _trust(e.identity), tuple(_network(n) for n in e.networks))
            for place, e in form.environments.items()
        },
        _quota(form.limits),
    )


def _grant(form: GrantForm) -> Grant:
    asked = form.approvals
    return Grant(
        id=form.id,
        partner=form.partner or "",
        realm=form.realm,
        models=frozenset(form.models or ()),
        environments=frozenset(form.environments),
        users=frozenset(form.users),
        workloads=frozenset(form.workloads),
        default_ttl_s=s(form.ttl.default),
        max_ttl_s=s(form.ttl.max),
        limits=Limits(
            form.limits.batch,
            form.limits.tokens_per_run,
            form.limits.uses_per_token,
            _quota(form.limits),
            _quota(form.limits.user),
        ),
        partner_labels=frozenset(labels_of(form.partner_labels)),
        model_labels=frozenset(labels_of(form.model_labels)),
        binding=Binding(form.binding),
        delegation=form.delegation,
        approvals=None
        if asked is None
        else ApprovalRule(asked.needed, asked.group, s(asked.window), s(asked.valid), s(asked.login)),
        is_audit_only=form.mode == "audit",
        review_by=form.review_by if isinstance(form.review_by, date) else None,
    )


def _quota(form: QuotaForm) -> Quota:
    return Quota(form.mints_per_minute, form.live_tokens, form.live_runs)


def _trust(form: IdentityForm | None) -> TrustRule | None:
    return None if form is None else TrustRule(form.provider, tuple(sorted(form.claims.items())))


def _network(value: object) -> Network:
    assert isinstance(value, IPv4Network | IPv6Network)  # noqa: S101 - the validator made it
    return value


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
