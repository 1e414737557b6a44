"""How much slower a loop of fork, exit and wait gets under each tracer.

Every traced loop is paired with an untraced one right beside it, before and after it in turn, and the tracers take
turns: on a machine that others use too, only such ratios mean anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tracers
from loop import Loop
from tracers import DoesNotRun, Tracer, attached

LIGHT_ROUNDS = 4000  # half a second of loop
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
            rounds = max(int(LIGHT_ROUNDS * tracer.speed), 50) if tracer else LIGHT_ROUNDS
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
    with Loop(programs, rounds) as loop:
        loop.go()
        return loop.result()


def _traced(programs: Path, rounds: int, tracer: Tracer) -> float:
    with Loop(programs, rounds) as loop, attached(tracer, [loop.pid]):
        loop.go()
        return loop.result()
