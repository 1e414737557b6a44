"""The family graph: records in, fates out.

It keeps what lives and what stands as a zombie; whatever was released is folded into counts for the stack that forked
it.  The numbers of traps are those of docs/lifecycle.md.

Who says what: the exit record tells the parent of that moment, so an orphan is known by it; a wait call's record tells
the exact time and the waiter; the release record is the truth where no call was seen, and comes late.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tracer.lifecycle.snapshot import (
    FailedKey,
    Group,
    LatencyHistogram,
    Process,
    Snapshot,
    StackCounts,
    WaitPlace,
)
from tracer.lifecycle.task import NS_PER_TICK, PRE_EXISTING, Fate, Task, pid_of
from tracer.records import EXIT_AUTOREAP, FAIL_CLONE3, FAIL_THREAD, STACK_SAMPLE, EventType, RawEvent

WNOWAIT = 0x01000000
MAX_DEAD_INITS = 1024  # remembered until what they left behind is released, some milliseconds
SIGCHLD = 17
_ENOSYS = 38
_FORK, _EXEC, _EXIT, _RELEASE = map(int, (EventType.FORK, EventType.EXEC, EventType.EXIT, EventType.RELEASE))
_WAIT4, _WAITID = int(EventType.WAIT4), int(EventType.WAITID)
_THREAD, _THREAD_EXIT = int(EventType.THREAD), int(EventType.THREAD_EXIT)
_WAIT_PLACE = int(EventType.WAIT_PLACE)
MAX_PLACES = 8  # where one process waits


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as /proc shows it.  parent: identity, 0 if it is none of ours."""

    id: int
    parent: int
    comm: str
    ns_pid: int
    zombie: bool
    threads: int = 1


@dataclass(frozen=True, slots=True)
class PidNamespace:
    """Where a clone failed.  id: inode number.  pid_max: its own, 0 before Linux 6.14.

    taken: pids in use, with PIDNS_ADDING unless its init is dead.
    """

    id: int
    taken: int
    pid_max: int


@dataclass(frozen=True, slots=True)
class Failure:
    """One clone that failed, and the identity of who called it."""

    key: FailedKey
    caller: int
    namespace: PidNamespace


class Graph:
    """``tasks``: living processes and those dead but not released, by identity.

    changed: tasks that differ from the last ``take_changed``, kept when a capture is written.
    lossy: records were lost.  Only then is an unknown process below ours a child whose fork was missed; else it is a
    stranger that was reparented to us.
    anomalies: contradictions found by ``resync``; each is one child whose fate cannot be known, or became so late.
    """

    def __init__(self, start_ns: int, min_age_ns: int = 1_000_000_000, record_changes: bool = False) -> None:
        self.tasks: dict[int, Task] = {}
        self.lossy = False
        self.anomalies = 0
        self.lost_stacks = 0
        self._start_ns = start_ns
        self._min_age_ns = min_age_ns
        self._changed: dict[int, Task] | None = {} if record_changes else None
        self._dead: dict[int, Task] = {}  # by pid: dead, not released yet
        self._dead_in_ns: dict[
            tuple[int, int], Task
        ] = {}  # by (parent, pid in a namespace), where pids differ
        self._dead_inits: dict[int, None] = {}  # of pid namespaces, the last MAX_DEAD_INITS
        self._old_zombies: dict[
            int, int
        ] = {}  # by pid: identities of those that the first scan showed as zombies
        self._stacks: dict[int, StackCounts] = {}
        self._groups: dict[tuple[int, str], Group] = {}
        self._parents: dict[int, Process] = {}
        self._reaped: dict[int, int] = {}  # living parent -> children that it did wait for
        self._failed: dict[FailedKey, int] = {}
        self._wait_places: dict[int, dict[int, tuple[int, int]]] = {}  # process -> stack -> target, options
        self._handlers: dict[int, int] = {}  # process -> address of its SIGCHLD handler
        self._enosys: dict[
            int, FailedKey
        ] = {}  # tid -> clone3 refused: no failure if a clone follows (trap 12)
        self._blind_waits: dict[
            int, tuple[int, str]
        ] = {}  # waiter -> when and how it last reaped it knows not whom
        self._latency = LatencyHistogram()
        self._late: dict[int, LatencyHistogram] = {}  # by stack
        self._peak = 0  # zombies that stood at once
        self._folded: set[int] = set()  # released since expect_scan
        self._remember_folded = False
        self._execed: list[int] = []
        self._failures: list[Failure] = []
        self._names: dict[bytes, str] = {}
        self._threads = self._execs = self._exits = self._pre_existing_zombies = 0

    def begin(self, start_ns: int) -> None:
        """The trace begins now."""
        self._start_ns = start_ns

    # --- records -----------------------------------------------------------------------------------------------

    def apply(self, events: Iterable[RawEvent], samples: Mapping[int, int]) -> int:
        """Apply records, oldest first; returns how many.  samples: number of a stack sample -> stack id."""
        tasks, dead, dead_in_ns, names = self.tasks, self._dead, self._dead_in_ns, self._names
        changed, stacks, reaped, enosys = self._changed, self._stacks, self._reaped, self._enosys
        latency, blind, handlers = self._latency.add, self._blind_waits, self._handlers
        count = 0
        for (
            _,
            _,
            ts,
            ident,
            parent,
            forker,
            stack,
            kind,
            flags,
            value,
            tid,
            ns_pid,
            forker_ns_pid,
            comm,
        ) in events:
            count += 1
            if kind == _EXIT:
                task = tasks.get(ident)
                if task is None:
                    if parent not in tasks:
                        continue
                    task = self._unseen(ident, parent)
                elif task.exited_ns:
                    continue
                task.exited_ns = ts
                task.exit_code = value
                task.exit_parent = parent
                task.comm = names.get(comm) or self._name(comm)
                task.threads = 0
                if task.ns_pid == 1:
                    self._dead_inits[ident] = None
                    if len(self._dead_inits) > MAX_DEAD_INITS:
                        del self._dead_inits[next(iter(self._dead_inits))]
                self._exits += 1
                elder = tasks.get(task.parent)
                if parent != task.parent or (elder is not None and 0 < elder.exited_ns <= ts):
                    task.fate = Fate.ORPHANED
                elif flags & EXIT_AUTOREAP:
                    task.fate = Fate.AUTOREAPED
                else:
                    task.fate = Fate.ZOMBIE
                if forker:
                    handlers[parent] = forker
                pid = ident >> 32
                if not (task.root or task.fate is Fate.AUTOREAPED):
                    dead[pid] = task
                    self._peak = max(self._peak, len(dead))
                    if task.ns_pid != pid:
                        dead_in_ns.setdefault((parent, task.ns_pid), task)
                        dead_in_ns[parent, task.forker_ns_pid] = task
                if changed is not None:
                    changed[ident] = task
            elif kind == _FORK:
                if enosys and tid in enosys:
                    del enosys[tid]
                if stack >= STACK_SAMPLE:
                    stack = samples.get(stack, 0)
                    if not stack:
                        self.lost_stacks += 1
                task = tasks.get(ident)
                if task is None:
                    if forker not in tasks and parent not in tasks:
                        continue  # a stranger, seen while the trace started
                    task = tasks[ident] = Task(ident, parent, forker, ts, stack)
                    if self._old_zombies:
                        self._not_old(ident)
                elif task.forker or task.exited_ns:
                    continue  # doubled
                else:  # the scan of /proc saw it first
                    task.parent, task.forker, task.forked_ns, task.stack = parent, forker, ts, stack
                    task.root = False
                task.ns_pid, task.forker_ns_pid = ns_pid, forker_ns_pid
                task.exit_signal = value
                task.comm = task.fork_comm = names.get(comm) or self._name(comm)
                counts = stacks.get(stack)
                if counts is None:
                    counts = stacks[stack] = StackCounts()
                counts.forks += 1
                if changed is not None:
                    changed[ident] = task
            elif kind in (_WAIT4, _WAITID):
                if flags & WNOWAIT:
                    continue  # it looked, and left the zombie (trap 2)
                if not value:  # waitid without a siginfo, or with one that could not be written
                    blind[ident] = ts, "wait4" if kind == _WAIT4 else "waitid"
                    continue
                task = dead_in_ns.get((ident, value)) if dead_in_ns else None
                if task is None:
                    task = dead.get(value)
                    if task is None:
                        self._old_zombies.pop(value, None)
                        continue
                if ident == task.parent:
                    task.fate = Fate.WAITED
                    latency(ts - task.exited_ns)
                    reaped[ident] = reaped.get(ident, 0) + 1
                elif not self._may_adopt(ident, task):
                    continue  # a debugger: the real parent must still wait (trap 9)
                task.reaped_ns = ts
                task.reaper = ident
                task.reaped_by_call = "wait4" if kind == _WAIT4 else "waitid"
                self._fold(task)
            elif kind == _RELEASE:
                task = tasks.get(ident)
                if task is None:
                    self._old_zombies.pop(tid, None)
                    continue
                task.reaped_ns = ts
                task.reaper = parent
                if task.fate is Fate.ZOMBIE and self._was_reaped(task, parent):
                    waited_ns, call = blind.pop(parent, (0, ""))
                    if waited_ns > task.exited_ns:
                        task.reaped_ns, task.reaped_by_call = waited_ns, call
                    self._waited(task, parent)
                elif not task.exited_ns:  # its exit was lost
                    task.fate = Fate.UNKNOWN
                    self.anomalies += 1
                self._fold(task)
            elif kind == _EXEC:
                task = tasks.get(ident)
                if task is not None:
                    task.execs += 1
                    task.exit_signal = SIGCHLD  # whatever clone was told
                    # Another program now: what the old one waited for proves nothing of it.
                    reaped.pop(ident, None)
                    handlers.pop(ident, None)
                    self._wait_places.pop(ident, None)
                    self._execed.append(ident)
                    task.comm = names.get(comm) or self._name(comm)
                    self._execs += 1
                    if changed is not None:
                        changed[ident] = task
            elif kind == _THREAD:
                task = tasks.get(ident)
                if task is not None:
                    task.threads += 1
                    self._threads += 1
                    if enosys:
                        enosys.pop(tid, None)
            elif kind == _THREAD_EXIT:
                task = tasks.get(ident)
                if task is not None and task.threads > 1:
                    task.threads -= 1
            elif kind == _WAIT_PLACE:
                places = self._wait_places.setdefault(ident, {})
                if len(places) < MAX_PLACES:
                    places[samples.get(stack, 0) if stack >= STACK_SAMPLE else stack] = value, flags
            elif ident in tasks:
                where = PidNamespace(forker, ns_pid, parent)
                self._fail(Failure(FailedKey(stack, value, False), ident, where), flags, tid, samples)
        return count

    def _name(self, comm: bytes) -> str:
        if len(self._names) > 4096:
            self._names.clear()
        name = comm.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        self._names[comm] = name
        return name

    def _unseen(self, ident: int, parent: int) -> Task:
        """A child that dies, and whose fork is not in the records."""
        self._not_old(ident)
        if _started_since(ident, self._start_ns + NS_PER_TICK):
            return self._missed(ident, parent)
        task = self.tasks[ident] = Task(ident, parent, stack=PRE_EXISTING)  # nor in the scan (trap 15)
        return task

    def _not_old(self, ident: int) -> None:
        """The scan showed a zombie, but it died, or was even forked, after the trace had begun."""
        if self._old_zombies.get(pid_of(ident)) == ident:
            del self._old_zombies[pid_of(ident)]
            self._pre_existing_zombies -= 1

    def _missed(self, ident: int, parent: int) -> Task:
        """Its fork was lost (trap 14)."""
        task = self.tasks[ident] = Task(ident, parent)
        self._counts(0).forks += 1
        self.anomalies += 1
        self._note_change(task)
        return task

    def _alive(self, ident: int) -> bool:
        task = self.tasks.get(ident)
        return task is not None and not task.exited_ns

    def _was_reaped(self, task: Task, parent: int) -> bool:
        """Of a zombie released under ``parent``, by no wait call that was seen: did its own parent reap it?"""
        if self._alive(task.parent):
            return True  # nobody else can
        # A namespace's init that exits releases what is left in it, in its own name (trap 11).
        return parent == task.parent and parent not in self._dead_inits

    def _waited(self, task: Task, reaper: int) -> None:
        """Its parent reaped it, at ``reaped_ns``, by a call that was not seen or did not name it."""
        task.fate = Fate.WAITED
        task.reaper = reaper
        self._latency.add(task.reaped_ns - task.exited_ns)
        self._reaped[task.parent] = self._reaped.get(task.parent, 0) + 1

    def _may_adopt(self, waiter: int, task: Task) -> bool:
        """The waiter is the parent that the task has now: it was reparented, before or after it died."""
        return waiter == task.exit_parent or not self._alive(task.parent)

    def _fail(self, failure: Failure, flags: int, tid: int, samples: Mapping[int, int]) -> None:
        stack, errno = failure.key.stack, failure.key.errno
        if stack >= STACK_SAMPLE:
            stack = samples.get(stack, 0)
        key = FailedKey(stack, errno, bool(flags & FAIL_THREAD))
        if flags & FAIL_CLONE3 and errno == _ENOSYS:
            self._enosys[tid] = key  # the C library tries clone next
            return
        self._enosys.pop(tid, None)
        self._failed[key] = self._failed.get(key, 0) + 1
        self._failures.append(replace(failure, key=key))

    # --- folding -----------------------------------------------------------------------------------------------

    def _note_change(self, task: Task) -> None:
        if self._changed is not None:
            self._changed[task.id] = task

    def _counts(self, stack: int) -> StackCounts:
        counts = self._stacks.get(stack)
        if counts is None:
            counts = self._stacks[stack] = StackCounts()
        return counts

    def _fold(self, task: Task) -> None:
        """The task was released: out of the tables, into the counts."""
        del self.tasks[task.id]
        pid = task.id >> 32
        if self._dead.get(pid) is task:
            del self._dead[pid]
        if task.ns_pid != pid:
            self._dead_in_ns.pop((task.exit_parent, task.ns_pid), None)
            self._dead_in_ns.pop((task.exit_parent, task.forker_ns_pid), None)
        self._note_change(task)
        self._blind_waits.pop(task.id, None)
        self._handlers.pop(task.id, None)
        if self._remember_folded:
            self._folded.add(task.id)
        if task.id not in self._parents:
            self._wait_places.pop(task.id, None)
            self._reaped.pop(task.id, None)
        if not task.root:
            self._count(task, self._stacks, self._groups, task.reaped_ns)

    def _count(
        self,
        task: Task,
        stacks: dict[int, StackCounts],
        groups: dict[tuple[int, str], Group],
        end_ns: int,
    ) -> None:
        counts = stacks.get(task.stack)
        if counts is None:
            counts = stacks[task.stack] = StackCounts()
        fate = task.fate
        if fate is Fate.WAITED:
            counts.waited += 1
            stood = task.reaped_ns - task.exited_ns
            if stood >= self._min_age_ns and task.exited_ns:
                self._late.setdefault(task.stack, LatencyHistogram()).add(stood)
            return
        if fate is Fate.RUNNING:
            counts.running += 1
        elif fate is Fate.AUTOREAPED:
            counts.autoreaped += 1
        elif fate is Fate.UNKNOWN:
            counts.unknown += 1
        else:
            if fate is Fate.ZOMBIE:
                counts.zombie += 1
            else:
                counts.orphaned += 1
            group = groups.get((task.stack, fate.value))
            if group is None:
                group = groups[task.stack, fate.value] = Group()
            group.add(task, end_ns, self._min_age_ns)
            if task.parent in group.parents and task.parent not in self._parents:
                self._remember_parent(task)

    def _remember_parent(self, child: Task) -> None:
        parent = self.tasks.get(child.parent)
        comm, ns_pid = (parent.comm, parent.ns_pid) if parent else (child.fork_comm, pid_of(child.parent))
        self._parents[child.parent] = Process(child.parent, comm, ns_pid, alive=True)

    # --- /proc -------------------------------------------------------------------------------------------------

    def add_existing(self, seen: Seen, root: bool = False) -> None:
        """A process that was there when the trace began (trap 15).  A zombie is only counted: who forked it is past."""
        if seen.id in self.tasks:
            return
        if seen.zombie and not root:
            self._old_zombies[pid_of(seen.id)] = seen.id
            self._pre_existing_zombies += 1
            return
        task = self.tasks[seen.id] = Task(seen.id, seen.parent, stack=PRE_EXISTING)
        task.comm = task.fork_comm = seen.comm
        task.ns_pid = task.forker_ns_pid = seen.ns_pid
        task.threads = seen.threads
        task.root = root
        self._execed.append(seen.id)
        if self._changed is not None:
            self._changed[task.id] = task

    def expect_scan(self) -> None:
        """A scan of /proc is about to be made for ``resync``: remember who is released from now on."""
        self._folded = set()
        self._remember_folded = True

    def knows(self, ident: int) -> bool:
        """It is in the graph, or was when the last scan was expected."""
        return ident in self.tasks or ident in self._folded

    def agrees_with(self, seen: Mapping[int, Seen], at_ns: int) -> bool:
        """What ``resync`` would find nothing to mend in."""
        return not any(self._disagreements(seen, at_ns))

    def resync(self, seen: Mapping[int, Seen], at_ns: int) -> None:
        """Compare with a scan of /proc made at ``at_ns``; call it when the records of that moment are all in.

        Mends what records were lost (trap 14): whose fate nobody can tell becomes ``unknown``, and adds to
        ``anomalies``; where /proc shows the rest of the story, it is taken from there.
        """
        adopted = True
        while adopted:  # the children of those that were adopted may be unknown as well
            adopted = False
            for task, there in list(self._disagreements(seen, at_ns)):
                if task is None:
                    if there is not None:
                        self._adopt(there, at_ns)
                        adopted = True
                elif there is None:
                    self._found_gone(task, seen, at_ns)
                else:
                    self._found_dead(task, there, at_ns)
                    self.anomalies += 1
        self._folded = set()
        self._remember_folded = False

    def _disagreements(
        self, seen: Mapping[int, Seen], at_ns: int
    ) -> Iterator[tuple[Task | None, Seen | None]]:
        """Tasks that /proc does not show, or shows dead while they live here; children that only /proc shows."""
        for task in self.tasks.values():
            if max(task.forked_ns, task.exited_ns) >= at_ns:
                continue
            there = seen.get(task.id)
            if there is None or (there.zombie and not task.exited_ns and not task.root):
                yield task, there
        for there in seen.values() if self.lossy else ():
            parent = self.tasks.get(there.parent)
            if (
                parent is not None
                and parent.forked_ns < at_ns
                and there.id not in self.tasks
                and pid_of(there.id) not in self._old_zombies
                and there.id not in self._folded
                and not _started_since(there.id, at_ns)
            ):
                yield None, there

    def _adopt(self, there: Seen, at_ns: int) -> None:
        """A child whose fork was lost."""
        task = self._missed(there.id, there.parent)
        task.comm, task.ns_pid, task.forker_ns_pid = there.comm, there.ns_pid, there.ns_pid
        if there.zombie:
            self._found_dead(task, there, at_ns)

    def _found_gone(self, task: Task, seen: Mapping[int, Seen], at_ns: int) -> None:
        """It was released, and the record of that was lost, or is late: on a busy machine, by seconds."""
        parent = seen.get(task.parent)
        task.reaped_ns = at_ns
        if not task.exited_ns or (task.fate is Fate.ZOMBIE and (parent is None or parent.zombie)):
            task.fate = Fate.UNKNOWN
            self.anomalies += not task.root
        elif task.fate is Fate.ZOMBIE:  # while its parent lives, nobody else can have reaped it
            self._waited(task, task.parent)
        self._fold(task)

    def _found_dead(self, task: Task, there: Seen, at_ns: int) -> None:
        """Its exit was lost."""
        task.exited_ns = at_ns
        task.exit_parent = there.parent or task.parent
        task.fate = Fate.ZOMBIE if task.exit_parent == task.parent else Fate.ORPHANED
        self._dead[task.pid] = task
        self._note_change(task)

    def suspects(self) -> dict[int, int]:
        """Identities of processes that have zombies now, and the addresses of their SIGCHLD handlers (0: none).

        Whose zombies stand for longest comes first.
        """
        parents = dict.fromkeys(task.exit_parent for task in self._dead.values() if task.exit_parent)
        return {parent: self._handlers.get(parent, 0) for parent in parents}

    def zombies(self) -> int:
        """How many stand now."""
        return len(self._dead)

    def standing(self) -> dict[int, Task]:
        """Dead and not released now, by pid."""
        return {task.pid: task for task in self.tasks.values() if task.standing and not task.root}

    def is_old_zombie(self, pid: int) -> bool:
        """It was a zombie before the trace, and still is."""
        return pid in self._old_zombies

    def living(self) -> int:
        """Processes alive now, roots included."""
        return sum(not task.exited_ns for task in self.tasks.values())

    def tasks_by_kind(self) -> dict[str, int]:
        """What fills a limit now: living processes, zombies, and threads besides each process's first."""
        threads = sum(max(task.threads - 1, 0) for task in self.tasks.values())
        return {"processes": self.living(), "zombies": self.zombies(), "threads": threads}

    # --- results -----------------------------------------------------------------------------------------------

    def take_failures(self) -> list[Failure]:
        """Clones that failed since the last call."""
        failures = self._failures.copy()
        self._failures.clear()
        return failures

    def take_execed(self) -> list[int]:
        """Identities of living processes that exec'd, or were found, since the last call."""
        execed = [ident for ident in self._execed if self._alive(ident)]
        self._execed.clear()
        return execed

    def take_changed(self) -> list[Task]:
        """Tasks that changed since the last call."""
        if self._changed is None:
            return []
        changed = list(self._changed.values())
        self._changed.clear()
        return changed

    def snapshot(self, end_ns: int) -> Snapshot:
        """All of it at ``end_ns``.  The graph goes on unchanged."""
        stacks = {
            key: StackCounts(c.forks, c.waited, c.zombie, c.orphaned, c.autoreaped, c.running, c.unknown)
            for key, c in self._stacks.items()
        }
        groups: dict[tuple[int, str], Group] = {}
        for key, folded in self._groups.items():
            groups[key] = Group()
            groups[key].merge(folded)
        for task in self.tasks.values():
            if not task.root:
                self._count(task, stacks, groups, end_ns)
        kept = {parent for group in groups.values() for parent in group.parents if parent}
        processes = {}
        for ident in kept:
            parent = self.tasks.get(ident)
            known = self._parents.get(ident)
            comm = parent.comm if parent else known.comm if known else ""
            ns_pid = parent.ns_pid if parent else known.ns_pid if known else pid_of(ident)
            processes[ident] = Process(ident, comm, ns_pid, self._alive(ident), self._reaped.get(ident, 0))
        failed = dict(self._failed)
        for refused in self._enosys.values():  # no clone followed
            failed[refused] = failed.get(refused, 0) + 1
        return Snapshot(
            self._start_ns,
            end_ns,
            self._min_age_ns,
            self._totals(stacks, failed),
            stacks,
            groups,
            processes,
            failed,
            self._latency,
            late=self._late,
            wait_places={
                ident: tuple(WaitPlace(stack, *place) for stack, place in places.items() if stack)
                for ident, places in self._wait_places.items()
                if ident in kept
            },
        )

    def _totals(self, stacks: Mapping[int, StackCounts], failed: Mapping[FailedKey, int]) -> dict[str, int]:
        every = stacks.values()
        return {
            "forks": sum(c.forks for c in every),
            "threads": self._threads,
            "execs": self._execs,
            "exits": self._exits,
            "waited": sum(c.waited for c in every),
            "zombies": sum(c.zombie for c in every),
            "zombies_now": len(self.standing()),
            "zombies_peak": self._peak,
            "orphaned": sum(c.orphaned for c in every),
            "autoreaped": sum(c.autoreaped for c in every),
            "running": sum(c.running for c in every),
            "unknown": sum(c.unknown for c in every),
            "pre_existing_zombies": self._pre_existing_zombies,
            "failed_forks": sum(failed.values()),
            "threads_running": sum(max(task.threads - 1, 0) for task in self.tasks.values()),
        }


def _started_since(ident: int, at_ns: int) -> bool:
    """By the start time in its identity; in clock ticks, so that one started in the same tick counts as later."""
    return ((ident - at_ns // NS_PER_TICK) & 0xFFFFFFFF) < 1 << 31
