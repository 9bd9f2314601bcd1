"""One real verifier in a process of its own, which says on request how it is: `python -m tests.bench.one_verifier`."""

import json
import sys
import time
from dataclasses import replace
from functools import partial

from broker.errors import Revoked, Stale, Untrusted
from broker.sdk import Identity, Verifier
from broker.token.revocation import Matcher
from tests.bench.feeding import peak_kib, rss_kib
from tests.bench.measuring import per_call_us

PATIENCE_S = 60.0
# The best of many short rounds: what disturbs one is not the list.
ROUND_S, ROUNDS = 0.05, 40


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
        case "with-and-without":
            return with_and_without(verifier, asked["token"])
        case "until-accepted":
            return until(verifier, asked["token"], is_accepted=True)
        case "until-revoked":
            return until(verifier, asked["token"], is_accepted=False)
        case unknown:
            raise ValueError(unknown)


def with_and_without(verifier: Verifier, token: str) -> dict[str, object]:
    """Return what verifying takes with the list that this verifier has, and with an empty one, in microseconds.

    By turns in one process, the best of each: minutes later the same machine may be half as fast.
    """
    state = replace(verifier._follower.state, accept_until_ns=1 << 62)
    twins = {"with": state, "without": replace(state, matcher=Matcher())}
    best: dict[str, float] = {}
    verifiers = {name: Verifier(verifier._connection, verifier._trust) for name in twins}
    for name, twin in verifiers.items():
        twin._follower.state = twins[name]
    for _ in range(ROUNDS):
        for name, twin in verifiers.items():
            for what, call in (("seen", partial(twin.verify, token, "mythos")), ("first", partial(first, twin, token))):
                took_us = per_call_us(call, seconds=ROUND_S, rounds=1)
                best[f"{what} {name}"] = min(took_us, best.get(f"{what} {name}", took_us))
    return dict(best)


def first(verifier: Verifier, token: str) -> None:
    """Verify a token that was forgotten, so that its signature is checked anew."""
    verifier._young.clear()
    verifier._old.clear()
    verifier.verify(token, "mythos")


def until(verifier: Verifier, token: str, *, is_accepted: bool) -> dict[str, object]:
    """Verify again and again; return when the answer was the one wanted. Raises TimeoutError."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if verdict(verifier, token) is is_accepted:
            return {"at": time.monotonic()}
        time.sleep(0.001)
    raise TimeoutError


def verdict(verifier: Verifier, token: str) -> bool | None:
    """Return whether the token is good or revoked. None: stale, or its key is not known yet, which is no answer."""
    try:
        verifier.verify(token, "mythos")
    except Revoked:
        return False
    except (Stale, Untrusted):
        return None
    return True


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
