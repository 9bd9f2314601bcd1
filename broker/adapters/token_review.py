"""Kubernetes' own word on a service account's token: TokenReview (authentication.k8s.io/v1)."""

import json
from pathlib import Path

from broker.adapters.known_claims import account_claims
from broker.errors import IssuerUnavailable, Malformed
from broker.https import Answer, Reach, ask
from broker.token.foreign import foreign_json, refused

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
CREATED = (200, 201)


class TokenReviewer:
    """Asks one API server, as whoever `credentials` says, which is read anew each time because it is rotated."""

    def __init__(self, address: str, credentials: Path, reach: Reach) -> None:
        self._address = address
        self._credentials = credentials
        self._reach = reach

    def review(self, token: str, audience: str) -> dict[str, str]:
        """Return the claims of the token's service account. Blocks for two seconds at most.

        Raises:
            Unauthenticated: The API server does not vouch for it, or not for this audience.
            IssuerUnavailable: It cannot be asked.
        """
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        try:
            ours = self._credentials.read_text(encoding="ascii").strip()
        except (OSError, UnicodeError) as bad:
            raise IssuerUnavailable(f"the credentials for TokenReview at {self._address} cannot be read") from bad
        headers = {"Authorization": f"Bearer {ours}", "Content-Type": "application/json"}
        answer = ask(f"{self._address}{PATH}", self._reach, body=json.dumps(request).encode(), headers=headers)
        return _vouched(self._address, answer, audience)


def _vouched(address: str, answer: Answer, audience: str) -> dict[str, str]:
    if answer.status not in CREATED:
        raise IssuerUnavailable(
            f"TokenReview at {address} answers with status {answer.status}",
            hint="give the broker's service account the role system:auth-delegator",
        )
    try:
        document = foreign_json(answer.body)
    except Malformed as bad:
        raise IssuerUnavailable(f"TokenReview at {address}: {bad.message}") from bad
    status = document.get("status") if isinstance(document, dict) else None
    if not isinstance(status, dict):
        raise IssuerUnavailable(f"TokenReview at {address} answers without a status")
    if status.get("authenticated") is not True or status.get("error"):
        raise refused("the cluster does not know it")
    audiences = status.get("audiences")
    # An empty answer means that it is good for the API server, which says nothing about us.
    if not isinstance(audiences, list) or audience not in audiences:
        raise refused("the cluster does not say that it is for this broker")
    user = status.get("user")
    if not isinstance(user, dict):
        raise refused("the cluster does not say whose it is")
    return account_claims(user.get("username"), user.get("uid"))
