"""Unwinding against gdb's own frames of the same stopped thread: registers, memory and frames come from one stop."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tracer.stacks import maps
from tracer.stacks.modules import Modules
from tracer.stacks.symbolize import symbolize
from tracer.stacks.unwind import Unwound, unwind

pytestmark = pytest.mark.kernel

HERE = Path(__file__).parent
SOURCES = HERE.parent / "programs" / "deep_stack"
DEADLINE_S = 60.0
STACK_SIZE = 16384

Stop = dict[str, Any]


@pytest.fixture(scope="module")
def deep_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deep_stack")
    flags = [
        "-g",
        "-O2",
        "-fomit-frame-pointer",
        "-fno-inline",
        "-fno-optimize-sibling-calls",
        "-Wall",
        "-Werror",
    ]
    library = out / "libdeep.so"
    subprocess.run(["gcc", *flags, "-fPIC", "-shared", SOURCES / "library.c", "-o", library], check=True)
    program = out / "deep_stack"
    subprocess.run(
        ["gcc", *flags, SOURCES / "main.c", library, f"-Wl,-rpath,{out}", "-pthread", "-o", program],
        check=True,
    )
    return program


def _line(process: subprocess.Popen[str], wanted: str) -> str:
    """The first line of stdout that starts with ``wanted``, within the deadline."""
    assert process.stdout is not None
    end = time.monotonic() + DEADLINE_S
    said = ""
    while time.monotonic() < end:
        if select.select([process.stdout], [], [], 0.2)[0]:
            got = os.read(process.stdout.fileno(), 1 << 20).decode()
            if not got:
                break
            said += got
            for line in said.split("\n")[:-1]:
                if line.startswith(wanted):
                    return line
    pytest.fail(f"no line {wanted!r} from {process.args}, but {said[-2000:]!r}")


@contextmanager
def _gdb(*arguments: str) -> Iterator[Stop]:
    """gdb brings a thread to a stop and holds it there while the body runs."""
    process = subprocess.Popen(
        [
            "gdb",
            "-nx",
            "-q",
            "-batch",
            "-iex",
            "set debuginfod enabled off",
            *arguments,
            "-x",
            HERE / "gdb_stop.py",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "GDB_STOP_SIZE": str(STACK_SIZE)},
    )
    try:
        yield json.loads(_line(process, "SEEN ").removeprefix("SEEN "))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(DEADLINE_S)


@contextmanager
def _attached(
    command: Sequence[str | Path], ready: Callable[[int], bool] | None, *gdb: str
) -> Iterator[Stop]:
    """A program that runs until it is ready (by its own word, or by what ``ready`` sees of its pid)."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if ready is None:
            _line(process, "ready")
        else:
            _wait(lambda: ready(process.pid))
        with _gdb("-p", str(process.pid), *gdb) as seen:
            yield seen
    finally:
        process.kill()
        process.communicate()


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def _blocked_in(number: int) -> Callable[[int], bool]:
    """In the system call of that number, as /proc/PID/syscall tells it."""

    def look(pid: int) -> bool:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] == str(number)

    return look


def _unwind(seen: Stop, modules: Modules) -> Unwound:
    registers = {int(number): value for number, value in seen["registers"].items()}
    space = maps.parse(seen["maps"])
    return unwind(
        space, partial(modules.of, seen["pid"]), registers, registers[7], bytes.fromhex(seen["stack"])
    )


def _check(stop: AbstractContextManager[Stop]) -> list[str | None]:
    """Every frame is gdb's, up to the thread's start; names where the program has them."""
    modules = Modules()
    with stop as seen:
        unwound = _unwind(seen, modules)
        assert [hex(frame.pc) for frame in unwound.frames] == [hex(frame["pc"]) for frame in seen["frames"]]
        assert unwound.cut is None
    return [
        symbolize(frame).function for frame in unwound.frames
    ]  # the process is gone: names must still be found


DEEP = ["deep_aligned", "deep_variable", "deep_plain", "deep_plain", "deep_plain", "deep_plain", "deep_plain"]


def test_every_kind_of_frame(deep_stack: Path) -> None:
    names = _check(_attached([deep_stack, "pause"], None))
    assert names == ["pause", "stop", *DEEP, "main", "__libc_start_call_main", "__libc_start_main", "_start"]


def test_through_a_signal_handler(deep_stack: Path) -> None:
    names = _check(_attached([deep_stack, "signal"], None))
    assert names[:3] == ["pause", "handler", "__restore_rt"]
    assert [name for name in names if name in {"stop", "main", *DEEP}] == ["stop", *DEEP, "main"]


def test_a_second_thread(deep_stack: Path) -> None:
    names = _check(_attached([deep_stack, "thread"], _thread_paused, "-ex", "thread 2"))
    assert names[:-2] == ["pause", "stop", *DEEP, "in_thread"]


def _thread_paused(pid: int) -> bool:
    threads = sorted(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())
    return len(threads) == 2 and Path(f"/proc/{pid}/task/{threads[1]}/syscall").read_text().split()[0] == "34"


@pytest.mark.parametrize(
    ("how", "call", "leaf"),
    [
        ("vfork", "vfork", "vfork"),  # keeps its return address in rdi
        ("clone", "clone", "clone"),  # no call frame information at the system call
        ("spawn", "clone3", "clone3"),
    ],
)
def test_in_a_fork(deep_stack: Path, how: str, call: str, leaf: str) -> None:
    names = _check(_gdb("-ex", f"catch syscall {call}", "-ex", f"run {how} >/dev/null", str(deep_stack)))
    assert names[0] is not None and names[0].lstrip("_") == leaf
    assert [name for name in names if name in {"stop", "main", *DEEP}] == ["stop", *DEEP, "main"]


@pytest.mark.parametrize(
    "command",
    [
        ["/usr/bin/python3", "-c", "import os; os.read(0, 1)"],
        ["/usr/bin/ruby", "-e", "def f(n) = n > 0 ? f(n - 1) : STDIN.sysread(1)\n[1].each { f(5) }"],
        ["/bin/bash", "-c", "f() { read -r x; }; f"],
    ],
    ids=["python", "ruby", "bash"],
)
def test_an_interpreter_that_reads(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is needed to compare with")
    names = _check(_attached(command, _blocked_in(0)))
    assert names[0] == "read"
    assert names[-1] == "_start"


def test_a_word_that_is_not_listed_does_not_matter(deep_stack: Path) -> None:
    """The kernel's side compares the listed words only: any other one may be anything."""
    modules = Modules()
    for how in ("pause", "signal"):
        with _attached([deep_stack, how], None) as seen:
            whole = _unwind(seen, modules)
            listed = dict(whole.words)
            stack = bytes.fromhex(seen["stack"])
            other = bytearray(b"\xa5" * len(stack))
            for offset, value in listed.items():
                assert stack[offset : offset + 8] == value.to_bytes(8, "little")
                other[offset : offset + 8] = value.to_bytes(8, "little")
            kept = {7, 16, *whole.registers}
            registers = {n: v if int(n) in kept else 0x5A5A for n, v in seen["registers"].items()}
            assert _unwind({**seen, "stack": other.hex(), "registers": registers}, modules) == whole
