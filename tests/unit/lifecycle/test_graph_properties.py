"""Whatever a kernel does, and whatever becomes of its records on the way: what the graph may and may not say."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from records_of import INIT, START, TARGET, Watched
from simulated import OPERATIONS, Kernel, Step

from tracer.lifecycle.task import Fate
from tracer.records import RawEvent

WINDOW = 6  # records that change places are at most so far apart
LEAKED = (Fate.ZOMBIE, Fate.ORPHANED)

steps = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 255)), max_size=80)


@st.composite
def kernels(draw: st.DrawFn) -> tuple[Kernel, list[Step]]:
    return Kernel(light=draw(st.booleans()), init_reaps=draw(st.booleans())), draw(steps)


def fates(watched: Watched, kernel: Kernel) -> dict[int, Fate]:
    """Of each child that the graph ever held."""
    watched.task(TARGET)
    return {ident: task.fate for ident, task in watched.tasks.items() if ident in kernel.truth}


def resync(watched: Watched, kernel: Kernel, lossy: bool) -> None:
    watched.graph.lossy = lossy
    watched.graph.expect_scan()
    watched.graph.resync(kernel.seen(), kernel.records.now)


@given(kernels(), st.integers(0, 80))
@settings(max_examples=300, deadline=None)
def test_complete_records_give_the_truth(plan: tuple[Kernel, list[Step]], pause: int) -> None:
    """And a comparison with /proc, now and at the end, changes nothing."""
    kernel, todo = plan
    watched = Watched()
    kernel.run(todo[:pause])
    kernel.settle()
    sent = len(kernel.sent)
    watched.graph.apply(kernel.sent[:sent], {})
    resync(watched, kernel, lossy=True)
    kernel.run(todo[pause:])
    kernel.settle()
    watched.graph.apply(kernel.sent[sent:], {})
    resync(watched, kernel, lossy=True)

    assert fates(watched, kernel) == {ident: child.fate for ident, child in kernel.truth.items()}
    assert watched.graph.anomalies == 0
    assert set(watched.graph.tasks) == set(kernel.seen())
    totals = watched.graph.snapshot(kernel.records.now).totals
    true = Counter(child.fate for child in kernel.truth.values())
    assert totals["forks"] == len(kernel.truth)
    assert [
        totals[name] for name in ("waited", "zombies", "orphaned", "autoreaped", "running", "unknown")
    ] == [
        true[fate]
        for fate in (Fate.WAITED, Fate.ZOMBIE, Fate.ORPHANED, Fate.AUTOREAPED, Fate.RUNNING, Fate.UNKNOWN)
    ]
    assert totals["zombies_now"] == sum(seen.zombie for seen in kernel.seen().values() if seen.id != TARGET)


@st.composite
def damaged(draw: st.DrawFn, events: list[RawEvent], lose: bool) -> tuple[list[RawEvent], bool]:
    """Some records lost, some doubled, some out of place; and whether any is lost."""
    weights = st.sampled_from([1, 1, 1, 1, 1, 1, 0, 2] if lose else [1, 1, 1, 1, 1, 2])
    places = []
    lost = False
    for place, event in enumerate(events):
        copies = draw(weights)
        lost |= not copies
        for _ in range(copies):
            places.append((place + draw(st.sampled_from([0, 0, 0, 0, draw(st.integers(0, WINDOW))])), event))
    places.sort(key=lambda pair: pair[0])
    return [event for _, event in places], lost


@given(st.data(), kernels(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_damaged_records_never_make_a_waited_child_a_leak_unsaid(
    data: st.DataObject, plan: tuple[Kernel, list[Step]], lose: bool
) -> None:
    kernel, todo = plan
    kernel.run(todo)
    kernel.settle()
    events, lost = data.draw(damaged(kernel.sent, lose))
    watched = Watched()
    watched.graph.apply(events, {})
    resync(watched, kernel, lossy=lost)

    # Bounded: it keeps what lives or stands, and no more.
    assert set(watched.graph.tasks) <= set(kernel.seen())
    if lost:
        assert set(watched.graph.tasks) >= set(kernel.seen()) - strangers(kernel)
    snapshot = watched.graph.snapshot(kernel.records.now)
    found = fates(watched, kernel)
    wrong = {
        ident
        for ident, child in kernel.truth.items()
        if child.fate is Fate.WAITED and found.get(ident) in LEAKED
    }
    assert not wrong
    if not lost and not watched.graph.anomalies:  # nothing in the report says that it may be wrong
        true = Counter(child.fate for child in kernel.truth.values())
        assert (
            snapshot.totals["zombies"] + snapshot.totals["orphaned"]
            <= true[Fate.ZOMBIE] + true[Fate.ORPHANED]
        )


def strangers(kernel: Kernel) -> set[int]:
    """Those under init, with theirs: no parent of ours is left to find them by."""
    shown = kernel.seen()
    found = {seen.id for seen in shown.values() if seen.parent == INIT and seen.id != TARGET}
    while more := {seen.id for seen in shown.values() if seen.parent in found} - found:
        found |= more
    return found


@given(st.data(), kernels())
@settings(max_examples=200, deadline=None)
def test_a_comparison_with_proc_in_between_is_no_worse(
    data: st.DataObject, plan: tuple[Kernel, list[Step]]
) -> None:
    """The scan is older than the records that are applied before it is looked at."""
    kernel, todo = plan
    cut = data.draw(st.integers(0, len(todo)))
    kernel.run(todo[:cut])
    kernel.settle()
    before = len(kernel.sent)
    seen, at_ns = kernel.seen(), kernel.records.now
    kernel.run(todo[cut:])
    kernel.settle()
    first, lost_first = data.draw(damaged(kernel.sent[:before], True))
    second, lost_second = data.draw(damaged(kernel.sent[before:], True))
    watched = Watched()
    watched.graph.apply(first, {})
    watched.graph.lossy = lost_first or lost_second
    watched.graph.expect_scan()
    half = data.draw(st.integers(0, len(second)))
    watched.graph.apply(second[:half], {})
    watched.graph.resync(seen, at_ns)
    watched.graph.apply(second[half:], {})
    resync(watched, kernel, lossy=lost_first or lost_second)

    assert set(watched.graph.tasks) <= set(kernel.seen())
    found = fates(watched, kernel)
    assert not [i for i, c in kernel.truth.items() if c.fate is Fate.WAITED and found.get(i) in LEAKED]


@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 5, *[st.integers(0, 12)] * 2), max_size=30))
def test_records_of_nonsense_do_not_crash_it(rows: list[tuple[int, ...]]) -> None:
    watched = Watched()
    events = [
        (
            80,
            0,
            ts,
            task % 5 << 32,
            parent % 5 << 32,
            forker % 5 << 32,
            stack,
            kind,
            flags,
            task % 7,
            3,
            3,
            3,
            b"x",
        )
        for ts, task, parent, forker, stack, kind, flags in rows
    ]
    watched.graph.apply(events, {})
    watched.graph.expect_scan()
    watched.graph.resync({}, START)
    watched.graph.snapshot(START)
