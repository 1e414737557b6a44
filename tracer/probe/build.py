"""From sources to loadable programs: the cache first, else the compiler.

The cache (/var/cache/forktrace) is believed only if root alone can have written it; a key covers the sources, the
flags, BCC's version, the architecture and the running kernel's build, so a stale file is never loaded, just unused.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tracer.errors import BpfRefused, Unavailable
from tracer.probe import compiler
from tracer.probe.offsets import kernel_layout
from tracer.probe.programs import FORMAT, Compiled
from tracer.probe.tracefs import open_tracefs

CACHE: Final = "/var/cache/forktrace"
MAX_CACHED: Final = 64  # files of some 100 KB: each walker, with and without --light, for some kernels
MAPS: Final = (
    "events",
    "samples",
    "traced",
    "config",
    "lost",
    "scratch",
    "pending",
    "sample_count",
    "known_stacks",
    "known_spaces",
    "interpreters",
    "walkers",
    "call_walkers",
)
CALL_MAPS: Final = ("waits", "named_waits", "suspects", "wait_sites")
WALKER_MAPS: Final = ("code_scratch", "sent_code")
OWN_MAPS: Final[Mapping[str, tuple[str, ...]]] = {
    "python": ("python_walk",),
    "ruby": ("ruby_walk",),
    "node": ("node_walk",),
    "php": ("php_walk",),
    "perl": ("perl_walk",),
}  # by language
RAW_TRACEPOINTS: Final = {
    "on_newtask": "task_newtask",
    "on_exec": "sched_process_exec",
    "on_exit": "sched_process_exit",
    "on_free": "sched_process_free",
}
SYSCALL_TRACEPOINTS: Final = {
    "on_wait4_return": "sys_exit_wait4",
    "on_waitid_return": "sys_exit_waitid",
    "on_clone_return": "sys_exit_clone",
    "on_clone3_return": "sys_exit_clone3",
    "on_fork_return": "sys_exit_fork",
    "on_vfork_return": "sys_exit_vfork",
}
# Where the arguments of a system call are in struct pt_regs, as indices of its words.
REGISTER_FLAGS: Final = {
    "x86_64": (
        "-DREG_ARG1=14",
        "-DREG_ARG2=13",
        "-DREG_ARG3=12",
        "-DREG_ARG4=7",
        "-DREG_IP=16",
        "-DREG_SP=19",
    ),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What makes one set of programs differ from another."""

    syscalls: bool = True  # with the syscall tracepoints; --light leaves them out
    task_pt_regs: bool = True  # this kernel has the helper (5.15)


def bpf_directory() -> Path:
    """bpf/ beside the package in a checkout, within it when installed from a wheel."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "bpf", package.parent / "bpf"):
        if (candidate / "forktrace.h").is_file():
            return candidate
    raise Unavailable(
        "forktrace is installed without its BPF sources", "install it again: pip install forktrace"
    )


@dataclass(frozen=True, slots=True)
class Unit:
    """What is compiled together: files of bpf/, and the names of their maps and programs."""

    sources: tuple[str, ...]
    maps: tuple[str, ...]
    programs: tuple[str, ...]


def build(options: Options, cache: str | None = CACHE) -> Compiled:
    """The programs for this kernel.  ``cache=None`` neither reads nor writes one.

    Raises ``Unavailable`` (no BTF, no tracefs, no bcc) or ``BpfRefused``.
    """
    return _build(_lifecycle(options), options, cache)


def build_walker(language: str, options: Options, cache: str | None = CACHE) -> Compiled:
    """The walker over an interpreter's frames ("python", "ruby"); it shares the maps of ``build`` by name."""
    programs = [f"walk_{language}", *([f"walk_{language}_return"] if options.syscalls else [])]
    sources = ("forktrace.h", "stack.c", "walker.h", f"{language}.c")
    return _build(
        Unit(sources, (*MAPS, *WALKER_MAPS, *OWN_MAPS.get(language, ())), tuple(programs)), options, cache
    )


def is_cached(options: Options, cache: str = CACHE) -> bool:
    """``build`` would take the programs from the cache: bcc is not needed."""
    unit = _lifecycle(options)
    return _read_cache(Path(cache), _key(_source(unit), unit, options)) is not None


def _lifecycle(options: Options) -> Unit:
    programs = [*RAW_TRACEPOINTS, "on_stack"]
    if options.syscalls:
        programs += ["on_stack_return", *(name for name in SYSCALL_TRACEPOINTS if name != "on_vfork_return")]
    return Unit(("forktrace.h", "stack.c", "lifecycle.c", "calls.c"), (*MAPS, *CALL_MAPS), tuple(programs))


def _build(unit: Unit, options: Options, cache: str | None) -> Compiled:
    source = _source(unit)
    key = _key(source, unit, options)
    if cache:
        compiled = _read_cache(Path(cache), key)
        if compiled:
            return compiled
    compiled = _compile(source, _flags(options), unit)
    if cache:
        _write_cache(Path(cache), key, compiled)
    return compiled


def _source(unit: Unit) -> str:
    directory = bpf_directory()
    return "".join((directory / name).read_text(encoding="ascii") for name in unit.sources)


def _flags(options: Options) -> list[str]:
    machine = platform.machine()
    if machine not in REGISTER_FLAGS:
        raise Unavailable(
            f"forktrace does not run on {machine} yet", "x86-64 is supported; see docs/kernel-support.md"
        )
    flags = [f"-D{name}={value}" for name, value in kernel_layout().defines]
    flags += REGISTER_FLAGS[machine]
    if options.task_pt_regs:
        flags.append("-DHAVE_TASK_PT_REGS")
    if options.syscalls:
        with open_tracefs() as tracefs:
            offset = tracefs.field_offset("syscalls", "sys_exit_wait4", "ret")
        if offset is None:
            raise Unavailable(
                "this kernel has no syscall tracepoints (CONFIG_FTRACE_SYSCALLS)", "trace with --light"
            )
        flags.append(f"-DSYSCALL_RET={offset}")
    return [*flags, "-Wno-macro-redefined", "-Wno-unused-function"]


def _compile(source: str, flags: list[str], unit: Unit) -> Compiled:
    request = {
        "headers": str(bpf_directory()),
        "source": source,
        "flags": flags,
        "maps": list(unit.maps),
        "programs": list(unit.programs),
    }
    done = subprocess.run(
        [sys.executable, "-m", compiler.__name__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
        start_new_session=True,  # a terminal's Ctrl-C ends the trace, not the compiler
    )
    if done.returncode == compiler.EXIT_NO_BCC:
        raise Unavailable(
            f"Python's bcc module cannot be imported by {sys.executable} ({_last_line(done.stderr)})",
            "apt install python3-bpfcc, and run forktrace with the distribution's Python (scripts/setup does both)",
        )
    if done.returncode:
        raise BpfRefused(
            f"BCC could not build the BPF programs: {_last_line(done.stderr)}",
            "`forktrace doctor` shows what this kernel allows; `forktrace -v …` shows all of the compiler's words",
            done.stderr,
        )
    try:
        return Compiled.from_dict(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError) as error:
        raise BpfRefused(f"BCC's result cannot be read: {error!r}") from None


def _last_line(text: str) -> str:
    """The line that names the error: clang's, or else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[-1] if lines else "no message")


def _bcc_version() -> str:
    """Without importing it: that maps all of LLVM."""
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        spec = importlib.util.find_spec("bcc")
        if spec and spec.origin:
            return Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return ""


def _kernel_build() -> bytes:
    """The running kernel's build id, which the offsets depend on."""
    try:
        notes = Path("/sys/kernel/notes").read_bytes()
    except OSError:
        notes = b""
    return notes + " ".join(os.uname()).encode()  # platform.uname starts a process


def _key(source: str, unit: Unit, options: Options) -> str:
    parts = (str(FORMAT), source, repr(unit), repr(options), _bcc_version(), platform.machine())
    digest = hashlib.sha256(_kernel_build())
    for part in parts:
        digest.update(b"\0" + part.encode())
    for name in ("build.py", "compiler.py", "offsets.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    for header in sorted((bpf_directory() / "include").rglob("*.h")):
        digest.update(header.read_bytes())
    return digest.hexdigest()


def _trusted(info: os.stat_result) -> bool:
    return info.st_uid == os.geteuid() and not info.st_mode & 0o022


def _read_cache(directory: Path, key: str) -> Compiled | None:
    try:
        if not _trusted(directory.lstat()):
            return None
        fd = os.open(directory / f"{key}.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, encoding="ascii") as file:
            info = os.fstat(fd)
            if not (_trusted(info) and stat.S_ISREG(info.st_mode)):
                return None
            compiled = Compiled.from_dict(json.load(file))
        os.utime(directory / f"{key}.json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever damaged JSON leads to
        return None
    return compiled


def _write_cache(directory: Path, key: str, compiled: Compiled) -> None:
    """Best effort: a cache that cannot be written costs a second at the next start."""
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, exist_ok=True)
        if not _trusted(directory.lstat()):
            return
        fd, temporary = tempfile.mkstemp(dir=directory, prefix=".")
        with open(fd, "w", encoding="ascii") as file:
            json.dump(compiled.to_dict(), file)
        Path(temporary).replace(directory / f"{key}.json")
        files = sorted(directory.glob("*.json"), key=lambda p: p.stat().st_mtime)
        for old in files[:-MAX_CACHED]:
            old.unlink()
