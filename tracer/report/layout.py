"""Widths and numbers for a terminal of any size: shortening in the middle, columns that share a line, durations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len

ELLIPSIS = "…"


def shorten(text: str, width: int, head: float = 0.35) -> str:
    """At most ``width`` cells: what is too much goes from the middle, so that a path keeps its end.

    head: the share of the width that the beginning keeps.
    """
    if cell_len(text) <= width:
        return text
    if width <= 1:
        return ELLIPSIS[:width]
    first = int((width - 1) * head)
    last = width - 1 - first
    return _head(text, first) + ELLIPSIS + _tail(text, last)


def _head(text: str, width: int) -> str:
    start = text[:width]
    while cell_len(start) > width:
        start = start[:-1]
    return start


def _tail(text: str, width: int) -> str:
    end = text[-width:]
    while cell_len(end) > width:
        end = end[1:]
    return end


def shorten_path(path: str, width: int) -> str:
    """A path in at most ``width`` cells: whole components from its end where they fit, ``/usr/…/lib/libc.so.6``."""
    if cell_len(path) <= width:
        return path
    parts = path.split("/")
    for start in range(2, len(parts)):
        for head in ("/".join(parts[:2]) + "/", ""):
            short = f"{head}{ELLIPSIS}/{'/'.join(parts[start:])}"
            if cell_len(short) <= width:
                return short
    return shorten(parts[-1], width)


def pad(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def column_widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Cells for each column, ``room`` at most in all: the widest give way first, down to equal shares."""
    widths = [max((cell_len(cell) for cell in column), default=0) for column in zip(*rows, strict=True)]
    while (excess := sum(widths) - room) > 0:
        widest = max(widths)
        others = [width for width in widths if width < widest]
        number = len(widths) - len(others)
        step = min(math.ceil(excess / number), widest - max(others, default=0))
        widths = [width - step if width == widest else width for width in widths]
    return widths


def duration(seconds: float) -> str:
    """0.8s, 12.3s, 4m12s, 3h05m, 2d04h."""
    tenths = round(max(seconds, 0.0) * 10)
    if tenths < 600:
        return f"{tenths / 10:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def latency(seconds: float) -> str:
    """Three digits at most, in the unit that fits: 35us, 1.2ms, 120ms, then as ``duration``."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit * 0.9995:
            value = seconds * factor
            return f"{value:.1f}{unit}" if 0 < value < 9.95 else f"{value:.0f}{unit}"
    return duration(seconds)


def rate(per_minute: float) -> str:
    """5.2 a minute; slow ones by the hour or the day.  Empty for none."""
    if per_minute >= 99.5:
        return f"{per_minute:,.0f} a minute"
    for factor, unit in ((1, "minute"), (60, "hour"), (1440, "day")):
        if per_minute * factor >= 0.95:
            return f"{per_minute * factor:.1f} a {unit}".replace("a hour", "an hour")
    return "less than one a day" if per_minute > 0 else ""
