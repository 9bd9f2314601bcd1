"""The Meter port on Prometheus."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class PrometheusMeter:
    """Counts in a registry of its own. Labels are names from the policy and reasons from a closed set: no secret."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._minted = Counter(
            "tokens_minted", "Tokens that left.", ["realm"], namespace="broker", registry=self.registry
        )
        self._denied = Counter(
            "calls_denied", "Calls that were refused.", ["reason"], namespace="broker", registry=self.registry
        )
        self._would_deny = Counter(
            "would_deny",
            "What a grant in mode audit allowed, and would have denied.",
            ["grant", "rule"],
            namespace="broker",
            registry=self.registry,
        )
        self._revoked = Counter(
            "revocations", "Revocations committed.", ["dimensions"], namespace="broker", registry=self.registry
        )
        self._acknowledged = Histogram(
            "revoke_to_ack_seconds",
            "From a revocation's commit to a verifier's acknowledgement.",
            ["realm"],
            buckets=_FAST,
            namespace="broker",
            registry=self.registry,
        )
        self._time_to_deny = Histogram(
            "time_to_deny_seconds",
            "From the revocation of a drill's canary to its denial at a verifier.",
            ["realm"],
            buckets=_FAST,
            namespace="broker",
            registry=self.registry,
        )
        self._drills = Counter("drills", "Drills.", ["realm"], namespace="broker", registry=self.registry)
        self._drill_failures = Gauge(
            "drill_failures",
            "Verifiers that failed in the last drill: silent, slow, or accepting what was revoked.",
            ["realm"],
            namespace="broker",
            registry=self.registry,
        )
        self._verifiers = Gauge(
            "verifiers", "Verifiers by state.", ["realm", "state"], namespace="broker", registry=self.registry
        )
        self._lag = Gauge(
            "verifier_lag_entries",
            "Entries that the last verifier lags.",
            ["realm"],
            namespace="broker",
            registry=self.registry,
        )
        self._queued = Gauge(
            "feed_queue_frames", "Longest queue of a subscriber.", ["realm"], namespace="broker", registry=self.registry
        )
        self._resynchronised = Counter(
            "feed_resynchronisations",
            "Queues that were replaced by a snapshot.",
            ["realm"],
            namespace="broker",
            registry=self.registry,
        )
        self._receipts = Counter(
            "receipts", "Uses that receipts tell of.", ["realm", "what"], namespace="broker", registry=self.registry
        )
        self._receipts_refused = Counter(
            "receipt_batches_refused",
            "Batches of receipts that were not written.",
            ["realm", "reason"],
            namespace="broker",
            registry=self.registry,
        )
        self._receipts_alarmed = Counter(
            "receipt_alarms",
            "Receipts that cannot be true, or that somebody made up.",
            ["realm", "problem"],
            namespace="broker",
            registry=self.registry,
        )
        self._batch = Histogram(
            "append_batch_entries",
            "Entries of a committed batch.",
            buckets=(1, 4, 16, 64, 256, 1024, 4096),
            namespace="broker",
            registry=self.registry,
        )
        self._append = Histogram(
            "append_seconds", "Time of a committed batch.", buckets=_FAST, namespace="broker", registry=self.registry
        )
        self._vault = Histogram(
            "vault_call_seconds",
            "Calls to Vault.",
            ["operation", "outcome"],
            buckets=_FAST,
            namespace="broker",
            registry=self.registry,
        )
        self._vault_up = Gauge(
            "vault_up", "1 while Vault answers, 0 while it is away.", namespace="broker", registry=self.registry
        )
        # Neither, for who has no Vault.
        self._vault_up.set(math.nan)
        self._key_age = Gauge(
            "signing_key_age_seconds",
            "Age of the newest key; NaN: there is none.",
            ["realm", "purpose"],
            namespace="broker",
            registry=self.registry,
        )

    def minted(self, realm: str, count: int) -> None:
        """As the port says."""
        self._minted.labels(realm).inc(count)

    def denied(self, reason: str) -> None:
        """As the port says."""
        self._denied.labels(reason).inc()

    def would_deny(self, grant: str, rule: str) -> None:
        """As the port says."""
        self._would_deny.labels(grant, rule).inc()

    def revoked(self, dimensions: str) -> None:
        """As the port says."""
        self._revoked.labels(dimensions).inc()

    def acknowledged(self, realm: str, seconds: float) -> None:
        """As the port says."""
        self._acknowledged.labels(realm).observe(seconds)

    def denied_after(self, realm: str, seconds: float) -> None:
        """As the port says."""
        self._time_to_deny.labels(realm).observe(seconds)

    def drilled(self, realm: str, failed: int) -> None:
        """As the port says."""
        self._drills.labels(realm).inc()
        self._drill_failures.labels(realm).set(failed)

    def verifiers(self, realm: str, state: str, count: int) -> None:
        """As the port says."""
        self._verifiers.labels(realm, state).set(count)

    def lag(self, realm: str, entries: int) -> None:
        """As the port says."""
        self._lag.labels(realm).set(entries)

    def queued(self, realm: str, frames: int) -> None:
        """As the port says."""
        self._queued.labels(realm).set(frames)

    def resynchronised(self, realm: str) -> None:
        """As the port says."""
        self._resynchronised.labels(realm).inc()

    def receipts(self, realm: str, what: str, count: int) -> None:
        """As the port says."""
        self._receipts.labels(realm, what).inc(count)

    def receipts_refused(self, realm: str, reason: str) -> None:
        """As the port says."""
        self._receipts_refused.labels(realm, reason).inc()

    def receipts_alarmed(self, realm: str, problem: str) -> None:
        """As the port says."""
        self._receipts_alarmed.labels(realm, problem).inc()

    def appended(self, entries: int, seconds: float) -> None:
        """As the port says."""
        self._batch.observe(entries)
        self._append.observe(seconds)

    def vault_called(self, operation: str, outcome: str, seconds: float) -> None:
        """As the port says."""
        self._vault.labels(operation, outcome).observe(seconds)

    def vault_up(self, *, is_up: bool) -> None:
        """As the port says."""
        self._vault_up.set(is_up)

    def key_age(self, realm: str, purpose: str, seconds: float) -> None:
        """As the port says."""
        self._key_age.labels(realm, purpose).set(seconds)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self.registry)
