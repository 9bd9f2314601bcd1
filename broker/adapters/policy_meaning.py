"""What a policy file says that cannot be: names of nothing, bounds across, rules that would let in strangers."""

from collections.abc import Iterator

from broker.adapters.policy_forms import GrantForm, PolicyForm, PrincipalForm, labels_of, s
from broker.adapters.policy_identities import Problem, identity_problems, person_of
from broker.adapters.policy_yaml import Path
from broker.domain.asking import UNRECOGNISED
from broker.domain.policy import CANARY_MODEL, CANARY_PARTNER
from broker.token.claims import MAX_LABELS
from broker.token.identifiers import bare_name

MAX_TTL_S = 7 * 86_400
# Every token of a partner carries these; it must fit the size above which verifiers read nothing.
MAX_LABELS_BYTES = 1024


def meaning_problems(form: PolicyForm) -> Iterator[Problem]:
    """Return what is wrong with a file whose every field is right by itself."""
    yield from _realm_problems(form)
    yield from _partner_problems(form)
    for position, grant in enumerate(form.grants):
        yield from _grant_problems(form, grant, ("grants", position))
    yield from _repeats(((("grants", n, "id"), grant.id) for n, grant in enumerate(form.grants)), "a grant id")
    yield from _model_problems(form)
    yield from _label_problems(form)
    yield from _group_problems(form)
    yield from identity_problems(form)
    yield from _principal_problems(form)


def _repeats(items: Iterator[Problem], what: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for path, value in items:
        if value in seen:
            yield path, f"{value} is {what} that is there twice; rename or remove one"
        seen.add(value)


def _realm_problems(form: PolicyForm) -> Iterator[Problem]:
    realms = form.realms.items()
    yield from _repeats(((("realms", name, "issuer"), realm.issuer) for name, realm in realms), "an issuer")
    yield from _repeats(((("realms", name, "audience"), realm.audience) for name, realm in realms), "an audience")
    for name, realm in realms:
        max_ttl, lease, heartbeat = s(realm.max_ttl), s(realm.lease), s(realm.heartbeat)
        if max_ttl > MAX_TTL_S:
            yield ("realms", name, "max_ttl"), "is above 7d; lower it"
        if not 1 <= lease <= 60:  # noqa: PLR2004 - the sentence says it
            yield ("realms", name, "lease"), "must be 1s to 60s; change it"
        if heartbeat * 2 >= lease:
            yield ("realms", name, "heartbeat"), "must be less than half the lease; shorten it or lengthen the lease"


def _partner_problems(form: PolicyForm) -> Iterator[Problem]:
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
        if UNRECOGNISED in partner.environments:
            yield (*at, "environments", UNRECOGNISED), "stands for no environment at all; choose another name"
        places += [
            ((*at, "environments", env, "certificate"), e.certificate)
            for env, e in partner.environments.items()
            if e.certificate is not None
        ]
    yield from _repeats(iter(places), "an environment's certificate")


def _model_problems(form: PolicyForm) -> Iterator[Problem]:
    yield from _repeats(((("models", n), model.name) for n, model in enumerate(form.models)), "a model")
    for position, model in enumerate(form.models):
        if bare_name(model.name) == CANARY_MODEL:
            yield ("models", position), "is kept for drills; choose another name"


def _label_problems(form: PolicyForm) -> Iterator[Problem]:
    """Find partners whose tokens could have more labels than fit: their own, a realm's and all models' together."""
    of_models = {label for model in form.models for label in labels_of(model.labels)}
    of_realms = max((len(realm.labels) for realm in form.realms.values()), default=0)
    shared = len(of_models) + of_realms
    shared_bytes = sum(map(len, of_models)) + max(
        (sum(map(len, labels_of(realm.labels))) for realm in form.realms.values()), default=0
    )
    beside = f" beside {shared} of realms and models" if shared else ""
    for name, partner in form.partners.items():
        at = ("partners", name, "labels")
        if len(partner.labels) + shared > MAX_LABELS:
            yield at, f"are {len(partner.labels)}{beside}; keep at most {MAX_LABELS}"
        if sum(map(len, labels_of(partner.labels))) + shared_bytes > MAX_LABELS_BYTES:
            yield at, f"have more than {MAX_LABELS_BYTES} characters in all{beside}; shorten them"


def _grant_problems(form: PolicyForm, grant: GrantForm, at: Path) -> Iterator[Problem]:
    for part in ("models", "environments", "users", "workloads"):
        names = getattr(grant, part) or ()
        yield from _repeats((((*at, part, n), name) for n, name in enumerate(names)), "a name")
    yield from _grantee_problems(form, grant, at)
    realm = form.realms.get(grant.realm)
    if realm is None:
        yield (*at, "realm"), f"there is no realm {grant.realm}; add it under realms"
    elif s(grant.ttl.max) > s(realm.max_ttl):
        yield (*at, "ttl", "max"), "is above the realm's max_ttl; lower it"
    if s(grant.ttl.default) > s(grant.ttl.max):
        yield (*at, "ttl", "default"), "is above ttl.max; lower it"
    if not grant.users and not grant.workloads:
        yield at, "has neither users nor workloads and would allow nobody; name some"
    elif realm is not None and realm.subjects == "both" and not (grant.users and grant.workloads):
        yield at, f"needs users and workloads, because realm {grant.realm} asks for both; name some"
    known = {model.name for model in form.models}
    for position, model in enumerate(grant.models or ()):
        if model not in known and bare_name(model) not in known:
            yield (*at, "models", position), f"there is no model {model}; add it under models"
    if not grant.models and not grant.model_labels:
        yield (*at, "models"), "is missing; name at least one, or give model_labels"
    if grant.model_labels and not any(grant.model_labels.items() <= model.labels.items() for model in form.models):
        yield (*at, "model_labels"), "no model has all of them; mend them or label a model"
    yield from _approval_problems(form, grant, at)


def _grantee_problems(form: PolicyForm, grant: GrantForm, at: Path) -> Iterator[Problem]:
    if (grant.partner is None) == (not grant.partner_labels):
        yield (*at, "partner"), "is missing or double; give either partner or partner_labels"
        return
    if grant.partner is not None:
        partners = [form.partners[grant.partner]] if grant.partner in form.partners else []
        if not partners:
            yield (*at, "partner"), f"there is no partner {grant.partner}; add it under partners"
            return
        owner = grant.partner
    else:
        partners = [one for one in form.partners.values() if grant.partner_labels.items() <= one.labels.items()]
        if not partners:
            yield (*at, "partner_labels"), "no partner has all of them; mend them or label a partner"
            return
        owner = "no partner with these labels"
    for field in ("environments", "users", "workloads"):
        known = {name for partner in partners for name in getattr(partner, field)}
        for position, name in enumerate(getattr(grant, field)):
            if name not in known:
                has = f"{owner} has no {name}" if grant.partner is not None else f"{owner} has {name}"
                yield (*at, field, position), f"{has}; add it under partners"


def _approval_problems(form: PolicyForm, grant: GrantForm, at: Path) -> Iterator[Problem]:
    if grant.approvals is None:
        return
    people = set(form.groups.get(grant.approvals.group, ()))
    if grant.approvals.group not in form.groups:
        yield (*at, "approvals", "group"), f"there is no group {grant.approvals.group}; add it under groups"
    elif grant.approvals.needed > len(people):
        yield (
            (*at, "approvals", "needed"),
            f"is {grant.approvals.needed}, but group {grant.approvals.group} has {len(people)}; lower it or add people",
        )


def _principal_problems(form: PolicyForm) -> Iterator[Problem]:
    yield from _repeats(
        ((("principals", n, "id"), principal.id) for n, principal in enumerate(form.principals)), "a principal"
    )
    places: dict[str, str] = {}
    for name, partner in form.partners.items():
        for environment in partner.environments.values():
            if environment.certificate is not None:
                places.setdefault(environment.certificate, name)
    for position, principal in enumerate(form.principals):
        at: Path = ("principals", position)
        yield from _scope_problems(form, principal, at)
        yield from _subject_problems(form, principal, at)
        place = places.get(principal.id)
        if principal.partner in form.partners and place not in (None, principal.partner):
            yield (*at, "id"), f"proves an environment of {place}; give {principal.partner} a certificate of its own"


_NEEDS = {"harness": "partner", "partner-admin": "partner", "verifier": "realm"}


def _scope_problems(form: PolicyForm, principal: PrincipalForm, at: Path) -> Iterator[Problem]:
    article = "an" if principal.role[0] in "aeiou" else "a"
    for field, known in (("partner", form.partners), ("realm", form.realms)):
        value = getattr(principal, field)
        if _NEEDS.get(principal.role) == field and value is None:
            yield at, f"{article} {principal.role} needs a {field}; add it"
        if _NEEDS.get(principal.role) != field and value is not None:
            yield (*at, field), f"{article} {principal.role} has no {field}; remove it"
        if value is not None and value not in known:
            yield (*at, field), f"there is no {field} {value}; add it under {field}s"


def _subject_problems(form: PolicyForm, principal: PrincipalForm, at: Path) -> Iterator[Problem]:
    article = "an" if principal.role[0] in "aeiou" else "a"
    own = form.partners.get(principal.partner or "")
    for field in ("workload", "user"):
        value = getattr(principal, field)
        if value is None:
            continue
        if principal.role != "harness":
            yield (*at, field), f"{article} {principal.role} has no {field}; remove it"
        elif own is not None and value not in getattr(own, f"{field}s"):
            yield (*at, field), f"{principal.partner} has no {field} {value}; add it under {field}s"
    if principal.user is not None and principal.workload is not None:
        yield at, "is a human and a program; keep user or workload"
    if principal.person is not None and principal.workload is not None:
        yield (*at, "person"), "is a human, and a workload is none; remove it"


def _group_problems(form: PolicyForm) -> Iterator[Problem]:
    people = {person_of(form, principal) for principal in form.principals}
    for name, members in form.groups.items():
        yield from _repeats(((("groups", name, n), member) for n, member in enumerate(members)), "a member")
        for position, member in enumerate(members):
            if member not in people:
                yield ("groups", name, position), f"no principal is the person {member}; add one under principals"
