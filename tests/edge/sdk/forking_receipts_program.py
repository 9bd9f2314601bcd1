"""A service that forks while it keeps receipts: uses before, in the parent and in the child, each with its number."""

import os
import sys
from pathlib import Path

from broker.errors import Rejected
from broker.sdk import Identity, ReceiptPace, Verifier
from tests.waiting import eventually

PACE = ReceiptPace(send_every_s=0.1, answer_within_s=2.0)


def use(verifier: Verifier, token: str, number: int) -> None:
    def is_accepted() -> bool:
        try:
            verifier.verify(token, "mythos", request_hash=number.to_bytes(32, "big"))
        except Rejected:
            return False
        return True

    eventually(is_accepted, f"use {number} is accepted", within_s=20)


def told(verifier: Verifier) -> None:
    eventually(lambda: not verifier.state().receipts_waiting, "the broker has all receipts", within_s=20)


def main() -> None:
    endpoint, trust, certificate, key, ca, state_dir, token = sys.argv[1:]
    verifier = Verifier.connect(
        endpoint,
        realm="evaluation",
        trust=trust,
        identity=Identity(Path(certificate), Path(key), Path(ca)),
        state_dir=state_dir,
        receipt_pace=PACE,
    )
    verifier.wait_fresh(20)
    use(verifier, token, 100)
    child = os.fork()
    if child == 0:
        use(verifier, token, 200)
        told(verifier)
        verifier.close()
        os._exit(0)
    use(verifier, token, 101)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told(verifier)
    verifier.close()
    sys.exit(code)


if __name__ == "__main__":
    main()
