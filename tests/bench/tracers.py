"""forktrace and its peers, as commands: how each is attached to processes, when it is ready, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FORKTRACE = ROOT / ".venv/bin/forktrace"
HEADERS = Path(f"/lib/modules/{os.uname().release}/build")  # the running kernel's, where BCC looks for them
READY_S, END_S = 30.0, 60.0


class DoesNotRun(Exception):
    """This tracer is not installed, or does not work on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Tracer:
    """command(pids, directory): the arguments; whatever it writes goes below the directory.
    ready(running): its tracing has begun.  speed: rounds of the load, as a share of what a light tracer gets.
    """

    name: str
    command: Callable[[Sequence[int], Path], list[str | Path]]
    ready: Callable[[Running], bool]
    speed: float = 1.0
    version: Callable[[], str] = str


@dataclass(slots=True)
class Running:
    """A tracer at work.  printed: its whole stdout, once it has ended."""

    process: subprocess.Popen[bytes]
    pids: Sequence[int]
    said_file: Path
    printed: str = ""

    def said(self) -> str:
        """Its stderr so far."""
        return self.said_file.read_text(errors="replace")

    def cpu_s(self) -> float:
        """CPU time of all its threads so far, in the scheduler's nanoseconds."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def result(self) -> Any:
        return json.loads(self.printed)


@contextmanager
def attached(tracer: Tracer, pids: Sequence[int]) -> Iterator[Running]:
    """Start the tracer on running processes, yield when it is ready, end it by SIGINT.  Raises ``DoesNotRun``."""
    environment = dict(os.environ)
    if not HEADERS.exists():  # then BCC's users get nowhere; with ours some do
        environment["BCC_KERNEL_SOURCE"] = str(ROOT / "bpf")
    with TemporaryDirectory(prefix="forktrace-bench-") as name:
        directory = Path(name)
        printed, said = directory / "printed", directory / "said"
        command = tracer.command(pids, directory)
        with printed.open("wb") as stdout, said.open("wb") as stderr:
            try:
                process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
            except FileNotFoundError:
                raise DoesNotRun(f"{command[0]} is not installed") from None
        running = Running(process, pids, said)
        try:
            end = time.monotonic() + READY_S
            while not tracer.ready(running):
                if process.poll() is not None or time.monotonic() > end:
                    raise DoesNotRun(_why(running))
                time.sleep(0.002)
            yield running
        finally:
            stop(process)
            running.printed = printed.read_text(errors="replace")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _why(running: Running) -> str:
    lines = [line.strip() for line in running.said().splitlines() if line.strip()]
    named = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
    return f"it does not run here: {named}"


def forktrace(*options: str) -> Tracer:
    def command(pids: Sequence[int], directory: Path) -> list[str | Path]:
        return [FORKTRACE, "--json", *options, "-p", ",".join(map(str, pids))]

    return Tracer(
        " ".join(["forktrace", *options]), command, lambda running: "forktrace: tracing" in running.said()
    )


def bcc_callback() -> Tracer:
    def command(pids: Sequence[int], directory: Path) -> list[str | Path]:
        return [sys.executable, Path(__file__).with_name("bcc_callback.py"), *map(str, pids)]

    return Tracer(
        "BCC, Python callback",
        command,
        lambda running: "tracing" in running.said(),
        version=lambda: _output([sys.executable, "-c", "import bcc; print('BCC', bcc.__version__)"]),
    )


def strace(*options: str, speed: float) -> Tracer:
    def command(pids: Sequence[int], directory: Path) -> list[str | Path]:
        which = [word for pid in pids for word in ("-p", str(pid))]
        return ["strace", "-q", "-f", *options, "-e", "trace=process", "-o", directory / "strace.out", *which]

    def ready(running: Running) -> bool:
        return all("TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text() for pid in running.pids)

    return Tracer(
        " ".join(["strace -f", *options, "-e trace=process"]),
        command,
        ready,
        speed,
        lambda: _output(["strace", "--version"]).replace("-- version ", ""),
    )


def perf() -> Tracer:
    def command(pids: Sequence[int], directory: Path) -> list[str | Path]:
        events = "sched:sched_process_fork,sched:sched_process_exit"
        targets = ",".join(map(str, pids))
        file = directory / "perf.data"
        return ["perf", "record", "-q", "-e", events, "--call-graph", "dwarf", "-o", file, "-p", targets]

    return Tracer(
        "perf record --call-graph dwarf",
        command,
        _has_perf_events,
        0.5,
        lambda: _output(["perf", "--version"]),
    )


def exitsnoop() -> Tracer:
    name = shutil.which("exitsnoop-bpfcc") or "exitsnoop-bpfcc"
    return Tracer("exitsnoop (bcc tools)", lambda pids, directory: [name], _has_perf_events)


def _has_perf_events(running: Running) -> bool:
    """Its perf events and their buffers are there, for a while now."""

    def count() -> int:
        links = Path(f"/proc/{running.process.pid}/fd").iterdir()
        return sum(str(link.readlink()) == "anon_inode:[perf_event]" for link in links)

    try:
        before = count()
        time.sleep(0.1)
        return bool(before) and count() == before
    except OSError:
        return False


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return (done.stdout.splitlines() or [""])[0]
