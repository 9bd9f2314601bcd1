"""What a child of a token may be: never more than its parent, nor than the policy in force (RFC 8693)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker.domain.asking import Ask
from broker.domain.decision import BLOCKED, INVALID, NOT_GRANTED, Allowed, Denied, Reason, decide
from broker.domain.policy import Grant, Policy
from broker.token.binding import Bound
from broker.token.claims import MAX_LABELS, MAX_PARENTS, Claims
from broker.token.identifiers import bare_name, identifier
from broker.token.revocation import Selector, facts_of

# The `act` of a token is read to this depth; see `broker.token.jws.MAX_JSON_DEPTH`.
MAX_ACTORS = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of a child; nothing: what its parent has. `workload`: who will act.

    `bound` None: as the parent, because a child of a bound token is bound.
    """

    models: tuple[str, ...] = ()
    ttl_s: int | None = None
    bound: Bound | None = None
    test: str | None = None
    workload: str | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """May be minted: `claims` but for the index, by `grant`."""

    claims: Claims
    grant: Grant


def child_of(
    parent: Claims,
    wish: Wish,
    policy: Policy,
    blocks: Mapping[Selector, int],
    *,
    client: str,
    token_id: str,
    now_s: int,
    not_before_s: int,
    parent_kid: str,
) -> Child | Denied:
    """Decide a child of `parent`, whose life has not ended, under the policy in force.

    Its lifetime is what is asked for or the grant's default, and never longer than its parent's. Each selector that
    kills the parent, which the key `parent_kid` signed, kills the child.

    Raises:
        Invalid: A field of the wish is malformed; names it.
    """
    ask = _asked(parent, wish)
    refusal = _beyond_parent(parent, wish, ask, now_s)
    if refusal is not None:
        return refusal
    depth = len(parent.parents) + 1
    allowed = _decided(ask, policy, blocks, depth)
    if isinstance(allowed, Denied):
        return allowed
    ttl_s, act, workload = allowed.ttl_s, parent.act, parent.workload
    actor = _actor(parent)
    acts = decide(replace(ask, workload=wish.workload or actor), policy, blocks)
    if isinstance(acts, Denied):
        # Who acts must be allowed it, too, and not only for whom they act.
        return acts
    ttl_s = min(ttl_s, acts.ttl_s)
    if wish.workload is not None and actor != wish.workload:
        act = _acting(parent, wish.workload)
        if act is None:
            return Denied(Reason(INVALID, "workload", f"more than {MAX_ACTORS} have acted"))
        workload = parent.workload if parent.user is None else wish.workload
    labels = tuple(sorted({*parent.labels, *policy.labels_for(ask.partner, ask.realm, ask.models)}))
    if len(labels) > MAX_LABELS:
        return Denied(Reason(INVALID, "labels", f"the child would have more than {MAX_LABELS} labels"))
    grant = policy.grant(allowed.grant)
    assert grant is not None  # noqa: S101 - the decision named it
    claims = replace(
        parent,
        client_id=client,
        iat=now_s,
        nbf=max(parent.nbf, not_before_s),
        exp=min(now_s + ttl_s, parent.exp),
        jti=token_id,
        models=ask.models,
        scope=" ".join(f"model:{model}" for model in ask.models),
        test=ask.test,
        workload=workload,
        act=act,
        labels=labels,
        parents=(*parent.parents, parent.jti),
        cnf=parent.cnf if wish.bound is None else wish.bound.cnf,
        uses=_uses(parent, grant),
        parent_models=_beyond(parent, ask.models),
        parent_keys=tuple(dict.fromkeys((*(parent.parent_keys or ()), parent_kid))),
        idx=1,
    )
    facts = facts_of(claims, "")
    for block in blocks:
        # Also of who has acted before.
        if block.matches(facts):
            return Denied(Reason(BLOCKED, f"block {block}", f"blocked by revocation of {block}"))
    return Child(claims, grant)


def _asked(parent: Claims, wish: Wish) -> Ask:
    if wish.workload is not None:
        identifier("workload", wish.workload)
    return Ask(
        realm=parent.realm,
        partner=parent.partner,
        user=parent.user,
        workload=parent.workload,
        models=wish.models or parent.models,
        environment=parent.env,
        run=parent.run,
        test=wish.test if wish.test is not None else parent.test,
        ttl_s=wish.ttl_s,
        bound=wish.bound,
    )


def _beyond_parent(parent: Claims, wish: Wish, ask: Ask, now_s: int) -> Denied | None:
    """Return why the wish is wider than the parent, or None."""
    beyond = [model for model in ask.models if model not in parent.models and bare_name(model) not in parent.models]
    if beyond:
        return Denied(Reason(NOT_GRANTED, "parent", f"the parent does not cover {', '.join(beyond)}"))
    if wish.test is not None and parent.test not in (None, wish.test):
        # A revocation of the parent's test would not reach it.
        return Denied(Reason(INVALID, "test", f"the parent is for test {parent.test}, and its children are"))
    if len(parent.parents) >= MAX_PARENTS:
        return Denied(Reason(NOT_GRANTED, "parent", f"the parent has {MAX_PARENTS} ancestors, and no token has more"))
    if parent.exp <= now_s:
        return Denied(Reason(NOT_GRANTED, "parent", "the parent has expired"))
    return None


def _decided(ask: Ask, policy: Policy, blocks: Mapping[Selector, int], depth: int) -> Allowed | Denied:
    """Decide by a grant that lets children go so deep, where there is one that covers it."""
    allowed = decide(ask, policy, blocks)
    if isinstance(allowed, Denied):
        return allowed
    first = policy.grant(allowed.grant)
    if first is not None and first.delegation >= depth:
        return allowed
    deep = tuple(grant for grant in policy.grants if grant.delegation >= depth)
    second = decide(ask, replace(policy, grants=deep), blocks) if deep else None
    if isinstance(second, Allowed):
        return second
    most = 0 if first is None else first.delegation
    detail = f"grant {allowed.grant} lets children go {most} deep, and this one would be {depth} deep"
    return Denied(Reason(NOT_GRANTED, f"grant {allowed.grant}", detail))


def _actor(parent: Claims) -> str | None:
    """Return who acts with the parent: the outermost actor, or else the workload that it is for."""
    if parent.act is None:
        return parent.workload
    return str(parent.act.get("sub")).removeprefix(f"{parent.partner}/workload/")


def _acting(parent: Claims, workload: str) -> Mapping[str, object] | None:
    """Return the child's `act`, who acted before within it (RFC 8693 §4.1); None: too many have."""
    act: dict[str, object] = {} if parent.act is None else {"act": parent.act}
    # Last: names are sorted, as in the ledger, whose entries have one spelling.
    act["sub"] = f"{parent.partner}/workload/{workload}"
    depth, inner = 1, act.get("act")
    while isinstance(inner, Mapping):
        depth, inner = depth + 1, inner.get("act")
    return act if depth <= MAX_ACTORS else None


def _beyond(parent: Claims, models: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the models of a child's ancestors by which nothing would reach the child itself."""
    reached = {*models, *map(bare_name, models)}
    beyond = tuple(sorted({*parent.models, *(parent.parent_models or ())} - reached))
    return beyond or None


def _uses(parent: Claims, grant: Grant) -> int | None:
    own = None if grant.is_audit_only else grant.limits.uses_per_token
    return min((uses for uses in (parent.uses, own) if uses is not None), default=None)
