"""Tokens come in by stdin, never as arguments: those show in the process list (P12)."""

import sys

from broker.edge.cli.problems import Misused
from broker.errors import Malformed
from broker.token.jws import MAX_TOKEN_BYTES

_HINT = "pipe one in, as in: broker token mint ... | broker token verify ..."


def read_token() -> str:
    """Return the one token on stdin, without the white space around it; unverified, and perhaps no token at all.

    Raises:
        Misused: stdin is a terminal.
        Malformed: It is empty, or longer than any token.
    """
    if sys.stdin.isatty():
        raise Misused("no token comes in: stdin is a terminal", hint=_HINT)
    # White space around it counts, so that what is read is bounded.
    data = sys.stdin.buffer.read(2 * MAX_TOKEN_BYTES + 1)
    if len(data) > 2 * MAX_TOKEN_BYTES:
        raise Malformed(f"what is on stdin is longer than {MAX_TOKEN_BYTES} bytes", hint=_HINT)
    text = data.decode("utf-8", "replace").strip()
    if not text:
        raise Malformed("there is no token on stdin", hint=_HINT)
    return text
