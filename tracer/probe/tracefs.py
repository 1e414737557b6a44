"""Ids and record layouts of the syscall tracepoints, from tracefs.

Where tracefs is not mounted it is mounted privately: nothing appears on the host, and it is gone with the descriptor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tracer.errors import Unavailable
from tracer.probe import syscalls

MOUNTS: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_FIELD = re.compile(r"field:.*?(\w+)(?:\[\d*\])?;\s*offset:(\d+);\s*size:(\d+);")


class Tracefs:
    """An open tracefs.  ``directory`` is a descriptor on its root."""

    def __init__(self, directory: int) -> None:
        self._directory = directory

    def _read(self, path: str) -> str:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        with open(fd, encoding="ascii", errors="replace") as file:
            return file.read()

    def event_id(self, category: str, name: str) -> int | None:
        """The tracepoint's number for perf_event_open, None if this kernel does not have it."""
        try:
            return int(self._read(f"events/{category}/{name}/id"))
        except (OSError, ValueError):
            return None

    def field_offset(self, category: str, name: str, field: str) -> int | None:
        try:
            text = self._read(f"events/{category}/{name}/format")
        except OSError:
            return None
        return next((int(m[2]) for m in _FIELD.finditer(text) if m[1] == field), None)


@contextmanager
def open_tracefs(mounts: tuple[str, ...] = MOUNTS) -> Iterator[Tracefs]:
    """Raises ``Unavailable`` where there is none and none can be mounted."""
    directory = _open(mounts)
    try:
        yield Tracefs(directory)
    finally:
        os.close(directory)


def _open(mounts: tuple[str, ...]) -> int:
    for path in mounts:
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            os.stat("events", dir_fd=directory)
        except OSError:
            os.close(directory)
            continue
        return directory
    try:
        return syscalls.private_mount("tracefs")
    except OSError as error:
        raise Unavailable(
            f"tracefs is not mounted and cannot be mounted privately ({error.strerror})",
            "mount -t tracefs none /sys/kernel/tracing, or trace with --light, which does without it",
        ) from None
