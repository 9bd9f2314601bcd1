"""Who gains and who loses which models, and for whom the terms change: the same question to two policies."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from broker.domain.changes import Change, Direction, bound, less, listed, more, other, span
from broker.domain.policy import ApprovalRule, Binding, Limits, Policy, Quota
from broker.domain.reach import Subject, Terms, Way, ways
from broker.token.identifiers import bare_name

_STRENGTH = {Binding.NONE: 0, Binding.ANY: 1, Binding.MTLS: 2, Binding.DPOP: 2}
_QUOTA = {"mints_per_minute": "mints a minute", "live_tokens": "live tokens", "live_runs": "live runs"}
_LIMITS = {"batch": "tokens in one batch", "tokens_per_run": "tokens in one run", "uses_per_token": "uses of a token"}


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one way. None: denied."""

    way: Way
    before: Terms | None
    after: Terms | None


def steps(before: Policy, after: Policy) -> Iterator[Step]:
    """Yield each way on which a mint would be decided otherwise, or on other terms."""
    models_move = (before.models, before.labels_by_model) != (after.models, after.labels_by_model)
    for partner in sorted({*before.partners, *after.partners}):
        for realm in sorted({*before.realms, *after.realms}):
            if not models_move and _seen_by(before, partner, realm) == _seen_by(after, partner, realm):
                continue
            for way, (was, becomes) in ways([before, after], partner, realm):
                if was != becomes:
                    yield Step(way, was, becomes)


def _seen_by(policy: Policy, partner: str, realm: str) -> object:
    """Return all that the decision looks at for a partner in a realm, models aside."""
    return policy.grants_for(partner, realm), policy.partners.get(partner), policy.realms.get(realm)


def access_changes(found: Iterable[Step]) -> Iterator[Change]:
    """Tell each step in words; ways to which the same happens are told together."""
    together: dict[tuple[str, str, Terms | None, Terms | None], list[Way]] = {}
    for step in found:
        key = (step.way.partner, step.way.realm, step.before, step.after)
        together.setdefault(key, []).append(step.way)
    for (_, _, before, after), alike in together.items():
        for way in merged(alike):
            yield from _told(way, before, after)


def merged(alike: Iterable[Way]) -> list[Way]:
    """Return the same ways in fewer: those that differ in one thing only are put together."""
    found = list(alike)
    keys: tuple[Callable[[Way], object], ...] = (
        lambda way: (way.subjects, way.models),
        lambda way: (way.subjects, way.environments),
        lambda way: (way.models, way.environments),
    )
    for key in keys:
        groups: dict[object, list[Way]] = {}
        for way in found:
            groups.setdefault(key(way), []).append(way)
        found = [_joined(group) for group in groups.values()]
    return found


def _joined(group: list[Way]) -> Way:
    return Way(
        group[0].partner,
        group[0].realm,
        frozenset().union(*(way.subjects for way in group)),
        frozenset().union(*(way.models for way in group)),
        frozenset().union(*(way.environments for way in group)),
    )


def subjects_text(subjects: Iterable[Subject]) -> str:
    """Return who: `user alice`, `workload ci`, or `ci for alice`."""
    return listed(
        f"{workload} for {user}" if user and workload else f"user {user}" if user else f"workload {workload}"
        for user, workload in subjects
    )


def way_text(way: Way) -> str:
    """Return `mythos and oracle in evaluation from ci`. An instance of a model that is named is not named again."""
    shown = {model for model in way.models if model == bare_name(model) or bare_name(model) not in way.models}
    return f"{listed(shown)} in {way.realm} from {listed(way.environments)}"


def _told(way: Way, before: Terms | None, after: Terms | None) -> Iterator[Change]:
    who, what = f"{subjects_text(way.subjects)} of {way.partner}", way_text(way)
    verb = "s" if len(way.subjects) == 1 else ""
    if before is None and after is not None:
        yield more("access", f"{who} gain{verb} {what}, {_terms_text(after)}")
    elif before is not None and after is None:
        yield less("access", f"{who} lose{verb} {what} (until now by grant {before.grant})")
    elif before is not None and after is not None:
        for change in terms_changes(before, after):
            yield Change(change.direction, change.subject, f"{who}, for {what}: {change.text}")


def _terms_text(terms: Terms) -> str:
    demands = []
    if terms.binding is not Binding.NONE:
        demands.append(f"bound ({terms.binding.value})")
    if terms.approvals is not None:
        demands.append(_approval_text(terms.approvals))
    if terms.is_audit_only:
        demands.append("in mode audit")
    return ", ".join([f"for up to {span(terms.max_ttl_s)}", *demands, f"by grant {terms.grant}"])


def terms_changes(before: Terms, after: Terms) -> Iterator[Change]:
    """Tell how the terms of the same way change."""
    if before.max_ttl_s != after.max_ttl_s:
        is_more = after.max_ttl_s > before.max_ttl_s
        tell = more if is_more else less
        word = "longer" if is_more else "shorter"
        yield tell("lifetime", f"{word} lives, up to {span(after.max_ttl_s)} (was {span(before.max_ttl_s)})")
    if before.default_ttl_s != after.default_ttl_s:
        tell = more if after.default_ttl_s > before.default_ttl_s else less
        text = f"lives of {span(after.default_ttl_s)} where none is asked for (was {span(before.default_ttl_s)})"
        yield tell("lifetime", text)
    yield from _binding_changes(before.binding, after.binding)
    yield from _approval_changes(before.approvals, after.approvals)
    yield from limits_changes(before.limits, after.limits)
    if before.delegation != after.delegation:
        tell = more if after.delegation > before.delegation else less
        yield tell("delegation", f"children {after.delegation} deep (was {before.delegation})")
    if before.is_audit_only != after.is_audit_only:
        text = "demands are noted, no more enforced (mode audit)" if after.is_audit_only else "demands are enforced"
        yield (more if after.is_audit_only else less)("mode", text)
    if before.grant != after.grant:
        yield other("grant", f"by grant {after.grant} (was {before.grant})")


def _binding_changes(before: Binding, after: Binding) -> Iterator[Change]:
    if before is after:
        return
    was, becomes = _STRENGTH[before], _STRENGTH[after]
    direction = Direction.OTHER if was == becomes else Direction.MORE if becomes < was else Direction.LESS
    word = {Direction.MORE: "weaker", Direction.LESS: "stronger", Direction.OTHER: "other"}[direction]
    yield Change(direction, "binding", f"{word} binding, {after.value} (was {before.value})")


def _approval_changes(before: ApprovalRule | None, after: ApprovalRule | None) -> Iterator[Change]:
    if before == after:
        return
    if before is None or after is None:
        if after is None and before is not None:
            yield more("approvals", f"no approval is needed any more (was {_approval_text(before)})")
        elif after is not None:
            yield less("approvals", f"{_approval_text(after)} (was none)")
        return
    if before.needed != after.needed:
        tell = more if after.needed < before.needed else less
        yield tell("approvals", f"{after.needed} people must approve (was {before.needed})")
    if before.group != after.group:
        # Not weaker and not stronger by itself, but others decide: whoever reviews must look.
        yield more("approvals", f"group {after.group} approves (was {before.group})")
    for name, what in (
        ("window_s", "to decide within"),
        ("valid_s", "valid for"),
        ("login_s", "logins not older than"),
    ):
        was, becomes = getattr(before, name), getattr(after, name)
        if was != becomes:
            tell = more if becomes > was else less
            yield tell("approvals", f"approvals {what} {span(becomes)} (was {span(was)})")


def _approval_text(rule: ApprovalRule) -> str:
    return f"{rule.needed} of group {rule.group} must approve"


def limits_changes(before: Limits, after: Limits) -> Iterator[Change]:
    """Tell how a grant's limits change."""
    for name, what in _LIMITS.items():
        yield from _limit(what, getattr(before, name), getattr(after, name))
    yield from quota_changes(before.all, after.all)
    yield from quota_changes(before.user, after.user, " of each user or workload")


def quota_changes(before: Quota, after: Quota, whose: str = "") -> Iterator[Change]:
    """Tell how bounds on what there may be at a time change."""
    for name, what in _QUOTA.items():
        yield from _limit(f"{what}{whose}", getattr(before, name), getattr(after, name))


def _limit(what: str, was: int | None, becomes: int | None) -> Iterator[Change]:
    if was == becomes:
        return
    is_more = becomes is None or (was is not None and becomes > was)
    word = "higher" if is_more else "lower"
    yield (more if is_more else less)("limits", f"{word} limit of {what}, {bound(becomes)} (was {bound(was)})")
