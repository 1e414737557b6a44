"""From thread counts to the finished model: what ``summary`` says of threads.

Nothing here is judged: which threads only grow and which are unjoined is in the snapshot already (``threads``).
"""

from __future__ import annotations

from collections.abc import Mapping

from tracer import trace
from tracer.lifecycle.snapshot import Process, Snapshot, ThreadCounts, ThreadGroup
from tracer.lifecycle.task import pid_of

JOIN = "pthread_join for each of them, or pthread_detach once it is made (std::thread: join or detach)"
BOUND = "end them when their work is done, or hand the work to a pool of a fixed size"
POOLS: Mapping[str, str] = {
    "python": "a ThreadPoolExecutor(max_workers=...) that is kept, or shut down",
    "gem": "a Concurrent::FixedThreadPool",
    "jar": "an Executors.newFixedThreadPool that is kept, or shut down",
}


def thread_leak(
    kind: str, group: ThreadGroup, stack: trace.Stack, counts: ThreadCounts, snapshot: Snapshot
) -> trace.Leak:
    """kind: "thread" or "unjoined_thread"."""
    minutes = (snapshot.end_ns - snapshot.start_ns) / 60e9
    pace = 2 * counts.grown if kind == "thread" else group.count  # grown: in the last half of the trace
    parents = tuple(
        _parent(process, n, snapshot.processes.get(process)) for process, n in group.parents.most_common()
    )
    return trace.Leak(
        kind=kind,
        count=group.count,
        rate_per_min=pace / minutes if minutes > 0 else 0.0,
        oldest_age_s=max(snapshot.end_ns - group.first_ns, 0) / 1e9,
        stack=stack,
        parents=parents,
        comms=dict(sorted(group.comms.items(), key=lambda item: (-item[1], item[0]))),
        exits={},
        examples=tuple(group.examples),
        verdict=_verdict(kind, stack, counts, any(parent.alive for parent in parents)),
        held_bytes=group.held_bytes,
    )


def _parent(identity: int, count: int, process: Process | None) -> trace.Parent:
    pid = pid_of(identity)
    if process is None:
        return trace.Parent(pid, "" if identity else "(others)", count, alive=False)
    return trace.Parent(
        pid, process.comm, count, process.alive, process.ns_pid if process.ns_pid != pid else None
    )


def _verdict(kind: str, stack: trace.Stack, counts: ThreadCounts, alive: bool) -> trace.Verdict:
    evidence = {"threads_made": counts.made, "threads_ended": counts.ended}
    if kind == "unjoined_thread":
        held = "each holds its stack until then" if alive else "their stacks went with their process"
        return trace.Verdict("never_joined", evidence, f"call {JOIN}; {held}")
    pool = POOLS.get(stack.responsible.kind if stack.responsible else "")
    advice = BOUND + (f" ({pool})" if pool else "")
    return trace.Verdict("only_grows", {**evidence, "more_than_at_half_time": counts.grown}, advice)


def thread_tallies(
    snapshot: Snapshot, known: Mapping[int, trace.Stack], no_stack: trace.Stack
) -> tuple[tuple[trace.Stack, trace.ThreadTally], ...]:
    """Every stack that made threads, most alive first."""
    sees_joins = "threads_unjoined" in snapshot.totals
    tallies = [
        (known.get(stack, no_stack), _tally(counts, snapshot.end_ns, sees_joins))
        for stack, counts in snapshot.threads.items()
    ]
    return tuple(sorted(tallies, key=lambda pair: (-pair[1].alive, -pair[1].made, pair[0].id)))


def _tally(counts: ThreadCounts, end_ns: int, sees_joins: bool) -> trace.ThreadTally:
    return trace.ThreadTally(
        made=counts.made,
        alive=counts.made - counts.ended,
        unjoined=counts.unjoined if sees_joins else None,
        grown=counts.grown,
        oldest_age_s=(end_ns - counts.oldest_ns) / 1e9 if counts.oldest_ns else None,
    )
