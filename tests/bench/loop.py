"""The load: tests/programs/forkloop, started halted, so that a tracer can be attached before its first fork."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

DEADLINE_S = 60.0


class Loop:
    """One forkloop: ``go``, then ``result``; it lives, idle, until it is closed."""

    def __init__(self, programs: Path, rounds: int, how: str = "fork") -> None:
        arguments = ["--wait", str(rounds), *([] if how == "fork" else [f"--{how}"])]
        self._process = subprocess.Popen(
            [programs / "forkloop", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._unread = b""
        self.rounds = rounds
        self.pid = int(self._line()["pid"])

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    def result(self) -> float:
        """Seconds a round, by the loop's own clock, once it is through."""
        seconds = float(self._line()["ns_per_round"]) / 1e9
        self._line()
        return seconds

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self.close()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        end = time.monotonic() + DEADLINE_S
        while b"\n" not in self._unread:
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"forkloop (pid {self._process.pid}) said nothing for {DEADLINE_S:g} s")
            got = self._process.stdout.read(4096)
            if not got:
                raise EOFError(f"forkloop ended early: status {self._process.wait()}")
            self._unread += got
        line, _, self._unread = self._unread.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found
