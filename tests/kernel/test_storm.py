"""200 parents make 20,000 children of mixed fates at once: each is accounted for, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from support import Program
from tracing import trace_program

from tracer.lifecycle.summary import exit_name

pytestmark = pytest.mark.kernel

PARENTS, CHILDREN_EACH = 200, 100


@pytest.mark.parametrize("light", [False, True], ids=["full", "light"])
def test_every_child_is_accounted_for(start: Callable[..., Program], light: bool) -> None:
    program = start("storm", PARENTS, CHILDREN_EACH, 7, wait=True)
    traced = trace_program(program, light=light)
    (truth,) = traced.said
    totals, trace = traced.trace.totals, traced.trace
    assert trace.incomplete_because == ()
    assert trace.lost_events == 0
    assert truth["forks"] == PARENTS * (1 + CHILDREN_EACH)
    assert (
        totals.forks, totals.waited, totals.zombies, totals.zombies_now, totals.autoreaped, totals.running,
        totals.orphaned, totals.unknown, totals.failed_forks,
    ) == (
        truth["forks"], truth["waited"], truth["zombie"], truth["zombie"], truth["autoreaped"], truth["running"],
        0, 0, 0,
    )  # fmt: skip
    assert trace.reconciliation is not None
    assert (trace.reconciliation.standing, trace.reconciliation.explained) == (truth["zombie"],) * 2

    # The same from the children one by one, and what the totals do not tell.
    children = traced.children
    assert len({child.id for child in children}) == len(children) == truth["forks"]
    assert Counter(exit_name(c.exit_code) for c in children if c.exit_code is not None) == truth["exits"]
    calls = Counter(child.reaped_by_call for child in children if child.reaped_by_call)
    assert calls == ({} if light else truth["calls"])
    leaked: Counter[str] = Counter()
    for leak in trace.leaks:
        leaked.update(leak.exits)
    assert leaked == truth["zombie_exits"]
    assert Counter(Counter(child.parent for child in children).values()) == {
        PARENTS: 1,
        CHILDREN_EACH: PARENTS,
    }
    assert all(child.stack for child in children), "no stack was lost"
