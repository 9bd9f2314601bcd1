"""P10: what a log says that contradicts what it said before is named by its rule, one case for each that there is."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.audit.rules import Rules
from broker.audit.wrong import Rule
from broker.errors import NotProven
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.token.approval import ApprovalRequest, Decision, Wanted, encode_request, plain_statement, request_hash
from broker.token.claims import TOKEN_TYP, Claims, encode_claims
from broker.token.completion import COMPLETION_TYP, Statement, statement_payload
from broker.token.jws import assemble, signing_input
from broker.token.jws import b64url as b64
from broker.token.keys import (
    Purpose,
    certificate_payload,
    certificate_signing_input,
    plain_certificate,
    public_jwk,
    thumbprint,
)
from broker.token.revocation import Selector
from tests.asked import Person, asked
from tests.realm_keys import CertifiedKey, RealmKeys, sign
from tests.receipting import ReceiptKey, accepted

OPS, HARNESS, GATEWAY = "spiffe://lab.example/ops", "spiffe://acme.example/ci", "spiffe://lab.example/gateway"
INCARNATION = "an-incarnation"


class Story:
    """A log that is told entry by entry, each judged at once. It begins well: a policy, and a key for tokens."""

    def __init__(self) -> None:
        self.keys = RealmKeys()
        self.at = datetime.fromtimestamp(self.keys.now_s, UTC)
        self.entries: list[bytes] = []
        self.documents: dict[int, bytes] = {}
        self.rules = Rules({"evaluation": self.keys.trust}, self.entries.__getitem__, self.documents.get)
        self.say(Kind.LEDGER_CREATED, incarnation=INCARNATION)

    def begin(self) -> "Story":
        self.say(Kind.POLICY_APPLIED, sha256="0" * 64)
        self.certify(self.keys.token)
        return self

    @property
    def size(self) -> int:
        return len(self.entries)

    def say(self, kind: Kind, by: str = OPS, at: datetime | None = None, **body: Any) -> int:
        """Say it as the next entry; return its index. Raises NotProven."""
        return self.put(encode_entry(Entry(self.size, kind, at or self.at, by, body)))

    def put(self, data: bytes) -> int:
        self.rules.take(data)
        self.entries.append(data)
        return self.size - 1

    def certify(self, key: CertifiedKey, purpose: Purpose | str = Purpose.TOKEN, **changed: Any) -> int:
        body = {"realm": "evaluation", "purpose": getattr(purpose, "value", purpose), "kid": key.kid}
        return self.say(Kind.KEY_CERTIFIED, **{**body, "certificate": plain_certificate(key.certificate), **changed})

    def claims(self, **changed: Any) -> Claims:
        return self.keys.claims(**{"idx": self.size, **changed})

    def mint(self, claims: Claims | None = None, kind: Kind = Kind.TOKEN_MINTED, **changed: Any) -> Claims:
        claims = claims or self.claims()
        self.say(kind, HARNESS, **{**self.minted(claims), **changed})
        return claims

    def minted(self, claims: Claims, kid: str = "") -> dict[str, Any]:
        payload, kid = encode_claims(claims), kid or self.keys.token.kid
        sha256 = hashlib.sha256(signing_input(typ=TOKEN_TYP, kid=kid, payload=payload)).hexdigest()
        return {"claims": json.loads(payload), "kid": kid, "sha256": sha256}

    def open(self, run: str = "run-0001", **changed: Any) -> int:
        body = {"run": run, "realm": "evaluation", "partner": "acme", "user": "bob", "models": ["mythos"]}
        return self.say(Kind.RUN_OPENED, HARNESS, **{**body, **changed})

    def revoke(self, kind: Kind = Kind.REVOKED, reason: str = "why", **selector: str) -> int:
        blocks = {} if kind is not Kind.REVOKED else {"blocks": Selector.of(**selector).is_blocking}
        return self.say(kind, selector=selector, reason=reason, **blocks)

    def ask(self, request: ApprovalRequest | None = None, by: str = HARNESS, **changed: Any) -> ApprovalRequest:
        request = request or asked()
        document = encode_request(request)
        body = {"approval": request.id, "asked": json.loads(document), "sha256": request_hash(document)}
        self.say(Kind.APPROVAL_REQUESTED, by, **{**body, **changed})
        return request

    def vote(
        self,
        request: ApprovalRequest,
        person: str,
        decision: Decision = Decision.APPROVE,
        *,
        by: str = "",
        signs: Decision | None = None,
        **changed: Any,
    ) -> int:
        sha256, who = request_hash(encode_request(request)), Person(by or f"spiffe://lab.example/{person}")
        statement = plain_statement(who.says(sha256, signs or decision), who.jwk)
        kind = Kind.APPROVAL_GIVEN if decision is Decision.APPROVE else Kind.APPROVAL_DENIED
        body = {"approval": request.id, "sha256": sha256, "person": person, "statement": statement}
        return self.say(kind, who.principal, **{**body, **changed})

    def approve(self, request: ApprovalRequest) -> ApprovalRequest:
        for person in ("carol", "dave"):
            self.vote(request, person)
        return request

    def spend(self, request: ApprovalRequest, on: str = "token-1", **changed: Any) -> int:
        body = {
            "approval": request.id,
            "sha256": request_hash(encode_request(request)),
            "on": on,
            "approvers": ["carol", "dave"],
            "purpose": request.purpose.value,
        }
        return self.say(Kind.APPROVAL_SPENT, HARNESS, **{**body, **changed})

    def enroll(self, enrolled: ReceiptKey, by: str = GATEWAY, **changed: Any) -> int:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), enrolled.point)
        body = {"kid": enrolled.kid, "key": public_jwk(public), "realm": enrolled.realm}
        return self.say(Kind.RECEIPT_KEY_ENROLLED, by, **{**body, **changed})

    def keep(self, signed: tuple[bytes, bytes], by: str = GATEWAY, **changed: Any) -> int:
        body = {"batch": json.loads(signed[0]), "signature": b64(signed[1])}
        return self.say(Kind.RECEIPTS_KEPT, by, **{**body, **changed})

    def complete(self, index: int, statement: Statement | None, **changed: Any) -> int:
        """Complete a revocation by a statement that a certified key signed, or by none."""
        lines = "" if statement is None else self.stated(statement) + "\n"
        self.documents[index] = lines.encode()
        body = {
            "revocation": index,
            "sha256": hashlib.sha256(self.documents[index]).hexdigest(),
            "realms": [] if statement is None else list(statement.realms),
            "entries": 1,
            "kids": [],
            **dict.fromkeys(("listening", "acknowledged", "lapsed", "left", "uses_cut"), 0),
        }
        return self.say(Kind.REVOCATION_COMPLETED, "broker", **{**body, **changed})

    def statement(self, index: int, **changed: Any) -> Statement:
        """Return what says that the revocation at an index, of partner acme, is in force where nobody listens."""
        self.stating = self.keys.certified(Purpose.COMPLETION)
        filled: dict[str, Any] = {
            "iss": self.keys.trust.issuer,
            "iat": self.keys.now_s,
            "realm": "evaluation",
            "realms": ("evaluation",),
            "incarnation": INCARNATION,
            "index": index,
            "entries": 1,
            "selector": (("partner", "acme"),),
            "reason": "why",
            "by": OPS,
            "blocks": True,
            "committed_at": self.at,
            "in_force_at": self.at,
            "waited_ms": 0,
            "verifiers": (),
            "tokens": 0,
            "uses_cut": 0,
            "certificate": self.stating.certificate,
        }
        return Statement(**{**filled, **changed})

    def stated(self, statement: Statement) -> str:
        message = signing_input(typ=COMPLETION_TYP, kid=self.stating.kid, payload=statement_payload(statement))
        return assemble(message, sign(self.stating.private, message))


@pytest.fixture
def story() -> Story:
    return Story().begin()


@pytest.fixture
def key(story: Story) -> ReceiptKey:
    key = ReceiptKey()
    story.enroll(key)
    return key


def named(rule: Rule, told: str, story: Story, say: Callable[[], object]) -> None:
    """What is said now is the entry that is named, by this rule and in these words."""
    size = story.size
    with pytest.raises(NotProven, match=told) as caught:
        say()
    assert caught.value.metadata["rule"] == rule
    assert caught.value.metadata["where"] in (f"entry {size}", f"completions/{size - 1}.jws")


def test_a_log_in_which_all_is_in_order_is_good(story: Story, key: ReceiptKey) -> None:
    token = story.mint()
    story.keep(key.batch([accepted(token.jti, token.idx, head=story.size)]))
    request = story.approve(story.ask(asked(id="Z" * 22, purpose=Wanted.RUN)))
    run = "run-0001"
    story.spend(request, run)
    story.open()
    story.mint(story.claims(run=run), approval=request.id)
    story.say(Kind.RUN_KEPT, HARNESS, run=run)
    story.revoke(Kind.RUN_CLOSED, run=run)
    second = story.certify(story.keys.certified(Purpose.TOKEN))
    story.certify(story.keys.token)
    index = story.revoke(partner="acme")
    statement = story.statement(index)
    story.certify(story.stating, Purpose.COMPLETION)
    story.complete(index, statement, kids=[story.stating.kid])
    story.say(Kind.REINSTATED, selector={"partner": "acme"}, reason="why")
    story.mint()
    assert story.rules.kinds["token-minted"] == 3
    assert second


# Before everything else.


def test_entries_of_another_form_or_place_are_named(story: Story) -> None:
    good = encode_entry(Entry(story.size, Kind.POLICY_APPLIED, story.at, OPS, {"sha256": "0" * 64}))
    named(Rule.FORM, "cannot be read", story, lambda: story.put(good[:-1]))
    named(Rule.FORM, "not in its one spelling", story, lambda: story.put(good.replace(b",", b", ", 1)))
    named(Rule.BEGINNING, "begins with its creation", story, lambda: story.say(Kind.LEDGER_CREATED, incarnation="x"))
    other = encode_entry(Entry(story.size + 1, Kind.POLICY_APPLIED, story.at, OPS, {"sha256": "0" * 64}))
    with pytest.raises(NotProven, match=f"stands at place {story.size}"):
        story.put(other)
    with pytest.raises(NotProven, match="begins with its creation"):
        Rules({}, lambda _: b"", lambda _: None).take(
            encode_entry(Entry(0, Kind.POLICY_APPLIED, story.at, OPS, {"sha256": "0" * 64}))
        )


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        (Kind.POLICY_APPLIED, {}, "'sha256', a text"),
        (Kind.POLICY_APPLIED, {"sha256": 5}, "'sha256', a text"),
        (Kind.DRILLED, {"revocation": "5"}, "'revocation', a number"),
        (Kind.DRILLED, {"revocation": True}, "'revocation', a number"),
        (Kind.DRILLED, {"revocation": -1}, "'revocation', a number"),
        (Kind.TOKEN_MINTED, {"claims": []}, "'claims', an object"),
        (Kind.RUN_OPENED, {"run": "r", "realm": "e", "partner": "p", "models": "mythos"}, "'models', a list of texts"),
        (Kind.RUN_OPENED, {"run": "r", "realm": "e", "partner": "p", "models": [5]}, "'models', a list of texts"),
        (Kind.RECEIPTS_ALARMED, {"problems": []}, "must name problems"),
        (Kind.RECEIPTS_ALARMED, {}, "must name problems"),
    ],
)
def test_an_entry_that_lacks_what_its_kind_has_is_named(
    story: Story, kind: Kind, body: Mapping[str, Any], told: str
) -> None:
    named(Rule.FORM, told, story, lambda: story.say(kind, **body))


def test_nothing_is_granted_before_a_policy() -> None:
    story = Story()
    named(Rule.POLICY, "minted before there was a policy", story, story.mint)
    named(Rule.POLICY, "opened before there was a policy", story, story.open)
    named(Rule.POLICY, "certified before there was a policy", story, lambda: story.certify(story.keys.token))


# Keys.


def test_a_certificate_that_is_not_what_the_entry_says_is_named(story: Story) -> None:
    key = story.keys.certified(Purpose.TOKEN)
    rule = Rule.CERTIFICATE
    named(rule, "nothing of realm research", story, lambda: story.certify(key, realm="research"))
    named(rule, "no key has the purpose 'cooking'", story, lambda: story.certify(key, "cooking"))
    named(rule, f"is of key {key.kid}", story, lambda: story.certify(key, kid="A" * 43))
    named(rule, "is not good", story, lambda: story.certify(key, Purpose.FEED))
    stranger = RealmKeys().certified(Purpose.TOKEN)
    named(rule, "is not good", story, lambda: story.certify(stranger))
    for none in ({}, {"kid": key.kid, "payload": "x", "signature": "zz"}, {"kid": 5, "payload": 5, "signature": 5}):
        named(
            Rule.FORM, "not kid, payload and signature", story, lambda none=none: story.certify(key, certificate=none)
        )


def test_a_key_has_one_realm_and_one_purpose(story: Story) -> None:
    first = story.keys.certified(Purpose.FEED)
    both = replace(first, certificate=certified_again(story.keys, first, Purpose.TOKEN))
    story.certify(both)
    story.certify(both)
    named(Rule.CERTIFICATE, "another realm or purpose before", story, lambda: story.certify(first, Purpose.FEED))


def certified_again(keys: RealmKeys, key: CertifiedKey, purpose: Purpose) -> str:
    payload = certificate_payload(
        keys.trust,
        purpose,
        public_jwk(key.private.public_key()),
        not_before=keys.now_s - 3600,
        signs_until=keys.now_s + 86_400,
        expires=keys.now_s + 90_000,
    )
    message = certificate_signing_input(thumbprint(public_jwk(keys.root.public_key())), payload)
    return assemble(message, sign(keys.root, message))


def test_a_key_signs_in_its_time_alone(story: Story) -> None:
    """Storm-0558: a key that had expired went on signing."""
    now_s = story.keys.now_s
    key = story.keys.certified(Purpose.TOKEN, not_before=now_s - 100, signs_until=now_s + 100, expires=now_s + 10_000)
    story.certify(key)

    def mint(at_s: int, exp: int) -> None:
        claims = story.claims(iat=now_s + at_s, nbf=now_s + at_s - 5, exp=now_s + exp)
        story.say(Kind.TOKEN_MINTED, HARNESS, story.at + timedelta(seconds=at_s), **story.minted(claims, key.kid))

    outside = f"outside of the time of its key {key.kid}"
    named(Rule.CERTIFICATE, outside, story, lambda: mint(101, 200))
    named(Rule.CERTIFICATE, outside, story, lambda: mint(-101, 200))
    named(Rule.CERTIFICATE, outside, story, lambda: mint(0, 10_001))
    mint(100, 10_000)
    mint(-100, 0)


# Tokens.


def test_a_token_is_what_its_entry_says(story: Story) -> None:
    named(Rule.TOKEN, "was minted at index 99", story, lambda: story.mint(story.claims(idx=99)))
    named(Rule.TOKEN, "its claims are none", story, lambda: story.say(Kind.TOKEN_MINTED, claims={"jti": "x"}))
    named(Rule.TOKEN, "another time of issue", story, lambda: story.mint(story.claims(iat=story.keys.now_s - 1)))
    named(Rule.TOKEN, "another hash", story, lambda: story.mint(sha256="0" * 64))
    named(Rule.TOKEN, "issuer and the audience", story, lambda: story.mint(story.claims(aud="elsewhere")))
    named(Rule.CERTIFICATE, "no key", story, lambda: story.mint(kid="A" * 43))
    foreign = replace(story.claims(), realm="research")
    named(Rule.CERTIFICATE, "nothing of realm research", story, lambda: story.mint(foreign))
    first = story.mint()
    named(Rule.TOKEN, "was minted before", story, lambda: story.mint(story.claims(jti=first.jti)))
    feed = story.keys.feed
    story.certify(feed, Purpose.FEED)
    body = story.minted(story.claims(), feed.kid)
    named(Rule.CERTIFICATE, "no key", story, lambda: story.say(Kind.TOKEN_MINTED, HARNESS, **body))


def test_a_token_is_signed_anew_as_it_was(story: Story) -> None:
    minted = story.mint()
    story.mint(minted, Kind.TOKEN_RESIGNED)
    for changed in ({"partner": "globex", "sub": "globex/user/bob"}, {"exp": minted.exp + 1}, {"jti": "B" * 22}):
        named(
            Rule.TOKEN,
            "signed anew with another",
            story,
            lambda changed=changed: story.mint(replace(minted, **changed), Kind.TOKEN_RESIGNED),
        )
    for idx in (0, 1, 999):
        named(
            Rule.TOKEN,
            f"no token was minted at index {idx}",
            story,
            lambda idx=idx: story.say(
                Kind.TOKEN_RESIGNED,
                **{**story.minted(minted), "claims": {**json.loads(encode_claims(minted)), "idx": idx}},
            ),
        ) if idx else None


def test_a_block_stops_tokens_and_runs_until_it_is_lifted_and_a_canary_passes(story: Story) -> None:
    index = story.revoke(partner="acme")
    named(Rule.BLOCKED, f"partner=acme is blocked since index {index}", story, story.mint)
    named(Rule.BLOCKED, f"partner=acme is blocked since {index}", story, story.open)
    story.mint(kind=Kind.CANARY_MINTED)
    story.say(Kind.REINSTATED, selector={"partner": "acme"}, reason="why")
    story.mint()
    # One on an instance stops all that could be that instance.
    story = Story().begin()
    story.revoke(model="mythos@one")
    named(Rule.BLOCKED, "mythos@one", story, story.mint)


def test_a_token_has_parents_that_live(story: Story) -> None:
    parent = story.mint()
    story.mint(story.claims(parents=(parent.jti,)))
    named(Rule.PARENT, "was never minted", story, lambda: story.mint(story.claims(parents=("B" * 22,))))
    story.revoke(token=parent.jti)
    named(Rule.PARENT, "was revoked before", story, lambda: story.mint(story.claims(parents=(parent.jti,))))


# Runs.


def test_a_run_is_opened_once_and_ends_once(story: Story) -> None:
    run = "run-0001"
    named(Rule.RUN, "is not open", story, lambda: story.say(Kind.RUN_KEPT, HARNESS, run=run))
    named(Rule.RUN, "was not open", story, lambda: story.revoke(Kind.RUN_LAPSED, run=run))
    named(Rule.RUN, "is not open", story, lambda: story.mint(story.claims(run=run)))
    story.open(run)
    named(Rule.RUN, "was opened before", story, lambda: story.open(run))
    other = story.claims(run=run, partner="globex", sub="globex/user/bob")
    named(Rule.RUN, "another realm or partner", story, lambda: story.mint(other))
    named(Rule.REVOCATION, "that run alone", story, lambda: story.revoke(Kind.RUN_CLOSED, run=run, partner="acme"))
    story.revoke(Kind.RUN_CLOSED, run=run)
    named(Rule.RUN, "is not open", story, lambda: story.mint(story.claims(run=run)))


# Revocations.


def test_a_revocation_says_rightly_what_and_why(story: Story) -> None:
    say = story.say
    rule, good = Rule.REVOCATION, {"selector": {"partner": "acme"}, "reason": "why", "blocks": True}
    for selector in ({}, {"planet": "mars"}, {"partner": 5}, {"partner": ""}):
        named(rule, "no selector", story, lambda selector=selector: say(Kind.REVOKED, **{**good, "selector": selector}))
    named(rule, "nobody said why", story, lambda: say(Kind.REVOKED, **{**good, "reason": ""}))
    for blocks in (False, None, 1, "true"):
        named(rule, "whether it blocks", story, lambda blocks=blocks: say(Kind.REVOKED, **{**good, "blocks": blocks}))
    named(
        rule, "no block on partner=acme", story, lambda: say(Kind.REINSTATED, selector={"partner": "acme"}, reason="x")
    )
    say(Kind.REVOKED, **good)
    named(rule, "nobody said why", story, lambda: say(Kind.REINSTATED, selector={"partner": "acme"}, reason=""))
    named(Rule.COMPLETION, "that was not made", story, lambda: say(Kind.DRILLED, revocation=1))
    named(Rule.COMPLETION, "that was not made", story, lambda: say(Kind.DRILLED, revocation=story.size))


def completing(story: Story) -> tuple[int, Statement]:
    statement = story.statement(story.size + 1)
    story.certify(story.stating, Purpose.COMPLETION)
    assert story.revoke(partner="acme") == statement.index
    return statement.index, statement


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"incarnation": "another"}, "another incarnation"),
        ({"index": 1}, "another index"),
        ({"entries": 2, "selector": (("realm", "evaluation"),), "blocks": False}, "another entries"),
        ({"selector": (("partner", "globex"),)}, "another selector"),
        ({"reason": "another"}, "another reason"),
        ({"by": HARNESS}, "another by"),
        ({"iat": RealmKeys().now_s - 90_000}, "signed before the revocation was made"),
    ],
)
def test_a_completion_is_of_its_revocation_in_each_word(story: Story, changed: dict[str, Any], told: str) -> None:
    index, statement = completing(story)
    if "iat" in changed:
        story.stating = story.keys.certified(Purpose.COMPLETION, not_before=story.keys.now_s - 100_000)
        changed = {**changed, "certificate": story.stating.certificate}
    named(Rule.COMPLETION, told, story, lambda: story.complete(index, replace(statement, **changed)))


def test_a_completion_is_there_once_whole_and_by_a_certified_key(story: Story) -> None:
    index, statement = completing(story)
    size = story.size

    def fresh() -> Story:
        """The same again: a log is not gone on with after what was wrong."""
        again = Story()
        again.keys, again.stating = story.keys, story.stating
        again.entries.clear()
        again.rules = Rules({"evaluation": again.keys.trust}, again.entries.__getitem__, again.documents.get)
        for data in story.entries[:size]:
            again.put(data)
        return again

    one = fresh()
    named(Rule.COMPLETION, "which revokes nothing", one, lambda: one.complete(1, statement))
    one = fresh()
    named(Rule.COMPLETION, "states nothing", one, lambda: one.complete(index, statement, realms=[]))
    one = fresh()
    named(Rule.COMPLETION, "is not the completion", one, lambda: one.complete(index, statement, sha256="0" * 64))
    one = fresh()
    named(Rule.COMPLETION, "empty, or its last line", one, lambda: one.complete(index, None, realms=["evaluation"]))
    one = fresh()
    named(Rule.COMPLETION, "counts lapsed otherwise", one, lambda: one.complete(index, statement, lapsed=1))
    one = fresh()
    named(Rule.CERTIFICATE, "no key", one, lambda: one.complete(index, statement, kids=[one.keys.token.kid]))
    one = fresh()
    body = {"revocation": index, "sha256": "", "realms": [], "entries": 1, "kids": []}
    named(Rule.COMPLETION, "is missing", one, lambda: one.say(Kind.REVOCATION_COMPLETED, **body))
    one = fresh()
    one.complete(index, statement, kids=[one.stating.kid])
    with pytest.raises(NotProven, match=f"revocation {index} was completed before"):
        one.complete(index, statement)


# Approvals.


def test_a_request_for_approval_is_what_was_asked(story: Story) -> None:
    rule, good = Rule.APPROVAL, asked()
    named(rule, "exactly our names", story, lambda: story.ask(asked={}))
    named(rule, "another hash", story, lambda: story.ask(sha256="0" * 64))
    named(rule, "the request is A", story, lambda: story.ask(approval="B" * 22))
    named(rule, "by somebody else", story, lambda: story.ask(by=OPS))
    story.ask(good)
    named(rule, "asked for before", story, lambda: story.ask(good))


def test_people_sign_what_was_asked_each_once_and_not_for_themselves(story: Story) -> None:
    rule, request = Rule.APPROVAL, asked(person="carol")
    named(rule, "nobody asked", story, lambda: story.vote(request, "dave"))
    story.ask(request)
    named(rule, "another request than was made", story, lambda: story.vote(request, "dave", sha256="0" * 64))
    named(rule, "approves what is for themselves", story, lambda: story.vote(request, "carol"))
    named(rule, "approves what is for themselves", story, lambda: story.vote(request, "dave", by=HARNESS))
    named(rule, "signed another decision", story, lambda: story.vote(request, "dave", signs=Decision.DENY))
    named(
        rule,
        "signed another decision",
        story,
        lambda: story.vote(request, "dave", Decision.DENY, signs=Decision.APPROVE),
    )
    who = Person("spiffe://lab.example/dave")
    good = plain_statement(who.says(request_hash(encode_request(request))), who.jwk)
    about_another = plain_statement(who.says("1" * 64), who.jwk)
    somebody_s = {**good, "key": Person("spiffe://lab.example/erin").jwk}
    named(rule, "signed another decision", story, lambda: story.vote(request, "dave", statement=about_another))
    named(rule, "is not good", story, lambda: story.vote(request, "dave", statement=somebody_s))
    for statement in ({}, {**good, "signature": "zz"}, {**good, "payload": 5}, {**good, "key": []}):
        named(Rule.FORM, "not key, payload", story, lambda one=statement: story.vote(request, "dave", statement=one))
    story.vote(request, "dave")
    named(rule, "dave had approved it before", story, lambda: story.vote(request, "dave"))


def test_an_approval_is_spent_once_by_enough_people_for_what_they_signed(story: Story) -> None:
    rule, request = Rule.APPROVAL, story.ask()
    story.vote(request, "carol")
    named(rule, "1 of the 2 people", story, lambda: story.spend(request))
    story.vote(request, "dave")
    named(rule, "people who did not approve", story, lambda: story.spend(request, approvers=["carol", "erin"]))
    named(rule, "another purpose", story, lambda: story.spend(request, purpose="run"))
    story.spend(request)
    named(rule, "has ended before: spent on token-1", story, lambda: story.spend(request))
    named(rule, "has ended before", story, lambda: story.vote(request, "erin"))
    denied = story.ask(asked(id="B" * 22))
    story.vote(denied, "carol", Decision.DENY)
    named(rule, "has ended before: denied", story, lambda: story.vote(denied, "dave"))
    withdrawn = story.ask(asked(id="C" * 22))
    body = {"approval": withdrawn.id, "sha256": request_hash(encode_request(withdrawn))}
    named(rule, "who has not asked", story, lambda: story.say(Kind.APPROVAL_WITHDRAWN, OPS, **body))
    story.say(Kind.APPROVAL_WITHDRAWN, HARNESS, **body)
    named(rule, "has ended before: withdrawn", story, lambda: story.vote(withdrawn, "dave"))


def test_a_token_that_names_an_approval_has_it(story: Story) -> None:
    rule = Rule.APPROVAL
    named(rule, "nobody asked", story, lambda: story.mint(approval="A" * 22))
    request = story.ask()
    named(rule, "0 of the 2 people", story, lambda: story.mint(approval=request.id))
    story.approve(request)
    for changed in ({"partner": "globex", "sub": "globex/user/bob"}, {"models": ("oracle",), "scope": "model:oracle"}):
        named(
            rule,
            "another realm, partner or model",
            story,
            lambda changed=changed: story.mint(story.claims(**changed), approval=request.id),
        )
    claims = story.claims(idx=story.size + 1)
    story.spend(request, claims.jti)
    story.mint(claims, approval=request.id)
    named(rule, f"spent on {claims.jti} before", story, lambda: story.mint(approval=request.id))


# Receipts.


def test_receipts_are_signed_by_a_key_that_their_verifier_enrolled_and_in_their_order(
    story: Story, key: ReceiptKey
) -> None:
    rule, token = Rule.RECEIPT, story.mint()
    named(rule, "enrolled before", story, lambda: story.enroll(key))
    other = ReceiptKey()
    named(rule, "has another name", story, lambda: story.enroll(other, kid="A" * 43))
    named(rule, ".", story, lambda: story.enroll(other, key={"kty": "EC"}))
    line = accepted(token.jti, token.idx)
    named(rule, "enrolled no key", story, lambda: story.keep(other.batch([line])))
    named(rule, "enrolled no key", story, lambda: story.keep(key.batch([line]), by="spiffe://lab.example/other"))
    named(rule, "enrolled no key", story, lambda: story.keep(key.batch([line], realm="research")))
    body, signature = key.batch([line])
    named(rule, "is wrong", story, lambda: story.keep((body, other.sign(body))))
    named(rule, ".", story, lambda: story.keep((body, signature), batch={}))
    named(rule, ".", story, lambda: story.keep((body, signature), signature="!"))
    named(rule, "goes on from receipt 1", story, lambda: story.keep(key.batch([replace(line, number=2)], after=1)))
    story.keep((body, signature))
    named(rule, "goes on from receipt 0", story, lambda: story.keep((body, signature)))


def test_no_verifier_has_applied_what_comes_only_later(story: Story, key: ReceiptKey) -> None:
    token = story.mint()
    late = key.batch([accepted(token.jti, token.idx, head=story.size + 1)])
    named(Rule.RECEIPT, "applied what came only later", story, lambda: story.keep(late))


def test_p4_a_use_of_what_was_revoked_is_named_if_the_revocation_had_been_applied(
    story: Story, key: ReceiptKey
) -> None:
    token = story.mint()
    index = story.revoke(token=token.jti)
    unaware = key.batch([accepted(token.jti, token.idx, head=index)])
    story.keep(unaware)
    aware = key.batch([accepted(token.jti, token.idx, number=2, head=index + 1)], after=1)
    named(Rule.USE, f"which revocation {index} of token={token.jti} had killed", story, lambda: story.keep(aware))


@pytest.mark.parametrize("what", ["no such token", "another index", "another realm"])
def test_receipts_of_what_was_not_minted_must_be_followed_by_an_alarm(story: Story, key: ReceiptKey, what: str) -> None:
    token = story.mint()
    line = accepted(token.jti, token.idx + 1) if what == "another index" else accepted("B" * 22, token.idx)
    if what == "another realm":
        far = ReceiptKey("research")
        story.enroll(far)
        key, line = far, accepted(token.jti, token.idx)
    index = story.keep(key.batch([line]))
    alarm = {"problems": [{"problem": "token not in the ledger"}]}
    named(
        Rule.RECEIPT,
        "about other receipts|no alarm follows",
        story,
        lambda: story.say(Kind.RECEIPTS_ALARMED, receipts=index - 1, **alarm),
    )
    story.rules._receipts._must_be_alarmed = (index, line.token)
    named(Rule.RECEIPT, "no alarm follows", story, story.mint)
    story.rules._receipts._must_be_alarmed = (index, line.token)
    story.say(Kind.RECEIPTS_ALARMED, receipts=index, **alarm)
    named(
        Rule.RECEIPT, "about other receipts", story, lambda: story.say(Kind.RECEIPTS_ALARMED, receipts=index, **alarm)
    )


# Nothing else escapes.

ODD = (None, True, 0, -1, 10**30, "", "x", "\ud800", [], [[]], [5], {}, {"a": {"b": []}}, ["x"] * 9)


def test_p7_whatever_stands_in_an_entry_is_good_or_named_and_nothing_else_escapes(key: ReceiptKey) -> None:
    """An insider may write anything; who checks it gets an answer, and no crash."""
    story = Story().begin()
    story.enroll(key)
    test_a_log_in_which_all_is_in_order_is_good(story, key)
    test_an_approval_is_spent_once_by_enough_people_for_what_they_signed(story)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, named_by = random.Random(seed), list[Rule]()
    for _ in range(400):
        at = chance.randrange(1, story.size)
        fields = json.loads(story.entries[at])
        holder, name = chance.choice(list(places(fields["body"])))
        odd = chance.choice(ODD)
        if odd is None:
            del holder[name]
        else:
            holder[name] = odd
        changed = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        rules = Rules({"evaluation": story.keys.trust}, story.entries.__getitem__, story.documents.get)
        for data in story.entries[:at]:
            rules.take(data)
        try:
            rules.take(changed)
        except NotProven as wrong:
            named_by.append(Rule(wrong.metadata["rule"]))
    assert len(named_by) > 200


def places(value: Any) -> Any:
    """Yield each place in an entry's body: what holds it, and by which name."""
    for name, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, name
        if isinstance(inner, dict | list):
            yield from places(inner)
