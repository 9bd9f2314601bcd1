"""Make a restored ledger one of its own: announced in itself, with all tokens of before dead and all realms closed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from broker.domain.policy import Policy
from broker.errors import SignerUnavailable
from broker.ledger.entry import Entry, Kind, encode_entry
from broker.service.ports import Ledger, Root, Write
from broker.service.revoke import Revocations
from broker.service.tree_ports import Tree
from broker.token.jws import assemble
from broker.token.keys import Purpose, RealmTrust, thumbprint
from broker.token.restoration import Restoration, check_restoration, restoration_signing_input
from broker.token.revocation import Selector


@dataclass(frozen=True, slots=True)
class Restored:
    """The entry that tells of it, and its instant; how many entries were restored; by realm, what its root says."""

    index: int
    at: datetime
    size: int
    documents: Mapping[str, str]
    keys_revoked: int


class Restore:
    """Used while nobody is served.

    What was lost with the end of the ledger nobody knows: tokens, whose indices will be given out again, and
    revocations. So no token of before may live, whatever its index, and nothing is minted until an admin who has
    looked opens each realm.
    """

    def __init__(self, ledger: Ledger, tree: Tree, root: Root, revocations: Revocations) -> None:
        self._ledger = ledger
        self._tree = tree
        self._root = root
        self._revocations = revocations

    def __call__(
        self, policy: Policy, *, before: str, after: str, by: str, reason: str, published: int | None
    ) -> Restored:
        """Write what a restore is, and return what to tell verifiers.

        Args:
            policy: What was in force.
            before: The incarnation that the backup is of.
            after: The incarnation from now on.
            by: The admin.
            reason: Why.
            published: How many entries the ledger had at least, as a checkpoint beside the store says; None: unknown.

        Raises:
            SignerUnavailable: A root cannot be asked; nothing was written.
            Whatever `Ledger.append` raises.
        """
        head, at = self._tree.head(), self._revocations.now()
        told = Restoration(before, after, head.size, int(at.timestamp()))
        # First: without the roots no verifier would follow.
        documents = {name: self._said(policy, name, told) for name in sorted(policy.realms)}
        body = {
            "incarnation": after,
            "from": before,
            "size": head.size,
            "root": head.root.hex(),
            "reason": reason,
            **({} if published is None else {"published": published}),
        }
        write = Write([lambda index: encode_entry(Entry(index, Kind.LEDGER_RESTORED, at, by, body))], urgent=True)
        index = self._ledger.append(write).result().indices.start
        why = f"restored from a backup: {reason}"[:500]
        kids = {one.kid for one in self._ledger.changes(0, now=at).certificates if one.purpose is Purpose.TOKEN}
        for selector in (
            *(Selector.of(key=kid) for kid in sorted(kids)),
            *(Selector.of(realm=name) for name in sorted(policy.realms)),
        ):
            self._ledger.append(
                self._revocations.write(selector, reason=why, by=by, kind=Kind.REVOKED, request=None)
            ).result()
        return Restored(index, at, head.size, documents, len(kids))

    def _said(self, policy: Policy, name: str, told: Restoration) -> str:
        realm = policy.realms[name]
        trust = RealmTrust(name, realm.issuer, realm.audience, tuple(self._root.public_jwk(name)))
        kid = thumbprint(trust.roots[0])
        message = restoration_signing_input(kid, trust, told)
        signed_by, signature = self._root.sign(name, message)
        if signed_by != kid:
            raise SignerUnavailable(f"the root key of realm {name} was rotated meanwhile")
        document = assemble(message, signature)
        # What came from outside is verified before it is used.
        check_restoration(document, trust)
        return document
