"""On a terminal: 80 columns, colour and its absence, Ctrl-C as the terminal sends it, a command that reads from it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import DEADLINE_S, FORKTRACE, environment
from rich.cells import cell_len
from support import Program

pytestmark = pytest.mark.kernel

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
COLOURS = re.compile(r"\x1b\[(?:\d+;)*[349]\dm")


class Terminal:
    """What is typed at, and shown by, a terminal whose foreground job is one forktrace."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master: int = master
        self.process = process
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def await_showing(self, words: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while words not in self.shown:
            assert self._read(end), f"never shown: {words}; but: {self.shown}"

    def hang_up(self) -> None:
        if self._master >= 0:
            os.close(self._master)
        self._master = -1

    def end(self) -> int:
        end = time.monotonic() + DEADLINE_S
        while self._read(end):
            pass
        assert "Traceback" not in self.shown
        return self.process.wait(DEADLINE_S)

    def _read(self, end: float) -> bool:
        readable, _, _ = select.select([self._master], [], [], max(end - time.monotonic(), 0))
        try:
            got = os.read(self._master, 65536) if readable else b""
        except OSError:  # EIO: the last one has closed the other side
            got = b""
        self.shown += got.decode().replace("\r\n", "\n")
        return bool(got)


@contextmanager
def terminal(
    *arguments: object, columns: int = 80, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    process = subprocess.Popen(
        ["setsid", "--ctty", *FORKTRACE, *map(str, arguments)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment({"TERM": "xterm-256color", **(env or {})}),
    )
    os.close(slave)
    screen = Terminal(master, process)
    try:
        yield screen
    finally:
        process.kill()
        process.wait()
        screen.hang_up()


def traced_on(terminal: Terminal, program: Program) -> str:
    """The report, after a Ctrl-C."""
    terminal.await_showing("Ctrl-C ends it\n")
    program.go()
    program.truth()
    terminal.type("\x03")
    assert terminal.end() == 0
    return terminal.shown.partition("Ctrl-C ends it\n")[2].removeprefix("^C\n")


@pytest.fixture
def leaky(start: Callable[..., Program]) -> Program:
    return start("leaky_main", 3, 1, wait=True)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_report_fits_and_has_colour(columns: int, leaky: Program) -> None:
    with terminal("-p", leaky.pid, "--min-age", 0, columns=columns) as screen:
        report = traced_on(screen, leaky)
    assert COLOURS.search(report)
    plain = ESCAPES.sub("", report)
    assert "\x1b" not in plain
    assert plain.startswith("3 children never waited for,")
    assert max(map(cell_len, plain.splitlines())) <= columns


def test_columns_wins_over_the_terminal(leaky: Program) -> None:
    with terminal("-p", leaky.pid, "--min-age", 0, env={"COLUMNS": "40"}) as screen:
        report = traced_on(screen, leaky)
    assert max(cell_len(ESCAPES.sub("", line)) for line in report.splitlines()) <= 40


@pytest.mark.parametrize(
    ("options", "env"), [([], {"NO_COLOR": "1"}), (["--color", "never"], {}), ([], {"TERM": "dumb"})]
)
def test_no_colour(options: list[str], env: dict[str, str], leaky: Program) -> None:
    with terminal("-p", leaky.pid, "--min-age", 0, *options, env=env) as screen:
        report = traced_on(screen, leaky)
    assert not COLOURS.search(report)


def test_the_command_reads_from_the_terminal() -> None:
    with terminal("run", "--", "sh", "-c", "read -r word; echo got $word") as screen:
        screen.type("hello\n")
        assert screen.end() == 0
    assert "got hello\n" in screen.shown
    assert "Totals" in screen.shown


def test_ctrl_c_reaches_the_command_too() -> None:
    with terminal("run", "--", "sh", "-c", "echo ready; exec sleep 60") as screen:
        screen.await_showing("ready\n")
        screen.type("\x03")
        assert screen.end() == 130
    assert "Totals" in screen.shown
    assert "is still running" not in screen.shown


def test_a_terminal_that_hangs_up_ends_the_trace(leaky: Program, tmp_path: Path) -> None:
    with terminal("-p", leaky.pid, "--min-age", 0, "--report", tmp_path / "report") as screen:
        screen.await_showing("Ctrl-C ends it\n")
        leaky.go()
        leaky.truth()
        screen.hang_up()
        assert screen.process.wait(DEADLINE_S) == 0
    assert (tmp_path / "report").read_text().startswith("3 children never waited for,")
