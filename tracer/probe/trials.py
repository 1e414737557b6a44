"""What this kernel and this machine can do for a trace, found out by trying: what ``forktrace doctor`` prints.

Beside the way of the data: nothing here is used by a trace.  Programs that do nothing are loaded and attached as the
real ones would be, by the same loader; every descriptor is closed again at once.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tracer import limits, procfs
from tracer.errors import ForktraceError, NoPermission, Unavailable
from tracer.probe import build, loader, offsets
from tracer.probe.probe import Probe, ProbeOptions
from tracer.probe.programs import Compiled, MapShape, Program
from tracer.probe.ring import Ring
from tracer.probe.tracefs import MOUNTS, Tracefs, open_tracefs

OK, INFO, MISSING, UNTRIED = "ok", "info", "missing", "untried"

CAPABILITIES: Final = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
# What a trace loses without each: a key of ``build.SYSCALL_TRACEPOINTS``'s values.
LOSSES: Final = {
    "sys_exit_wait4": "who reaped, and exactly when",
    "sys_exit_waitid": "the same for waitid()",
    "sys_exit_clone": "failed forks, and why",
    "sys_exit_clone3": "failed forks, and why",
    "sys_exit_fork": "failed fork() calls",
    "sys_exit_vfork": "failed vfork() calls",
}
_TASK_PT_REGS: Final = bytes.fromhex("850000009e000000 bf01000000000000 85000000af000000")
_HASH, _ARRAY, _PERCPU_ARRAY, _LRU_HASH, _RING = 1, 2, 6, 9, 27  # enum bpf_map_type


@dataclass(frozen=True, slots=True)
class Check:
    """state: "ok", "info" (a trace does not depend on it), "missing" or "untried" (not without root).

    found: what is there.  remedy: what to do where it is missing.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """status: the exit status that a trace would end with, 0 when it would work (perhaps with --light only)."""

    checks: tuple[Check, ...]
    status: int
    needs_light: bool
    conclusion: str
    remedy: str = ""


def diagnose() -> Diagnosis:
    program, obstacle = _programs()
    checks = [_permission(), _kernel(), _btf(), program]
    if obstacle:
        checks += [
            Check(name, UNTRIED, obstacle)
            for name in ("BPF maps", "BPF ring buffer", "raw tracepoints", "task_pt_regs", "fentry")
        ]
    else:
        checks += [_maps(), _ring(), _raw_tracepoints(), _registers(), _fentry()]
    checks += [
        *_tracefs_and_syscalls(obstacle),
        _bcc(),
        _cache(),
        _lockdown(),
        _maps_of_others(),
        _pids_controller(),
        _limits(),
    ]
    return _conclude(checks)


def _conclude(checks: list[Check]) -> Diagnosis:
    """The trial of trials: start the real thing."""
    took, light = 0.0, False
    try:
        try:
            took = _start(ProbeOptions())
        except Unavailable:
            took = _start(ProbeOptions(light=True))
            light = True
    except ForktraceError as error:
        state = UNTRIED if isinstance(error, NoPermission) else MISSING
        checks.append(Check("a trace", state, "does not start"))
        return Diagnosis(
            tuple(checks), error.status, False, f"forktrace cannot trace here: {error.message}", error.help
        )
    checks.append(Check("a trace", OK, f"starts in {took:.2f} s{', with --light' if light else ''}"))
    if light:
        conclusion = "forktrace can trace here with --light only: the syscall tracepoints are missing"
        return Diagnosis(tuple(checks), 0, True, conclusion)
    return Diagnosis(tuple(checks), 0, False, "forktrace can trace here")


def _start(options: ProbeOptions) -> float:
    """Seconds until everything is attached."""
    begin = time.monotonic()
    with Probe(options) as probe:
        probe.attach()
        return time.monotonic() - begin


def _programs() -> tuple[Check, str]:
    """And what keeps the other trials from being made, "" for nothing."""
    name = "BPF programs"
    try:
        loader.require_bpf()
    except NoPermission:
        return Check(name, UNTRIED, "needs root"), "needs root"
    except ForktraceError as error:
        return _problem(name, error), "no BPF program can be loaded"
    return Check(name, OK, "can be loaded"), ""


def _problem(name: str, error: ForktraceError) -> Check:
    return Check(name, MISSING, error.message, error.help)


# --- permission, kernel ---------------------------------------------------------------------------------------


def _permission() -> Check:
    name, own = "permission", procfs.status(os.getpid())
    effective = own.cap_effective if own else 0
    lacking = [capability for capability, bit in CAPABILITIES.items() if not effective >> bit & 1]
    who = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}"
    if lacking:
        remedy = (
            "give the container these capabilities (--privileged has them)"
            if os.geteuid() == 0
            else "sudo forktrace …"
        )
        return Check(name, MISSING, f"{who}, without {', '.join(lacking)}", remedy)
    return Check(name, OK, f"{who}, with {', '.join(CAPABILITIES)}")


def _kernel() -> Check:
    found = f"{platform.release()} on {platform.machine()}"
    if platform.machine() not in build.REGISTER_FLAGS:
        return Check("kernel", MISSING, found, f"supported: {', '.join(build.REGISTER_FLAGS)}")
    return Check("kernel", OK, found)


def _btf() -> Check:
    try:
        layout = offsets.kernel_layout()
    except Unavailable as error:
        return _problem("BTF", error)
    return Check("BTF", OK, f"has the {len(layout.defines)} offsets and sizes that are read")


# --- BPF ------------------------------------------------------------------------------------------------------


def _maps() -> Check:
    shapes = {
        "try_hash": MapShape(_HASH, 8, 8, 8, 0),
        "try_array": MapShape(_ARRAY, 4, 8, 1, 0),
        "try_percpu": MapShape(_PERCPU_ARRAY, 4, 8, 1, 0),
        "try_lru": MapShape(_LRU_HASH, 8, 8, 8, 0),
    }
    try:
        with loader.BpfObject.load(Compiled(shapes, {}), {}) as made:
            made.maps["try_hash"].update(b"forktrac", b"e-doctor")
            if made.maps["try_hash"].lookup(b"forktrac") != b"e-doctor":
                return Check("BPF maps", MISSING, "a map does not keep what is put into it")
    except ForktraceError as error:
        return _problem("BPF maps", error)
    return Check("BPF maps", OK, "hash, array, per-CPU array, LRU hash")


def _ring() -> Check:
    size = os.sysconf("SC_PAGESIZE")
    try:
        with loader.BpfObject.load(Compiled({"try_ring": MapShape(_RING, 0, 0, size, 0)}, {}), {}) as made:
            Ring(made.maps["try_ring"].fd, size).close()
    except ForktraceError as error:
        return _problem("BPF ring buffer", error)
    except OSError as error:
        return Check("BPF ring buffer", MISSING, f"cannot be mapped: {error.strerror}")
    return Check("BPF ring buffer", OK, "made and mapped")


def _raw_tracepoints() -> Check:
    name = "raw tracepoints"
    programs = dict.fromkeys(build.RAW_TRACEPOINTS, Program(loader.RETURN_0, ()))
    try:
        with loader.BpfObject.load(Compiled({}, programs), {}) as made:
            for program, tracepoint in build.RAW_TRACEPOINTS.items():
                made.attach_raw_tracepoint(program, tracepoint)
    except ForktraceError as error:
        return _problem(name, error)
    return Check(name, OK, ", ".join(build.RAW_TRACEPOINTS.values()))


def _registers() -> Check:
    name = "task_pt_regs"
    try:
        program = Program(_TASK_PT_REGS + loader.RETURN_0, ())
        loader.BpfObject.load(Compiled({}, {"try_registers": program}), {}).close()
    except ForktraceError:
        return Check(name, INFO, "no such helper (before 5.15): registers are taken from the kernel stack")
    return Check(name, OK, "the helper for a forker's registers is there")


def _fentry() -> Check:
    name = "fentry"
    try:
        function = offsets.Btf(Path(offsets.BTF_PATH).read_bytes()).function("release_task")
        loader.try_fentry(loader.RETURN_0, function)
    except ForktraceError as error:
        return Check(name, INFO, f"not allowed, and not needed ({error.message})")
    except (OSError, ValueError, KeyError):
        return Check(name, INFO, "cannot be tried without BTF; not needed")
    return Check(name, INFO, "allowed; not needed")


def _lockdown() -> Check:
    text = procfs.read_file("/sys/kernel/security/lockdown")
    if text is None:
        return Check("lockdown", INFO, "not shown (no securityfs, or a kernel without it)")
    mode = text.decode("ascii", "replace").partition("[")[2].partition("]")[0] or "unknown"
    if mode == "confidentiality":
        return Check("lockdown", MISSING, mode, "it forbids BPF tracing: boot with lockdown=integrity")
    return Check("lockdown", OK, mode)


# --- tracefs --------------------------------------------------------------------------------------------------


def _tracefs_and_syscalls(obstacle: str) -> Iterator[Check]:
    name = "tracefs"
    mounted = next((mount for mount in MOUNTS if os.path.ismount(mount)), None)
    try:
        with open_tracefs() as tracefs:
            where = f"mounted at {mounted}" if mounted else "not mounted; a private mount works"
            yield Check(name, OK, where)
            for program, event in build.SYSCALL_TRACEPOINTS.items():
                yield _syscall_tracepoint(tracefs, program, event, obstacle)
    except Unavailable as error:
        if os.geteuid() != 0:
            where = f"mounted at {mounted}, for root" if mounted else "not mounted; root may mount it"
            yield Check(name, UNTRIED, where)
            for event in build.SYSCALL_TRACEPOINTS.values():
                yield Check(event, UNTRIED, "needs root")
        else:
            yield _problem(name, error)


def _syscall_tracepoint(tracefs: Tracefs, program: str, event: str, obstacle: str) -> Check:
    event_id = tracefs.event_id("syscalls", event)
    if event_id is None:
        return Check(event, MISSING, f"lost without it: {LOSSES[event]}", "trace with --light")
    if obstacle:
        return Check(event, UNTRIED, obstacle)
    try:
        with loader.BpfObject.load(Compiled({}, {program: Program(loader.RETURN_0, ())}), {}) as made:
            made.attach_tracepoint(program, event_id)
    except ForktraceError as error:
        return Check(
            event, MISSING, f"{error.message}; lost without it: {LOSSES[event]}", "trace with --light"
        )
    return Check(event, OK, f"tells {LOSSES[event]}")


# --- BCC ------------------------------------------------------------------------------------------------------


def _bcc() -> Check:
    done = subprocess.run(
        [sys.executable, "-c", "import bcc; print(bcc.__version__)"],
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check(
            "BCC", MISSING, f"{why} (by {sys.executable})", "apt install python3-bpfcc, or scripts/setup"
        )
    return Check("BCC", OK, f"{done.stdout.strip()}, by {sys.executable}")


def _cache() -> Check:
    name = "compiled programs"
    if os.geteuid() != 0:
        return Check(name, UNTRIED, f"{build.CACHE} is root's")
    cached = [light for light in (False, True) if build.is_cached(build.Options(syscalls=not light))]
    if not cached:
        return Check(name, INFO, "none kept for this kernel: the next start compiles them")
    kinds = " and ".join("for --light" if light else "full" for light in cached)
    return Check(name, OK, f"kept in {build.CACHE}: {kinds}")


# --- /proc and cgroups ----------------------------------------------------------------------------------------


def _maps_of_others() -> Check:
    """Ptrace is not involved and Yama does not matter, but other security modules may hide single processes."""
    name = "memory maps"
    if os.geteuid() != 0:
        return Check(name, UNTRIED, "needs root for those of other users")
    alive = [stat for stat in procfs.scan().values() if not (stat.is_kernel_thread or stat.state in "ZX")]
    hidden = [stat for stat in alive if not _maps_readable(stat.pid)]
    found = f"of {len(alive) - len(hidden):,} of {len(alive):,} processes"
    if not hidden:
        return Check(name, OK, found)
    which = ", ".join(f"{stat.pid} ({stat.comm})" for stat in hidden[:3])
    found += f"; not of {which}{' …' if len(hidden) > 3 else ''}: no stacks of these"
    remedy = "CAP_SYS_PTRACE and CAP_SYS_ADMIN are needed, here and in their user namespaces"
    return Check(name, INFO if len(hidden) < len(alive) else MISSING, found, remedy)


def _maps_readable(pid: int) -> bool:
    """Or the process has ended meanwhile."""
    try:
        with Path(f"/proc/{pid}/maps").open("rb") as maps:
            if not maps.read(1):
                return True
        with os.scandir(f"/proc/{pid}/map_files") as links:
            first = next(links, None)
        if first is not None:
            os.close(os.open(first.path, os.O_PATH | os.O_CLOEXEC))
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    return True


def _pids_controller() -> Check:
    name = "pids controller"
    for unified, version in ((True, "2"), (False, "1")):
        for mount_point, _ in limits.cgroup_mounts(unified):
            controllers = procfs.read_file(f"{mount_point}/cgroup.controllers") or b""
            if not unified or b"pids" in controllers.split():
                return Check(name, OK, f"cgroup v{version}, {mount_point}")
    return Check(name, INFO, "not mounted: reports cannot tell how full pids.max is")


def _limits() -> Check:
    found = limits.limits(os.getpid())
    words = [
        f"{limit.name} {'?' if limit.current is None else f'{limit.current:,}'} of {limit.value:,}"
        for limit in found
    ]
    full = [
        limit.name for limit in found if limit.current is not None and limit.current >= 0.95 * limit.value
    ]
    if full:
        return Check(
            "task limits", MISSING, ", ".join(words), f"nearly full: {', '.join(full)}; forks fail soon"
        )
    return Check("task limits", OK, ", ".join(words))
