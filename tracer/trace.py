"""The finished model of a trace: what every report, export and diff reads, and nothing else.

It stands between the tracer (``lifecycle``, ``stacks``, ``blame``) or a capture file on the left and the printers
on the right.  ``tracer.lifecycle.summary`` builds it.  All values are frozen; what is unknown is None, never a guess.

Times are seconds (float) unless a name ends in ``_ns``; ages are relative to the end of the trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "forktrace.report/1"


@dataclass(frozen=True, slots=True)
class Library:
    """Who owns a piece of code.  ``file``, ``line`` and ``function`` are the place in it that the stack went through.

    kind: "deb", "apk", "rpm", "elf", "app", "stdlib", "gem", "python", "npm", "jar" or "unknown".
    name: the package's, or the file's for an ELF file that no package owns, the language's for its standard library,
    the project's for an application.
    version: of an application, its git revision.
    """

    kind: str
    name: str
    version: str | None = None
    file: str | None = None
    line: int | None = None
    function: str | None = None
    build_id: str | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a user stack.

    module: path of the mapped file, as the traced process sees it; None for anonymous memory.
    file, line: the source position where line tables have it.
    offset: the code's address within the module (ELF virtual address), or the bare pc without a module.
    """

    function: str | None
    file: str | None
    line: int | None
    module: str | None
    language: str = "native"
    library: Library | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """A fork's user stack, leaf first.  ``cut`` says why it ends early; None when it reached the thread's start.

    read_late: the frames of its script were read some milliseconds after the fork, and may have gone on by then.
    """

    id: int
    frames: tuple[Frame, ...]
    cut: str | None = None
    forked_by: Library | None = None
    responsible: Library | None = None
    chain: tuple[Library, ...] = ()
    read_late: bool = False


@dataclass(frozen=True, slots=True)
class Tally:
    """How many forks one stack made, by the children's fates.  A child counts once."""

    forks: int = 0
    waited: int = 0
    zombie: int = 0
    orphaned: int = 0
    autoreaped: int = 0
    running: int = 0
    unknown: int = 0

    @property
    def never_waited(self) -> int:
        return self.zombie + self.orphaned


@dataclass(frozen=True, slots=True)
class Parent:
    pid: int
    comm: str
    count: int
    alive: bool
    ns_pid: int | None = None  # in its own pid namespace, where that differs


@dataclass(frozen=True, slots=True)
class Verdict:
    code: str
    evidence: Mapping[str, Any]
    advice: str


@dataclass(frozen=True, slots=True)
class WaitSite:
    """A place where a parent waits.

    target: "any child", "pid 4711", "process group 4711" or "its own process group, or a pidfd".
    """

    target: str
    nohang: bool
    stack: Stack


@dataclass(frozen=True, slots=True)
class Leak:
    """Children forked by one stack that share one fate and were never waited for.

    kind: "zombie", "orphaned" (or "running", "thread", "unjoined_thread").
    oldest_age_s: since the oldest one died (zombie, orphaned).
    exits: exit status ("0", "1", "SIGKILL", "SIGSEGV+core") to count.
    pre_existing: the children were already there when the trace began, so that their fork was not seen.
    """

    kind: str
    count: int
    rate_per_min: float
    oldest_age_s: float
    stack: Stack
    parents: tuple[Parent, ...]
    comms: Mapping[str, int]
    exits: Mapping[str, int]
    examples: tuple[int, ...]
    verdict: Verdict
    pre_existing: bool = False
    waits: tuple[WaitSite, ...] = ()  # where the parent does wait


@dataclass(frozen=True, slots=True)
class FailedFork:
    """Clones that failed with one errno on one stack.  ``thread``: it was to be a thread.

    limit: what refused them, in the form of the trace's ``limits``.  reason: what is known without one.
    """

    errno: str
    count: int
    thread: bool
    stack: Stack
    limit: Mapping[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one library's children take of the limits at the end of the trace.  responsible: None for those whose fork
    was not seen, or left no stack.
    """

    responsible: Library | None
    zombies: int
    running: int


@dataclass(frozen=True, slots=True)
class Target:
    pid: int
    comm: str


@dataclass(frozen=True, slots=True)
class Totals:
    """The whole trace in integers; None where it was not measured.

    zombies: fate ``zombie``; zombies_now: dead children that stand at the end of the trace, zombies_peak: the most that
    stood at once.
    """

    forks: int = 0
    threads: int = 0
    execs: int = 0
    exits: int = 0
    waited: int = 0
    zombies: int = 0
    zombies_now: int = 0
    zombies_peak: int = 0
    orphaned: int = 0
    autoreaped: int = 0
    running: int = 0
    unknown: int = 0
    pre_existing_zombies: int = 0
    failed_forks: int = 0
    threads_running: int | None = None
    threads_unjoined: int | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """The life of one process.

    Times are seconds since the trace began; None: not seen, or not yet.  id, parent, forker, reaper: identities, which
    name one process though pids come back; 0 is nobody known, and ``pid_of(identity)`` is the pid.
    stack: of the fork.  comm: its last name; fork_comm: the forker's when it forked.  exit: as in ``Leak.exits``.
    reaped_by: "wait4", "waitid", or "" when no call was seen.  root: a target, nobody's traced child.
    pre_existing: it was there before the trace, so that its fork was not seen.
    """

    id: int
    parent: int
    forker: int
    fate: str
    stack: Stack
    comm: str = ""
    fork_comm: str = ""
    ns_pid: int = 0
    execs: int = 0
    forked_s: float | None = None
    exited_s: float | None = None
    exit: str | None = None
    reaped_s: float | None = None
    reaper: int = 0
    reaped_by: str = ""
    root: bool = False
    pre_existing: bool = False

    @property
    def pid(self) -> int:
        return pid_of(self.id)

    def zombie_s(self, end_s: float) -> float:
        """How long it stood dead and unreaped, at the end of the trace if it still does."""
        if self.exited_s is None:
            return 0.0
        return max((end_s if self.reaped_s is None else self.reaped_s) - self.exited_s, 0.0)


def pid_of(identity: int) -> int:
    return identity >> 32


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The zombies that /proc showed below the targets at the end, and what the trace says of each.

    standing = explained + pre_existing + unexplained.
    """

    standing: int
    explained: int
    pre_existing: int
    unexplained: int
    unexplained_pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ReapLatency:
    """Seconds from a child's death to its reaping, over all waited children; None when there was none."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class LateReaping:
    """Children of one stack that were waited for, but stood as zombies for at least the trace's min_age first."""

    stack: Stack
    count: int
    latency: ReapLatency


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace, finished (or as far as a killed tracer's capture goes)."""

    version: str
    host: Mapping[str, Any]
    started_at: float  # seconds since the epoch
    duration_s: float
    targets: tuple[Target, ...]
    lost_events: int
    complete: bool
    totals: Totals
    leaks: tuple[Leak, ...]  # largest count first
    failed_forks: tuple[FailedFork, ...] = ()
    limits: tuple[Mapping[str, Any], ...] = ()
    shares: tuple[Share, ...] = ()  # in each of the limits, largest first
    reap_latency: ReapLatency = field(default_factory=ReapLatency)
    late: tuple[LateReaping, ...] = ()  # largest count first
    reconciliation: Reconciliation | None = None
    stacks: tuple[tuple[Stack, Tally], ...] = ()  # every stack that forked, most forks first
    incomplete_because: tuple[str, ...] = ()  # one sentence each; empty when complete
    notes: tuple[str, ...] = ()  # what a reader should know that spoils nothing
    min_age_s: float = 1.0
    young_zombies: int = 0  # standing for less than min_age_s: in the totals, no leak
    # Every process, in the order of their forks: read anew at each iteration, for there may be millions.  None in a
    # trace that comes from no capture, because the graph keeps only those that live or leak.
    processes: Iterable[Process] | None = field(default=None, compare=False, repr=False)
