"""What identities say of themselves, as texts that a trust rule can be compared with, by kind of provider."""

import re
from collections.abc import Mapping
from typing import Any

from broker.token.foreign import MAX_CLAIM_CHARS, refused

MAX_CLAIMS = 100

_NUMBER = re.compile(r"[1-9][0-9]{0,19}", re.ASCII)
_OWNER = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"
_REPOSITORY = r"[A-Za-z0-9._-]{1,100}"
# Since 15 July 2026 the subject of new, renamed and moved repositories carries the numbers.
_SUBJECT = re.compile(
    rf"repo:(?P<owner>{_OWNER})(?:@(?P<owner_id>[1-9][0-9]{{0,19}}))?"
    rf"/(?P<repository>{_REPOSITORY})(?:@(?P<repository_id>[1-9][0-9]{{0,19}}))?:(?P<rest>[^\x00-\x1f\x7f]+)"
)
_ACCOUNT = re.compile(
    r"system:serviceaccount:(?P<namespace>[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?):"
    r"(?P<name>[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)",
    re.ASCII,
)
_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def oidc_claims(claims: Mapping[str, Any]) -> dict[str, str]:
    """Return the claims that are texts; others can be in no rule."""
    texts = {name: value for name, value in claims.items() if isinstance(value, str) and len(value) <= MAX_CLAIM_CHARS}
    if len(texts) > MAX_CLAIMS:
        raise refused("it has more claims than anybody needs")
    return texts


def github_claims(claims: Mapping[str, Any]) -> dict[str, str]:
    """Return the claims of a GitHub Actions token, both of whose spellings of `sub` must agree with its numbers.

    Raises:
        Unauthenticated: Numbers are missing, or `sub` is of no known spelling or of another repository.
    """
    texts = oidc_claims(claims)
    for name in ("repository_id", "repository_owner_id"):
        if not _NUMBER.fullmatch(texts.get(name, "")):
            raise refused(f"it lacks {name}", hint="only GitHub's own tokens have it: do not customise it away")
    subject = _SUBJECT.fullmatch(texts["sub"])
    if subject is None:
        raise refused("its sub is not repo:OWNER/NAME:... with or without numbers", hint="do not customise sub")
    owner, repository = subject["owner"], subject["repository"]
    if (subject["owner_id"] is None) != (subject["repository_id"] is None):
        raise refused("its sub has one number and lacks the other")
    same = (
        texts.get("repository") == f"{owner}/{repository}"
        and texts.get("repository_owner") == owner
        and subject["owner_id"] in (None, texts["repository_owner_id"])
        and subject["repository_id"] in (None, texts["repository_id"])
    )
    if not same:
        raise refused("its sub and its other claims are of two repositories")
    return texts


def kubernetes_claims(claims: Mapping[str, Any]) -> dict[str, str]:
    """Return sub, namespace, serviceaccount and uid of a service account's token.

    Raises:
        Unauthenticated: It is not one, or its parts are of two accounts.
    """
    parts = claims.get("kubernetes.io")
    account = parts.get("serviceaccount") if isinstance(parts, dict) else None
    if not isinstance(parts, dict) or not isinstance(account, dict):
        raise refused("it is not a service account's (kubernetes.io)", hint="use a projected token (TokenRequest)")
    known = account_claims(claims["sub"], account.get("uid"))
    if (parts.get("namespace"), account.get("name")) != (known["namespace"], known["serviceaccount"]):
        raise refused("its sub and its other claims are of two service accounts")
    return {**known, "iss": str(claims["iss"])}


def account_claims(username: object, uid: object) -> dict[str, str]:
    """Return the claims of the service account of this user name and uid. Raises Unauthenticated."""
    account = _ACCOUNT.fullmatch(username) if isinstance(username, str) else None
    if account is None or not isinstance(username, str):
        raise refused("it is not a service account's")
    if not isinstance(uid, str) or not _UID.fullmatch(uid):
        raise refused("it lacks the service account's uid")
    return {"sub": username, "namespace": account["namespace"], "serviceaccount": account["name"], "uid": uid}
