"""What identity tokens prove: the port through which a door asks who a token is."""

from concurrent.futures import Future
from typing import Protocol

from broker.service.calling import IdentityProof


class Identities(Protocol):
    """The identity providers of the policy in force."""

    def prove(self, token: str) -> Future[IdentityProof]:
        """Begin to verify a token. Never waits; what was verified a moment ago is done when this returns.

        The proof does not say from which network it came: that is the door's to add.

        Raises (through the future):
            Unauthenticated: No provider of the policy vouches for it.
            IssuerUnavailable: Whether one does cannot be told now.
            Overloaded: Too many wait for a provider.
        """
