"""Hand-made snapshots: tasks in, and the snapshot that the graph would give of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from tracer.capture.meta import Meta
from tracer.lifecycle.snapshot import FailedKey, Group, LatencyHistogram, Process, Snapshot, StackCounts
from tracer.lifecycle.task import Fate, Task, task_id
from tracer.trace import Frame, Library, Stack, Target

SECOND = 1_000_000_000
START = 100 * SECOND

LIBFOO = Library("elf", "libfoo", "1.2", "foo.c", 42, "spawn_helper", "ab12")
LIBC = Library("deb", "libc6", "2.36-9", "/usr/lib/libc.so.6", None, "fork")
STACK = Stack(
    id=1,
    frames=(
        Frame("fork", None, None, "/usr/lib/libc.so.6", library=LIBC, offset=0xE1234),
        Frame("spawn_helper", "foo.c", 42, "/opt/libfoo.so", library=LIBFOO, offset=0x1139),
        Frame(None, None, None, None, offset=0xFFFFFFFFFF600000),
    ),
    cut="no CFI for the pc",
    forked_by=LIBFOO,
    responsible=LIBFOO,
    chain=(LIBC, LIBFOO),
    read_late=True,
)


def meta(**changes: object) -> Meta:
    values: dict[str, object] = {
        "version": "0.1",
        "host": {"kernel": "6.18.0", "cpus": 2},
        "started_at": 1_790_000_000.5,
        "start_ns": START,
        "targets": (Target(100, "leaky"),),
    }
    return Meta(**{**values, **changes})  # type: ignore[arg-type]


def task(pid: int, fate: Fate = Fate.RUNNING, stack: int = 1, **changes: object) -> Task:
    made = Task(task_id(pid, pid * 7), task_id(100, 5), task_id(100, 5), START + pid * 1000, stack)
    made.comm = "sh"
    made.fate = fate
    if fate is not Fate.RUNNING:
        made.exited_ns = START + pid * 1000 + 500
        made.exit_code = 0
    if fate in (Fate.WAITED, Fate.AUTOREAPED):
        made.reaped_ns = made.exited_ns + 100
        made.reaper = made.parent
        made.reaped_by_call = "wait4" if fate is Fate.WAITED else ""
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def snapshot(tasks: Iterable[Task], end_ns: int = START + 60 * SECOND, min_age_ns: int = SECOND) -> Snapshot:
    counts: dict[int, StackCounts] = {}
    groups: dict[tuple[int, str], Group] = {}
    processes: dict[int, Process] = {}
    latency = LatencyHistogram()
    late: dict[int, LatencyHistogram] = {}
    totals = {"forks": 0, "waited": 0, "zombies": 0, "orphaned": 0}
    order = sorted(tasks, key=lambda t: (t.reaped_ns == 0, t.reaped_ns, t.forked_ns, t.id))
    for each in order:
        if each.root:
            continue
        totals["forks"] += 1
        of_stack = counts.setdefault(each.stack, StackCounts())
        of_stack.forks += 1
        setattr(of_stack, each.fate.value, getattr(of_stack, each.fate.value) + 1)
        if each.fate is Fate.WAITED:
            totals["waited"] += 1
            stood = each.reaped_ns - each.exited_ns
            latency.add(stood)
            if each.exited_ns and stood >= min_age_ns:
                late.setdefault(each.stack, LatencyHistogram()).add(stood)
        if each.fate in (Fate.ZOMBIE, Fate.ORPHANED):
            groups.setdefault((each.stack, each.fate.value), Group()).add(each, end_ns, min_age_ns)
            processes[each.parent] = Process(each.parent, "leaky", 7, True, 3)
    return Snapshot(
        start_ns=START,
        end_ns=end_ns,
        min_age_ns=min_age_ns,
        totals=totals,
        stacks=counts,
        groups=groups,
        processes=processes,
        failed={FailedKey(1, 11, False): 3, FailedKey(0, 1, True): 1},
        latency=latency,
        late=late,
    )


def plain(shot: Snapshot) -> dict[str, Any]:
    """For comparisons: histograms compare by identity."""
    values = {each.name: getattr(shot, each.name) for each in fields(shot)}
    late = {stack: _plain(histogram) for stack, histogram in values.pop("late").items()}
    return {**values, "latency": _plain(values["latency"]), "late": late}


def _plain(histogram: LatencyHistogram) -> tuple[dict[int, int], int, int]:
    return histogram.counts, histogram.total, histogram.max_ns
