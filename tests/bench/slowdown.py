"""How much slower a loop of fork, exit and wait gets under each tracer.

On a machine that others use too, only ratios mean anything, and only those of moments that lie close together: a
measurement is the fastest of a few short loops, every traced one is paired with an untraced one right beside it, before
and after it in turn, and the tracers take turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import tracers
from loop import Loop
from tracers import DoesNotRun, Tracer, attached

LOOPS = 4
LIGHT_ROUNDS = 1000  # an eighth of a second: two or three turns of the tracer
Load = tuple[Path, int, str]  # the arguments of a Loop


@dataclass(slots=True)
class Slowdown:
    """One tracer's row.  ratios: traced by untraced, a pair each.  seconds: a round of the traced loop."""

    tracer: str
    version: str
    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    problem: str = ""

    def quartiles(self) -> tuple[float, float, float]:
        if len(self.ratios) < 2:
            return (self.ratios[0],) * 3
        low, middle, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, middle, high


def contestants() -> Iterator[Tracer]:
    yield tracers.forktrace()
    yield tracers.forktrace("--light")
    yield tracers.forktrace("--no-stacks")
    yield tracers.bcc_callback()
    yield tracers.exitsnoop()
    yield tracers.perf()
    yield tracers.strace(speed=0.4)
    yield tracers.strace("-k", speed=0.03)


def measure(programs: Path, pairs: int) -> tuple[list[Slowdown], list[float]]:
    """The rows, and the seconds a round of all untraced fork loops."""
    untraced: list[float] = []
    everybody: list[tuple[Tracer | None, str]] = [(each, "fork") for each in (None, *contestants())]
    everybody += [(None, "vfork"), (tracers.forktrace(), "vfork")]
    rows = [_row(tracer, how) for tracer, how in everybody]
    for turn in range(pairs):
        for (tracer, how), row in zip(everybody, rows, strict=True):
            if row.problem:
                continue
            rounds = max(
                int(LIGHT_ROUNDS * (tracer.speed if tracer else 1) * (3 if how == "vfork" else 1)), 20
            )
            load = programs, rounds, how
            before = 0.0 if turn % 2 else _fastest_of(load, None)
            try:
                seconds = _fastest_of(load, tracer)
            except DoesNotRun as reason:
                row.problem = str(reason)
                continue
            base = before or _fastest_of(load, None)
            if how == "fork":
                untraced.append(base)
            row.seconds.append(seconds)
            row.ratios.append(seconds / base)
    return rows, untraced


def _row(tracer: Tracer | None, how: str) -> Slowdown:
    name = tracer.name if tracer else "untraced, twice"
    return Slowdown(f"{name}, vfork" if how == "vfork" else name, tracer.version() if tracer else "")


def _fastest_of(load: Load, tracer: Tracer | None) -> float:
    """Seconds a round of the fastest of some loops that run one after the other."""
    with ExitStack() as stack:
        loops = [stack.enter_context(Loop(*load)) for _ in range(LOOPS)]
        if tracer:
            stack.enter_context(attached(tracer, [loop.pid for loop in loops]))
        times = []
        for loop in loops:
            loop.go()
            times.append(loop.result())
        return min(times)
