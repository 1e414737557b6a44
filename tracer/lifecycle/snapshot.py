"""What is known of a trace at one moment, in counts: the graph gives one, a capture file gives the same one back.

``summary`` turns it into the finished model.  Bounded: living children and standing zombies are folded in only when
the snapshot is taken; whatever was released is a count in a ``Group`` or a ``Tally``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracer.lifecycle.facts import ParentFacts
from tracer.lifecycle.task import Fate, Task, pid_of

MAX_NAMES = 32  # different parents, commands, exits kept a group; the rest is counted as "(other)"
MAX_EXAMPLES = 10


class LatencyHistogram:
    """Log-linear counts of nanoseconds: 16 steps an octave, so a percentile is at most 6.25 % high."""

    __slots__ = ("counts", "max_ns", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0
        self.max_ns = 0

    def add(self, ns: int) -> None:
        # Once a child, in the tracer's hottest loop: calls of max() cost more than all the rest.
        ns = ns if ns > 0 else 0
        shift = ns.bit_length() - 5
        bucket = shift << 5 | ns >> shift if shift > 0 else ns
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.total += 1
        if ns > self.max_ns:  # noqa: PLR1730
            self.max_ns = ns

    def merge(self, other: LatencyHistogram) -> None:
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.total += other.total
        self.max_ns = max(self.max_ns, other.max_ns)

    def percentile(self, fraction: float) -> int | None:
        """The upper edge of the bucket that holds the given fraction, in ns; None when empty."""
        rank = fraction * self.total
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return min((((bucket & 31) + 1) << (bucket >> 5)) - 1, self.max_ns)
        return None


@dataclass(frozen=True, slots=True)
class Death:
    """One child that was not waited for.  ns_pid: as its forker's namespace has it.  standing: it is a zombie now."""

    pid: int
    ns_pid: int
    forked_ns: int
    exited_ns: int
    standing: bool


@dataclass(slots=True)
class Deaths:
    """Those of one group for which one process has to wait.  exit_signals: what their deaths sent, to count."""

    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    exit_signals: Counter[int] = field(default_factory=Counter)
    examples: list[Death] = field(default_factory=list)

    def add(self, task: Task, exited_ns: int) -> None:
        self.count += 1
        self.first_ns = min(self.first_ns or exited_ns, exited_ns)
        self.last_ns = max(self.last_ns, exited_ns)
        _bounded(self.exit_signals, task.exit_signal, 0)
        if len(self.examples) < MAX_EXAMPLES:
            pid = pid_of(task.id)
            self.examples.append(
                Death(pid, task.forker_ns_pid, task.forked_ns, exited_ns, not task.reaped_ns)
            )

    def merge(self, other: Deaths) -> None:
        self.count += other.count
        self.first_ns = min(self.first_ns or other.first_ns, other.first_ns)
        self.last_ns = max(self.last_ns, other.last_ns)
        for number, n in other.exit_signals.items():
            _bounded(self.exit_signals, number, 0, n)
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]


@dataclass(slots=True)
class Group:
    """Never-waited children of one stack and one kind ("zombie" or "orphaned")."""

    count: int = 0
    young: int = 0  # zombies that stood less than min_age: counted here, not in count
    standing: int = 0  # zombies now, the young ones as well
    first_exit_ns: int = 0
    last_exit_ns: int = 0
    parents: Counter[int] = field(default_factory=Counter)  # identity (0: the rest)
    comms: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)  # wait status (-1: unknown)
    examples: list[int] = field(default_factory=list)  # pids, oldest first
    # By who had to wait: of zombies their parent; of orphans who adopted them, and only those that stand now.
    deaths: dict[int, Deaths] = field(default_factory=dict)

    def add(self, task: Task, end_ns: int, min_age_ns: int) -> None:
        """Fold one child in.  A zombie that stood (until ``end_ns`` or its release) less than min_age is young."""
        self.standing += not task.reaped_ns and bool(task.exited_ns)
        if task.fate is Fate.ZOMBIE and (task.reaped_ns or end_ns) - task.exited_ns < min_age_ns:
            self.young += 1
            return
        self.count += 1
        exited = task.exited_ns or end_ns
        self.first_exit_ns = min(self.first_exit_ns or exited, exited)
        self.last_exit_ns = max(self.last_exit_ns, exited)
        _bounded(self.parents, task.parent, 0)
        _bounded(self.comms, task.comm, "(other)")
        _bounded(self.exits, -1 if task.exit_code is None else task.exit_code, -1)
        waiter = task.parent if task.fate is Fate.ZOMBIE else 0 if task.reaped_ns else task.exit_parent
        if waiter in self.deaths or (waiter and len(self.deaths) < MAX_NAMES):
            self.deaths.setdefault(waiter, Deaths()).add(task, exited)
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(pid_of(task.id))

    def merge(self, other: Group) -> None:
        self.count += other.count
        self.young += other.young
        self.standing += other.standing
        if other.count:
            self.first_exit_ns = min(self.first_exit_ns or other.first_exit_ns, other.first_exit_ns)
            self.last_exit_ns = max(self.last_exit_ns, other.last_exit_ns)
        for parent, n in other.parents.items():
            _bounded(self.parents, parent, 0, n)
        for comm, n in other.comms.items():
            _bounded(self.comms, comm, "(other)", n)
        for code, n in other.exits.items():
            _bounded(self.exits, code, -1, n)
        for waiter, deaths in other.deaths.items():
            if waiter in self.deaths or len(self.deaths) < MAX_NAMES:
                self.deaths.setdefault(waiter, Deaths()).merge(deaths)
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]


def _bounded(counter: Counter, key: object, rest: object, n: int = 1) -> None:  # type: ignore[type-arg]
    counter[key if key in counter or len(counter) < MAX_NAMES else rest] += n


@dataclass(slots=True)
class StackCounts:
    """Forks of one stack by fate; the mutable twin of ``trace.Tally``."""

    forks: int = 0
    waited: int = 0
    zombie: int = 0
    orphaned: int = 0
    autoreaped: int = 0
    running: int = 0
    unknown: int = 0

    def add(self, other: StackCounts) -> None:
        self.forks += other.forks
        self.waited += other.waited
        self.zombie += other.zombie
        self.orphaned += other.orphaned
        self.autoreaped += other.autoreaped
        self.running += other.running
        self.unknown += other.unknown


@dataclass(frozen=True, slots=True)
class Process:
    """A parent, as the report names it."""

    id: int
    comm: str
    ns_pid: int
    alive: bool
    reaped_others: int = 0  # children that it did wait for


@dataclass(frozen=True, slots=True)
class WaitPlace:
    """Where a process waits.  target: as ``records.WAIT_ANY`` and so on; options: the call's."""

    stack: int
    target: int
    options: int


@dataclass(frozen=True, slots=True)
class FailedKey:
    stack: int
    errno: int
    thread: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it.  Keys of ``stacks`` and ``groups`` are stack ids; 0 is "no stack" (the fork was not seen or no
    stack came with it), and -1 in ``groups`` is "pre-existing: the fork came before the trace".

    start_ns, end_ns: CLOCK_BOOTTIME.  totals: the fields of ``trace.Totals``.
    """

    start_ns: int
    end_ns: int
    min_age_ns: int
    totals: dict[str, int]
    stacks: dict[int, StackCounts]
    groups: dict[tuple[int, str], Group]  # (stack id or -1, "zombie" | "orphaned")
    processes: dict[int, Process]
    failed: dict[FailedKey, int]
    latency: LatencyHistogram
    late: dict[int, LatencyHistogram] = field(
        default_factory=dict
    )  # by stack: waited for after min_age or more
    facts: dict[int, ParentFacts] = field(default_factory=dict)  # of those who had to wait
    wait_places: dict[int, tuple[WaitPlace, ...]] = field(default_factory=dict)
    failed_limits: dict[FailedKey, Mapping[str, Any]] = field(
        default_factory=dict
    )  # what refused them, if known
