"""Replace the policy."""

import re
from collections.abc import Callable

from broker.domain.policy import Policy, Role
from broker.errors import Invalid
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.service.calling import Caller
from broker.service.policies import Policies
from broker.service.ports import Clock, Ledger, PolicyReplaced, RequestKey, Write
from broker.service.revoke import checked_reason

MAX_DOCUMENT_BYTES = 1 << 20
_PLAN = re.compile(r"(0|[1-9][0-9]{0,18})-([0-9a-f]{32})", re.ASCII)


def plan_id(version: int, document: bytes, digest: Callable[[bytes], str]) -> str:
    """Return the id of a plan: it names the version that was compared with, and the letters of the document."""
    return f"{version}-{digest(b'%d %b' % (version, document))[:32]}"


class ApplyPolicy:
    """Replaces the policy: one ledger entry, and the version moves (P3)."""

    def __init__(
        self,
        ledger: Ledger,
        policies: Policies,
        clock: Clock,
        parse: Callable[[str], Policy],
        *,
        digest: Callable[[bytes], str],
        max_ttl_s: int,
    ) -> None:
        self._ledger = ledger
        self._policies = policies
        self._clock = clock
        self._parse = parse
        self._digest = digest
        self._max_ttl_s = max_ttl_s

    def __call__(
        self,
        caller: Caller,
        document: str,
        *,
        expected_version: int | None,
        request: RequestKey,
        reason: str = "",
        plan: str = "",
        restored: int | None = None,
    ) -> tuple[int, int]:
        """Apply `document`; return (version, index).

        With `plan`, only as it was planned: the same letters, and at the same version. `restored` is the version
        that the document is from, if it is from one.

        Raises:
            Forbidden, Invalid: Refused; nothing was written.
            ConfigInvalid: The document has problems, all of them named.
            PolicyMoved: The version in force is not `expected_version`, or not the plan's.
            Whatever `Ledger.append` raises.
        """
        caller.must_be(Role.ADMIN)
        why = checked_reason(reason) if reason else ""
        data = self.checked(document)[1]
        if plan:
            expected_version = self._planned(plan, data, expected_version)
        at = self._clock.now()
        # An entry must fit a tile (65,535 bytes), so it holds the document's hash.
        body: dict[str, object] = {"request": request.request_id, "sha256": self._digest(data), "bytes": len(data)}
        body |= {"reason": why} if why else {}
        body |= {"restored": restored} if restored is not None else {}
        write = Write(
            [lambda index: encode_entry(Entry(index, Kind.POLICY_APPLIED, at, caller.principal, body))],
            request=request,
            expecting=expected_version,
            effects=(PolicyReplaced(document, caller.principal, at, why),),
        )
        appended = self._ledger.append(write).result()
        self._policies.refresh()
        index = appended.indices.start
        # The version that this made, also when it is asked for again much later.
        return self._ledger.version_applied_at(index), index

    def _planned(self, plan: str, data: bytes, expected_version: int | None) -> int:
        named = _PLAN.fullmatch(plan)
        if named is None:
            raise Invalid("plan", "is not a plan's id", hint="use what `broker policy plan FILE` printed")
        version = int(named[1])
        if plan_id(version, data, self._digest) != plan:
            raise Invalid("plan", "was made for another document", hint="plan this one, look at it, and apply that")
        if expected_version not in (None, version):
            raise Invalid("expected_version", f"is {expected_version}, the plan's is {version}", hint="leave it out")
        return version

    def checked(self, document: str) -> tuple[Policy, bytes]:
        """Return what `document` says, and its bytes, if it may be applied. Raises Invalid, ConfigInvalid."""
        data = document.encode()
        if not data.strip():
            raise Invalid("document", "is empty", hint="an empty policy allows nothing; to stop all mints, revoke")
        if len(data) > MAX_DOCUMENT_BYTES:
            raise Invalid("document", f"has {len(data)} bytes", hint=f"use at most {MAX_DOCUMENT_BYTES}")
        policy = self._parse(document)
        for realm in policy.realms.values():
            if realm.max_ttl_s > self._max_ttl_s:
                raise Invalid(
                    f"realms.{realm.name}.max_ttl",
                    f"is {realm.max_ttl_s} s, above the broker's maximum of {self._max_ttl_s} s",
                    hint="lower it, or raise limits.max_ttl_s in the broker's configuration",
                )
        return policy, data
