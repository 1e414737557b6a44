"""The limits that make clone fail with EAGAIN, and how full each is (trap 12).  No BPF, no root.

It stands beside ``procfs``: ``forktrace ps`` shows it, and a report says with it which limit a failed fork met.
Sources: kernel/fork.c (copy_process), kernel/cgroup/pids.c, proc_pid_limits(5), cgroups(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tracer import procfs

_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 21, 24
_MAX_DEPTH = 64  # of cgroups; the kernel's own limit is in the hundreds


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit on tasks (threads count, and zombies until they are reaped).

    name: "RLIMIT_NPROC", "pids.max", "threads-max" or "pid_max".  where: what shares it, such as a cgroup's path.
    current: None when it could not be read.
    """

    name: str
    where: str
    value: int
    current: int | None
    refusals: int | None = None  # of pids.max: clones that it refused so far


def limits(pid: int, stats: Mapping[int, procfs.Stat] | None = None) -> tuple[Limit, ...]:
    """The limits that hold for a process, the fullest first; () when it is gone.

    stats: a scan, where the caller has one already.  A limit that is not set, or that the process may exceed, is left
    out.  The tasks of a uid are counted in /proc, so hidepid makes that count too low; those of another pid namespace
    that is not below ours are not seen either.
    """
    status = procfs.status(pid)
    if status is None:
        return ()
    found = [*_of_uid(status, stats), *_of_cgroups(pid), *_of_host()]
    return tuple(sorted(found, key=lambda limit: -(limit.current or 0) / max(limit.value, 1)))


def _of_uid(status: procfs.Status, stats: Mapping[int, procfs.Stat] | None) -> Iterator[Limit]:
    """RLIMIT_NPROC counts all tasks of the real uid, in whatever container, yet each process has its own value."""
    value = _soft_limit(status.pid)
    if value is None or _may_exceed(status):
        return
    current = 0
    for other in (stats if stats is not None else procfs.scan()).values():
        theirs = procfs.status(other.pid)
        if theirs is not None and theirs.uid == status.uid:
            current += other.num_threads
    yield Limit("RLIMIT_NPROC", f"uid {status.uid}", value, current)


def _may_exceed(status: procfs.Status) -> bool:
    """In the initial user namespace, root and whoever holds one of two capabilities are not held to it."""
    ids = [line.split() for line in _text(f"/proc/{status.pid}/uid_map").splitlines()]
    privileged = status.cap_effective & (1 << _CAP_SYS_ADMIN | 1 << _CAP_SYS_RESOURCE)
    return ids == [["0", "0", "4294967295"]] and (status.uid == 0 or bool(privileged))


def _soft_limit(pid: int) -> int | None:
    for line in _text(f"/proc/{pid}/limits").splitlines():
        if line.startswith("Max processes"):
            return _number(line.split()[2])
    return None


def _of_cgroups(pid: int) -> Iterator[Limit]:
    for line in _text(f"/proc/{pid}/cgroup").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" or "pids" in controllers.split(","):
            yield from _up_the_tree(path.removesuffix(" (deleted)"), unified=hierarchy == "0")


def _up_the_tree(path: str, unified: bool) -> Iterator[Limit]:
    """Each ancestor's limit counts, the cgroup's own first."""
    if ".." in path.split("/"):  # outside of our cgroup namespace
        return
    for mount_point, top in cgroup_mounts(unified):
        if path != top and not path.startswith(top.rstrip("/") + "/"):
            continue
        here = Path(path)
        for _ in range(_MAX_DEPTH):
            directory = mount_point / here.relative_to(top)
            value = _number(_text(directory / "pids.max"))
            if value is not None:
                current = _number(_text(directory / "pids.current"))
                yield Limit("pids.max", str(here), value, current, _refusals(directory))
            if here == Path(top):
                return
            here = here.parent
        return


def _refusals(directory: Path) -> int | None:
    for line in _text(directory / "pids.events").splitlines():
        name, _, count = line.partition(" ")
        if name == "max":
            return _number(count)
    return None


def cgroup_mounts(unified: bool) -> Iterator[tuple[Path, str]]:
    """(mount point, the cgroup that is mounted there) of the hierarchy that has the pids controller."""
    for line in _text("/proc/self/mountinfo").splitlines():
        fields, _, source = line.partition(" - ")
        kind, _, options = source.partition(" ")
        if kind == "cgroup2" if unified else kind == "cgroup" and "pids" in options.split()[-1].split(","):
            top, mount_point = (_unescaped(field) for field in fields.split()[3:5])
            yield Path(mount_point), top


def _unescaped(field: str) -> str:
    for octal, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, char)
    return field


def _of_host() -> Iterator[Limit]:
    load = _text("/proc/loadavg").split()  # the fourth field: runnable tasks / all tasks
    tasks = _number(load[3].partition("/")[2]) if len(load) > 3 else None
    for name in ("threads-max", "pid_max"):
        value = _number(_text(f"/proc/sys/kernel/{name}"))
        if value is not None:
            yield Limit(name, "the host", value, tasks)


def _number(text: str) -> int | None:
    """None for "max", "unlimited" and nothing."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _text(path: str | Path) -> str:
    data = procfs.read_file(os.fspath(path))
    return data.decode("utf-8", "surrogateescape") if data else ""
