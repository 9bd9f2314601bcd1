"""Spans of time on the command line: `90s`, `10m`, `1h`, `30d`."""

import re
from typing import NoReturn

import click

_SPAN = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Span(click.ParamType[int]):
    """Whole seconds, at least one."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the seconds of `value`, or fail as a usage error."""
        # A bare zero needs no unit, and is refused for what it is.
        match = _SPAN.fullmatch("0s" if str(value) == "0" else str(value))
        if match is None:
            self._refuse(f"{value!r} is not a duration: write 90s, 10m or 1h", param, ctx)
        seconds = int(match[1]) * _SECONDS[match[2]]
        if seconds < 1:
            self._refuse(f"{value!r} is no time at all: at least 1s is needed", param, ctx)
        return seconds

    def _refuse(self, message: str, param: click.Parameter | None, ctx: click.Context | None) -> NoReturn:
        self.fail(message, param, ctx)


def shown(seconds: float) -> str:
    """Return a span for people: `250 ms`, `12.5 s`, `3 m 20 s`, `2 h 5 m`."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {rest} s"
