"""From counts to the finished model: a ``Snapshot`` and its stacks become a ``trace.Trace``.

The same for a live trace and for a capture file, which is why both print the same report.
"""

from __future__ import annotations

import errno
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tracer import trace
from tracer.lifecycle.snapshot import FailedKey, Group, LatencyHistogram, Process, Snapshot, StackCounts
from tracer.lifecycle.task import PRE_EXISTING, pid_of
from tracer.lifecycle.verdict import Case, ended_first, target_in_words, why, why_orphans

WNOHANG = 1
NO_VERDICT = trace.Verdict("unknown", {}, "")  # nobody who had to wait was looked at
_FILTERED = "refused by a filter (seccomp) or a rule, not by a limit"
_REASONS = {
    errno.EPERM: _FILTERED,
    errno.ENOSYS: _FILTERED,
    errno.ENOMEM: "the kernel had no memory for it: not a limit on tasks",
    errno.EAGAIN: "no limit was full when it was looked at, a moment later",
}
NO_STACK = trace.Stack(0, (), cut="no stack came with this fork")
OLDER = trace.Stack(PRE_EXISTING, (), cut="forked before the trace began")


@dataclass(frozen=True, slots=True)
class About:
    """What a trace says of itself besides its counts.  started_at: seconds since the epoch."""

    version: str
    host: Mapping[str, Any]
    started_at: float
    targets: tuple[trace.Target, ...]
    lost_events: int = 0
    incomplete_because: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    limits: tuple[Mapping[str, Any], ...] = ()
    reconciliation: trace.Reconciliation | None = None


def summarize(snapshot: Snapshot, stacks: Mapping[int, trace.Stack], about: About) -> trace.Trace:
    """stacks: by id, symbolized and attributed; an id that is missing reports as "no stack"."""
    known = with_placeholders(stacks)
    snapshot = _merge_equal_stacks(snapshot, known)
    leaks = [
        _leak(kind, group, known.get(stack, NO_STACK), known, snapshot)
        for (stack, kind), group in snapshot.groups.items()
        if group.count
    ]
    leaks.sort(key=lambda leak: (-leak.count, leak.kind != "zombie", leak.stack.id))
    failed = [
        trace.FailedFork(
            errno.errorcode.get(key.errno, str(key.errno)),
            n,
            key.thread,
            known.get(key.stack, NO_STACK),
            limit := snapshot.failed_limits.get(key),
            _REASONS.get(key.errno) if limit is None else None,
        )
        for key, n in snapshot.failed.items()
    ]
    failed.sort(key=lambda each: (-each.count, each.errno))
    tallies = [
        (
            known.get(key, NO_STACK),
            trace.Tally(c.forks, c.waited, c.zombie, c.orphaned, c.autoreaped, c.running, c.unknown),
        )
        for key, c in snapshot.stacks.items()
    ]
    tallies.sort(key=lambda pair: (-pair[1].forks, pair[0].id))
    return trace.Trace(
        version=about.version,
        host=about.host,
        started_at=about.started_at,
        duration_s=(snapshot.end_ns - snapshot.start_ns) / 1e9,
        targets=about.targets,
        lost_events=about.lost_events,
        complete=not about.incomplete_because,
        totals=trace.Totals(**snapshot.totals),
        leaks=tuple(leaks),
        failed_forks=tuple(failed),
        reap_latency=_latency(snapshot.latency),
        late=_late(snapshot, known),
        reconciliation=about.reconciliation,
        stacks=tuple(tallies),
        incomplete_because=about.incomplete_because,
        notes=about.notes,
        limits=about.limits,
        shares=_shares(snapshot, known),
        min_age_s=snapshot.min_age_ns / 1e9,
        young_zombies=sum(group.young for group in snapshot.groups.values()),
    )


def _shares(snapshot: Snapshot, known: Mapping[int, trace.Stack]) -> tuple[trace.Share, ...]:
    zombies: Counter[int] = Counter()
    for (stack, _), group in snapshot.groups.items():
        zombies[stack] += group.standing
    shares: dict[object, trace.Share] = {}
    for stack in {**snapshot.stacks, **zombies}:
        blamed = known.get(stack, NO_STACK).responsible
        running = counts.running if (counts := snapshot.stacks.get(stack)) else 0
        key = blamed and (blamed.kind, blamed.name, blamed.version)
        before = shares.get(key, trace.Share(blamed, 0, 0))
        shares[key] = replace(
            before, zombies=before.zombies + zombies[stack], running=before.running + running
        )
    held = (share for share in shares.values() if share.zombies or share.running)
    return tuple(sorted(held, key=lambda each: (-each.zombies - each.running, str(each.responsible))))


def with_placeholders(stacks: Mapping[int, trace.Stack]) -> dict[int, trace.Stack]:
    """And what stands in a stack's place for the ids that name none."""
    return {0: NO_STACK, PRE_EXISTING: OLDER, **stacks}


def merged_ids(known: Mapping[int, trace.Stack]) -> dict[int, int]:
    """Each id, and the one under which it is counted: libc's fork has several places that call the kernel."""
    first: dict[tuple[object, ...], int] = {}
    return {ident: first.setdefault(_reading(known[ident]), ident) for ident in sorted(known)}


def _merge_equal_stacks(snapshot: Snapshot, known: Mapping[int, trace.Stack]) -> Snapshot:
    """Count under one id what reads the same."""
    ids = merged_ids(known)
    stacks: dict[int, StackCounts] = {}
    for key, counts in snapshot.stacks.items():
        stacks.setdefault(ids.get(key, 0), StackCounts()).add(counts)
    groups: dict[tuple[int, str], Group] = {}
    for (key, kind), group in snapshot.groups.items():
        groups.setdefault((ids.get(key, 0), kind), Group()).merge(group)
    late: dict[int, LatencyHistogram] = {}
    for key, histogram in snapshot.late.items():
        late.setdefault(ids.get(key, 0), LatencyHistogram()).merge(histogram)
    failed: Counter[FailedKey] = Counter()
    limits: dict[FailedKey, Mapping[str, Any]] = {}
    for failure, count in snapshot.failed.items():
        key_of_all = replace(failure, stack=ids.get(failure.stack, 0))
        failed[key_of_all] += count
        if failure in snapshot.failed_limits:
            limits[key_of_all] = snapshot.failed_limits[failure]
    return replace(
        snapshot, stacks=stacks, groups=groups, failed=dict(failed), failed_limits=limits, late=late
    )


def _reading(stack: trace.Stack) -> tuple[object, ...]:
    """What a person sees of a stack.  A place without a line is its address, except in the runtime that forked."""
    blamed = stack.forked_by
    frames: list[tuple[object, ...]] = []
    in_runtime = True
    for frame in stack.frames:
        library = frame.library
        if library and blamed and (library.kind, library.name) == (blamed.kind, blamed.name):
            in_runtime = False
        line = frame.line or (in_runtime and frame.function) or frame.offset
        frames.append((frame.function, frame.file, frame.module, line))
    return stack.id if not frames else 0, stack.cut, *frames


def _leak(
    kind: str, group: Group, stack: trace.Stack, known: Mapping[int, trace.Stack], snapshot: Snapshot
) -> trace.Leak:
    # A count over the whole trace: two deaths in one second are no rate of 120 a minute.
    minutes = (snapshot.end_ns - snapshot.start_ns) / 60e9
    parents = tuple(_parent(ident, n, snapshot.processes) for ident, n in _ranked(group.parents))
    return trace.Leak(
        kind=kind,
        count=group.count,
        rate_per_min=group.count / minutes if minutes else 0.0,
        oldest_age_s=max(snapshot.end_ns - group.first_exit_ns, 0) / 1e9,
        stack=stack,
        parents=parents,
        comms=dict(_ranked(group.comms)),
        exits={exit_name(code): n for code, n in _ranked(group.exits)},
        examples=tuple(group.examples),
        verdict=_verdict(kind, stack, group, snapshot),
        waits=_waits(group, known, snapshot),
        pre_existing=stack.id == PRE_EXISTING,
    )


def _parent(ident: int, count: int, processes: Mapping[int, Process]) -> trace.Parent:
    process = processes.get(ident)
    if process is None:
        return trace.Parent(pid_of(ident), "(others)" if not ident else "", count, alive=False)
    ns_pid = process.ns_pid if process.ns_pid != pid_of(ident) else None
    return trace.Parent(pid_of(ident), process.comm, count, process.alive, ns_pid)


def _verdict(kind: str, stack: trace.Stack, group: Group, snapshot: Snapshot) -> trace.Verdict:
    """Of all who had to wait and were looked at, if they agree."""
    cases = [
        Case(
            facts=snapshot.facts[ident],
            deaths=deaths,
            reaped=process.reaped_others if (process := snapshot.processes.get(ident)) else 0,
            language=_language(stack),
            start_ns=snapshot.start_ns,
            end_ns=snapshot.end_ns,
        )
        for ident, deaths in sorted(group.deaths.items(), key=lambda item: (-item[1].count, item[0]))
        if ident in snapshot.facts
    ]
    if kind == "zombie":
        verdict = _agreed([why(case) for case in cases])
    else:
        verdict = _agreed([why_orphans(case, group.count) for case in cases], ended_first({}))
    if stack.id == PRE_EXISTING and verdict.code == "unknown":
        return replace(verdict, code="pre_existing")
    return verdict


def _agreed(verdicts: list[trace.Verdict], otherwise: trace.Verdict = NO_VERDICT) -> trace.Verdict:
    """The first, that of most children, if the others have its code; else all codes as evidence."""
    if not verdicts:
        return otherwise
    codes = Counter(verdict.code for verdict in verdicts)
    first = verdicts[0]
    if len(verdicts) == 1:
        return first
    if len(codes) == 1 and first.code != "unknown":
        return replace(first, evidence={**first.evidence, "parents_with_this_reason": len(verdicts)})
    if len(codes) == 1:
        return first
    reasons = ", ".join(f"{code}: {count}" for code, count in _ranked(codes))
    return trace.Verdict("unknown", {**first.evidence, "reasons_by_parent": reasons}, first.advice)


def _language(stack: trace.Stack) -> str:
    """Of the responsible code."""
    blamed = stack.responsible
    return next((frame.language for frame in stack.frames if blamed and frame.library == blamed), "native")


def _waits(group: Group, known: Mapping[int, trace.Stack], snapshot: Snapshot) -> tuple[trace.WaitSite, ...]:
    """Where the parent that holds most of them does wait, each place once."""
    for ident, _ in _ranked(group.parents):
        sites: dict[object, trace.WaitSite] = {}
        for place in snapshot.wait_places.get(ident, ()):
            stack = known.get(place.stack)
            if stack is not None:
                nohang = bool(place.options & WNOHANG)
                site = trace.WaitSite(target_in_words(place.target), nohang, stack)
                sites.setdefault((place.target < 0 and place.target, nohang, _reading(stack)), site)
        if sites:
            return tuple(sites.values())
    return ()


def _ranked(counter: Counter[Any]) -> list[tuple[Any, int]]:
    """Largest first; equal counts in the order of their names, so that two reports of one trace are equal."""
    return sorted(counter.items(), key=lambda item: (-item[1], str(item[0])))


def exit_name(status: int) -> str:
    """A wait status in words: "0", "1", "SIGKILL", "SIGSEGV+core", "SIG64"; -1 is "unknown"."""
    if status < 0:
        return "unknown"
    number = status & 0x7F
    if not number:
        return str(status >> 8 & 0xFF)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"SIG{number}"
    return f"{name}+core" if status & 0x80 else name


def _late(snapshot: Snapshot, known: Mapping[int, trace.Stack]) -> tuple[trace.LateReaping, ...]:
    late = [
        trace.LateReaping(known.get(key, NO_STACK), histogram.total, _latency(histogram))
        for key, histogram in snapshot.late.items()
    ]
    return tuple(sorted(late, key=lambda each: (-each.count, each.stack.id)))


def _latency(histogram: LatencyHistogram) -> trace.ReapLatency:
    if not histogram.total:
        return trace.ReapLatency()
    p50, p90, p99 = ((histogram.percentile(f) or 0) / 1e9 for f in (0.5, 0.9, 0.99))
    return trace.ReapLatency(p50, p90, p99, histogram.max_ns / 1e9)
