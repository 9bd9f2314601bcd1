"""What a log has said so far: all that the rules must remember of it."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

from cryptography.hazmat.primitives.asymmetric import ec

from broker.token.approval import ApprovalRequest
from broker.token.identifiers import bare_name
from broker.token.keys import TrustedKey
from broker.token.revocation import Dimension, Facts, Selector, Shape

Look = Callable[[int], bytes]
"""Returns the exact bytes of an entry that came before."""


class Revocations:
    """Every revocation that there ever was, by what it selects: which of them killed a token, as of any head."""

    def __init__(self) -> None:
        self._shapes: dict[Shape, dict[tuple[str, ...], list[int]]] = {}

    def add(self, index: int, selector: Selector) -> None:
        """Add the one at `index`, which is above all before it."""
        values = tuple(value for _, value in selector.conditions)
        self._shapes.setdefault(selector.dimensions, {}).setdefault(values, []).append(index)

    def between(self, facts: Facts, idx: int, head: int) -> tuple[int, Selector] | None:
        """Return one that kills the token with these facts and index, for whoever has applied all below `head`."""
        for shape, entries in self._shapes.items():
            for values in product(*(facts[dimension] for dimension in shape)):
                indices = entries.get(values)
                if indices is None:
                    continue
                # What a stolen key signs can claim any index.
                at = 0 if shape == (Dimension.KEY,) else bisect_right(indices, idx)
                if at < bisect_left(indices, head):
                    return indices[at], Selector(tuple(zip(shape, values, strict=True)))
        return None


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is open."""

    realm: str
    partner: str


@dataclass(slots=True)
class Asked:
    """A request for approval, the people who approved it, and how it ended."""

    request: ApprovalRequest
    sha256: str
    people: set[str] = field(default_factory=set)
    ended: str = ""
    on: str = ""


@dataclass(slots=True)
class ReceiptKey:
    """A verifier's key, and the number up to which its receipts are in the log."""

    verifier: str
    realm: str
    public_key: ec.EllipticCurvePublicKey
    through: int = 0


@dataclass(slots=True)
class Past:
    """What was said. `tokens` holds eight bytes of each token's id, so that ten million fit into memory."""

    incarnation: str = ""
    policies: int = 0
    certificates: dict[str, list[TrustedKey]] = field(default_factory=dict)
    tokens: set[int] = field(default_factory=set)
    resigned: set[int] = field(default_factory=set)
    blocks: dict[Selector, int] = field(default_factory=dict)
    revocations: Revocations = field(default_factory=Revocations)
    revoked_tokens: set[str] = field(default_factory=set)
    runs: dict[str, Run] = field(default_factory=dict)
    approvals: dict[str, Asked] = field(default_factory=dict)
    receipt_keys: dict[str, ReceiptKey] = field(default_factory=dict)
    completed: set[int] = field(default_factory=set)

    def block_on(self, facts: Facts, models: tuple[str, ...]) -> tuple[int, Selector] | None:
        """Return a block that is in force on what has these facts; one on an instance also stops all instances."""
        for selector, index in self.blocks.items():
            if all(
                value in facts[dimension] or (dimension is Dimension.MODEL and bare_name(value) in models)
                for dimension, value in selector.conditions
            ):
                return index, selector
        return None
