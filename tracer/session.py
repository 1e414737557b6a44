"""A live trace from start to report: the probe, the graph, the stacks and the capture, joined.

Start order (trap 15): follow the targets and all below them, attach with every process of the host recorded, scan
/proc, follow what it shows below the targets and what those forked meanwhile; then record the followed ones alone.
A child forked by a followed process is followed by the kernel, so from there on nothing is missed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tracer import __version__, procfs, trace
from tracer.blame.rules import Rules
from tracer.capture.errors import CaptureError
from tracer.capture.meta import Meta
from tracer.capture.writer import CaptureWriter
from tracer.errors import ForktraceError, Unavailable
from tracer.headroom import Headroom
from tracer.lifecycle.graph import Graph, Seen
from tracer.lifecycle.snapshot import Snapshot
from tracer.lifecycle.summary import About, summarize
from tracer.lifecycle.task import Task, pid_of
from tracer.probe.probe import Probe, ProbeOptions
from tracer.records import EVENT, CodeRecord
from tracer.refusals import Refusals
from tracer.stacks.store import StackStore
from tracer.suspects import Suspects
from tracer.trigger import Awaited

DRAIN_S = 0.05  # how long records may wait in the rings
TICK_S = 1.0  # losses, targets and the capture are looked after this often
LIMITS_S = 5.0  # limits are looked at this often: growth over a minute is what matters
SWEEP_S = 30.0  # all of /proc is compared with the graph
SETTLE_S = 1.0  # releases are recorded by an RCU callback: up to so long after a child was reaped
PRIORITY = (
    -20
)  # nice: among hundreds of processes that fork, an equal would get its turn too late for the ring
MAX_PASSES = 50  # while the trace starts; two or three are enough unless the map of traced processes is full
MAX_FORGOTTEN = 65_536  # numbers of samples kept for events that were lost


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """pids: the targets.  everything: all processes of the host.  cgroup: a cgroup directory, looked at each second
    for processes that joined it.  min_age_s: a zombie that stood for less is no leak.  rules: other than the shipped.
    """

    pids: tuple[int, ...] = ()
    everything: bool = False
    cgroup: str | None = None
    min_age_s: float = 1.0
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    rules: Rules | None = None


class Session:
    """One trace.  ``start``, then ``step`` until ``over`` or enough, then ``finish``; ``close`` in any case."""

    def __init__(
        self,
        options: SessionOptions,
        capture: CaptureWriter | None = None,
        record_changes: bool = False,
        snapshots: Iterable[Awaited] = (),
    ) -> None:
        """Load the programs; nothing is traced yet.  Raises what ``Probe`` raises.

        capture: an open one, which the session closes.  record_changes: for ``graph.take_changed`` without one.
        snapshots: further captures, each of which ends at a moment of its own.
        """
        self.options = options
        self.capture = capture
        self.capture_problem: str | None = None
        self.news: list[str] = []  # sentences about what happened, for whoever shows them to take away
        self._snapshots = list(snapshots)
        self._failed_with_eagain = False
        self._probe = Probe(options.probe)
        self._stacks = StackStore(self._probe, options.rules)
        self._samples: dict[int, int] = {}
        self._roots: set[int] = set()
        self.targets: tuple[trace.Target, ...] = ()
        self._target_ids: tuple[int, ...] = ()
        self._incomplete: dict[str, None] = {}
        self._notes: dict[str, None] = {}
        if options.probe.light:
            self._notes[
                "--light: children are seen to be reaped some 10 to 100 ms late, and failed forks not at all"
            ] = None
        self._lost: dict[str, int] = self._probe.lost()
        self._suspect: tuple[dict[int, Seen], int] | None = None
        self._captured_stacks = 0
        self._next_tick = self._next_sweep = self._next_limits = 0.0
        self._headroom = Headroom()
        self._refusals = Refusals()
        self._suspects = Suspects(self._probe, self._stacks)
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        self._poll = select.poll()
        self._poll.register(self._probe.samples.fd, select.POLLIN)
        self.started_at = time.time()
        self.start_ns = procfs.boottime_ns()
        self.graph = Graph(self.start_ns, int(options.min_age_s * 1e9), self._records_changes(record_changes))

    def _records_changes(self, wanted: bool = False) -> bool:
        return wanted or self.capture is not None or bool(self._snapshots)

    # --- start -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Raises ``ForktraceError`` when a target is gone, no process, or a thread.  Raises this thread's priority."""
        if not procfs.in_host_pid_namespace():
            raise Unavailable(
                "this is a pid namespace of its own: its pids are not those that the kernel records",
                "run forktrace on the host, or in a container that was started with --pid=host",
            )
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        identities = [check_target(pid) for pid in self.options.pids]
        if self.options.cgroup is not None:
            identities += cgroup_members(self.options.cgroup)
            if not identities:
                raise ForktraceError(f"no process is in the cgroup {self.options.cgroup}", "start it first")
        self._follow_those_there(identities)
        self._probe.follow_everything(True)
        self._probe.attach()
        self.started_at = time.time()
        self.start_ns = procfs.boottime_ns()
        self.graph.begin(self.start_ns)
        stats = procfs.scan()
        if self.options.everything:
            self._add_everything(stats)
        else:
            self._add_targets(stats, identities)
        self._follow_newcomers()
        self._probe.follow_everything(False)
        self._suspects.watch(self._roots)
        self._refusals.begin(map(pid_of, self._roots))
        self._sample_limits(stats)
        self._next_tick = time.monotonic() + TICK_S
        self._next_sweep = time.monotonic() + SWEEP_S
        if self._records_changes():  # the targets are known now
            self._flush(self._snapshot(), self._about(), final=False)

    def _follow_those_there(self, identities: list[int]) -> None:
        """Before anything is attached, so that hardly anybody of ours forks unfollowed, and without a stack."""
        stats = procfs.scan()
        if self.options.everything:
            found = [stat for stat in stats.values() if not stat.is_kernel_thread]
        else:
            found = [stats[pid] for pid in procfs.descendants(stats, map(pid_of, identities))]
        for identity in {*identities, *map(procfs.identity, found)}:
            self._follow(identity)

    def _follow_newcomers(self) -> None:
        """Children forked by those that were not followed in time, dead ones too, for their release is yet to come.

        Until there are none twice in a row: a program that runs just now on another processor may have looked before
        the last ones were followed.
        """
        followed: set[int] = set()
        quiet = False
        for _ in range(MAX_PASSES):
            # While the programs were attached one by one, the exit of a child was recorded and its wait was not.
            self.drain(self.start_ns)
            tasks = self.graph.tasks.keys() - followed
            missing = {identity for identity in tasks if self._probe.image_of(identity) is None}
            for identity in missing:
                self._follow(identity)
            followed |= missing
            if quiet and not missing:
                return
            quiet = not missing
            time.sleep(0.001)

    def _add_targets(self, stats: dict[int, procfs.Stat], wanted: list[int]) -> None:
        identities = [identity for identity in wanted if _lives(stats.get(pid_of(identity)), identity)]
        gone = [pid_of(identity) for identity in wanted if identity not in identities]
        if gone and not (identities and self.options.cgroup is not None):
            raise ForktraceError(
                f"process {gone[0]} ended before tracing began",
                "start it with: sudo forktrace run -- COMMAND",
            )
        pids = {pid_of(identity) for identity in identities}
        below = procfs.descendants(stats, pids)
        self._roots = {identity for identity in identities if pid_of(identity) not in below}
        self._target_ids = tuple(sorted(identities))
        self.targets = tuple(
            trace.Target(pid_of(each), stats[pid_of(each)].comm) for each in self._target_ids
        )
        for pid in pids | below:
            seen = _seen(stats[pid], stats)
            self.graph.add_existing(seen, root=seen.id in self._roots)
            self._follow(seen.id)

    def _add_everything(self, stats: dict[int, procfs.Stat]) -> None:
        for stat in stats.values():
            if stat.is_kernel_thread:
                continue
            seen = _seen(stat, stats)
            # A child of nobody, or of the kernel's own threads.
            self.graph.add_existing(seen, root=not stat.ppid or stats.get(stat.ppid, stat).is_kernel_thread)
            self._follow(seen.id)
        self.targets = ()

    def _follow(self, identity: int) -> None:
        if not self._probe.follow(identity):
            self._say_incomplete(
                f"more than {self.options.probe.max_traced} processes lived at once: some were not followed"
            )

    # --- while it runs ---------------------------------------------------------------------------------------

    def watch(self, descriptor: int) -> None:
        """``step`` returns early when this descriptor becomes readable."""
        self._poll.register(descriptor, select.POLLIN)

    def step(self, timeout_s: float = DRAIN_S) -> None:
        """Wait a little, then take what the kernel recorded."""
        self._poll.poll(max(timeout_s, 0) * 1000)
        self.drain()
        self._take_snapshots()
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + TICK_S
            self._tick()

    def over(self) -> bool:
        """All targets have ended."""
        if not self._roots or self.options.everything:
            return False
        tasks = self.graph.tasks
        return all(root not in tasks or tasks[root].exited_ns for root in self._roots)

    def drain(self, since_ns: int = 0) -> int:
        """Take all that is in the rings; returns the number of events that were not older than ``since_ns``."""
        probe, samples = self._probe, self._samples
        end = probe.events.produced()
        for sample in probe.take_samples():  # a fork's sample is in its ring before the fork is in the other
            if isinstance(sample, CodeRecord):
                self._stacks.add_code(sample)
            else:
                samples[sample.number] = self._stacks.add(sample)
        view = probe.events.fixed(end, EVENT.size)
        events = EVENT.iter_unpack(view)
        count = self.graph.apply(
            (event for event in events if event[2] >= since_ns) if since_ns else events, samples
        )
        probe.events.consume(len(view))
        self._recognise_interpreters()
        for failure in self.graph.take_failures():
            self._refusals.explain(failure)
            self._failed_with_eagain |= failure.key.errno == errno.EAGAIN
        if len(samples) > MAX_FORGOTTEN:
            samples.clear()
        return count

    def _recognise_interpreters(self) -> None:
        """In processes that exec'd: the sooner, the fewer forks go by without their script's frames."""
        for sentence in self._probe.load_walkers():
            self._notes[sentence] = None
        if not self.options.probe.stacks:
            return
        for identity in self.graph.take_execed():
            image = self._probe.image_of(identity)
            if image:
                self._stacks.recognise(identity, image)

    def _tick(self) -> None:
        self._look_for_losses()
        if self.options.cgroup is not None:
            self._add_newcomers(self.options.cgroup)
        if any(procfs.read_stat(pid_of(root)) is None for root in self._roots if root in self.graph.tasks):
            self._suspect = self._suspect or self._scan()
        self._suspects.look(self.graph.suspects())
        if time.monotonic() >= self._next_limits:
            self._sample_limits()
        if self._records_changes():
            self._flush(self._snapshot(), self._about(), final=False)

    def _sample_limits(self, stats: dict[int, procfs.Stat] | None = None) -> None:
        now = time.monotonic()
        self._next_limits = now + LIMITS_S
        pids = (
            (pid_of(each) for each in self._target_ids or tuple(self._roots))
            if self._roots
            else (os.getpid(),)
        )
        self._headroom.sample(pids, now, stats, self.graph.tasks_by_kind())

    def _look_for_losses(self) -> None:
        """Compare with /proc, once what was recorded by then is in: after a loss (trap 14), and now and then."""
        if self._suspect is not None:
            self.graph.resync(*self._suspect)
            self._suspect = None
        lost = self._probe.lost()
        if lost["events"] != self._lost["events"] or time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP_S
            self._suspect = self._scan()
        self._note_losses(lost)

    def _note_losses(self, lost: dict[str, int]) -> None:
        self._lost = lost
        self.graph.lossy = bool(lost["events"] or lost["traced"])

    def _add_newcomers(self, cgroup: str) -> None:
        try:
            members = cgroup_members(cgroup)
        except ForktraceError:  # the container has ended, and its directory with it
            return
        for identity in members:
            stat = procfs.read_stat(pid_of(identity))
            if identity not in self.graph.tasks and stat is not None and _lives(stat, identity):
                seen = _seen(stat, {})
                self._roots.add(seen.id)
                self.graph.add_existing(seen, root=True)
                self._follow(seen.id)

    def _scan(self) -> tuple[dict[int, Seen], int]:
        """Our processes as /proc shows them, and the CLOCK_BOOTTIME at which they were all there or not."""
        self.graph.expect_scan()
        at_ns = procfs.boottime_ns()
        stats = procfs.scan()
        identities = {pid: procfs.identity(stat) for pid, stat in stats.items()}
        known = self.graph.tasks
        ours = {pid for pid, identity in identities.items() if identity in known}
        seen = {}
        for pid in ours | procfs.descendants(stats, ours):
            stat = stats[pid]
            seen[identities[pid]] = Seen(
                identities[pid],
                identities.get(stat.ppid, 0),
                stat.comm,
                pid,
                procfs.is_zombie(stat),
                stat.num_threads,
            )
        return seen, at_ns

    # --- the end ---------------------------------------------------------------------------------------------

    def finish(self) -> trace.Trace:
        """End the tracing, settle what is open, and give the finished model."""
        self.drain()
        self._take_snapshots()
        self._suspects.look(self.graph.suspects())
        self._sample_limits()
        seen, at_ns = self._scan()
        self.drain()
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline and not self.graph.agrees_with(seen, at_ns):
            time.sleep(0.01)
            self.drain()
        self._note_losses(self._probe.lost())
        # The kernel takes 0.2 s to let go of the syscall tracepoints; naming the stacks takes as long.
        detaching = threading.Thread(target=self._probe.detach)
        detaching.start()
        try:
            return self._settled(seen, at_ns)
        finally:
            detaching.join()

    def _settled(self, seen: dict[int, Seen], at_ns: int) -> trace.Trace:
        """The finished model of what was drained, corrected by a scan of /proc that the records have caught up with."""
        self._drop_snapshots()
        reconciliation = self._reconcile(seen)
        self.graph.resync(seen, at_ns)
        snapshot = self._snapshot()
        about = self._about(reconciliation)
        self._flush(snapshot, about, final=True)
        named = {ident: self._stacks.stack(ident) for ident in range(1, len(self._stacks) + 1)}
        notes = (*self._notes, *self._stacks.notes())  # of the flush, too
        return summarize(snapshot, named, replace(about, notes=notes))

    def _snapshot(self) -> Snapshot:
        snapshot = self.graph.snapshot(procfs.boottime_ns())
        return replace(snapshot, facts=self._suspects.facts(snapshot), failed_limits=self._refusals.found)

    def _reconcile(self, seen: dict[int, Seen]) -> trace.Reconciliation:
        """The zombies of ``seen``, each explained by the trace or not."""
        standing = [each for each in seen.values() if each.zombie and each.id not in self._roots]
        explained = old = 0
        unexplained = []
        for each in standing:
            if self.graph.knows(each.id):
                explained += 1
            elif self.graph.is_old_zombie(pid_of(each.id)):
                old += 1
            else:
                stat = procfs.read_stat(pid_of(each.id))  # forked, dead and reaped while we looked?
                if stat is not None and procfs.identity(stat) == each.id:
                    unexplained.append(pid_of(each.id))
        total = explained + old + len(unexplained)
        return trace.Reconciliation(total, explained, old, len(unexplained), tuple(sorted(unexplained)))

    def _about(self, reconciliation: trace.Reconciliation | None = None) -> About:
        return About(
            version=__version__,
            host=procfs.host_facts(),
            started_at=self.started_at,
            targets=self._named_targets(),
            lost_events=self._lost["events"],
            incomplete_because=tuple(self._incomplete_because()),
            notes=tuple(self._notes),
            limits=self._headroom.report(),
            reconciliation=reconciliation,
        )

    def _named_targets(self) -> tuple[trace.Target, ...]:
        """As they are called now: ``run``'s is found before its exec."""
        tasks = (self.graph.tasks.get(identity) for identity in self._target_ids)
        self.targets = tuple(
            replace(target, comm=task.comm) if task is not None and task.comm else target
            for target, task in zip(self.targets, tasks, strict=True)
        )
        return self.targets

    def _say_incomplete(self, sentence: str) -> None:
        self._incomplete[sentence] = None

    def _incomplete_because(self) -> Iterable[str]:
        yield from self._incomplete
        lost = self._lost
        if lost["events"]:
            yield (
                f"{lost['events']} records were lost: the kernel's ring was full. Some children may be missing; "
                f"those whose fate became doubtful are counted as unknown"
            )
        elif self.graph.anomalies:
            yield f"{self.graph.anomalies} children were not where their records left them; their fate is unknown"
        if lost["stacks"]:
            yield f"{lost['stacks']} stacks were lost: the stack ring was full. Their forks are counted without a stack"
        if lost["traced"]:
            yield f"{lost['traced']} children were not followed: the table of traced processes was full"
        if self._stacks.dropped:
            yield f"{self._stacks.dropped} forks are counted without a stack: too many different stacks"

    # --- capture ---------------------------------------------------------------------------------------------

    def _flush(self, snapshot: Snapshot, about: About, final: bool) -> None:
        """To all captures.  When one fails the trace goes on, and the report says so."""
        if not self._records_changes():
            return
        new = [self._stacks.stack(i) for i in range(self._captured_stacks + 1, len(self._stacks) + 1)]
        changed = self.graph.take_changed()
        extra = {
            "started_at": about.started_at,
            "targets": about.targets,
            "lost_events": about.lost_events,
            "incomplete_because": about.incomplete_because,
            "notes": (*about.notes, *self._stacks.notes()),
            "limits": about.limits,
            "reconciliation": about.reconciliation,
        }
        self._captured_stacks += len(new)
        if self.capture is not None and not self._write(self.capture, snapshot, changed, new, final, extra):
            self.capture = None
        self._snapshots = [
            each
            for each in self._snapshots
            if self._write(each.capture, snapshot, changed, new, final=False, extra=extra)
        ]

    def _write(
        self,
        capture: CaptureWriter,
        snapshot: Snapshot,
        changed: list[Task],
        new: list[trace.Stack],
        final: bool,
        extra: dict[str, Any],
    ) -> bool:
        """False when the capture could not be written, and is closed."""
        try:
            capture.flush(snapshot, changed, new, final, extra)
        except CaptureError as error:
            self.capture_problem = str(error)
            self._notes[f"the capture is not complete: {error}"] = None
            return False
        return True

    def _take_snapshots(self) -> None:
        """Finish the captures whose moment has come."""
        zombies = self.graph.zombies()
        come = [each for each in self._snapshots if each.trigger.has_come(zombies, self._failed_with_eagain)]
        if not come:
            return
        self._suspects.look(self.graph.suspects())
        snapshot, about = self._snapshot(), self._about()
        self._flush(snapshot, about, final=False)
        for each in come:
            if each not in self._snapshots:
                continue  # it could not be written
            self._snapshots.remove(each)
            note = f"a snapshot of the trace at {each.trigger.moment}"
            extra = {"notes": (*about.notes, *self._stacks.notes(), note)}
            if self._write(each.capture, snapshot, [], [], final=True, extra=extra):
                each.capture.close()
                self.news.append(f"{each.trigger.moment}: wrote {each.capture.path}")
                self._notes[f"{each.capture.path} is a snapshot at {each.trigger.moment}"] = None

    def _drop_snapshots(self) -> None:
        """Their moment did not come."""
        for each in self._snapshots:
            each.capture.discard()
            self._notes[f"no snapshot was taken: {each.trigger.moment} did not happen"] = None
        self._snapshots = []

    def discard_capture(self) -> None:
        """There was nothing to trace."""
        if self.capture is not None:
            self.capture.discard()
            self.capture = None
        self._drop_snapshots()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, self._priority)
        if self.capture is not None:
            self.capture.close()
        self._drop_snapshots()
        self._stacks.close()
        self._probe.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_target(pid: int) -> int:
    """The identity of a process that can be traced.  Raises ``ForktraceError`` with what to trace instead."""
    stat = procfs.read_stat(pid)
    if stat is None:
        raise ForktraceError(
            f"there is no process {pid}", "forktrace ps lists the processes that hold zombies"
        )
    status = procfs.status(pid)
    if status is not None and status.is_thread:
        raise ForktraceError(
            f"{pid} is a thread of process {status.tgid}", f"trace the process: -p {status.tgid}"
        )
    if stat.is_kernel_thread:
        raise ForktraceError(
            f"{pid} ({stat.comm}) is a kernel thread", "it has no user code that could be traced"
        )
    if procfs.is_zombie(stat):
        raise ForktraceError(
            f"process {pid} is a zombie itself: it does nothing any more",
            f"trace the parent that does not reap it: -p {stat.ppid}",
        )
    return procfs.identity(stat)


def cgroup_members(path: str) -> list[int]:
    """The identities of all living processes in a cgroup directory and those below it.

    Raises ``ForktraceError`` if it is none.
    """
    top = Path(path) / "cgroup.procs"
    pids: set[int] = set()
    try:
        pids.update(map(int, top.read_text(encoding="ascii").split()))
        for file in Path(path).glob("**/*/cgroup.procs"):
            with suppress(FileNotFoundError, NotADirectoryError):  # it was removed meanwhile
                pids.update(map(int, file.read_text(encoding="ascii").split()))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it lists no pids"
        raise ForktraceError(
            f"{path} is no cgroup directory ({reason})",
            "name one below /sys/fs/cgroup; cat /proc/PID/cgroup shows it",
        ) from None
    stats = [procfs.read_stat(pid) for pid in sorted(pids - {0})]
    return [
        procfs.identity(stat)
        for stat in stats
        if stat is not None and not stat.is_kernel_thread and not procfs.is_zombie(stat)
    ]


def meta_of(options: SessionOptions) -> Meta:
    """For a capture that is made before its trace; its times and targets come with the trace."""
    return Meta(
        version=__version__,
        host=procfs.host_facts(),
        started_at=time.time(),
        start_ns=procfs.boottime_ns(),
        min_age_s=options.min_age_s,
    )


def _lives(stat: procfs.Stat | None, identity: int) -> bool:
    return stat is not None and procfs.identity(stat) == identity and not procfs.is_zombie(stat)


def _seen(stat: procfs.Stat, stats: dict[int, procfs.Stat]) -> Seen:
    status = procfs.status(stat.pid)
    parent = stats.get(stat.ppid)
    return Seen(
        id=procfs.identity(stat),
        parent=procfs.identity(parent) if parent else 0,
        comm=stat.comm,
        ns_pid=status.ns_tgids[-1] if status else stat.pid,
        zombie=procfs.is_ending(stat),
        threads=stat.num_threads,
    )
