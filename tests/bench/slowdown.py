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
NOBODY = "untraced, twice"


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
    """The rows, and the seconds a round of all untraced loops."""
    untraced: list[float] = []
    everybody: list[Tracer | None] = [None, *contestants()]
    rows = [Slowdown(each.name if each else NOBODY, each.version() if each else "") for each in everybody]
    for turn in range(pairs):
        for tracer, row in zip(everybody, rows, strict=True):
            if row.problem:
                continue
            rounds = max(int(LIGHT_ROUNDS * tracer.speed), 20) if tracer else LIGHT_ROUNDS
            try:
                base, seconds = _pair(programs, rounds, tracer, traced_first=bool(turn % 2))
            except DoesNotRun as reason:
                row.problem = str(reason)
                continue
            untraced.append(base)
            row.seconds.append(seconds)
            row.ratios.append(seconds / base)
    return rows, untraced


def _pair(programs: Path, rounds: int, tracer: Tracer | None, traced_first: bool) -> tuple[float, float]:
    """Seconds a round, untraced and traced."""
    before = 0.0 if traced_first else _untraced(programs, rounds)
    traced = _traced(programs, rounds, tracer) if tracer else _untraced(programs, rounds)
    return before or _untraced(programs, rounds), traced


def _untraced(programs: Path, rounds: int) -> float:
    with ExitStack() as stack:
        return _fastest([stack.enter_context(Loop(programs, rounds)) for _ in range(LOOPS)])


def _traced(programs: Path, rounds: int, tracer: Tracer) -> float:
    with ExitStack() as stack:
        loops = [stack.enter_context(Loop(programs, rounds)) for _ in range(LOOPS)]
        stack.enter_context(attached(tracer, [loop.pid for loop in loops]))
        return _fastest(loops)


def _fastest(loops: list[Loop]) -> float:
    """Run one after the other; seconds a round."""
    times = []
    for loop in loops:
        loop.go()
        times.append(loop.result())
    return min(times)
