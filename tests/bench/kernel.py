"""What the BPF programs themselves cost, from the kernel's own statistics (BPF_ENABLE_STATS), by kind of fork.

The kernel counts the time of every program while the statistics' descriptor is open.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import tracers
from loop import Loop
from tracers import attached

from tracer.probe import syscalls
from tracer.probe.build import Options, build_walker

_MAP_LOOKUP, _PROG_FD_BY_ID, _MAP_FD_BY_ID, _OBJ_INFO, _ENABLE_STATS = 1, 13, 14, 15, 32  # enum bpf_cmd
_NAME, _RUN_TIME, _INFO_SIZE = 64, 192, 200  # of struct bpf_prog_info
_MAP_NAME, _MAP_INFO_SIZE = 24, 40  # of struct bpf_map_info


@dataclass(frozen=True, slots=True)
class Load:
    """What one load cost, by its forks.  samples: forks whose stack the kernel did not know.
    bpf_us: microseconds in each program a fork; the filtering of the host's other processes is in it.
    tracer_us: CPU time of the tracer a fork, stacks included.
    """

    name: str
    forks: int
    samples: int
    bpf_us: dict[str, float]
    tracer_us: float


def measure(programs: Path, quick: bool) -> list[Load]:
    share = 0.2 if quick else 1
    # Until its walker is compiled, every stack of an interpreter is unknown.
    for language in ("python", "bash"):
        build_walker(language, Options())
    with _statistics():
        return [
            _loop(programs, "C: fork, _exit, waitpid", "fork", int(10_000 * share)),
            _loop(programs, "C: vfork, _exit, waitpid", "vfork", int(20_000 * share)),
            _script("Python: subprocess.run", _PYTHON, int(500 * share)),
            _script("bash: $(true); /bin/true", _BASH, int(500 * share)),
            _script("bash -c '/bin/true; :'", _SHELLS, int(200 * share)),
            _strangers(programs, "C: fork, of a process not traced", int(10_000 * share)),
        ]


_PYTHON = (
    sys.executable,
    "-c",
    "import subprocess, sys\nsys.stdin.readline()\n"
    "for _ in range(int(sys.argv[1])): subprocess.run(['/bin/true'])\n"
    "print('done', flush=True)\nsys.stdin.read()",
)
_BASH = (
    "bash",
    "-c",
    'read -r; for ((i = 0; i < $1; i++)); do x=$(true); /bin/true; done; echo "done$x"; read -r',
    "bash",
)
_SHELLS = (
    "bash",
    "-c",
    "read -r; for ((i = 0; i < $1; i++)); do bash -c '/bin/true; :'; done; echo done; read -r",
    "bash",
)


def _loop(programs: Path, name: str, how: str, rounds: int) -> Load:
    with Loop(programs, rounds, how) as loop:
        return _load(name, loop.pid, loop.go, loop.result)


def _script(name: str, command: tuple[str, ...], rounds: int) -> Load:
    process = subprocess.Popen(
        [*command, str(rounds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    try:
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout
        return _load(name, process.pid, lambda: stdin.write(b"go\n"), stdout.readline)
    finally:
        process.stdin and process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _strangers(programs: Path, name: str, rounds: int) -> Load:
    """What a process pays that is not traced, while another one is."""
    with Loop(programs, 1) as traced, Loop(programs, rounds) as stranger:
        return _load(name, traced.pid, stranger.go, stranger.result, rounds)


def _load(
    name: str, pid: int, go: Callable[[], object], done: Callable[[], object], forks: int | None = None
) -> Load:
    """forks: how many they are, if not those that the tracer counts."""
    with attached(tracers.forktrace(), [pid]) as running:
        tracer = running.process.pid
        before, samples, cpu = _programs(tracer), _samples(tracer), running.cpu_s()
        go()
        done()
        time.sleep(0.3)
        after, samples, cpu = _programs(tracer), _samples(tracer) - samples, running.cpu_s() - cpu
    forks = forks or running.result()["totals"]["forks"]
    bpf_us = {name: (ns - before[name]) / forks / 1e3 for name, ns in after.items()}
    return Load(name, forks, samples, bpf_us, cpu / forks * 1e6)


@contextmanager
def _statistics() -> Iterator[None]:
    descriptor = syscalls.bpf(_ENABLE_STATS, struct.pack("=I", 0))  # BPF_STATS_RUN_TIME
    try:
        yield
    finally:
        os.close(descriptor)


def _ids(pid: int, key: str) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            yield from (
                int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(key)
            )


def _info(get: int, ident: int, size: int) -> tuple[int, bytes]:
    descriptor = syscalls.bpf(get, struct.pack("=III", ident, 0, 0))
    buffer = ctypes.create_string_buffer(size)
    syscalls.bpf(_OBJ_INFO, struct.pack("=IIQ", descriptor, size, ctypes.addressof(buffer)))
    return descriptor, buffer.raw


def _programs(pid: int) -> dict[str, int]:
    """Name -> ns that the programs which a process has loaded ran so far; on_fork_return stands for vfork's, too."""
    found = {}
    for ident in set(_ids(pid, "prog_id:")):
        descriptor, info = _info(_PROG_FD_BY_ID, ident, _INFO_SIZE)
        os.close(descriptor)
        name = info[_NAME : _NAME + 16].split(b"\0")[0].decode()
        (found[name],) = struct.unpack_from("=Q", info, _RUN_TIME)
    return found


def _samples(pid: int) -> int:
    """Stacks sent because they were not known: the programs' own count, a number a CPU."""
    for ident in set(_ids(pid, "map_id:")):
        descriptor, info = _info(_MAP_FD_BY_ID, ident, _MAP_INFO_SIZE)
        try:
            if info[_MAP_NAME:].startswith(b"sample_count\0"):
                return _per_cpu_sum(descriptor)
        finally:
            os.close(descriptor)
    return 0


def _per_cpu_sum(descriptor: int) -> int:
    cpus = int(Path("/sys/devices/system/cpu/possible").read_text().replace(",", "-").split("-")[-1]) + 1
    key, values = ctypes.c_uint32(0), (ctypes.c_uint64 * cpus)()
    syscalls.bpf(
        _MAP_LOOKUP, struct.pack("=IIQQQ", descriptor, 0, ctypes.addressof(key), ctypes.addressof(values), 0)
    )
    return sum(values)
