"""Where an export goes: stdout or a file, a piece at a time, for it may be large."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO, TextIO

from tracer.errors import ForktraceError, UsageError
from tracer.invoker import give_to_invoking_user


@contextmanager
def open_export(path: str | None, force: bool, binary: bool, stdout: TextIO) -> Iterator[TextIO | BinaryIO]:
    """A stream of text (UTF-8, no newline translated), or of bytes.

    A file is made exclusively; ``force`` replaces one when the new one is complete.  After an error none is left.
    """
    if path is None or path == "-":
        if binary and stdout.isatty():
            raise UsageError("it is binary, and no terminal shows it", "name a file with -o FILE")
        with _text_or_bytes(stdout.buffer, binary) as stream:
            yield stream
        return
    with _open(Path(path), force) as file, _text_or_bytes(file, binary) as stream:
        yield stream


@contextmanager
def _text_or_bytes(file: BinaryIO, binary: bool) -> Iterator[TextIO | BinaryIO]:
    if binary:
        yield file
        file.flush()
        return
    text = TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    try:
        yield text
        text.flush()
    finally:
        with suppress(OSError, ValueError):
            text.detach()  # it would close the file


@contextmanager
def _open(path: Path, force: bool) -> Iterator[BinaryIO]:
    try:
        there: os.stat_result | None = path.lstat() if force else None
    except FileNotFoundError:
        there = None
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    if there is None:
        try:
            descriptor, new = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644), path
        except FileExistsError:
            raise ForktraceError(f"{path} exists", "give another name, or --force to overwrite it") from None
    elif stat.S_ISREG(there.st_mode):
        descriptor, name = mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.fchmod(descriptor, stat.S_IMODE(there.st_mode))
        new = Path(name)
    else:  # a pipe, /dev/null
        with open(os.open(path, flags), "wb") as file:
            yield file
        return
    try:
        with open(descriptor, "wb") as file:
            give_to_invoking_user(descriptor)
            yield file
        if new != path:
            new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
