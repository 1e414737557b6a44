"""Threads: which stack made them, which of them live, and which ended without anybody having joined them.

Beside the family graph, which feeds it: thread records in, tallies by stack out; no I/O, no clock of its own.

**A thread leak** is a stack whose living threads in one process only grow.  The number of living threads is sampled
each second, and kept at ``MAX_SAMPLES`` moments at most, evenly spread over the trace (``only_grows``):

- at least ``MIN_ALIVE`` threads are alive at the end, and the trace has at least ``MIN_SAMPLES`` samples;
- in the last half of the samples the number never fell;
- in that half it grew at ``MIN_STEPS`` samples or more, and the last growth lies in the last quarter of the trace.

So a pool that grows to its size and stops is none, once a quarter of the trace has passed since; nor is a pool that is
made in one go; nor are threads that come and go.

**An unjoined thread** ended by itself, was made joinable by a pthread_create that was seen, and nobody has joined or
detached it: its stack stays mapped (trap 13).  A join counts as it begins.  One with a time limit counts if the thread
had ended by then; within ``IN_DOUBT_NS`` of the limit that cannot be told, and it counts as joined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from tracer.lifecycle.snapshot import ThreadCounts, ThreadGroup
from tracer.records import JOIN_FOREVER, THREAD_DETACHED, THREAD_KILLED, THREAD_PTHREAD

MIN_ALIVE: Final = 5
MIN_SAMPLES: Final = 8
MIN_STEPS: Final = 3
MAX_SAMPLES: Final = 128
MAX_SERIES: Final = 16_384  # pairs of a process and a stack whose growth is watched
MAX_OWED: Final = 262_144  # threads that somebody has to join; of further ones it is not known
IN_DOUBT_NS: Final = (
    1_000_000  # a try to join so long before the end may have succeeded (exits before 6.16 come late)
)


class Thread:
    """One thread.  Times are CLOCK_BOOTTIME in ns, 0: not yet.

    handle: its pthread_t.  owed: made joinable, and neither joined nor detached.  until_ns: how long the latest join
    with a time limit waits for it.  held_bytes: its stack, None where it was not looked for.
    """

    __slots__ = (
        "comm",
        "ended_ns",
        "handle",
        "held_bytes",
        "made_ns",
        "owed",
        "process",
        "stack",
        "tid",
        "until_ns",
    )

    def __init__(self, process: int, tid: int, handle: int, stack: int, made_ns: int, owed: bool) -> None:
        self.process, self.tid, self.handle = process, tid, handle
        self.stack, self.made_ns, self.owed = stack, made_ns, owed
        self.ended_ns = self.until_ns = 0
        self.comm = ""
        self.held_bytes: int | None = None


class Threads:
    """sees_joins: thread calls are watched (uprobes); else nothing is said about unjoined threads.

    unjudged: threads whose creation was seen, but not the pthread_create that made them: it was none, or the process
    was not watched yet.
    """

    def __init__(self, min_age_ns: int = 1_000_000_000) -> None:
        self.sees_joins = False
        self.unjudged = 0
        self._min_age_ns = min_age_ns
        self._living: dict[int, dict[int, Thread]] = {}  # process -> tid
        self._owed: dict[int, dict[int, Thread]] = {}  # process -> pthread_t; living or ended
        self._number_owed = 0
        self._blind: dict[int, None] = {}  # processes whose joins are not seen any more
        self._counts: dict[int, ThreadCounts] = {}  # by stack
        self._unjoined: dict[int, ThreadGroup] = {}  # by stack, of processes that ended
        self._alive: dict[int, Counter[int]] = {}  # process -> stack -> living threads
        self._series: dict[tuple[int, int], list[int]] = {}
        self._samples = 0  # moments in each series
        self._stride = self._skipped = 1
        self._unwatched: dict[int, None] = {}

    # --- records -----------------------------------------------------------------------------------------------

    def made(self, ts: int, process: int, tid: int, handle: int, stack: int, flags: int) -> None:
        if not flags & THREAD_PTHREAD:
            self.unjudged += 1
            self._unwatched[process] = None
        old = self._owed_by(process, handle)
        if old is not None:  # its memory is used again, so it was joined in a way that was not seen
            self._release(old)
        living = self._living.setdefault(process, {})
        if tid in living:  # its end was lost
            self._end(living[tid], ts, killed=True)
        owed = (
            flags & (THREAD_PTHREAD | THREAD_DETACHED) == THREAD_PTHREAD
            and process not in self._blind
            and self._number_owed < MAX_OWED
        )
        thread = living[tid] = Thread(process, tid, handle, stack, ts, owed)
        if owed:
            self._owed.setdefault(process, {})[handle] = thread
            self._number_owed += 1
        counts = self._counts.get(stack)
        if counts is None:
            counts = self._counts[stack] = ThreadCounts()
        counts.made += 1
        self._alive.setdefault(process, Counter())[stack] += 1

    def ended(self, ts: int, process: int, tid: int, flags: int, comm: str) -> None:
        thread = self._living.get(process, {}).get(tid)
        if thread is not None:
            thread.comm = comm
            self._end(thread, ts, bool(flags & THREAD_KILLED))
        elif tid == process >> 32 and not flags & THREAD_KILLED:
            # The leader goes before its threads (trap 4).  The kernel knows a process's uprobes by its leader's
            # memory, which is gone now: joins are seen no more.
            self.doubt(process)
            self._blind[process] = None

    def joined(self, process: int, handle: int, until_ns: int) -> None:
        """A join of any kind begins, which waits until then."""
        thread = self._owed_by(process, handle)
        if thread is None:
            return
        if until_ns == JOIN_FOREVER or thread.ended_ns:
            self._release(thread)
        else:
            thread.until_ns = max(thread.until_ns, until_ns)

    def detached(self, process: int, handle: int) -> None:
        self.joined(process, handle, JOIN_FOREVER)

    def over(self, ts: int, process: int) -> bool:
        """The process ended or exec'd, and all of its threads and their memory with it.

        True if some of them ended before, and were not joined.
        """
        if process not in self._living:
            return False
        for thread in self._living.pop(process).values():
            self._end(thread, ts, killed=True, forget=False)
        unjoined = False
        for thread in self._owed.pop(process, {}).values():
            self._number_owed -= 1
            if thread.ended_ns and thread.owed:
                unjoined = True
                self._counts[thread.stack].unjoined += 1
                group = self._unjoined.setdefault(thread.stack, ThreadGroup())
                self._add_unjoined(group, thread, ts, held=0)
        self._blind.pop(process, None)
        for stack in self._alive.pop(process):
            self._series.pop((process, stack), None)
        return unjoined

    def doubt(self, process: int | None = None) -> None:
        """Joins may have been missed: of the threads known so far, nobody can tell any more."""
        for each in [process] if process is not None else list(self._owed):
            for thread in list(self._owed.get(each, {}).values()):
                self._release(thread)

    def _owed_by(self, process: int, handle: int) -> Thread | None:
        threads = self._owed.get(process)
        return threads.get(handle) if threads else None

    def _release(self, thread: Thread) -> None:
        thread.owed = False
        del self._owed[thread.process][thread.handle]
        self._number_owed -= 1

    def _end(self, thread: Thread, ts: int, killed: bool, forget: bool = True) -> None:
        thread.ended_ns = ts
        self._counts[thread.stack].ended += 1
        self._alive[thread.process][thread.stack] -= 1
        if forget:
            del self._living[thread.process][thread.tid]
        if thread.owed and (killed or thread.until_ns + IN_DOUBT_NS >= ts):
            if forget:
                self._release(thread)
            thread.owed = False

    # --- what others know --------------------------------------------------------------------------------------

    def take_unwatched(self) -> list[int]:
        """Processes that made a thread without a pthread_create that was seen, since the last call."""
        found = list(self._unwatched)
        self._unwatched.clear()
        return found

    def processes(self) -> list[int]:
        """Those with living threads that were seen to be made."""
        return [process for process, threads in self._living.items() if threads]

    def name(self, process: int, names: Mapping[int, str], complete: bool = False) -> None:
        """names: of the living threads, by tid.  complete: there are no others, whatever records were lost."""
        for thread in list(self._living.get(process, {}).values()):
            thread.comm = names.get(thread.tid, thread.comm)
            if complete and thread.tid not in names:
                self._end(thread, thread.made_ns, killed=True)

    def unjoined(self) -> dict[int, list[int]]:
        """The pthread_t of those that ended and were not joined, by process."""
        found = {
            process: [handle for handle, thread in threads.items() if thread.ended_ns]
            for process, threads in self._owed.items()
        }
        return {process: handles for process, handles in found.items() if handles}

    def hold(self, process: int, sizes: Mapping[int, int]) -> None:
        """The bytes of memory mapped for stacks, by pthread_t."""
        for handle, size in sizes.items():
            thread = self._owed_by(process, handle)
            if thread is not None:
                thread.held_bytes = size

    # --- growth ------------------------------------------------------------------------------------------------

    def sample(self) -> None:
        """Take a sample of how many threads live; to be called each second."""
        if self._skipped < self._stride:
            self._skipped += 1
            return
        self._skipped = 1
        for process, stacks in self._alive.items():
            for stack, alive in stacks.items():
                series = self._series.get((process, stack))
                if series is None:
                    if len(self._series) >= MAX_SERIES:
                        continue
                    series = self._series[process, stack] = [0] * self._samples
                series.append(alive)
        self._samples += 1
        if self._samples > MAX_SAMPLES:
            for series in self._series.values():
                del series[::2]
            self._samples //= 2
            self._stride *= 2

    # --- results -----------------------------------------------------------------------------------------------

    def counts(self) -> dict[int, ThreadCounts]:
        """By stack, as of now."""
        counts = {
            stack: ThreadCounts(each.made, each.ended, each.unjoined) for stack, each in self._counts.items()
        }
        for thread in self._left_unjoined():
            counts[thread.stack].unjoined += 1
        for thread in self._all_living():
            of_stack = counts[thread.stack]
            of_stack.oldest_ns = min(of_stack.oldest_ns or thread.made_ns, thread.made_ns)
        for (_, stack), series in self._series.items():
            counts[stack].grown += series[-1] - series[len(series) // 2]
        return counts

    def leaks(self, end_ns: int) -> dict[tuple[int, str], ThreadGroup]:
        """By stack and kind ("thread", "unjoined_thread")."""
        groups: dict[tuple[int, str], ThreadGroup] = {}
        growing = {key for key, series in self._series.items() if only_grows(series)}
        for thread in self._all_living():
            if (thread.process, thread.stack) in growing:
                group = groups.setdefault((thread.stack, "thread"), ThreadGroup())
                group.add(thread.process, thread.tid, thread.comm, thread.made_ns)
        for stack, folded in self._unjoined.items():
            groups[stack, "unjoined_thread"] = folded.copy()
        for thread in self._left_unjoined():
            group = groups.setdefault((thread.stack, "unjoined_thread"), ThreadGroup())
            self._add_unjoined(group, thread, end_ns, thread.held_bytes)
        return groups

    def _add_unjoined(self, group: ThreadGroup, thread: Thread, end_ns: int, held: int | None) -> None:
        if end_ns - thread.ended_ns < self._min_age_ns:
            group.young += 1  # whoever is to join it may just be busy
            return
        group.add(thread.process, thread.tid, thread.comm, thread.ended_ns)
        if held is not None:
            group.held_bytes = (group.held_bytes or 0) + held

    def _all_living(self) -> Iterator[Thread]:
        for threads in self._living.values():
            yield from threads.values()

    def _left_unjoined(self) -> Iterator[Thread]:
        for threads in self._owed.values():
            yield from (thread for thread in threads.values() if thread.ended_ns)


def only_grows(live: Sequence[int]) -> bool:
    """The rule of this module: samples of a number of living threads, evenly spaced, up to the end."""
    number = len(live)
    if number < MIN_SAMPLES or live[-1] < MIN_ALIVE:
        return False
    half = live[number // 2 :]
    steps = [after - before for before, after in pairwise(half)]
    if min(steps) < 0 or sum(step > 0 for step in steps) < MIN_STEPS:
        return False
    return any(step > 0 for step in steps[-(number // 4) :])
