"""One real verifier in a process of its own, which says on request how it is: `python -m tests.bench.one_verifier`."""

import json
import sys
import time
from contextlib import suppress

from broker.errors import Revoked, Stale, Untrusted
from broker.sdk import Identity, Verifier
from tests.bench.feeding import peak_kib, rss_kib
from tests.bench.measuring import per_call_us


def main(arguments: dict[str, str]) -> None:
    """Answer each line of stdin with one line of JSON, until it ends."""
    identity = Identity(arguments["cert"], arguments["key"], arguments["ca"])
    with Verifier.connect(
        arguments["endpoint"], realm="evaluation", trust=arguments["trust"], identity=identity
    ) as verifier:
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(answer(verifier, asked)), flush=True)


def answer(verifier: Verifier, asked: dict[str, str]) -> dict[str, object]:
    """Do what is asked for."""
    match asked["do"]:
        case "fresh":
            began = time.monotonic()
            verifier.wait_fresh(120)
            return {"s": time.monotonic() - began}
        case "state":
            state = verifier.state()
            return {
                "head": state.head,
                "revocations": state.revocations,
                "kib": rss_kib("self"),
                "peak_kib": peak_kib("self"),
            }
        case "seen":
            return {"us": per_call_us(lambda: verifier.verify(asked["token"], "mythos"))}
        case "first":
            # Forgotten each time, so that the signature is checked anew.
            def first() -> None:
                verifier._young.clear()
                verifier._old.clear()
                verifier.verify(asked["token"], "mythos")

            return {"us": per_call_us(first)}
        case "until-accepted":
            while True:
                with suppress(Untrusted, Stale):
                    verifier.verify(asked["token"], "mythos")
                    return {"at": time.monotonic()}
                time.sleep(0.001)
        case "until-revoked":
            while True:
                try:
                    verifier.verify(asked["token"], "mythos")
                except Revoked:
                    return {"at": time.monotonic()}
                time.sleep(0.001)
        case unknown:
            raise ValueError(unknown)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
