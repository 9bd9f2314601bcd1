"""Rules of runs and of the approvals that people give."""

import hashlib
import json

from broker.audit.fields import members_of, text_of, texts_of
from broker.audit.past import Asked, Past, Run
from broker.audit.wrong import Rule, must, wrong_entry
from broker.errors import Malformed, Untrusted
from broker.ledger.entry import Entry, Kind
from broker.token.approval import APPROVAL_TYP, Decision, check_statement, decode_request
from broker.token.identifiers import bare_name
from broker.token.jws import assemble, signing_input
from broker.token.keys import thumbprint

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def take_opened(past: Past, entry: Entry) -> None:
    """Take an entry of kind run-opened."""
    run, realm, partner = text_of(entry, "run"), text_of(entry, "realm"), text_of(entry, "partner")
    must(past.policies, entry, Rule.POLICY, f"run {run} was opened before there was a policy")
    must(run not in past.runs, entry, Rule.RUN, f"run {run} was opened before")
    models = texts_of(entry, "models")

    def fact(name: str) -> tuple[str, ...]:
        return (text_of(entry, name),) if name in entry.body else ()

    named = tuple({name for model in models for name in (model, bare_name(model))})
    who = (fact("user"), fact("workload"), fact("environment"))
    # By the number of the dimension; a run has no test, token, parent, key or label.
    facts = ((), (realm,), (partner,), *who, named, (run,), (), (), (), (), ())
    block = past.block_on(facts, models)
    if block is not None:
        raise wrong_entry(entry, Rule.BLOCKED, f"run {run} was opened although {block[1]} is blocked since {block[0]}")
    past.runs[run] = Run(realm, partner)


def take_kept(past: Past, entry: Entry) -> None:
    """Take an entry of kind run-kept."""
    run = text_of(entry, "run")
    must(run in past.runs, entry, Rule.RUN, f"run {run} was kept, and is not open")


def take_ended(past: Past, entry: Entry, run: str | None) -> None:
    """Take the end of a run, which is also a revocation of all that is its."""
    must(run in past.runs, entry, Rule.RUN, f"run {run} has ended, and was not open")
    past.runs.pop(run or "")


def take_approval(past: Past, entry: Entry) -> None:
    """Take an entry of any of the kinds that tell of an approval."""
    id_ = text_of(entry, "approval")
    if entry.kind is Kind.APPROVAL_REQUESTED:
        _take_requested(past, entry, id_)
        return
    asked = past.approvals.get(id_)
    if asked is None:
        raise wrong_entry(entry, Rule.APPROVAL, f"nobody asked for approval {id_}")
    must(not asked.ended, entry, Rule.APPROVAL, f"approval {id_} has ended before: {asked.ended}")
    must(text_of(entry, "sha256") == asked.sha256, entry, Rule.APPROVAL, "it is about another request than was made")
    match entry.kind:
        case Kind.APPROVAL_GIVEN:
            _must_be_stated(entry, asked, Decision.APPROVE)
            person = text_of(entry, "person")
            must(person not in asked.people, entry, Rule.APPROVAL, f"{person} had approved it before")
            must(
                entry.by != asked.request.requester and person != asked.request.person,
                entry,
                Rule.APPROVAL,
                f"{person} asked for it: nobody approves what is for themselves",
            )
            asked.people.add(person)
        case Kind.APPROVAL_DENIED:
            _must_be_stated(entry, asked, Decision.DENY)
            asked.ended = "denied"
        case Kind.APPROVAL_WITHDRAWN:
            must(entry.by == asked.request.requester, entry, Rule.APPROVAL, "who has not asked for it took it back")
            asked.ended = "withdrawn"
        case _:
            _take_spent(entry, asked)


def _take_requested(past: Past, entry: Entry, id_: str) -> None:
    document = _ENCODER.encode(members_of(entry, "asked")).encode("ascii")
    try:
        request = decode_request(document)
    except Malformed as bad:
        raise wrong_entry(entry, Rule.APPROVAL, bad.message) from bad
    sha256 = hashlib.sha256(document).hexdigest()
    must(text_of(entry, "sha256") == sha256, entry, Rule.APPROVAL, "the request has another hash than the entry says")
    must(request.id == id_, entry, Rule.APPROVAL, f"the request is {request.id}, not {id_}")
    must(request.requester == entry.by, entry, Rule.APPROVAL, "the request is by somebody else")
    must(id_ not in past.approvals, entry, Rule.APPROVAL, f"approval {id_} was asked for before")
    past.approvals[id_] = Asked(request, sha256)


def _take_spent(entry: Entry, asked: Asked) -> None:
    request, on = asked.request, text_of(entry, "on")
    must(
        len(asked.people) >= request.needed,
        entry,
        Rule.APPROVAL,
        f"{len(asked.people)} of the {request.needed} people needed had approved it",
    )
    counted = set(texts_of(entry, "approvers"))
    must(counted <= asked.people, entry, Rule.APPROVAL, "it counts people who did not approve")
    purpose = text_of(entry, "purpose")
    must(purpose == request.purpose.value, entry, Rule.APPROVAL, "it was approved for another purpose")
    asked.ended, asked.on = f"spent on {on}", on


def _must_be_stated(entry: Entry, asked: Asked, decision: Decision) -> None:
    """Raise unless the person signed just this decision about just this request."""
    plain = members_of(entry, "statement")
    try:
        jwk = plain["key"]
        message = signing_input(typ=APPROVAL_TYP, kid=thumbprint(jwk), payload=plain["payload"].encode("ascii"))
        statement = check_statement(assemble(message, bytes.fromhex(plain["signature"])), jwk)
    except (Malformed, Untrusted) as bad:
        raise wrong_entry(entry, Rule.APPROVAL, f"what {entry.by} signed is not good: {bad.message}") from bad
    except (KeyError, ValueError, AttributeError, TypeError) as bad:
        raise wrong_entry(entry, Rule.FORM, "its statement is not key, payload and signature") from bad
    must(
        (statement.request, statement.decision, statement.approver) == (asked.sha256, decision, entry.by),
        entry,
        Rule.APPROVAL,
        f"{entry.by} signed another decision, or one about another request",
    )
