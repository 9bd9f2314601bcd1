"""An approval for people and for scripts: read from the very bytes that are signed."""

from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group
from rich.table import Table
from rich.text import Text

from broker.edge.cli.durations import shown
from broker.edge.cli.output import instant, plain, table
from broker.edge.cli.problems import Unusable
from broker.errors import Malformed
from broker.token.approval import ApprovalRequest, Wanted, decode_request, request_hash, spelled
from broker.v1 import approvals_pb2 as pb

KEYS = (
    "id, state (waiting, approved, denied, withdrawn, expired, spent, lapsed, void), why, until, sha256, "
    "request: {what is signed}, votes: [person, principal, approves, at, counts], spent_on, index"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """An approval as the broker told it; `request` and `sha256` are read here, from the bytes that are signed."""

    told: pb.Approval
    request: ApprovalRequest
    sha256: str

    @property
    def state(self) -> str:
        """How it stands, in one word."""
        return pb.ApprovalState.Name(self.told.state).removeprefix("APPROVAL_STATE_").lower()

    def fields(self) -> dict[str, object]:
        """Return it as JSON."""
        asked = self.request
        return {
            "id": asked.id,
            "state": self.state,
            "why": self.told.why,
            "until": _instant(self.told.until) if self.told.HasField("until") else None,
            "sha256": self.sha256,
            "request": {
                **{name: getattr(asked, name) for name in ApprovalRequest.__dataclass_fields__},
                "created_at": spelled(asked.created_at),
                "models": list(asked.models),
            },
            "votes": [
                {
                    "person": vote.person or None,
                    "principal": vote.principal or None,
                    "approves": vote.approves,
                    "at": instant(vote.at),
                    "counts": vote.counts,
                }
                for vote in self.told.votes
            ],
            "spent_on": self.told.spent_on or None,
            "index": self.told.index,
        }

    def words(self) -> Table:
        """Return all that is signed, in words."""
        asked = self.request
        what = "one run, kept alive with a lease of" if asked.purpose is Wanted.RUN else "one token, of a life of"
        for_whom = [f"user {asked.user}"] if asked.user is not None else []
        for_whom += [f"workload {asked.workload}"] if asked.workload is not None else []
        rows = [
            ("what", f"{what} {shown(asked.lifetime_s)}"),
            ("for", f"{' by '.join(for_whom)} of partner {asked.partner}, from {asked.environment}"),
            ("models", f"{', '.join(asked.models)} in realm {asked.realm}"),
            ("grant", f"{asked.grant}, binding {asked.binding}, delegation {asked.delegation} deep"),
            ("asked by", asked.requester if asked.person is None else f"{asked.requester}, who is {asked.person}"),
            ("asked at", spelled(asked.created_at)),
            ("needs", f"{asked.needed} of group {asked.group} within {shown(asked.window_s)}"),
            ("logged in", f"each within {shown(asked.login_s)} before"),
            ("then good for", shown(asked.valid_s)),
            ("id, nonce", f"{asked.id}, {asked.nonce}"),
            ("sha256", self.sha256),
        ]
        return table(["", ""], rows)

    def report(self) -> Group:
        """Return all of it for people."""
        until = f", until {_instant(self.told.until)}" if self.told.HasField("until") else ""
        lines = [f"approval {self.request.id} is {self.state}: {self.told.why}{until}"]
        if self.told.spent_on:
            lines.append(f"it was spent on {self.told.spent_on}")
        votes = [
            f"{vote.person or 'somebody'} {'approved' if vote.approves else 'denied'} at {instant(vote.at)}"
            f"{'' if vote.counts or not vote.approves else ', which does not count any more'}"
            for vote in self.told.votes
        ]
        return Group(*(Text(plain(line)) for line in (*lines, *votes)), self.words())


def seen(told: pb.Approval) -> Seen:
    """Read what the broker told. Raises Unusable when the bytes are no request."""
    try:
        request = decode_request(told.request)
    except Malformed as bad:
        raise Unusable(
            f"the broker shows a request that cannot be read: {bad.message}",
            reason="INTERNAL",
            hint="sign nothing; use a command line of the broker's version",
        ) from bad
    if request.id != told.id:
        raise Unusable("the broker shows another request than it names", reason="INTERNAL", hint="sign nothing")
    return Seen(told, request, request_hash(told.request))


def _instant(at: Timestamp) -> str:
    # To the second: people read it, and it is a deadline.
    rounded = Timestamp()
    rounded.FromDatetime(at.ToDatetime() - timedelta(microseconds=at.nanos // 1000))
    return instant(rounded)
