"""The small charts of a report's page: plain SVG, which prints, with each number beside its color."""

from collections.abc import Sequence
from html import escape

_WIDTH = 440
_ROW = 22
_LABEL = 170
_BAR = 220


def bars(title: str, rows: Sequence[tuple[str, int, str]]) -> str:
    """Return horizontal bars: a label, a number and a class that gives the color."""
    most = max((count for _, count, _ in rows), default=0)
    height = 24 + _ROW * len(rows)
    parts = [
        f'<svg class="chart" role="img" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">',
        f"<title>{escape(title)}</title>",
        f'<text class="name" x="0" y="14">{escape(title)}</text>',
    ]
    for number, (label, count, color) in enumerate(rows):
        top = 24 + _ROW * number
        width = 0 if not most else max(round(_BAR * count / most), 2 if count else 0)
        parts += [
            f'<text x="{_LABEL - 8}" y="{top + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="rail" x="{_LABEL}" y="{top + 4}" width="{_BAR}" height="12" rx="2"/>',
            f'<rect class="{color}" x="{_LABEL}" y="{top + 4}" width="{width}" height="12" rx="2"/>',
            f'<text x="{_LABEL + _BAR + 8}" y="{top + 14}">{count}</text>',
        ]
    return "".join([*parts, "</svg>"])
