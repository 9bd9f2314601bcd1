"""Report who can reach what, by which path and whose leave, what of it is used, and what needs a look; signed."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from broker.audit.events import USE, AccessPath, facet
from broker.audit.report import encode_report, vouched
from broker.domain.access import (
    OVERDUE,
    OVERDUE_CLOSED,
    REVIEW_SOON,
    Access,
    Scope,
    accesses,
    demanded,
    grants_in,
    partners_of,
    review_state,
    verifiers_in,
)
from broker.domain.paths import caller_text, changers, place_text
from broker.domain.policy import Grant, Policy, Role
from broker.errors import Invalid, NotFound, PolicyMoved
from broker.ledger.entry import Kind, decode_entry
from broker.service.calling import Caller
from broker.service.checkpoints import PublishCheckpoints, read_kept
from broker.service.grant_origins import Origin, grant_origins
from broker.service.indexing import Indexer
from broker.service.policies import Policies, PolicyInForce
from broker.service.policy_ports import PolicyVersion
from broker.service.policy_versions import PolicyVersions
from broker.service.ports import Clock, Ledger
from broker.service.question_ports import EventIndex, Reached, Times
from broker.service.verifiers import Listed
from broker.token.identifiers import bare_name, identifier, model_name

MAX_PATHS = 5_000
MAX_SOON_DAYS = 3_650
_MAX_APPROVALS = 5
_ATTEMPTS = 5
_NARROWER = "name a partner, a realm and a model"


@dataclass(frozen=True, slots=True)
class Report:
    """A report in its one spelling, and the note that vouches for it."""

    document: bytes
    note: bytes


class AccessReports:
    """Makes access reports, as of the ledger's end. Safe to call from any thread; blocks."""

    def __init__(
        self,
        ledger: Ledger,
        policies: Policies,
        versions: PolicyVersions,
        parse: Callable[[str], Policy],
        index: EventIndex,
        indexer: Indexer,
        publish: PublishCheckpoints,
        clock: Clock,
        configured: Iterable[str],
    ) -> None:
        self._ledger = ledger
        self._policies = policies
        self._versions = versions
        self._parse = parse
        self._index = index
        self._indexer = indexer
        self._publish = publish
        self._clock = clock
        self._configured = tuple(configured)

    def __call__(self, caller: Caller, scope: Scope, soon_days: int, listed: Sequence[Listed]) -> Report:
        """Report on a scope; `listed`: who listens, and who ever did. A review that is due within `soon_days` is soon.

        Raises:
            Forbidden: The role may not see the policy.
            Invalid: Nothing bounds it, a name is none, or it would be longer than anybody reads.
            NotFound: There is no such realm, partner or model.
            Overloaded, SignerUnavailable, StoreUnavailable, StoreCorrupt, PolicyMoved: Not now.
        """
        caller.must_be(Role.ADMIN, Role.AUDITOR)
        if soon_days > MAX_SOON_DAYS:
            raise Invalid("soon_days", f"is {soon_days}", hint=f"use at most {MAX_SOON_DAYS}")
        in_force, size = self._settled()
        policy = in_force.policy
        _must_be_known(policy, scope)
        found = list(islice(accesses(policy, in_force.blocks, scope), MAX_PATHS + 1))
        known = self._index.reached(scope.realm, scope.partner, None, 10 * MAX_PATHS)
        if len(found) > MAX_PATHS or len(known) == 10 * MAX_PATHS:
            raise Invalid("scope", f"there are more than {MAX_PATHS} paths", hint=_NARROWER)
        record = self._publish.publish()
        checkpoint = read_kept(record)
        made_at = _instant(self._clock.now())
        ledger = {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
        document = encode_report(
            {
                "report": "access",
                "made_at": made_at,
                "made_for": caller.principal,
                "scope": {"realm": scope.realm, "partner": scope.partner, "model": scope.model},
                "ledger": {**ledger, "checkpoint": record.note},
                **self._told(in_force, size, scope, timedelta(days=soon_days), found, known, listed),
            }
        )
        return Report(document, str(self._publish.vouch(vouched(checkpoint.origin, document, made_at))).encode())

    def _settled(self) -> tuple[PolicyInForce, int]:
        """Return the policy in force, and how many entries there were while it was; the index covers them."""
        for _ in range(_ATTEMPTS):
            self._policies.refresh()
            # As of today, which what was refreshed need not be.
            in_force = self._policies.current()
            head = self._ledger.head()
            if head.policy_version == in_force.version:
                self._indexer.must_cover(head.size)
                return in_force, head.size
        raise PolicyMoved("the policy kept moving while it was reported on", hint="retry")

    def _told(
        self,
        in_force: PolicyInForce,
        size: int,
        scope: Scope,
        soon: timedelta,
        found: Sequence[Access],
        known: Sequence[Reached],
        listed: Sequence[Listed],
    ) -> Mapping[str, object]:
        policy = in_force.policy
        used = _by_path(known, scope)
        paths = [_path(one, used) for one in found]
        given = {(path, one.model) for one in found for path in _paths_of(one)}
        past = [one for key, one in sorted(used.items()) if key not in given]
        covering = grants_in(policy, scope)
        origins = grant_origins(covering, self._versions.back_from(in_force.version), self._parse)
        grants = [self._grant(policy, one, origins[one.id], scope, soon, size) for one in covering]
        return {
            "policy": {
                "version": in_force.version,
                "by": in_force.by,
                "at": None if in_force.applied_at is None else _instant(in_force.applied_at),
                "reason": in_force.reason,
                "sha256": hashlib.sha256(in_force.document.encode()).hexdigest(),
                "overdue_grants_allow_nothing": policy.denies_overdue,
            },
            "realms": [{"realm": one, "receipts": policy.realms[one].receipts.value} for one in scope.realms(policy)],
            "summary": _summary(paths, grants, past, soon),
            "paths": paths,
            "grants": grants,
            "not_granted_now": [_past(one) for one in past],
            "environments": [
                {"partner": name, "environment": place.name, "proven_by": place_text(place)}
                for name in sorted({one.partner for one in found})
                for place in sorted(policy.partners[name].environments.values(), key=lambda one: one.name)
            ],
            "harnesses": [
                {"principal": one.id, "is": caller_text(one)}
                for one in policy.principals.values()
                if one.id in {caller for access in found for caller in access.callers}
            ],
            "verifiers": list(self._verifiers(policy, scope, listed, size)),
            "changers": [
                {"by": one.by, "who": one.who, "what": one.what} for one in changers(policy, self._configured, covering)
            ],
        }

    def _grant(
        self, policy: Policy, grant: Grant, origin: Origin, scope: Scope, soon: timedelta, size: int
    ) -> Mapping[str, object]:
        partners = partners_of(policy, grant, scope)
        rule = grant.approvals
        return {
            "grant": grant.id,
            "realm": grant.realm,
            "partners": partners,
            "partner_labels": sorted(grant.partner_labels),
            "models": sorted(grant.models),
            "model_labels": sorted(grant.model_labels),
            "max_ttl_s": min(grant.max_ttl_s, policy.realms[grant.realm].max_ttl_s),
            "delegation": grant.delegation,
            "mode": "audit" if grant.is_audit_only else "enforce",
            "demands": demanded(policy, grant, partners),
            "approvers": [] if rule is None else sorted(policy.groups.get(rule.group, ())),
            "granted": _version(origin.granted),
            "changed": _version(origin.changed),
            "approved": list(self._approved(grant.id, scope, size)) if rule is not None else [],
            "review_by": None if grant.review_by is None else grant.review_by.isoformat(),
            "review": review_state(policy, grant, self._clock.now().date(), soon),
        }

    def _approved(self, grant: str, scope: Scope, size: int) -> Iterator[Mapping[str, object]]:
        """Yield the newest approvals that were spent on a grant."""
        words = [facet("kind", Kind.APPROVAL_SPENT.value), facet("grant", grant)]
        if scope.partner is not None:
            words.append(facet("partner", scope.partner))
        before: int | None = size
        for _ in range(_MAX_APPROVALS):
            before = self._index.last(words, before or 0)
            if before is None:
                return
            entry = decode_entry(self._ledger.entries(before, before + 1)[0])
            yield {
                "index": before,
                "at": _instant(entry.at),
                "approval": entry.body.get("approval"),
                "by": entry.body.get("approvers"),
                "for": entry.body.get("purpose"),
            }

    def _verifiers(
        self, policy: Policy, scope: Scope, listed: Sequence[Listed], size: int
    ) -> Iterator[Mapping[str, object]]:
        lines = {(one.verifier, one.realm): one for one in listed}
        for realm in scope.realms(policy):
            may = {one.id for one in verifiers_in(policy, realm)}
            for name in sorted(may | {verifier for verifier, of in lines if of == realm}):
                line = lines.get((name, realm))
                words = (facet("by", name), facet("realm", realm))
                used = self._index.last((*words, facet("kind", USE)), size)
                yield {
                    "verifier": name,
                    "realm": realm,
                    "in_policy": name in may,
                    "state": "never seen" if line is None else line.state,
                    "version": "" if line is None else line.version,
                    "head": None if line is None else line.head,
                    "seen_at": None if line is None else _instant(line.seen_at),
                    "keeps_receipts": self._index.last((*words, facet("kind", Kind.RECEIPT_KEY_ENROLLED.value)), size)
                    is not None,
                    "last_receipts": used,
                }


def _must_be_known(policy: Policy, scope: Scope) -> None:
    if scope == Scope():
        raise Invalid("scope", "has no bounds", hint="name a partner, a realm or a model")
    for what, name, rule, is_known in (
        ("realm", scope.realm, identifier, scope.realm in policy.realms),
        ("partner", scope.partner, identifier, scope.partner in policy.partners),
        ("model", scope.model, model_name, scope.model is not None and policy.knows_model(scope.model)),
    ):
        if name is None:
            continue
        rule(what, name)
        if not is_known:
            raise NotFound(f"there is no {what} {name}", hint="see: broker policy show")


def _by_path(known: Sequence[Reached], scope: Scope) -> dict[tuple[AccessPath, str], Reached]:
    """Return what is known, of the models that are looked at."""
    return {
        (one.path, one.model): one
        for one in known
        if scope.model is None or scope.model in (one.model, bare_name(one.model))
    }


def _paths_of(access: Access) -> Iterator[AccessPath]:
    for place in access.environments:
        yield AccessPath(access.realm, access.partner, access.user or "", access.workload or "", access.grant, place)


def _path(access: Access, used: Mapping[tuple[AccessPath, str], Reached]) -> dict[str, object]:
    found = [one for path in _paths_of(access) if (one := used.get((path, access.model))) is not None]
    return {
        "partner": access.partner,
        "realm": access.realm,
        "model": access.model,
        "user": access.user,
        "workload": access.workload,
        "grant": access.grant,
        "environments": list(access.environments),
        "harnesses": list(access.callers),
        "closed_by": access.block or None,
        "minted": _times([one.minted for one in found]),
        "used": _times([one.used for one in found]),
        "seen_from": sorted({one.path.environment for one in found}),
    }


def _past(one: Reached) -> dict[str, object]:
    path = one.path
    return {
        "partner": path.partner,
        "realm": path.realm,
        "model": one.model,
        "user": path.user or None,
        "workload": path.workload or None,
        "grant": path.grant,
        "environment": path.environment,
        "minted": _times([one.minted]),
        "used": _times([one.used]),
    }


def _times(several: Iterable[Times | None]) -> dict[str, object] | None:
    """Return how often and when last; None: never."""
    found = [one for one in several if one is not None]
    if not found:
        return None
    newest = max(found, key=lambda one: one.at_ms)
    at = datetime.fromtimestamp(newest.at_ms / 1000, UTC)
    return {"count": sum(one.count for one in found), "last_at": _instant(at), "last_index": newest.index}


def _version(one: PolicyVersion | None) -> dict[str, object] | None:
    if one is None:
        return None
    return {"version": one.version, "index": one.index, "by": one.by, "at": _instant(one.at), "reason": one.reason}


def _summary(
    paths: Sequence[Mapping[str, object]],
    grants: Sequence[Mapping[str, object]],
    past: Sequence[Reached],
    soon: timedelta,
) -> dict[str, int]:
    reviews = [one["review"] for one in grants]
    return {
        "paths": len(paths),
        "used": sum(1 for one in paths if one["used"]),
        "minted_and_never_used": sum(1 for one in paths if one["minted"] and not one["used"]),
        "never_minted": sum(1 for one in paths if not one["minted"]),
        "closed_now": sum(1 for one in paths if one["closed_by"]),
        "grants": len(grants),
        "review_within_days": soon.days,
        "reviews_soon": reviews.count(REVIEW_SOON),
        "reviews_overdue": reviews.count(OVERDUE) + reviews.count(OVERDUE_CLOSED),
        "grants_without_review": reviews.count("none"),
        "not_granted_now": len(past),
    }


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
