"""Brokers without doors that mint and revoke until they are killed: `python -m tests.store_minter URL FOLDER`.

Each line of JSON that comes in, `{"repeat": [[request id, kind], ...]}`, forks one: what it imports, it has already.
It opens the store, does again what is to be repeated, then mints and revokes from several threads. It says in lines
of JSON which process it is, what it is going to ask, and what it was answered. A line is one write of less than
PIPE_BUF bytes, so that it is there or not, whatever is killed.
"""

import hashlib
import itertools
import json
import os
import secrets
import signal
import sys
import threading
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from broker.adapters.checkpoint_keys import LocalCheckpointKey
from broker.adapters.clock import SystemClock
from broker.adapters.key_rotation import Lifetimes
from broker.adapters.local_root import LocalRoot
from broker.adapters.memory_signer import make_memory_key
from broker.adapters.metrics import PrometheusMeter
from broker.assembly import Broker
from broker.composing import Parts, new_token_id
from broker.domain.asking import Ask
from broker.domain.policy import Role
from broker.doors import Doors
from broker.errors import PolicyMoved, SignerUnavailable, StoreUnavailable
from broker.publishing import LogParts
from broker.service.calling import Caller, CertificateProof, identify
from broker.service.mint import Mint
from broker.service.ports import RequestKey
from broker.service.revoke import Revocations, Revoke
from broker.token.revocation import Selector
from tests.served import ADMIN, POLICY

ACME = "spiffe://acme.example/ci"
BATCH = 3
# There are no doors, so no papers for them.
NOWHERE = Path("/nonexistent")
WAITING = threading.Event()
PASSING = (StoreUnavailable, PolicyMoved, SignerUnavailable)


def say(**words: Any) -> None:
    line = json.dumps(words).encode() + b"\n"
    assert len(line) < 4096
    os.write(1, line)


class Doorless:
    """A broker's store, keys and use cases."""

    def __init__(self, url: str, folder: Path) -> None:
        clock, meter = SystemClock(), PrometheusMeter()
        self.broker = Broker(
            Parts(
                store_url=url,
                headroom_bytes=1 << 20,
                is_sole=True,
                root=LocalRoot(folder / "keys", b"a passphrase"),
                make_token_key=make_memory_key,
                signs_in_memory=True,
                lifetimes=Lifetimes(),
                admins=frozenset({ADMIN}),
                max_ttl=timedelta(days=1),
                max_run=timedelta(days=30),
                clock=clock,
                meter=meter,
                log=LogParts(LocalCheckpointKey(folder / "keys", b"a passphrase")),
            ),
            Doors("", None, NOWHERE, NOWHERE, NOWHERE),
        )
        broker = self.broker
        broker.apply_first_policy(POLICY, ADMIN)
        broker.signer.start()
        revocations = Revocations(clock, timedelta(days=1))
        self.mint = Mint(broker.ledger, broker.policies, broker.signer, clock, new_id=new_token_id, meter=meter)
        self.revoke = Revoke(broker.ledger, broker.policies, revocations, meter)

    def ask(self, request_id: str, kind: str) -> None:
        """Ask until there is an answer, and tell it."""
        say(asking=request_id, kind=kind)
        while True:
            try:
                getattr(self, f"_{kind}")(request_id)
                return
            except PASSING:
                WAITING.wait(0.02)
                with suppress(*PASSING):
                    self.broker.policies.refresh()

    def _minting(self, request_id: str) -> None:
        ask = Ask("evaluation", "acme", "alice", None, ("mythos",), "acme-ci")
        caller = identify(CertificateProof(ACME), self.broker.policies.current(), frozenset())
        request = _request(ACME, request_id, "minting")
        minted = self.mint.finish(self.mint.reserve(caller, [ask] * BATCH, request).result())
        for one in minted:
            say(answered=request_id, kind="minting", index=one.index, token=one.token)

    def _revoking(self, request_id: str) -> None:
        token = hashlib.sha256(request_id.encode()).hexdigest()[:22]
        self._revoke(request_id, "revoking", Selector.of(token=token))

    def _blocking(self, request_id: str) -> None:
        # Moves the policy version under the mints.
        self._revoke(request_id, "blocking", Selector.of(partner="globex"))

    def _revoke(self, request_id: str, kind: str, selector: Selector) -> None:
        admin, request = Caller(ADMIN, Role.ADMIN), _request(ADMIN, request_id, kind)
        revoked = self.revoke(admin, selector, reason="a test", whole_realm=False, request=request)
        say(answered=request_id, kind=kind, index=revoked.index)


def _request(principal: str, request_id: str, contents: str) -> RequestKey:
    return RequestKey(principal, request_id, hashlib.sha256(contents.encode()).digest())


def live(url: str, folder: Path, repeat: list[list[str]]) -> None:
    doorless = Doorless(url, folder)
    for request_id, kind in repeat:
        doorless.ask(request_id, kind)
    say(ready=True)

    def go_on(*kinds: str) -> None:
        try:
            for kind in itertools.cycle(kinds):
                doorless.ask(secrets.token_urlsafe(12), kind)
        except BaseException:
            say(failed=traceback.format_exc()[-3000:])
            os._exit(1)

    for kinds in (["minting"], ["minting"], ["minting"], ["revoking"] * 9 + ["blocking"]):
        threading.Thread(target=go_on, args=kinds).start()
    signal.pause()


def main(url: str, folder: Path) -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                say(pid=os.getpid())
                live(url, folder, json.loads(line)["repeat"])
            except BaseException:
                say(failed=traceback.format_exc()[-3000:])
            os._exit(1)
        os.waitpid(pid, 0)
        say(gone=pid)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
