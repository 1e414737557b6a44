"""What the tracer itself spends on each record, at the highest fork rate that this machine reaches.

CPU time is the tracer process's own, from the scheduler (/proc/PID/task/*/schedstat), from the start of the loops
to the moment when all of it is drained: ring, decoder, graph, stacks and wake-ups, not its start and its report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tracers
from loop import Loop
from tracers import DoesNotRun, Tracer, attached

from tracer.lifecycle.graph import Graph
from tracer.lifecycle.task import PRE_EXISTING
from tracer.probe.probe import Probe, ProbeOptions
from tracer.records import EVENT

DRAINED_S = 0.3  # several of the tracer's turns
REPLAYS = 5


@dataclass(frozen=True, slots=True)
class Consumed:
    """complete: every fork of the loops is in its account and nothing was lost."""

    tracer: str
    load: str
    forks_per_s: float
    events_per_s: float
    us_per_event: float
    complete: bool
    account: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """Recorded rings, decoded and applied again without the kernel beside it: microseconds a record."""

    records: int
    decode_us: float
    decode_and_graph_us: float


def measure(programs: Path, seconds: float) -> list[Consumed]:
    """Each load takes about ``seconds``."""
    one, two, most = ("fork",), ("fork", "fork"), ("vfork",) * 4
    return [
        _consumed(programs, tracer, hows, seconds)
        for tracer, hows in (
            (tracers.forktrace(), one),
            (tracers.forktrace(), two),
            (tracers.forktrace(), most),
            (tracers.forktrace("--no-stacks"), most),
            (tracers.forktrace("--light"), most),
            (tracers.bcc_callback(), one),
            (tracers.bcc_callback(), most),
        )
    ]


def _consumed(programs: Path, tracer: Tracer, hows: Sequence[str], seconds: float) -> Consumed:
    load = f"{len(hows)} x {hows[0]}"
    try:
        return _measured(programs, tracer, hows, seconds, load)
    except DoesNotRun as reason:
        return Consumed(tracer.name, load, 0, 0, 0, False, str(reason))


def _measured(programs: Path, tracer: Tracer, hows: Sequence[str], seconds: float, load: str) -> Consumed:
    rounds = int(seconds / (0.14e-3 if hows[0] == "fork" else 0.045e-3) * min(2 / len(hows), 1))
    with ExitStack() as stack:
        loops = [stack.enter_context(Loop(programs, rounds, how)) for how in hows]
        with attached(tracer, [loop.pid for loop in loops]) as running:
            time.sleep(DRAINED_S)
            before, begin = running.cpu_s(), time.monotonic()
            for loop in loops:
                loop.go()
            for loop in loops:
                loop.result()
            took = time.monotonic() - begin
            time.sleep(DRAINED_S)
            cpu = running.cpu_s() - before
        forks, events, lost = _account(running.result(), "--light" in tracer.name)
    wanted = rounds * len(loops)
    return Consumed(
        tracer.name,
        load,
        wanted / took,
        events / took,
        cpu / events * 1e6,
        forks == wanted and not lost,
        f"{forks} of {wanted} forks, {lost} records lost",
    )


def _account(said: dict[str, object], light: bool) -> tuple[int, int, int]:
    """(forks, records, lost records) of what a tracer printed at its end."""
    if "totals" not in said:
        return tuple(int(str(said[key])) for key in ("forks", "events", "lost"))  # type: ignore[return-value]
    totals, trace = said["totals"], said["trace"]
    assert isinstance(totals, dict) and isinstance(trace, dict)
    # a fork, an exit, a release, and with the syscall tracepoints a wait
    return totals["forks"], totals["forks"] * (3 if light else 4), trace["lost_events"]


def at_rest(programs: Path, seconds: float) -> float:
    """CPU time of the tracer while nothing happens, as a share of one CPU."""
    with Loop(programs, 1) as loop, attached(tracers.forktrace(), [loop.pid]) as running:
        time.sleep(DRAINED_S)
        before = running.cpu_s()
        time.sleep(seconds)
        return (running.cpu_s() - before) / seconds


def replay(programs: Path, rounds: int) -> Replayed:
    """Records of one loop, as they stood in the ring."""
    size = EVENT.size
    with Probe(ProbeOptions(stacks=False, event_ring=32 << 20)) as probe, Loop(programs, rounds) as loop:
        identity = _identity(loop.pid)
        probe.follow(identity)
        probe.attach()
        loop.go()
        loop.result()
        time.sleep(DRAINED_S)
        probe.detach()
        recorded = bytes(probe.events.fixed(probe.events.produced(), size))
    count = len(recorded) // size
    decode, both = [], []
    for _ in range(REPLAYS):
        begin = time.thread_time()
        for _ in EVENT.iter_unpack(recorded):
            pass
        decode.append(time.thread_time() - begin)
        graph = _graph(identity)
        begin = time.thread_time()
        graph.apply(EVENT.iter_unpack(recorded), {})
        both.append(time.thread_time() - begin)
    return Replayed(count, min(decode) / count * 1e6, min(both) / count * 1e6)


def _graph(identity: int) -> Graph:
    from tracer.lifecycle.graph import Seen

    graph = Graph(0)
    graph.add_existing(Seen(identity, 0, "forkloop", identity >> 32, zombie=False), root=True)
    assert graph.tasks[identity].stack == PRE_EXISTING
    return graph


def _identity(pid: int) -> int:
    from tracer import procfs

    stat = procfs.read_stat(pid)
    assert stat is not None
    return procfs.identity(stat)
