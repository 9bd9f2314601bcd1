"""What clients asked and were answered, held against what is in the store."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.ledger.entry import Entry, Kind, decode_entry
from broker.token.claims import decode_claims
from broker.token.jws import parse_jws
from tests.stores import Home

KINDS = {"minting": Kind.TOKEN_MINTED, "revoking": Kind.REVOKED, "blocking": Kind.REVOKED}


@dataclass
class Record:
    """`asked` and `answered` are told by the clients; `check` reads the store and finds what was lost or doubled."""

    batch: int = 1
    asked: dict[str, str] = field(default_factory=dict)
    # By request id, each answer's indices.
    answered: dict[str, set[int]] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)

    def hear(self, words: dict[str, object]) -> None:
        """Take a line of tests.store_minter."""
        if "asking" in words:
            self.asked[str(words["asking"])] = str(words["kind"])
        elif "answered" in words:
            self.answered.setdefault(str(words["answered"]), set()).add(int(str(words["index"])))
            if "token" in words:
                self.tokens.append(str(words["token"]))

    @property
    def unanswered(self) -> list[tuple[str, str]]:
        return [
            (request_id, kind)
            for request_id, kind in self.asked.items()
            if len(self.answered.get(request_id, ())) < (self.batch if kind == "minting" else 1)
        ]

    def check(self, home: Home) -> None:
        """Fail unless nothing acknowledged was lost or changed, nothing was done twice, and no index is missing."""
        before = len(self.entries)
        # One statement sees one moment, also while a broker writes.
        rows = home.sql(f"SELECT idx, entry, leaf_hash, size FROM ledger, head WHERE idx >= {before} ORDER BY idx")
        # P2.
        assert [row[0] for row in rows] == list(range(before, before + len(rows)))
        for _, entry, hashed, size in rows:
            assert size == before + len(rows)
            assert bytes(hashed) == hashlib.sha256(b"\x00" + bytes(entry)).digest()
        self.entries += [bytes(row[1]) for row in rows]
        read = [decode_entry(data) for data in self.entries]
        self._answers_are_there(read)
        self._nothing_is_twice(read)
        self._tokens_have_their_entries(read)

    def check_all(self, home: Home) -> None:
        """Check, and that every entry ever seen is still there with the same bytes (P11)."""
        self.check(home)
        rows = home.sql("SELECT entry FROM ledger ORDER BY idx")
        assert [bytes(row[0]) for row in rows] == self.entries
        assert self.tokens

    def _answers_are_there(self, read: Sequence[Entry]) -> None:
        for request_id, indices in self.answered.items():
            kind = self.asked[request_id]
            # A repeat that was answered with other indices would make them too many.
            assert len(indices) <= (self.batch if kind == "minting" else 1)
            for index in indices:
                assert read[index].kind is KINDS[kind]
                assert read[index].body["request"] == request_id

    def _nothing_is_twice(self, read: Sequence[Entry]) -> None:
        done = Counter((entry.body["request"], entry.kind) for entry in read if entry.kind in KINDS.values())
        for (request_id, kind), count in done.items():
            assert count == (self.batch if kind is Kind.TOKEN_MINTED else 1), request_id

    def _tokens_have_their_entries(self, read: Sequence[Entry]) -> None:
        recorded = {entry.body["sha256"] for entry in read if entry.kind in (Kind.TOKEN_MINTED, Kind.TOKEN_RESIGNED)}
        for token in self.tokens:
            jws = parse_jws(token, typ="at+jwt")
            claims = decode_claims(jws.payload)
            # P1: exactly what was signed is in the ledger, and the first of it at its index.
            assert hashlib.sha256(jws.signing_input).hexdigest() in recorded
            first = read[claims.idx]
            assert first.kind is Kind.TOKEN_MINTED
            assert json.loads(json.dumps(first.body["claims"]))["jti"] == claims.jti
