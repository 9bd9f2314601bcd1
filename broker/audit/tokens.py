"""Rules of tokens: what was minted, by which key, and that nothing stood against it."""

import hashlib
import json

from broker.audit.fields import members_of, text_of
from broker.audit.past import Past
from broker.audit.wrong import Rule, wrong_entry
from broker.errors import Malformed
from broker.ledger.entry import Entry, Kind
from broker.token.claims import TOKEN_TYP, Claims, decode_claims
from broker.token.jws import signing_input
from broker.token.keys import Purpose, RealmTrust
from broker.token.revocation import facts_of

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def claims_of(entry: Entry) -> tuple[Claims, bytes]:
    """Return what a token says, and in which letters. Raises NotProven."""
    # The entry is in its one spelling, and so is each object in it.
    payload = _ENCODER.encode(members_of(entry, "claims")).encode("ascii")
    try:
        return decode_claims(payload), payload
    except Malformed as bad:
        raise wrong_entry(entry, Rule.TOKEN, f"its claims are none: {bad.message}") from bad


def take_minted(past: Past, entry: Entry, trust: RealmTrust | None) -> Claims:
    """Take an entry of kind token-minted or canary-minted; return what the token says."""
    claims, payload = claims_of(entry)
    if not past.policies:
        raise wrong_entry(entry, Rule.POLICY, f"token {claims.jti} was minted before there was a policy")
    if claims.idx != entry.index:
        raise wrong_entry(entry, Rule.TOKEN, f"token {claims.jti} says that it was minted at index {claims.idx}")
    short = short_id(claims.jti)
    if short in past.tokens:
        raise wrong_entry(entry, Rule.TOKEN, f"a token with the id {claims.jti} was minted before")
    _must_be_signable(past, entry, claims, payload, trust)
    is_canary = entry.kind is Kind.CANARY_MINTED
    if not is_canary:
        _must_be_free(past, entry, claims)
    past.tokens.add(short)
    return claims


def take_resigned(past: Past, entry: Entry, first: Entry | None, trust: RealmTrust | None) -> None:
    """Take an entry of kind token-resigned: the same token, signed by a later key. `first` is where it was minted."""
    claims, payload = claims_of(entry)
    if first is None or first.kind is not Kind.TOKEN_MINTED:
        raise wrong_entry(entry, Rule.TOKEN, f"no token was minted at index {claims.idx}")
    before, _ = claims_of(first)
    same = (
        *("jti", "realm", "partner", "user", "workload", "models", "run", "test", "exp", "env", "labels"),
        *("parents", "parent_models", "parent_keys"),
    )
    for name in same:
        if getattr(before, name) != getattr(claims, name):
            raise wrong_entry(entry, Rule.TOKEN, f"it is signed anew with another {name} than at index {claims.idx}")
    _must_be_signable(past, entry, claims, payload, trust)
    past.resigned.add(claims.idx)


def short_id(token: str) -> int:
    """Return eight bytes for an id: two of ten million tokens share them by chance once in 400,000 logs."""
    return int.from_bytes(hashlib.sha256(token.encode("ascii")).digest()[:8], "big")


def _must_be_signable(past: Past, entry: Entry, claims: Claims, payload: bytes, trust: RealmTrust | None) -> None:
    """Raise unless the key that it names may have signed just this, then."""
    if trust is None:
        raise wrong_entry(entry, Rule.CERTIFICATE, f"the trust file says nothing of realm {claims.realm}")
    if (claims.iss, claims.aud) != (trust.issuer, trust.audience):
        raise wrong_entry(entry, Rule.TOKEN, f"it is not of the issuer and the audience of realm {claims.realm}")
    if claims.iat != int(entry.at.timestamp()):
        raise wrong_entry(entry, Rule.TOKEN, "it says of itself another time of issue than its entry")
    kid = text_of(entry, "kid")
    keys = past.certificates.get(kid, [])
    if not keys or (keys[0].realm, keys[0].purpose) != (claims.realm, Purpose.TOKEN):
        raise wrong_entry(entry, Rule.CERTIFICATE, f"no key {kid} was certified for tokens of realm {claims.realm}")
    if not any(key.not_before <= claims.iat <= key.signs_until and claims.exp <= key.expires for key in keys):
        raise wrong_entry(entry, Rule.CERTIFICATE, f"the token is outside of the time of its key {kid}")
    message = signing_input(typ=TOKEN_TYP, kid=kid, payload=payload)
    if hashlib.sha256(message).hexdigest() != entry.body.get("sha256"):
        raise wrong_entry(entry, Rule.TOKEN, "what was signed has another hash than the entry says")


def _must_be_free(past: Past, entry: Entry, claims: Claims) -> None:
    """Raise if something that came before stands against it."""
    if past.blocks:
        block = past.block_on(facts_of(claims, text_of(entry, "kid")), claims.models)
        if block is not None:
            index, selector = block
            raise wrong_entry(
                entry, Rule.BLOCKED, f"token {claims.jti} was minted although {selector} is blocked since index {index}"
            )
    if claims.parents:
        _must_have_parents(past, entry, claims)
    if claims.run is not None:
        run = past.runs.get(claims.run)
        if run is None:
            raise wrong_entry(entry, Rule.RUN, f"token {claims.jti} was minted in run {claims.run}, which is not open")
        if (run.realm, run.partner) != (claims.realm, claims.partner):
            raise wrong_entry(entry, Rule.RUN, f"run {claims.run} is of another realm or partner")
    if "approval" in entry.body:
        _must_be_approved(past, entry, claims)


def _must_have_parents(past: Past, entry: Entry, claims: Claims) -> None:
    for parent in claims.parents:
        if short_id(parent) not in past.tokens:
            raise wrong_entry(entry, Rule.PARENT, f"its parent {parent} was never minted")
        if parent in past.revoked_tokens:
            raise wrong_entry(entry, Rule.PARENT, f"its parent {parent} was revoked before")


def _must_be_approved(past: Past, entry: Entry, claims: Claims) -> None:
    asked = past.approvals.get(text_of(entry, "approval"))
    if asked is None:
        raise wrong_entry(entry, Rule.APPROVAL, "nobody asked for the approval that it names")
    request = asked.request
    if len(asked.people) < request.needed:
        raise wrong_entry(
            entry, Rule.APPROVAL, f"{len(asked.people)} of the {request.needed} people needed had approved it"
        )
    if (request.realm, request.partner) != (claims.realm, claims.partner) or not set(claims.models) <= set(
        request.models
    ):
        raise wrong_entry(entry, Rule.APPROVAL, "what was approved is another realm, partner or model")
    # Each approval serves for one token or one run, and the tokens of that run.
    if asked.on not in ("", claims.jti, claims.run):
        raise wrong_entry(entry, Rule.APPROVAL, f"the approval was spent on {asked.on} before")
