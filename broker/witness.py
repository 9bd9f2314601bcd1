"""Run a witness: `broker witness`, a process of its own that watches that logs only grow."""

import asyncio
import secrets
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.adapters.clock import SystemClock
from broker.adapters.key_files import load_or_make, write_secret
from broker.adapters.logs import set_up_logs
from broker.adapters.sql.engine import DataFolder
from broker.adapters.witness_store import WitnessStore, logs_of
from broker.doors import Doors, http_server, http_socket_of
from broker.edge.http.witness import make_witness_app
from broker.errors import Failure, SignerUnavailable
from broker.ledger.note import KeyKind, NoteSignature, VerifierKey, cosign_note, parse_vkey

EXIT_DONE, EXIT_FAILED = 0, 1


def run_witness(
    *, name: str, data: Path, listen: str, logs: Sequence[str], cert: Path, key: Path, passphrase: Path | None
) -> int:
    """Witness until told to stop; return the exit code."""
    set_up_logs("info")
    try:
        folder = DataFolder(data)
        try:
            private, public = _key(name, data, passphrase)
            clock = SystemClock()

            def cosign(text: str) -> NoteSignature:
                return cosign_note(text, public, private.sign, int(clock.now().timestamp()))

            store = WitnessStore(data, logs_of(tuple(parse_vkey(one) for one in logs)), cosign)
            return asyncio.run(_serve(store, Doors("", listen, cert, key, cert), public))
        finally:
            folder.release()
    except Failure as failure:
        sys.stderr.write(f"broker: failed: {failure}\n")
        return EXIT_FAILED
    except OSError as problem:
        sys.stderr.write(f"broker: failed: {cert} and {key} are no certificate and its key: {problem.strerror}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_DONE


async def _serve(store: WitnessStore, doors: Doors, public: VerifierKey) -> int:
    socket = http_socket_of(doors, field="--listen")
    assert socket is not None  # noqa: S101 - it listens on HTTP
    server: uvicorn.Server = http_server(doors, make_witness_app(store))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve([socket]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn tells by a flag
        await asyncio.sleep(0.01)
    sys.stdout.write(f"witness is ready at port {socket.getsockname()[1]}, with the key {public}\n")
    sys.stdout.flush()
    await serving
    return EXIT_DONE


def _key(name: str, data: Path, passphrase: Path | None) -> tuple[Ed25519PrivateKey, VerifierKey]:
    """Return the witness's key, made on first use. Without a passphrase of one's own it stands beside it."""
    secret = passphrase or data / "passphrase"
    try:
        if passphrase is None and not secret.exists():
            write_secret(secret, secrets.token_hex(32).encode())
        private = load_or_make(data / "witness.pem", secret.read_bytes().strip(), Ed25519PrivateKey.generate)
    except OSError as problem:
        raise SignerUnavailable(f"{secret} cannot be used: {problem.strerror}") from problem
    if not isinstance(private, Ed25519PrivateKey):
        raise SignerUnavailable(f"{data / 'witness.pem'} is not an Ed25519 key")
    return private, VerifierKey(name, KeyKind.COSIGNATURE, private.public_key().public_bytes_raw())
