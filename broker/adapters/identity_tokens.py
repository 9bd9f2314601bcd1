"""Verifies the tokens of the policy's identity providers, and remembers for a while what it verified."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from broker.adapters.issuer_keys import IssuerKeys
from broker.adapters.known_claims import github_claims, kubernetes_claims, oidc_claims
from broker.adapters.token_review import TokenReviewer
from broker.domain.trust import Provider, ProviderKind
from broker.errors import IssuerUnavailable, Malformed, Overloaded
from broker.https import Reach, ask
from broker.service.calling import IdentityProof
from broker.service.ports import Clock
from broker.token.foreign import (
    LEEWAY_S,
    UnverifiedToken,
    authentication_instant,
    check_claims,
    is_signed_by,
    key_of_nonce,
    parse_foreign,
    refused,
)

MAX_REMEMBERED = 4096
MAX_WAITING = 1000
MAX_REVIEWS = 8
# What a cluster said is believed for so long: it knows of deleted pods, and we should, too.
REVIEW_BELIEVED_S = 10
OK = 200

_READ: Mapping[ProviderKind, Callable[[Mapping[str, Any]], dict[str, str]]] = {
    ProviderKind.OIDC: oidc_claims,
    ProviderKind.GITHUB: github_claims,
    ProviderKind.KUBERNETES: kubernetes_claims,
}


@dataclass(frozen=True, slots=True)
class Outside:
    """Whom the broker may ask, and with which credentials it asks for TokenReviews, by provider."""

    reach: Reach = field(default_factory=Reach)
    review_tokens: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Vouching:
    """A provider, and what knows its keys or asks it."""

    provider: Provider
    keys: IssuerKeys | None
    reviewer: TokenReviewer | None


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A verified token: until it ends, while its key is in the set, and its provider in the policy."""

    identity: IdentityProof
    ends_at_s: int
    by: _Vouching
    kid: str
    key_name: str


class IdentityTokens:
    """Fills the port Identities. Safe for use by several threads; no call waits for an issuer."""

    def __init__(self, outside: Outside, clock: Clock) -> None:
        self._outside = outside
        self._clock = clock
        self._lock = threading.Lock()
        self._vouching: Mapping[tuple[str, str], _Vouching] = {}
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._waiting = 0
        self._reviews = ThreadPoolExecutor(MAX_REVIEWS, thread_name_prefix="token-review")

    def configure(self, providers: Iterable[Provider]) -> None:
        """Take these providers, and no others, from now on. Key sets of issuers that stay are kept."""
        with self._lock:
            sets = {one.provider.issuer: one.keys for one in self._vouching.values() if one.keys is not None}
            vouching: dict[tuple[str, str], _Vouching] = {}
            for provider in providers:
                if provider.review:
                    one = _Vouching(provider, None, self._reviewer(provider))
                else:
                    keys = sets.setdefault(provider.issuer, IssuerKeys(provider.issuer, self._fetch, self._clock))
                    one = _Vouching(provider, keys, None)
                before = self._vouching.get((provider.issuer, provider.audience))
                vouching[provider.issuer, provider.audience] = before if before == one else one
            self._vouching = vouching
        for one in vouching.values():
            if one.keys is not None:
                # So that the first who comes does not wait.
                one.keys.wanted()

    def prove(self, token: str) -> Future[IdentityProof]:
        """As Identities.prove."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        outcome: Future[IdentityProof] = Future()
        try:
            identity = self._recalled(digest)
            if identity is not None:
                outcome.set_result(identity)
            else:
                self._verify(token, digest, outcome)
        except Exception as failure:  # noqa: BLE001 - a future carries whatever happened
            outcome.set_exception(failure)
        return outcome

    def problems(self) -> tuple[str, ...]:
        """Return which issuers cannot be asked now, and why."""
        texts = (one.keys.problem() for one in self._vouching.values() if one.keys is not None)
        return tuple(f"identities: {text}" for text in dict.fromkeys(texts) if text)

    def close(self) -> None:
        """Let nobody wait any more."""
        self._reviews.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, url: str) -> bytes:
        answer = ask(url, self._outside.reach)
        if answer.status != OK:
            raise IssuerUnavailable(f"{url} answers with status {answer.status}")
        return answer.body

    def _reviewer(self, provider: Provider) -> TokenReviewer | None:
        credentials = self._outside.review_tokens.get(provider.name)
        if credentials is None:
            return None
        return TokenReviewer(provider.review, credentials, self._outside.reach)

    def _recalled(self, digest: bytes) -> IdentityProof | None:
        with self._lock:
            one = self._remembered.get(digest)
            if one is None:
                return None
            provider = one.by.provider
            is_good = (
                self._clock.now().timestamp() < one.ends_at_s
                and self._vouching.get((provider.issuer, provider.audience)) is one.by
            )
            if not is_good:
                del self._remembered[digest]
                return None
            self._remembered.move_to_end(digest)
        return one.identity if _is_still_vouched_for(one) else None

    def _verify(self, token: str, digest: bytes, outcome: Future[IdentityProof]) -> None:
        try:
            unverified = parse_foreign(token)
        except Malformed as bad:
            raise refused(bad.message) from None
        by = self._vouching_for(unverified)
        ends_at_s = check_claims(
            unverified.claims, issuer=by.provider.issuer, audience=by.provider.audience, now=self._clock.now()
        )
        if by.keys is not None:
            self._by_keys(unverified, digest, by, by.keys, ends_at_s + LEEWAY_S, outcome)
        elif by.reviewer is not None:
            self._by_review(token, digest, by, by.reviewer, ends_at_s, outcome)
        else:
            raise IssuerUnavailable(
                f"the broker has no credentials for the TokenReview of provider {by.provider.name}",
                hint="set identity.review_token_files in the broker's configuration",
            )

    def _vouching_for(self, unverified: UnverifiedToken) -> _Vouching:
        """Return who must vouch for a token that says of itself whose it is: only that one's keys are tried."""
        issuer, audience = unverified.claims.get("iss"), unverified.claims.get("aud")
        if isinstance(audience, list) and len(audience) == 1:
            [audience] = audience
        if not isinstance(issuer, str) or not any(issuer == known for known, _ in self._vouching):
            raise refused("its issuer is no provider of the policy", hint="ask an admin to add it under providers")
        if not isinstance(audience, str) or (issuer, audience) not in self._vouching:
            raise refused(
                "it is not for this broker alone (aud)", hint="ask the issuer for one with the audience of the policy"
            )
        return self._vouching[issuer, audience]

    def _by_keys(
        self,
        unverified: UnverifiedToken,
        digest: bytes,
        by: _Vouching,
        keys: IssuerKeys,
        until_s: int,
        outcome: Future[IdentityProof],
    ) -> None:
        def settle(*, may_ask: bool) -> None:
            try:
                key = keys.find(unverified.kid)
            except IssuerUnavailable:
                key = None
                if not may_ask:
                    raise
            if key is None and may_ask:
                flight = keys.wanted()
                if flight is not None:
                    self._wait(flight, lambda: settle(may_ask=False), outcome)
                    return
                key = keys.find(unverified.kid)
            # One answer for an unknown key and a wrong signature: which keys there are is not to be found out here.
            if key is None or not is_signed_by(unverified, key):
                raise refused("no key that its issuer publishes has signed it")
            identity = _identity(by.provider, _READ[by.provider.kind](unverified.claims), unverified.claims)
            self._remember(digest, _Remembered(identity, until_s, by, key.kid, key.name))
            outcome.set_result(identity)

        settle(may_ask=True)

    def _wait(self, flight: Future[None], then: Callable[[], None], outcome: Future[IdentityProof]) -> None:
        with self._lock:
            if self._waiting >= MAX_WAITING:
                raise Overloaded("too many wait for the keys of identity providers")
            self._waiting += 1

        def landed(_done: Future[None]) -> None:
            with self._lock:
                self._waiting -= 1
            try:
                then()
            except Exception as failure:  # noqa: BLE001 - a future carries whatever happened
                outcome.set_exception(failure)

        flight.add_done_callback(landed)

    def _by_review(
        self,
        token: str,
        digest: bytes,
        by: _Vouching,
        reviewer: TokenReviewer,
        ends_at_s: int,
        outcome: Future[IdentityProof],
    ) -> None:
        with self._lock:
            if self._waiting >= MAX_WAITING:
                raise Overloaded("too many wait for TokenReviews")
            self._waiting += 1

        def work() -> None:
            try:
                claims = reviewer.review(token, by.provider.audience)
                identity = IdentityProof(by.provider.name, claims)
                until_s = min(ends_at_s, int(self._clock.now().timestamp()) + REVIEW_BELIEVED_S)
                self._remember(digest, _Remembered(identity, until_s, by, "", ""))
                outcome.set_result(identity)
            except Exception as failure:  # noqa: BLE001 - a future carries whatever happened
                outcome.set_exception(failure)
            finally:
                with self._lock:
                    self._waiting -= 1

        self._reviews.submit(work)

    def _remember(self, digest: bytes, one: _Remembered) -> None:
        with self._lock:
            self._remembered[digest] = one
            self._remembered.move_to_end(digest)
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)


def _is_still_vouched_for(one: _Remembered) -> bool:
    """Tell whether the key that signed it is in its issuer's set as it is now."""
    if one.by.keys is None:
        return True
    try:
        key = one.by.keys.find(one.kid)
    except IssuerUnavailable:
        return False
    return key is not None and key.name == one.key_name


def _identity(provider: Provider, claims: Mapping[str, str], unread: Mapping[str, Any]) -> IdentityProof:
    at = authentication_instant(unread)
    return IdentityProof(
        provider.name,
        claims,
        authenticated_at=None if at is None else datetime.fromtimestamp(at, UTC),
        key=key_of_nonce(unread),
    )
