"""The one place where a demand of a grant is enforced, or, where the grant is only audited, noted.

A grant allows by what it covers, and demands more: a binding, approvals, limits. Each demand is judged by its own
use case, which hands what it found to `enforce` and never raises it itself. So `mode: audit` means the same for all
of them: the log and the metrics say what would have been denied, and it is allowed. What no grant covers, a block,
and a partner's own limits are no demands of a grant: they deny in every mode.
"""

import logging
from enum import StrEnum

from broker.domain.policy import Grant
from broker.errors import Failure
from broker.service.metering import Meter

log = logging.getLogger("broker.would-deny")


class Demand(StrEnum):
    """What a grant can demand beyond what it covers; also the `rule` of `broker_would_deny_total`."""

    BINDING = "binding"
    APPROVALS = "approvals"
    BATCH = "batch"
    MINTS_PER_MINUTE = "mints_per_minute"
    LIVE_TOKENS = "live_tokens"
    LIVE_RUNS = "live_runs"
    TOKENS_PER_RUN = "tokens_per_run"


def enforce(grant: Grant, demand: Demand, problem: Failure, meter: Meter) -> None:
    """Refuse by `problem` what `grant` covers but does not allow so; note it and go on where the grant is only audited.

    For a demand that can be counted only inside an append (where there is nothing to raise to), ask
    `grant.is_audit_only` for the guard's bound, and call this after the commit.

    Raises:
        problem: The grant is enforced.
    """
    if not grant.is_audit_only:
        raise problem
    meter.would_deny(grant.id, demand.value)
    fields = {"grant": grant.id, "rule": demand.value, "reason": problem.reason, "detail": problem.message}
    log.warning("would be denied, if the grant were enforced", extra={"fields": fields})
