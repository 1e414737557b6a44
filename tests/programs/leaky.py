#!/usr/bin/python3
"""A Python service that leaks: half of its requests fork and forget, half keep a Popen that nobody waits for.

    leaky.py [--wait] COUNT INTERVAL_MS

It talks the protocol of truth.h and prints
{"leaked": N, "waited": N, "functions": {...: count}, "leaked_pids": [...], "waited_pids": [...]}.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

DEADLINE_S = 60.0


def leak_by_fork() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


def leak_by_popen(kept: list[subprocess.Popen[bytes]]) -> int:
    # kept on purpose: subprocess polls the children of dropped Popen objects, and would reap this one by accident
    kept.append(subprocess.Popen(["/bin/true"]))
    return kept[-1].pid


def work_and_wait() -> int:
    child = subprocess.Popen(["/bin/true"])
    child.wait(DEADLINE_S)
    return child.pid


def is_zombie(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return stat.rpartition(")")[2].split()[0] == "Z"


def await_zombie(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_zombie(pid):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{pid} does not die")
        time.sleep(0.001)


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


class Input:
    """stdin, SIGUSR1 and SIGTERM, watched from its making on: what comes between two waits is not lost."""

    def __init__(self) -> None:
        self._signals: set[int] = set()
        self._wake, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda caught, _frame: self._signals.add(caught))

    def wait(self, *, line: bool) -> bool:
        """Wait for a line or SIGUSR1 (or without ``line`` for neither).  False: stdin ended, or SIGTERM came."""
        while signal.SIGTERM not in self._signals:
            if line and signal.SIGUSR1 in self._signals:
                return True
            readable, _, _ = select.select([0, self._wake], [], [])
            if self._wake in readable:
                os.read(self._wake, 64)
            if 0 in readable:
                got = os.read(0, 4096)
                if not got:
                    return False
                if line and b"\n" in got:
                    return True
        return False


def main(arguments: list[str]) -> int:
    wait = "--wait" in arguments
    numbers = [argument for argument in arguments if argument != "--wait"]
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        print("usage: leaky.py [--wait] COUNT INTERVAL_MS", file=sys.stderr)
        return 2
    count, interval_ms = map(int, numbers)
    told = Input()
    say(hello="leaky.py", pid=os.getpid(), waiting=wait)
    if wait and not told.wait(line=True):
        return 0
    kept: list[subprocess.Popen[bytes]] = []
    leaked, waited = [], []
    functions = {"leak_by_fork": 0, "leak_by_popen": 0}
    for request in range(count):
        if request % 2:
            leaked.append(leak_by_popen(kept))
            functions["leak_by_popen"] += 1
        else:
            leaked.append(leak_by_fork())
            functions["leak_by_fork"] += 1
        waited.append(work_and_wait())
        time.sleep(interval_ms / 1000)
    for pid in leaked:
        await_zombie(pid)
    say(leaked=count, waited=len(waited), functions=functions, leaked_pids=leaked, waited_pids=waited)
    say(ready=True)
    told.wait(line=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
