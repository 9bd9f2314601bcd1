"""Rules of keys: each was certified by a pinned root, for one realm and one purpose."""

from collections.abc import Mapping

from broker.audit.fields import members_of, text_of
from broker.audit.past import Past
from broker.audit.wrong import Rule, must, wrong_entry
from broker.errors import Malformed, Untrusted
from broker.ledger.entry import Entry
from broker.token.keys import Purpose, RealmTrust, check_certificate, compact_certificate

_PURPOSES = frozenset(purpose.value for purpose in Purpose)


def certificate_text(entry: Entry) -> str:
    """Return the certificate that an entry of kind key-certified holds. Raises NotProven."""
    plain = members_of(entry, "certificate")
    try:
        return compact_certificate(plain)
    except (KeyError, ValueError, AttributeError, TypeError) as bad:
        raise wrong_entry(entry, Rule.FORM, "its certificate is not kid, payload and signature") from bad


def take_certified(past: Past, entry: Entry, trust: Mapping[str, RealmTrust]) -> None:
    """Take an entry of kind key-certified."""
    realm, purpose, kid = text_of(entry, "realm"), text_of(entry, "purpose"), text_of(entry, "kid")
    must(past.policies, entry, Rule.POLICY, f"a key of realm {realm} was certified before there was a policy")
    must(realm in trust, entry, Rule.CERTIFICATE, f"the trust file says nothing of realm {realm}")
    must(purpose in _PURPOSES, entry, Rule.CERTIFICATE, f"no key has the purpose {purpose!r}")
    try:
        key = check_certificate(certificate_text(entry), trust[realm], Purpose(purpose))
    except (Malformed, Untrusted) as bad:
        raise wrong_entry(entry, Rule.CERTIFICATE, f"the certificate of key {kid} is not good: {bad.message}") from bad
    must(key.kid == kid, entry, Rule.CERTIFICATE, f"the certificate is of key {key.kid}, not of {kid}")
    # A key that stays in Vault is certified anew while it is in use.
    known = past.certificates.setdefault(kid, [])
    must(
        all((one.realm, one.purpose) == (key.realm, key.purpose) for one in known),
        entry,
        Rule.CERTIFICATE,
        f"key {kid} was certified for another realm or purpose before",
    )
    known.append(key)
