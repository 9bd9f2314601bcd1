"""Logs: one JSON object a line on standard error, and never a secret in it."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from functools import lru_cache

# The last net: what looks like a JWS is cut out, whoever wrote it into a message (P12).
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}")


_ENCODER = json.JSONEncoder(default=str, check_circular=False)


class JsonLines(logging.Formatter):
    """Formats a record; fields given as `extra={"fields": {...}}` stand beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        fields = {
            "at": f"{_to_the_second(int(record.created))}.{int(record.msecs):03}+00:00",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            # Class and place, not the text: an error of somebody else's may quote what it was given.
            error = record.exc_info[1]
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            fields["error"] = type(error).__name__
            if trace is not None:
                fields["where"] = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        return _TOKEN.sub("[redacted]", _ENCODER.encode(fields))


@lru_cache(8)
def _to_the_second(unix_s: int) -> str:
    # Thousands of lines share a second, and the text of one costs more than all else in a line.
    return datetime.fromtimestamp(unix_s, UTC).isoformat().removesuffix("+00:00")


def set_up_logs(level: str) -> None:
    """Send everything to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    # Who logged from where is never asked, but looked for at each line unless this is off.
    logging._srcfile = None  # noqa: SLF001 - the logging HOWTO's own advice
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # They log each request of theirs, with addresses, paths and headers.
    for name in ("urllib3", "hvac", "alembic", "asyncio", "uvicorn.access", "hpack"):
        logging.getLogger(name).setLevel(logging.WARNING)
