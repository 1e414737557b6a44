"""Threads of a program that knows the truth of them (tests/programs/threads.c), traced on this kernel.

What is alive, what ended and was not joined, and which stacks made them: scenario by scenario, as the program says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Program
from tracing import Traced, trace_program

from tracer.trace import Leak, Stack, ThreadTally

pytestmark = pytest.mark.kernel

Start = Callable[..., Program]
SLOW = ("growth", "in_a_child", "storm")  # with tests of their own
STACK_SIZE = 256 * 1024  # of the scenario "unjoined"
PAGE = 4096


def scenarios() -> list[str]:
    source = Path(__file__).parents[1] / "programs" / "threads.c"
    text = source.read_text().partition("SCENARIOS[] = {")[2]
    return [line.split('"')[1] for line in text.partition("};")[0].splitlines() if '"' in line]


def trace(start: Start, *names: str, **probe: Any) -> tuple[dict[str, dict[str, Any]], Traced]:
    program = start("threads", *names, wait=True)
    traced = trace_program(program, threads=True, **probe)
    return {said["scenario"]: said for said in traced.said}, traced


def maker(stack: Stack) -> str:
    """The function of the program that made the threads."""
    ours = [frame.function or "" for frame in stack.frames if (frame.file or "").endswith("/threads.c")]
    return ours[0] if ours else ""


def tallies(traced: Traced) -> dict[str, ThreadTally]:
    """By scenario, or by another function that one of them calls; the scenarios' helping threads are left out."""
    found = [(maker(stack).removeprefix("make_"), tally) for stack, tally in traced.trace.threads]
    found = [each for each in found if each[0] not in ("teller", "join_elsewhere")]
    assert len(found) == len(dict(found)), "one stack a function"
    return dict(found)


def leaks(traced: Traced, kind: str) -> dict[str, Leak]:
    return {maker(leak.stack).removeprefix("make_"): leak for leak in traced.trace.leaks if leak.kind == kind}


def test_every_scenario(start: Start) -> None:
    names = [name for name in scenarios() if name not in SLOW]
    truth, traced = trace(start, *names)
    seen = tallies(traced)
    assert {name: (seen[name].made, seen[name].alive, seen[name].unjoined) for name in names} == {
        name: (said["made"], said["alive"], said["unjoined"]) for name, said in truth.items()
    }
    assert traced.trace.complete
    assert traced.trace.totals.threads_unjoined == sum(said["unjoined"] for said in truth.values())
    found = leaks(traced, "unjoined_thread")
    assert {name: leak.count for name, leak in found.items()} == {
        name: said["unjoined"] for name, said in truth.items() if said["unjoined"]
    }
    for leak in found.values():
        assert leak.comms == {"worker": leak.count}
        assert [(parent.pid, parent.count, parent.alive) for parent in leak.parents] == [
            (traced.pid, leak.count, True)
        ]
        assert leak.verdict.code == "never_joined"
    assert not leaks(traced, "thread")


def test_the_memory_that_unjoined_threads_hold(start: Start) -> None:
    truth, traced = trace(start, "unjoined")
    held = leaks(traced, "unjoined_thread")["unjoined"].held_bytes
    number = truth["unjoined"]["unjoined"]
    assert held is not None
    assert number * STACK_SIZE <= held <= number * (STACK_SIZE + 2 * PAGE)


def test_without_the_option_threads_are_only_counted(start: Start) -> None:
    program = start("threads", "unjoined", wait=True)
    found = trace_program(program).trace
    assert (found.totals.threads, found.totals.threads_unjoined, found.threads) == (4, None, ())
    assert not found.leaks


def test_storm(start: Start) -> None:
    """2,000 threads, half of them joined and half detached: all seen, none left."""
    truth, traced = trace(start, "storm", "unjoined")
    seen = tallies(traced)
    assert seen["storm"] == ThreadTally(truth["storm"]["made"], 0, 0, 0, None)
    assert seen["unjoined"].unjoined == truth["unjoined"]["unjoined"]
    assert traced.trace.complete


@pytest.mark.parametrize("before", [(), ("joined",)], ids=["single-threaded", "with threads"])
def test_a_forked_child(start: Start, before: tuple[str, ...]) -> None:
    """Its first threads come before it is watched: they are not judged, and that is said; later ones are."""
    truth, traced = trace(start, *before, "in_a_child")
    tally = tallies(traced)["in_a_child"]
    assert tally.made == truth["in_a_child"]["made"]
    assert tally.unjoined is not None
    assert 10 <= tally.unjoined < tally.made
    missed = tally.made - tally.unjoined
    assert any(note.startswith(f"{missed} threads were made before") for note in traced.trace.notes)
    (parent,) = leaks(traced, "unjoined_thread")["in_a_child"].parents
    assert parent.pid != traced.pid


def test_growth(start: Start) -> None:
    """One more each quarter of a second is a leak; a pool that has its size is none, nor are threads for a moment."""
    _, traced = trace(start, "growth")
    seen = tallies(traced)
    assert {name: tally.alive for name, tally in seen.items()} == {
        "one_more": 40,
        "one_for_the_pool": 8,
        "one_for_a_moment": 2,
    }
    growing = leaks(traced, "thread")
    assert list(growing) == ["one_more"]
    leak = growing["one_more"]
    assert (leak.count, leak.comms, leak.verdict.code) == (40, {"worker": 40}, "only_grows")
    assert 9 < leak.oldest_age_s < 20
    assert 150 < leak.rate_per_min < 300
    assert Counter(leak.examples).most_common(1)[0][1] == 1
