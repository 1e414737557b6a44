"""Records as the kernel's side sends them, written by hand: one call a record, 1 ms apart, oldest first."""

from __future__ import annotations

from collections.abc import Mapping

from tracer.lifecycle.graph import Graph, Seen
from tracer.lifecycle.task import NS_PER_TICK, Task, pid_of, task_id
from tracer.records import EVENT, EXIT_AUTOREAP, EventType, RawEvent

MS = 1_000_000
SECOND = 1000 * MS
START = 1000 * SECOND
START_TICKS = START // NS_PER_TICK


def of(pid: int, born: int = 10) -> int:
    """An identity.  born: ticks after the trace's start; the second process of a pid is born later."""
    return task_id(pid, START_TICKS + born)


TARGET = of(100, -500)
INIT = of(1, -9000)  # of nobody's interest


class Records:
    """``apply`` takes an iterable; this is one.  now: CLOCK_BOOTTIME of the next record, ns."""

    def __init__(self, now: int = START + SECOND) -> None:
        self.now = now
        self.events: list[RawEvent] = []

    def _add(self, kind: EventType, task: int, **fields: int | bytes) -> Records:
        names = ("parent", "forker", "stack", "flags", "value", "tid", "ns_pid", "forker_ns_pid")
        values: Mapping[str, int | bytes] = {**dict.fromkeys(names, 0), "comm": b"", **fields}
        packed = EVENT.pack(
            EVENT.size - 8, 0, self.now, task, values["parent"], values["forker"], values["stack"], kind,
            values["flags"], values["value"], values["tid"], values["ns_pid"], values["forker_ns_pid"], values["comm"],
        )  # fmt: skip
        self.events.append(EVENT.unpack(packed))
        self.now += MS
        return self

    def fork(
        self,
        child: int,
        parent: int = TARGET,
        *,
        forker: int = 0,
        stack: int = 1,
        tid: int = 0,
        ns_pid: int = 0,
        forker_ns_pid: int = 0,
    ) -> Records:
        """forker: with CLONE_PARENT, another process than the parent."""
        forker = forker or parent
        return self._add(
            EventType.FORK,
            child,
            parent=parent,
            forker=forker,
            stack=stack,
            tid=tid or pid_of(forker),
            ns_pid=ns_pid or pid_of(child),
            forker_ns_pid=forker_ns_pid or pid_of(child),
            value=17,
            comm=b"service",
        )

    def exec(self, task: int, comm: bytes = b"helper") -> Records:
        return self._add(EventType.EXEC, task, comm=comm, tid=pid_of(task))

    def exit(
        self,
        task: int,
        parent: int = TARGET,
        status: int = 0,
        autoreap: bool = False,
        comm: bytes = b"helper",
        handler: int = 0,
    ) -> Records:
        """status: as wait gives it.  handler: address of the parent's SIGCHLD handler."""
        flags = EXIT_AUTOREAP if autoreap else 0
        return self._add(
            EventType.EXIT,
            task,
            parent=parent,
            forker=handler,
            value=status,
            flags=flags,
            comm=comm,
            tid=pid_of(task),
        )

    def wait(
        self, child: int, waiter: int = TARGET, *, value: int | None = None, options: int = 0
    ) -> Records:
        """wait4.  value: the pid as the waiter's namespace has it; 0: not known."""
        value = pid_of(child) if value is None else value
        return self._add(EventType.WAIT4, waiter, value=value, flags=options, tid=pid_of(waiter))

    def waitid(
        self, child: int, waiter: int = TARGET, *, value: int | None = None, options: int = 0
    ) -> Records:
        value = pid_of(child) if value is None else value
        return self._add(EventType.WAITID, waiter, value=value, flags=options, tid=pid_of(waiter))

    def release(self, task: int, parent: int = TARGET) -> Records:
        return self._add(EventType.RELEASE, task, parent=parent, tid=pid_of(task))

    def thread(self, task: int = TARGET, tid: int = 0) -> Records:
        return self._add(EventType.THREAD, task, tid=tid or pid_of(task))

    def thread_exit(self, task: int = TARGET) -> Records:
        return self._add(EventType.THREAD_EXIT, task, tid=pid_of(task))

    def fail(
        self, errno: int, *, task: int = TARGET, flags: int = 0, stack: int = 1, tid: int = 0
    ) -> Records:
        return self._add(EventType.FAIL, task, value=errno, flags=flags, stack=stack, tid=tid or pid_of(task))


class Watched:
    """A graph with one target, and every task that it ever held."""

    def __init__(self, min_age_ns: int = 0) -> None:
        self.graph = Graph(START, min_age_ns, record_changes=True)
        self.graph.add_existing(Seen(TARGET, INIT, "service", 100, zombie=False), root=True)
        self.tasks: dict[int, Task] = {}

    def apply(self, records: Records, samples: Mapping[int, int] | None = None) -> Watched:
        self.graph.apply(records.events, samples or {})
        return self

    def task(self, identity: int) -> Task:
        self.tasks.update((task.id, task) for task in self.graph.take_changed())
        return self.tasks[identity]

    def totals(self) -> dict[str, int]:
        """Those that are not 0; the peak is that of a test of its own."""
        totals = self.graph.snapshot(START + 60 * SECOND).totals
        return {name: n for name, n in totals.items() if n and name != "zombies_peak"}


def seen(identity: int, parent: int = TARGET, zombie: bool = False) -> dict[int, Seen]:
    return {identity: Seen(identity, parent, "seen", pid_of(identity), zombie)}
