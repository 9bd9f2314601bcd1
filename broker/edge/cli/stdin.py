"""What comes in by stdin: tokens, which arguments would show in the process list (P12), and many ids."""

import sys

from broker.edge.cli.problems import Misused
from broker.errors import Invalid, Malformed
from broker.token.identifiers import opaque_id
from broker.token.jws import MAX_TOKEN_BYTES

MAX_IDS = 10_000_000
MOST_LINES_NAMED = 10
# An id has at most 64 characters; white space around it is let in.
_MAX_LINE_BYTES = 256
_IDS_HINT = "give token ids, one a line, as in: broker revoke tokens --realm R --reason TEXT < ids"
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


def read_ids() -> list[str]:
    """Return the token ids on stdin, one a line, each once, in their order. Empty lines are passed over.

    Raises:
        Misused: stdin is a terminal, holds no id or too many, or a line is none: the lines are named, and not
            repeated, because one could be a token.
    """
    if sys.stdin.isatty():
        raise Misused("no ids come in: stdin is a terminal", hint=_IDS_HINT)
    ids: dict[str, None] = {}
    bad: list[int] = []
    number = 0
    while line := sys.stdin.buffer.readline(_MAX_LINE_BYTES):
        number += 1
        while not line.endswith(b"\n") and len(line) == _MAX_LINE_BYTES:
            # Far too long for an id: the rest of the line is passed over, not kept.
            line = b"." + sys.stdin.buffer.readline(_MAX_LINE_BYTES)[-_MAX_LINE_BYTES + 1 :]
        text = line.decode("ascii", "replace").strip()
        if not text:
            continue
        try:
            ids[opaque_id("token", text)] = None
        except Invalid:
            bad.append(number)
        if len(ids) > MAX_IDS:
            raise Misused(f"there are more than {MAX_IDS} ids on stdin", hint="split them up")
    if bad:
        named = ", ".join(str(one) for one in bad[:MOST_LINES_NAMED])
        more = f" and {len(bad) - MOST_LINES_NAMED} more" if len(bad) > MOST_LINES_NAMED else ""
        raise Misused(f"no token id in line {named}{more}; nothing was sent", hint=_IDS_HINT)
    if not ids:
        raise Misused("there is no id on stdin", hint=_IDS_HINT)
    return list(ids)
