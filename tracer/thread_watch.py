"""A session's threads, with ``--threads``: the account of them, whose joins are seen, and what /proc alone knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tracer import thread_stacks
from tracer.joins import MAX_WATCHED, Joins
from tracer.lifecycle.task import pid_of
from tracer.lifecycle.threads import Threads
from tracer.probe.probe import Probe


class ThreadWatch:
    """threads: for the graph.  note: takes sentences for the report."""

    def __init__(self, probe: Probe, min_age_ns: int, note: Callable[[str], None]) -> None:
        self._probe = probe
        self._note = note
        self._joins = Joins(probe, note)
        self.threads = Threads(min_age_ns)
        self.threads.sees_joins = not probe.no_uprobes
        if probe.no_uprobes:
            note(f"unjoined threads are not looked for: {probe.no_uprobes}")

    def begin(self, living: Iterable[int]) -> None:
        """With the processes that are there.  Whoever comes later is watched once it makes a thread."""
        if self.threads.sees_joins:
            for _, identity in zip(range(MAX_WATCHED), living, strict=False):
                self._joins.watch(identity)

    def drained(self) -> None:
        """Records were applied."""
        if self.threads.sees_joins:
            for identity in self.threads.take_unwatched():
                self._joins.watch(identity)

    def tick(self, lives: Callable[[int], bool]) -> None:
        """Each second."""
        self.threads.sample()
        self._probe.set_clock()
        self._joins.forget(lives)

    def finish(self, lossy: bool) -> None:
        """The names of those that live, what the stacks of the unjoined ones hold, and what cannot be known."""
        threads = self.threads
        for process in threads.processes():
            threads.name(process, thread_stacks.names(pid_of(process)), complete=lossy)
        for process, handles in threads.unjoined().items():
            threads.hold(process, thread_stacks.sizes(pid_of(process), handles))
        if threads.sees_joins and threads.unjudged:
            self._note(
                f"{threads.unjudged:,} threads were made before their process was watched, or by no pthread_create: "
                f"whether they are joined is not known"
            )
