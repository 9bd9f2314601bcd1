"""A policy whose grant needs the approval of two of a board, and brokers without doors that ask, vote and mint by it."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from broker.adapters.key_rotation import KeyRotation, Lifetimes
from broker.adapters.local_root import LocalRoot
from broker.adapters.memory_signer import make_memory_key
from broker.adapters.policy_file import load_policy
from broker.adapters.sql import SqlLedger
from broker.domain.approval import Standing
from broker.domain.asking import Ask
from broker.ledger.entry import Entry, Kind, decode_entry
from broker.service import runs
from broker.service.apply_policy import ApplyPolicy
from broker.service.approving import Approving, Shown, Wish
from broker.service.calling import Caller, CertificateProof, identify
from broker.service.metering import Unmetered
from broker.service.mint import Mint, Minted
from broker.service.policies import Policies
from broker.service.ports import RequestKey, RunRecord
from broker.service.revoke import Revocations
from broker.service.runs import Runs
from broker.service.spending import HoldApprovals
from broker.service.voting import Signed, Voting
from broker.token.approval import Decision, Wanted, request_hash
from tests.asked import Person
from tests.moved_clock import MovedClock
from tests.served import ADMIN, POLICY
from tests.stores import Home

CI = "spiffe://acme.example/ci"
LAPTOP = "spiffe://acme.example/alice"
PEOPLE = {
    "carol": "spiffe://lab.example/carol",
    "carol-at-home": "spiffe://lab.example/carol-at-home",
    "dave": "spiffe://lab.example/dave",
    "erin": "spiffe://lab.example/erin",
    # The user alice of acme, who is one of the board.
    "alice": "spiffe://lab.example/alice",
    "outsider": "spiffe://lab.example/outsider",
}
RULE = "{needed: 2, group: board, window: 1h, valid: 2h, login: 15m}"
BOARD = (
    POLICY.replace("grants:\n", "groups: {board: [carol, dave, erin, alice]}\ngrants:\n")
    .replace("- {id: acme-evaluation, ", f"- {{id: acme-evaluation, approvals: {RULE}, ")
    .replace(
        '{acme-ci: {certificate: "spiffe://acme.example/ci"}}',
        '{acme-ci: {certificate: "spiffe://acme.example/ci"}, laptop: {certificate: "spiffe://acme.example/alice"}}',
    )
    .replace("environments: [acme-ci], users: [alice], workloads", "environments: [acme-ci, laptop], users: [alice], workloads")
    + '  - {id: "spiffe://acme.example/alice", role: harness, partner: acme, user: alice, person: alice}\n'
    + "".join(
        f'  - {{id: "{uri}", role: approver, person: {name.removesuffix("-at-home")}}}\n' for name, uri in PEOPLE.items()
        if uri not in POLICY
    )
)  # fmt: skip
FOR_ALICE = Wish(Wanted.TOKEN, "evaluation", "acme", "alice", None, ("mythos",), None)


def request(contents: str = "", *, principal: str = CI) -> RequestKey:
    return RequestKey(principal, secrets.token_urlsafe(16), hashlib.sha256(contents.encode()).digest())


@dataclass
class Desk:
    """One broker, and everybody's keys."""

    ledger: SqlLedger
    policies: Policies
    clock: MovedClock
    approving: Approving
    voting: Voting
    mint: Mint
    hold: HoldApprovals
    runs: Runs
    signer: KeyRotation
    people: dict[str, Person]

    def caller(self, uri: str, *, login_s: float = 60) -> Caller:
        proof = CertificateProof(uri, self.clock.now() - timedelta(seconds=login_s))
        return identify(proof, self.policies.current(), frozenset({ADMIN}))

    def apply(self, document: str) -> None:
        ApplyPolicy(
            self.ledger,
            self.policies,
            self.clock,
            load_policy,
            digest=lambda data: hashlib.sha256(data).hexdigest(),
            max_ttl_s=86_400,
        )(
            self.caller(ADMIN),
            document,
            expected_version=None,
            request=request(document, principal=ADMIN),
        )

    def ask(self, wish: Wish = FOR_ALICE, *, by: str = CI) -> str:
        return self.approving.request(self.caller(by), wish, request(principal=by)).record.approval.request.id

    def vote(
        self,
        who: str,
        approval: str,
        decision: Decision = Decision.APPROVE,
        *,
        saw: bytes | None = None,
        login_s: float = 60,
        key: RequestKey | None = None,
        statement: str | None = None,
        iat: int | None = None,
    ) -> Shown:
        person = self.people[who]
        [record] = self.ledger.approvals.approvals_by_id([approval]) or [None]
        document = saw if saw is not None else record.document if record is not None else b""
        now_s = int(self.clock.now().timestamp())
        text = person.says(request_hash(document), decision, iat=iat or now_s) if statement is None else statement
        caller = self.caller(PEOPLE[who], login_s=login_s)
        key = key or request(principal=PEOPLE[who])
        return self.voting(caller, approval, decision, Signed(text, person.jwk), key)

    def approved(self, wish: Wish = FOR_ALICE, *, by: str = CI) -> str:
        approval = self.ask(wish, by=by)
        self.vote("carol", approval)
        assert self.vote("dave", approval).judged.standing is Standing.APPROVED
        return approval

    def standing(self, approval: str) -> Standing:
        return self.approving.get(self.caller(ADMIN), approval).judged.standing

    def minting(
        self, *approvals: str | None, by: str = CI, key: RequestKey | None = None, **changed: Any
    ) -> list[Minted]:
        asked = {"realm": "evaluation", "partner": "acme", "user": "alice", "workload": None, **changed}
        asked = {"models": ("mythos",), "environment": "acme-ci", **asked}
        asks = [Ask(**asked, approval=approval) for approval in approvals]
        named = [one for one in approvals if one is not None]
        runs = {ask.run: self.ledger.run(ask.run) for ask in asks if ask.run is not None}
        held = self.hold(named, {run: record.approval for run, record in runs.items() if record is not None})
        reserved = self.mint.reserve(self.caller(by), asks, key or request(principal=by), held).result(30)
        return self.mint.finish(reserved)

    def open_run(
        self, approval: str | None, *, by: str = CI, key: RequestKey | None = None, **changed: Any
    ) -> RunRecord:
        fields = {"realm": "evaluation", "partner": "acme", "models": ("mythos",), "user": "alice", **changed}
        return self.runs.open(self.caller(by), runs.Wanted(**fields, approval=approval), key or request(principal=by))

    def entries(self, *kinds: Kind) -> Sequence[Entry]:
        found = [decode_entry(data) for data in self.ledger.entries(0, self.ledger.head().size)]
        return [entry for entry in found if entry.kind in kinds]

    def now(self) -> datetime:
        return self.clock.now()


def open_desk(home: Home, folder: Any, people: dict[str, Person] | None = None) -> Desk:
    ledger, clock = home.open(), home.clock
    policies = Policies(ledger, load_policy, clock)
    signer = KeyRotation(
        LocalRoot(folder, b"not a secret in a test"),
        clock,
        realms=policies.realm_keys,
        publish=lambda *_: None,
        make=make_memory_key,
        meter=Unmetered(),
        lifetimes=Lifetimes(),
    )
    policies.watch(lambda _: signer.wake())
    approving = Approving(ledger, ledger.approvals, policies, clock, new_id=lambda: secrets.token_urlsafe(16))
    desk = Desk(
        ledger,
        policies,
        clock,
        approving,
        Voting(ledger, approving, policies, clock),
        Mint(ledger, policies, signer, clock, new_id=lambda: secrets.token_urlsafe(16), meter=Unmetered()),
        HoldApprovals(ledger.approvals),
        Runs(
            ledger,
            policies,
            clock,
            Revocations(clock, timedelta(days=1)),
            new_id=lambda: secrets.token_urlsafe(16),
            meter=Unmetered(),
            hold=HoldApprovals(ledger.approvals),
        ),
        signer,
        people or {name: Person(uri) for name, uri in PEOPLE.items()},
    )
    if not policies.current().document:
        desk.apply(BOARD)
    signer.start()
    return desk
