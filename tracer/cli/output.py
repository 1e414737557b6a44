"""Where a finished trace goes: text or JSON, to stdout, stderr or a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from tracer.cli.options import Output
from tracer.errors import EXIT_LEAKS, ForktraceError
from tracer.trace import Trace

if TYPE_CHECKING:
    from rich.console import Console


def print_report(trace: Trace, output: Output, default: TextIO) -> int:
    """Returns the exit status that the leaks ask for: 3 with --fail-on-leak, else 0."""
    with open_output(output.report, output.force, default) as stream:
        if output.form == "json":
            from tracer.report import json  # noqa: PLC0415

            json.render(trace, stream)
        else:
            from tracer.report import text  # noqa: PLC0415

            text.render(trace, _console(stream, output.color))
    return EXIT_LEAKS if output.fail_on_leak and trace.leaks else 0


def _console(stream: TextIO, color: str) -> Console:
    """Colour on a terminal that wants it; NO_COLOR is rich's to honour."""
    from rich.console import Console  # noqa: PLC0415 - 50 ms, and only for text

    forced = {"auto": None, "always": True, "never": False}[color]
    return Console(
        file=stream, force_terminal=forced, no_color=True if color == "never" else None, highlight=False
    )


@contextmanager
def open_output(path: str | None, force: bool, default: TextIO) -> Iterator[TextIO]:
    """A file made exclusively (or replaced with ``force``), stdout for "-", else the default stream."""
    if path is None or path == "-":
        stream = default if path is None else sys.stdout
        yield stream
        stream.flush()
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_TRUNC if force else os.O_EXCL)
    try:
        fd = os.open(path, flags, 0o644)
    except FileExistsError:
        raise ForktraceError(f"{path} exists", "give another name, or --force to overwrite it") from None
    with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
        yield file
