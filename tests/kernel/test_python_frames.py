"""Python's frames in the stack of every fork, against what the program's own interpreter says at that moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from pythons import Fork, Traced, agree, pythons, trace_python

from tracer.records import MAX_FRAMES

pytestmark = pytest.mark.kernel

TOO_DEEP = "too_deep"
HUGE = "huge_function"  # of a line table that is too large to be taken, from 3.11 on: its line is not known


def differing(fork: Fork) -> list[str]:
    """What is wrong with the frames, a line each."""
    seen, wanted = fork.seen, fork.wanted
    if fork.case == TOO_DEEP:
        wanted = wanted[:MAX_FRAMES]
    if fork.case == HUGE and seen[1:2] and seen[1][2] is None:
        wanted[1] = (*wanted[1][:2], None)
    wrong = [f"{a} is {b}" for a, b in zip(seen, wanted) if not agree(a, b)]  # noqa: B905
    wrong += [f"{each} is not so" for each in seen[len(wanted) :]]
    wrong += [f"no {each}" for each in wanted[len(seen) :]]
    return [f"{fork.case}: {each}" for each in wrong[:3]] + ([str(fork.stack.cut)] if wrong else [])


def check(traced: Traced) -> None:
    assert [line for fork in traced.forks for line in differing(fork)] == []
    assert traced.trace.notes == ()
    assert traced.trace.incomplete_because == ()
    cut = [fork.stack.cut for fork in traced.forks if fork.case == TOO_DEEP]
    assert cut and all("deeper than the frames that are taken" in str(each) for each in cut)


@pytest.mark.parametrize("python", pythons(), ids=str)
def test_every_way_to_fork(python: Path, tmp_path: Path) -> None:
    traced = trace_python([python], tmp_path)
    check(traced)
    assert traced.missing == {}
    assert len({fork.case for fork in traced.forks}) == 39
