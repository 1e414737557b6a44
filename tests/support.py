"""Starts the programs of tests/programs and talks their protocol (tests/programs/truth.h), always with a deadline.

A program knows the truth about its children and prints it; a test traces it meanwhile and compares.

    with Program.start(programs / "fates", "wait4", wait=True) as program:
        ...attach to program.pid...
        program.go()
        children = program.truth()     # from here on it blocks, and all of it stays true
        ...end the trace, compare...
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pytest

DEADLINE_S = 30.0


def wait_until(condition: Callable[[], object], deadline_s: float = DEADLINE_S, what: str = "") -> None:
    """Return once the condition holds; TimeoutError after the deadline, naming ``what`` was waited for."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline_s:g} s: {what or condition}")
        time.sleep(0.002)


def proc_state(pid: int) -> str | None:
    """The state letter in /proc/PID/stat ("Z" is a zombie); None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[0]


class Program:
    """One running program of tests/programs.  ``pid`` is its own, from its hello line."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes], deadline_s: float) -> None:
        self._process = process
        self._errors = errors
        self._deadline_s = deadline_s
        self._unread = b""
        self.hello = self._line()
        self.pid = int(self.hello["pid"])

    @classmethod
    def start(
        cls, path: Path, *arguments: str | int, wait: bool = False, deadline_s: float = DEADLINE_S
    ) -> Program:
        """Start it and read its hello.  With ``wait`` it makes no child before ``go``."""
        command = [*(["/usr/bin/python3"] if path.suffix == ".py" else []), str(path)]
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            process = subprocess.Popen(
                [*command, *(["--wait"] if wait else []), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        except BaseException:
            errors.close()
            raise
        try:
            return cls(process, errors, deadline_s)
        except BaseException:
            process.kill()
            process.communicate()
            errors.close()
            raise

    def go(self) -> None:
        """Let a program that was started with ``wait`` begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def truth(self) -> list[dict[str, Any]]:
        """All that it says until it is ready: one dict a line.  Skips the test where the kernel cannot do it."""
        said: list[dict[str, Any]] = []
        while True:
            line = self._line()
            if "skip" in line:
                pytest.skip(line["skip"])
            if line.get("ready"):
                return said
            said.append(line)

    def release(self) -> int:
        """Close its stdin, so that it ends; returns its exit status (negative: the signal)."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        return self._process.wait(self._deadline_s)

    def close(self) -> None:
        """Make sure that it is gone, with the process that it may hang in."""
        try:
            self.release()
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(self._deadline_s)
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._errors.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + self._deadline_s
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            if not readable:
                raise TimeoutError(f"{self._process.args} said nothing for {self._deadline_s:g} s")
            got = os.read(descriptor, 65536)
            if not got:
                raise EOFError(f"{self._process.args} ended early: {self._said_on_stderr()}")
            self._unread += got
        line, _, self._unread = self._unread.partition(b"\n")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def _said_on_stderr(self) -> str:
        self._process.wait(self._deadline_s)
        self._errors.seek(0)
        return f"status {self._process.returncode}, {self._errors.read().decode(errors='replace')!r}"
