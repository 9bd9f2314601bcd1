"""The tables. Instants are Unix milliseconds; selectors are their one text spelling."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()

# One row. Whoever appends locks it first, so indices are consecutive with any number of writers (P2).
head = Table(
    "head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("incarnation", String(32), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("policy_version", BigInteger, nullable=False),
    # How far the tree has come, and its frontier. A broker from before the tree leaves it behind the size.
    Column("frontier", LargeBinary),
    # Bodies of the entries below, but for the first, are in the archive: here they are empty.
    Column("archived", BigInteger, nullable=False, server_default="0"),
)

ledger = Table(
    "ledger",
    metadata,
    # `autoincrement=False`: the head counts, never the engine, whose counters leave gaps.
    Column("idx", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("entry", LargeBinary, nullable=False),
    Column("leaf_hash", LargeBinary(32), nullable=False),
)

MINTED = '"kind":"token-minted"'
# Word for word, because an engine uses a partial index only for the very words that it was made with.
IS_MINTED = {
    "sqlite": text(f"instr(entry, X'{MINTED.encode().hex()}') > 0"),
    "postgresql": text(f"strpos(encode(entry, 'escape'), '{MINTED}') > 0"),
}
Index("ledger_minted", ledger.c.idx, sqlite_where=IS_MINTED["sqlite"], postgresql_where=IS_MINTED["postgresql"])

# Level 0 of the tiles is the ledger's leaf hashes; here is one row for each full tile, at the level above it.
tree = Table(
    "tree",
    metadata,
    Column("level", Integer, nullable=False),
    Column("idx", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    PrimaryKeyConstraint("level", "idx"),
    sqlite_with_rowid=False,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("size", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("note", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("is_settled", Boolean, nullable=False),
)

policies = Table(
    "policies",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("idx", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
)

blocks = Table(
    "blocks",
    metadata,
    Column("selector", String(2048), primary_key=True),
    Column("idx", BigInteger, nullable=False),
)

revocations = Table(
    "revocations",
    metadata,
    Column("idx", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("selector", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("keep_until_ms", BigInteger, nullable=False),
    # Set when the selector is this key alone.
    Column("kid", String(43)),
)
Index(
    "revocations_kid",
    revocations.c.kid,
    sqlite_where=revocations.c.kid.isnot(None),
    postgresql_where=revocations.c.kid.isnot(None),
)
Index("revocations_keep", revocations.c.keep_until_ms)

certificates = Table(
    "certificates",
    metadata,
    Column("idx", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("realm", String(128), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("kid", String(43), nullable=False),
    Column("certificate", Text, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("realm", String(128), nullable=False),
    Column("partner", String(128), nullable=False),
    Column("models", Text, nullable=False),
    Column("opened_by", Text, nullable=False),
    Column("opened_at_ms", BigInteger, nullable=False),
    Column("lease_s", Integer, nullable=False),
    Column("lease_ends_at_ms", BigInteger, nullable=False),
    Column("is_closed", Boolean, nullable=False),
    Column("is_lapsed", Boolean, nullable=False, server_default=text("false")),
    Column("user", String(128)),
    Column("workload", String(128)),
    Column("environment", String(128)),
    Column("grants", Text, nullable=False, server_default="[]"),
    Column("key", Text),
    Column("approval", String(64)),
    # Minted under a grant that has a limit of tokens per run; not counted otherwise.
    Column("tokens", BigInteger, nullable=False, server_default="0"),
)
Index("runs_partner", runs.c.partner, runs.c.opened_at_ms)
RUN_IS_OPEN = text("NOT is_closed")
Index("runs_open", runs.c.lease_ends_at_ms, sqlite_where=RUN_IS_OPEN, postgresql_where=RUN_IS_OPEN)

# What limits are counted by: one row for each write and scope that has a limit. Without limits it stays empty.
counts = Table(
    "counts",
    metadata,
    Column("idx", BigInteger, nullable=False),
    # Which of the write's rows it is.
    Column("part", Integer, nullable=False),
    Column("scope", String(512), nullable=False),
    Column("ends_at_ms", BigInteger, nullable=False),
    Column("run", String(64)),
    Column("tokens", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("keep_until_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("idx", "part"),
    sqlite_with_rowid=False,
)
Index("counts_rate", counts.c.scope, counts.c.at_ms)
Index("counts_live", counts.c.scope, counts.c.ends_at_ms)
Index("counts_run", counts.c.run, sqlite_where=counts.c.run.isnot(None), postgresql_where=counts.c.run.isnot(None))
Index("counts_keep", counts.c.keep_until_ms)

requests = Table(
    "requests",
    metadata,
    Column("principal", String(512), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("first_idx", BigInteger, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("principal", "request_id"),
    sqlite_with_rowid=False,
)

# Of a batch of single tokens: at its last index, `first_idx` being the first. Without `entry_idx`: awaited.
completions = Table(
    "completions",
    metadata,
    Column("revocation", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("first_idx", BigInteger, nullable=False),
    Column("realms", Text, nullable=False),
    Column("lease_ms", Integer, nullable=False),
    Column("entry_idx", BigInteger),
    Column("document", LargeBinary),
)
Index(
    "completions_awaited",
    completions.c.revocation,
    sqlite_where=completions.c.entry_idx.is_(None),
    postgresql_where=completions.c.entry_idx.is_(None),
)

drills = Table(
    "drills",
    metadata,
    Column("idx", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("realm", String(128), nullable=False),
    Column("document", LargeBinary, nullable=False),
)
Index("drills_realm", drills.c.realm, drills.c.idx)

drill_schedules = Table(
    "drill_schedules",
    metadata,
    Column("realm", String(128), primary_key=True),
    Column("every_s", Integer, nullable=False),
)

# Of drills under way alone: the canary for the brokers that show it, and what each of them has to tell.
drill_calls = Table(
    "drill_calls",
    metadata,
    Column("canary", String(64), primary_key=True),
    Column("realm", String(128), nullable=False),
    Column("token", Text, nullable=False),
    Column("hold_ms", BigInteger, nullable=False),
    Column("called_at_ms", BigInteger, nullable=False),
)

drill_parts = Table(
    "drill_parts",
    metadata,
    Column("canary", String(64), nullable=False),
    Column("broker", String(64), nullable=False),
    Column("part", LargeBinary, nullable=False),
    PrimaryKeyConstraint("canary", "broker"),
)

# What verifiers told one broker, for the completions of another.
cuts = Table(
    "cuts",
    metadata,
    Column("revocation", BigInteger, nullable=False),
    Column("realm", String(128), nullable=False),
    Column("verifier", String(512), nullable=False),
    Column("broker", String(64), nullable=False),
    Column("uses", BigInteger, nullable=False),
    Column("keep_until_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("revocation", "realm", "verifier", "broker"),
    sqlite_with_rowid=False,
)

verifiers = Table(
    "verifiers",
    metadata,
    Column("verifier", String(512), nullable=False),
    Column("realm", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    Column("address", String(128), nullable=False),
    Column("head", BigInteger, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
    Column("is_present", Boolean, nullable=False),
    PrimaryKeyConstraint("realm", "verifier"),
    sqlite_with_rowid=False,
)

# `document`: the request in its one spelling, of which approvers sign the hash.
approvals = Table(
    "approvals",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("idx", BigInteger, nullable=False),
    Column("partner", String(128), nullable=False),
    Column("approvers", String(128), nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("closes_at_ms", BigInteger, nullable=False),
    # denied, withdrawn or spent; what only time or the policy ends is judged when it is looked at.
    Column("ended", String(16)),
    Column("ended_at_ms", BigInteger),
    # The token or run that it was spent on.
    Column("spent_on", String(64)),
)
Index("approvals_partner", approvals.c.partner, approvals.c.idx)
Index("approvals_approvers", approvals.c.approvers, approvals.c.idx)

approval_votes = Table(
    "approval_votes",
    metadata,
    Column("approval", String(64), nullable=False),
    Column("person", String(512), nullable=False),
    Column("principal", String(512), nullable=False),
    Column("decision", String(16), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("login_at_ms", BigInteger, nullable=False),
    Column("idx", BigInteger, nullable=False),
    PrimaryKeyConstraint("approval", "person"),
    sqlite_with_rowid=False,
)

# Of each key that signs receipts: whose it is, and the number up to which its receipts are in the ledger.
receipt_keys = Table(
    "receipt_keys",
    metadata,
    Column("kid", String(43), primary_key=True),
    Column("realm", String(128), nullable=False),
    Column("verifier", String(512), nullable=False),
    Column("point", LargeBinary(65), nullable=False),
    Column("idx", BigInteger, nullable=False),
    Column("through", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Of each partner the newest; no part of the record.
denials = Table(
    "denials",
    metadata,
    Column("partner", String(128), nullable=False),
    Column("principal", String(512), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    PrimaryKeyConstraint("partner", "principal", "request_id"),
    sqlite_with_rowid=False,
)
Index("denials_partner", denials.c.partner, denials.c.at_ms)
Index("denials_request", denials.c.request_id)

# For verifiers: which ledger this one goes on from, as a realm's root said when a backup was restored.
restorations = Table(
    "restorations",
    metadata,
    Column("idx", BigInteger, nullable=False),
    Column("realm", String(128), nullable=False),
    Column("document", Text, nullable=False),
    PrimaryKeyConstraint("idx", "realm"),
    sqlite_with_rowid=False,
)
