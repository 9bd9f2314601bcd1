"""Verifying: first sight and again, beside the bare signature check, PyJWT, joserfc and OpenBao's lookup."""

from contextlib import ExitStack
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from joserfc import jwk as jose_jwk
from joserfc import jwt as jose_jwt

from broker.token.jws import parse_jws
from broker.token.keys import public_jwk
from tests.authority import Authority
from tests.bench.measuring import Row, per_call_us
from tests.bench.openbao import peers
from tests.served import Served, wait_until


def run(folder: Path) -> list[Row]:
    """Measure in one thread."""
    bao = peers(folder, Authority(folder / "peers").server())["bare"].start()
    with ExitStack() as stack:
        stack.callback(bao.stop)
        broker = stack.enter_context(Served(folder / "served"))
        verifier = broker.verifier()
        token = broker.mint().token
        jws = parse_jws(token, typ="at+jwt")
        wait_until(lambda: jws.kid in verifier._follower.state.keys)
        key = verifier._follower.state.keys[jws.kid].public_key
        half = len(jws.signature) // 2
        der = encode_dss_signature(
            int.from_bytes(jws.signature[:half], "big"), int.from_bytes(jws.signature[half:], "big")
        )
        algorithm = ec.ECDSA(hashes.SHA256())

        def cold() -> None:
            verifier._young.clear()
            verifier._old.clear()
            verifier.verify(token, model="mythos")

        jose_key = jose_jwk.ECKey.import_key(public_jwk(key))
        lookup = bao.caller("GET", "auth/token/lookup-self", None, bao.user_token)
        bare = per_call_us(lambda: key.verify(der, jws.signing_input, algorithm))
        rows = [Row("verify", "bare ES256 verification", bare, "us")]
        measured = {
            "first sight of a token": per_call_us(cold),
            "token seen before": per_call_us(lambda: verifier.verify(token, model="mythos")),
            "PyJWT": per_call_us(
                lambda: jwt.decode(
                    token,
                    key,
                    algorithms=["ES256"],
                    audience="models.evaluation",
                    issuer="https://broker.example/evaluation",
                )
            ),
            "joserfc": per_call_us(lambda: jose_jwt.decode(token, jose_key, algorithms=["ES256"])),
            "OpenBao auth/token/lookup-self": per_call_us(lookup, seconds=2),
        }
        rows += [
            Row("verify", what, value, "us", "bare ES256 verification", value / bare)
            for what, value in measured.items()
        ]
        verifier.close()
    return rows
