"""Selectors, revocations, and the matcher that finds the one that kills a token."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise, product

from broker.errors import Invalid
from broker.token.claims import Claims
from broker.token.identifiers import (
    bare_name,
    identifier,
    label,
    matches_identifier,
    matches_label,
    matches_model,
    matches_opaque_id,
    model_name,
    opaque_id,
)

NS_PER_S = 1_000_000_000
# Seconds of a boot-time clock: 34 years. With an index up to 2^30, CPython then needs two digits and not three.
_DROP_BITS = 30
_DROP_MASK = (1 << _DROP_BITS) - 1
# Entries come nearly in the order in which they may be dropped; so many out of order are looked past.
_PRUNE_LOOKAHEAD = 64


class Dimension(IntEnum):
    """What a selector can say something about; the numbers are those of the wire."""

    REALM = 1
    PARTNER = 2
    USER = 3
    WORKLOAD = 4
    ENVIRONMENT = 5
    MODEL = 6
    RUN = 7
    TEST = 8
    TOKEN = 9
    PARENT = 10
    KEY = 11
    LABEL = 12


_KEY_ALONE = (Dimension.KEY,)
# What an admin can block and reinstate; the others name something that ends by itself.
_BLOCKING = frozenset(
    {
        Dimension.REALM,
        Dimension.PARTNER,
        Dimension.USER,
        Dimension.WORKLOAD,
        Dimension.ENVIRONMENT,
        Dimension.MODEL,
        Dimension.LABEL,
    }
)
_KID = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


def _kid(field: str, text: str) -> str:
    if not _KID.fullmatch(text):
        raise Invalid(field, "is not a key thumbprint", hint="use 43 characters of base64url")
    return text


_RULES: Mapping[Dimension, Callable[[str, str], str]] = {
    Dimension.MODEL: model_name,
    Dimension.RUN: opaque_id,
    Dimension.TOKEN: opaque_id,
    Dimension.PARENT: opaque_id,
    Dimension.KEY: _kid,
    Dimension.LABEL: label,
}

_BY_NUMBER: Mapping[int, Dimension] = {int(dimension): dimension for dimension in Dimension}
# As _RULES, as a question.
_IS_WELL_FORMED: Mapping[Dimension, Callable[[str], object]] = {
    **dict.fromkeys(Dimension, matches_identifier),
    Dimension.MODEL: matches_model,
    Dimension.RUN: matches_opaque_id,
    Dimension.TOKEN: matches_opaque_id,
    Dimension.PARENT: matches_opaque_id,
    Dimension.KEY: _KID.fullmatch,
    Dimension.LABEL: matches_label,
}

Shape = tuple[Dimension, ...]
"""Which dimensions a selector names, ascending."""
Facts = tuple[tuple[str, ...], ...]
"""What is known of a token: for each dimension, at its number, the values that a condition may name."""


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """A non-empty AND of conditions, at most one for each dimension, sorted by dimension.

    Raises:
        Invalid: It is empty, or a value breaks its rule.
    """

    conditions: tuple[tuple[Dimension, str], ...]

    def __post_init__(self) -> None:
        if not self.conditions:
            raise Invalid("selector", "is empty, which would be everything", hint="name at least one dimension")
        before = 0
        for dimension, value in self.conditions:
            if dimension <= before:
                raise Invalid("selector", "has dimensions twice or out of order")
            before = dimension
            if not _IS_WELL_FORMED[dimension](value):
                _RULES.get(dimension, identifier)(f"selector.{dimension.name.lower()}", value)

    @classmethod
    def of(cls, **values: str | None) -> "Selector":
        """Make a selector from named values, `Selector.of(partner="acme")`; None is left out. Raises Invalid."""
        named = ((Dimension[name.upper()], value) for name, value in values.items() if value is not None)
        return cls(tuple(sorted(named)))

    def get(self, dimension: Dimension) -> str | None:
        """Return the value for a dimension, or None."""
        return next((value for at, value in self.conditions if at is dimension), None)

    @property
    def dimensions(self) -> Shape:
        """The shape: which dimensions it names, ascending."""
        return tuple(dimension for dimension, _ in self.conditions)

    @property
    def is_blocking(self) -> bool:
        """Whether revoking it also keeps new tokens from being minted."""
        return all(dimension in _BLOCKING for dimension, _ in self.conditions)

    @property
    def is_absolute(self) -> bool:
        """Whether it kills at any index: what a stolen key signs can claim any."""
        return self.names_only(Dimension.KEY)

    def names_only(self, *dimensions: Dimension) -> bool:
        """Tell whether it names exactly these dimensions."""
        return self.dimensions == tuple(sorted(dimensions))

    def concerns(self, realm: str) -> bool:
        """Tell whether it can match a token of this realm."""
        return self.get(Dimension.REALM) in (None, realm)

    def matches(self, facts: Facts) -> bool:
        """Tell whether every condition holds."""
        return all(value in facts[dimension] for dimension, value in self.conditions)

    def to_text(self) -> str:
        """Return the one spelling by which stores compare selectors."""
        return json.dumps([[int(dimension), value] for dimension, value in self.conditions], separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> "Selector":
        """Read what `to_text` wrote."""
        return cls(tuple([(_BY_NUMBER[dimension], value) for dimension, value in json.loads(text)]))

    def __str__(self) -> str:
        return " ".join(f"{dimension.name.lower()}={value}" for dimension, value in self.conditions)


@dataclass(frozen=True, slots=True)
class Revocation:
    """Every token that `selector` matches and whose index is below `index` is dead, for ever."""

    index: int
    selector: Selector

    def kills(self, facts: Facts, idx: int) -> bool:
        """Tell whether it kills the token with these facts and this index."""
        return (self.selector.is_absolute or idx < self.index) and self.selector.matches(facts)


def facts_of(claims: Claims, kid: str, asked_model: str | None = None) -> Facts:
    """Return the facts of a token, used for `asked_model`.

    A condition on `name` matches each of its instances. A condition on `name@instance` matches a token
    for all of `name` when that instance is asked for.
    """
    models = claims.models
    if asked_model is not None and asked_model not in models:
        models = (*models, asked_model)
    if claims.parent_models is not None:
        models = (*models, *claims.parent_models)
    return (
        (),
        (claims.realm,),
        (claims.partner,),
        () if claims.user is None else (claims.user,),
        _workloads(claims),
        (claims.env,),
        tuple({name for model in models for name in (model, bare_name(model))}),
        () if claims.run is None else (claims.run,),
        () if claims.test is None else (claims.test,),
        # What kills a token kills all that was derived from it.
        (claims.jti, *claims.parents),
        claims.parents,
        (kid,) if claims.parent_keys is None else (kid, *claims.parent_keys),
        claims.labels,
    )


def _workloads(claims: Claims) -> tuple[str, ...]:
    """Return the workload that a token is for, and all that act or have acted with it (RFC 8693 §4.1)."""
    found = () if claims.workload is None else (claims.workload,)
    act: object = claims.act
    while isinstance(act, Mapping):
        partner, _, name = str(act.get("sub")).partition("/workload/")
        if partner == claims.partner and name and name not in found:
            found = (*found, name)
        act = act.get("act")
    return found


def checks_of(shape: Shape) -> tuple[Callable[[str], object], ...]:
    """Return for each dimension of a shape a question that only a valid value answers with a true one.

    The same rules as the constructor's, for those who read a million selectors of a few shapes.

    Raises:
        Invalid: No selector can have this shape.
    """
    if not shape or any(one >= other for one, other in pairwise(shape)):
        raise Invalid("selector", "is empty, or has dimensions twice or out of order")
    return tuple(_IS_WELL_FORMED[dimension] for dimension in shape)


class Matcher:
    """Revocations in force, by shape. One thread adds and prunes; any number of threads find, without locks.

    For one selector only the largest index counts, and it is kept for the longest time that was asked
    for. An addition is never visible in part, and hides nothing: it can only make more tokens dead.
    """

    __slots__ = ("_shapes", "generation")

    def __init__(self) -> None:
        # A reader takes this tuple once and walks it; a new shape makes a new tuple. Each map leads from the
        # value (or the values) to index and drop time in one integer, because a million of them must fit.
        self._shapes: tuple[tuple[Shape, dict[object, int]], ...] = ()
        self.generation = 0
        """Grows after each addition has become visible."""

    def add(self, revocation: Revocation, drop_at_ns: int) -> None:
        """Put a revocation in force until `drop_at_ns` on the caller's boot-time clock."""
        conditions = revocation.selector.conditions
        self.put(revocation.selector.dimensions, tuple(value for _, value in conditions), revocation.index, drop_at_ns)

    def put(self, shape: Shape, values: tuple[str, ...], index: int, drop_at_ns: int) -> None:
        """As `add`, of a selector's shape and values, which must be those of a valid one."""
        self.put_all(((shape, values, index, drop_at_ns),))

    def put_all(self, revocations: Iterable[tuple[Shape, tuple[str, ...], int, int]]) -> None:
        """As `put` of each: a million in a second. All are in force when it returns, each when its turn comes."""
        shape: Shape | None = None
        entries: dict[object, int] = {}
        last_ns, last_s = 0, 0
        for its_shape, values, index, drop_at_ns in revocations:
            if its_shape is not shape:
                shape, entries = its_shape, self._entries(its_shape)
            key: object = values[0] if len(values) == 1 else values
            if drop_at_ns != last_ns:
                last_ns, last_s = drop_at_ns, min(-(-drop_at_ns // NS_PER_S), _DROP_MASK)
            drop_s = last_s
            before = entries.get(key)
            if before is not None:
                index, drop_s = max(before >> _DROP_BITS, index), max(before & _DROP_MASK, drop_s)  # noqa: PLW2901
            entries[key] = index << _DROP_BITS | drop_s
        self.generation += 1

    def _entries(self, shape: Shape) -> dict[object, int]:
        for known, entries in self._shapes:
            if known == shape:
                return entries
        entries = {}
        self._shapes = (*self._shapes, (shape, entries))
        return entries

    def find(self, facts: Facts, idx: int) -> Revocation | None:
        """Return a revocation that kills the token with these facts and this index, or None."""
        for shape, entries in self._shapes:
            if len(shape) == 1:
                dimension = shape[0]
                for value in facts[dimension]:
                    packed = entries.get(value)
                    if packed is not None and (packed >> _DROP_BITS > idx or dimension is Dimension.KEY):
                        return Revocation(packed >> _DROP_BITS, Selector(((dimension, value),)))
            else:
                for values in product(*(facts[dimension] for dimension in shape)):
                    packed = entries.get(values)
                    if packed is not None and packed >> _DROP_BITS > idx:
                        return Revocation(packed >> _DROP_BITS, Selector(tuple(zip(shape, values, strict=True))))
        return None

    def is_key_revoked(self, kid: str) -> bool:
        """Tell whether the key alone is revoked."""
        # Asked for each frame, often with no shape at all: so it is a loop.
        for shape, entries in self._shapes:  # noqa: SIM110
            if shape == _KEY_ALONE and kid in entries:
                return True
        return False

    def prune(self, now_ns: int) -> int:
        """Drop what may be dropped at `now_ns`, at a cost that follows what is dropped; return how many."""
        now_s = now_ns // NS_PER_S
        dropped = 0
        for _, entries in self._shapes:
            over = list(_over(entries, now_s))
            for key in over:
                del entries[key]
            dropped += len(over)
        return dropped

    def __len__(self) -> int:
        return sum(len(entries) for _, entries in self._shapes)

    @property
    def shapes(self) -> int:
        """The number of shapes in use."""
        return len(self._shapes)


def _over(entries: Mapping[object, int], now_s: int) -> Iterator[object]:
    passed = 0
    for key, packed in entries.items():
        if packed & _DROP_MASK < now_s:
            yield key
        else:
            passed += 1
            if passed > _PRUNE_LOOKAHEAD:
                return
