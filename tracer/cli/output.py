"""Where a finished trace goes: text or JSON, to stdout, stderr or a file."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import StringIO
from typing import TYPE_CHECKING, TextIO

from tracer.cli.options import Output
from tracer.errors import EXIT_LEAKS, ForktraceError
from tracer.invoker import give_to_invoking_user
from tracer.trace import Trace

if TYPE_CHECKING:
    from rich.console import Console


def open_report(output: Output, default: TextIO) -> AbstractContextManager[TextIO]:
    """Where the report will go.  A file is made now, so that a name that is taken is said before the trace."""
    return open_output(output.report, output.force, default)


def print_report(trace: Trace, output: Output, stream: TextIO) -> int:
    """Returns the exit status that the leaks ask for: 3 with --fail-on-leak, else 0."""
    try:
        if output.form == "json":
            from tracer.report import json  # noqa: PLC0415

            json.render(trace, stream)
        else:
            from tracer.report import text  # noqa: PLC0415

            console = _console(stream, output.color)
            with console.capture() as printed:  # written here: rich ends the program at a broken pipe
                text.render(trace, console)
            stream.write(printed.get())
        stream.flush()
    except BrokenPipeError:  # `| head` has read enough
        abandon(stream)
    except OSError as error:
        abandon(stream)
        raise ForktraceError(
            f"cannot print the report: {error.strerror}", "put it into a file that has room: --report FILE"
        ) from None
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
    """A file made exclusively (or replaced with ``force``), stdout for "-", else the default stream.

    What is written reaches the file when all of it is there; after an error no new file is left, and an old one is
    as it was.  When the file cannot take it, it goes to the default stream, for it may have taken hours to make.
    """
    if path is None or path == "-":
        stream = default if path is None else sys.stdout
        yield stream
        stream.flush()
        return
    is_new = not os.path.lexists(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if force else os.O_EXCL)
    try:
        fd = os.open(path, flags, 0o644)
    except FileExistsError:
        raise ForktraceError(f"{path} exists", "give another name, or --force to overwrite it") from None
    text = StringIO()
    try:
        with open(fd, "wb") as file:
            if is_new:
                give_to_invoking_user(fd)
            yield text
            if stat.S_ISREG(os.fstat(fd).st_mode):
                file.truncate()
            file.write(text.getvalue().encode("utf-8", "backslashreplace"))
    except BaseException as error:
        if is_new:
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - a name as it was given
        if isinstance(error, OSError) and text.getvalue():
            default.write(text.getvalue())
            default.flush()
            raise ForktraceError(f"{path}: {error.strerror}; it was printed instead") from None
        raise


def abandon(stream: TextIO) -> None:
    """What is left in its buffer has no reader; without this Python complains about it at the exit."""
    with suppress(OSError, ValueError), open(os.devnull, "w", encoding="ascii") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
