"""What a selector hits: the live tokens that it matches, and whose they are."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from broker.service.policies import Policies
from broker.service.proof_ports import Proofs
from broker.token.identifiers import bare_name
from broker.token.revocation import Dimension, Selector

# The names by which a mint's entry records a dimension. In its one spelling no string value can hold
# `"partner":"acme"`, because a quotation mark within a string is escaped.
_SINGLE = {
    Dimension.REALM: "realm",
    Dimension.PARTNER: "partner",
    Dimension.USER: "user",
    Dimension.ENVIRONMENT: "env",
    Dimension.RUN: "run",
    Dimension.TEST: "test",
}
# What kills a token kills what was derived from it.
_LISTS = {
    Dimension.MODEL: ("models", "parent_models"),
    Dimension.TOKEN: ("parents",),
    Dimension.PARENT: ("parents",),
    Dimension.KEY: ("parent_keys",),
    Dimension.LABEL: ("labels",),
}
_OWN = {Dimension.TOKEN: "jti", Dimension.KEY: "kid"}
_INTEGERS = {name: re.compile(rf'"{name}":([0-9]+)'.encode()) for name in ("exp", "idx")}
_TEXTS = {
    name: re.compile(rf'"{name}":"([^"\\]*)"'.encode())
    for name in ("realm", "partner", "user", "workload", "run", "jti", "kid")
}
_ARRAYS = {name: re.compile(rf'"{name}":(\[[^\]]*\])'.encode()) for names in _LISTS.values() for name in names}
MAX_NAMES = 100


@dataclass(slots=True)
class Hits:
    """Live tokens that match, by realm, and the names in them; of each kind of name at most `MAX_NAMES` are kept.

    `is_all`: false when there was more to read than there was time for.
    """

    realms: Counter[str] = field(default_factory=Counter)
    partners: set[str] = field(default_factory=set)
    users: set[str] = field(default_factory=set)
    workloads: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    is_all: bool = True

    @property
    def tokens(self) -> int:
        """How many, in all realms."""
        return self.realms.total()

    def take(self, entry: bytes) -> None:
        """Count one token, and keep its names."""
        self.realms[_text("realm", entry)] += 1
        for name, names in (
            ("partner", self.partners),
            ("user", self.users),
            ("workload", self.workloads),
            ("run", self.runs),
        ):
            found = _TEXTS[name].search(entry)
            if found is not None and len(names) < MAX_NAMES:
                names.add(found[1].decode())


class FindHits:
    """Reads the ledger for live tokens, so that counting them costs nothing when they are minted.

    Looks back as far as the longest life that the policy in force allows. Safe for several threads.
    """

    def __init__(self, proofs: Proofs, policies: Policies) -> None:
        self._proofs = proofs
        self._policies = policies

    def __call__(
        self,
        selector: Selector,
        *,
        at: datetime,
        below: int | None = None,
        tokens: Collection[str] | None = None,
        has_time: Callable[[], bool] = lambda: True,
    ) -> Hits:
        """Return what lives at `at` and is hit.

        Args:
            selector: What to match.
            at: The instant at which a token must live.
            below: Only tokens with a smaller index; a revocation by key hits any.
            tokens: Only these ids.
            has_time: Asked now and then; when it says no, the rest stays unread.

        Raises:
            StoreUnavailable: The ledger cannot be read.
        """
        realms = self._policies.current().policy.realms.values()
        longest_s = max((realm.max_ttl_s for realm in realms if selector.concerns(realm.name)), default=0)
        hits = Hits()
        now_s = at.timestamp()
        for entry in self._proofs.minted(_containing(selector), since=at - timedelta(seconds=longest_s)):
            if not has_time():
                hits.is_all = False
                break
            if (
                _integer("exp", entry) > now_s
                and (below is None or selector.is_absolute or _integer("idx", entry) < below)
                and (tokens is None or _text("jti", entry) in tokens)
                and _lists_match(selector, entry)
            ):
                hits.take(entry)
        return hits


def _containing(selector: Selector) -> list[bytes]:
    """Return what the entry of each token that it matches contains."""
    texts = []
    for dimension, value in selector.conditions:
        name = _SINGLE.get(dimension)
        if name is not None:
            texts.append(f'"{name}":{json.dumps(value)}')
        elif dimension is Dimension.WORKLOAD:
            # Who acts is spelled with the partner before it.
            texts.append(f'{value}"')
        else:
            # A model's name also matches its instances, which begin with it.
            texts.append(json.dumps(value)[:-1])
    return [text.encode() for text in texts]


def _lists_match(selector: Selector, entry: bytes) -> bool:
    for dimension, value in selector.conditions:
        if dimension is Dimension.WORKLOAD:
            acts = f'"sub":"{_text("partner", entry)}/workload/{value}"'
            if value != _text("workload", entry) and acts.encode() not in entry:
                return False
        if dimension not in _LISTS:
            continue
        found = [array for name in _LISTS[dimension] if (array := _ARRAYS[name].search(entry)) is not None]
        values = [value for array in found for value in json.loads(array[1])]
        if dimension is Dimension.MODEL:
            values = [spelling for model in values for spelling in (model, bare_name(model))]
        own = _OWN.get(dimension)
        if own is not None:
            values = [_text(own, entry), *values]
        if value not in values:
            return False
    return True


def _integer(name: str, entry: bytes) -> int:
    found = _INTEGERS[name].search(entry)
    return int(found[1]) if found is not None else 0


def _text(name: str, entry: bytes) -> str:
    found = _TEXTS[name].search(entry)
    return found[1].decode() if found is not None else ""
