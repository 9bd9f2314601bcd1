"""A service that uses tokens as fast as it is told, and says of each use that was accepted, once it was.

Reads a line of JSON with how to connect and a token, then uses the token again and again, each use with a number of
its own in the request hash. Writes the number of each accepted use, and the reason of each refusal. Ends when its
input does.
"""

import ctypes
import json
import os
import signal
import sys
import threading
from pathlib import Path

from broker.errors import Rejected
from broker.sdk import Identity, ReceiptPace, Verifier
from broker.sdk.stream import Pace

PR_SET_PDEATHSIG = 1


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    how = json.loads(sys.stdin.readline())
    verifier = Verifier.connect(
        how["endpoint"],
        realm="evaluation",
        trust=how["trust"],
        identity=Identity(*(Path(how[paper]) for paper in ("certificate", "key", "ca"))),
        state_dir=how["state_dir"],
        pace=Pace(**how["pace"]),
        receipt_pace=ReceiptPace(**how["receipt_pace"]),
        max_spool_bytes=how["max_spool_bytes"],
    )
    ended, resting = threading.Event(), threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    number = how["first"]
    while not ended.is_set():
        try:
            verifier.verify(how["token"], "mythos", request_hash=number.to_bytes(32, "big"))
        except Rejected as refused:
            os.write(1, f"{refused.reason}\n".encode())
            resting.wait(0.01)
            continue
        os.write(1, f"{number}\n".encode())
        number += 1
        if how["rest_s"]:
            resting.wait(how["rest_s"])
    verifier.close()


if __name__ == "__main__":
    main()
