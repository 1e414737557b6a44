"""Start until the first event can be seen, stop to report, and memory: the real command, seen from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from loop import Loop
from tracers import FORKTRACE

CACHE = "/var/cache/forktrace"
# In a mount namespace of its own: the cache is empty there, and what is compiled goes with it.
COLD = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    f'mkdir -p {CACHE} && mount -t tmpfs -o mode=700 none {CACHE} && exec "$@"',
    "sh",
)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds, shortest first.  start: from the command to its word that it traces.  stop: from Ctrl-C to its end."""

    cold_start: list[float]
    warm_start: list[float]
    stop: list[float]


@dataclass(frozen=True, slots=True)
class Memory:
    """MB.  rss counts what it maps, pss its share of it; rings: the part that is the kernel's rings."""

    when: str
    rss: float
    pss: float
    rings: float


def measure(programs: Path, samples: int) -> Times:
    cold = [_times(programs, COLD)[0] for _ in range(samples)]
    warm = [_times(programs, ()) for _ in range(samples + 1)][1:]
    return Times(sorted(cold), sorted(start for start, _ in warm), sorted(stop for _, stop in warm))


def _times(programs: Path, prefix: tuple[str, ...]) -> tuple[float, float]:
    with Loop(programs, 1) as loop:
        begin = time.monotonic()
        process = _start(prefix, loop.pid)
        start = time.monotonic() - begin
        loop.go()
        loop.result()
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        return start, time.monotonic() - begin


def _start(prefix: tuple[str, ...], pid: int) -> subprocess.Popen[bytes]:
    command = [*prefix, str(FORKTRACE), "-p", str(pid)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.readline()
    if not said.startswith(b"forktrace: tracing"):
        process.kill()
        raise RuntimeError(
            f"forktrace did not start: {said.decode(errors='replace')}{process.communicate()[1]!r}"
        )
    return process


def memory(programs: Path, rounds: int) -> list[Memory]:
    """At rest; after a storm of forks; and the most that the compiler, a process of its own, ever had."""
    with Loop(programs, rounds, "vfork") as loop:
        process = _start((), loop.pid)
        try:
            rows = [_memory("at rest", process.pid)]
            loop.go()
            loop.result()
            time.sleep(0.3)
            rows.append(_memory(f"after {rounds} forks", process.pid))
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    rows.append(Memory("the compiler, at its peak (cold start only)", _compiler_peak(programs), 0, 0))
    return rows


def _memory(when: str, pid: int) -> Memory:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rings, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if not line[0].isupper():
            inside = line.endswith("bpf-map")
        elif inside and line.startswith("Rss:"):
            rings += int(line.split()[1])
    return Memory(when, _kb(rollup, "Rss:") / 1024, _kb(rollup, "Pss:") / 1024, rings / 1024)


def _kb(text: str, name: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)


def _compiler_peak(programs: Path) -> float:
    """wait4 gives the largest of a process and the children it waited for."""
    with Loop(programs, 1) as loop:
        process = _start(COLD, loop.pid)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        threading.Thread(target=process.stderr.read, daemon=True).start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / 1024
