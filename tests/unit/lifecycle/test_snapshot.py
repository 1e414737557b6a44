"""Counts that stay small: the latency histogram, and the groups of children that nobody waited for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tracer.lifecycle.snapshot import MAX_EXAMPLES, MAX_NAMES, Group, LatencyHistogram
from tracer.lifecycle.task import Fate, Task, task_id

SECOND = 1_000_000_000


def histogram(values: list[int]) -> LatencyHistogram:
    made = LatencyHistogram()
    for value in values:
        made.add(value)
    return made


@given(st.lists(st.integers(0, 10**13), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_at_most_a_sixteenth_high(values: list[int], fraction: float) -> None:
    ranked = sorted(values)
    true = next(v for i, v in enumerate(ranked, 1) if i >= fraction * len(ranked))
    got = histogram(values).percentile(fraction)
    assert got is not None
    assert true <= got <= max(true * 17 / 16, true)


def test_an_empty_histogram_has_no_percentile() -> None:
    assert histogram([]).percentile(0.5) is None


def test_a_clock_that_went_back_counts_as_zero() -> None:
    made = histogram([-5])
    assert (made.percentile(1), made.max_ns, made.total) == (0, 0, 1)


def test_a_histogram_is_small() -> None:
    assert len(histogram([1 << n for n in range(64)] * 3 + list(range(100_000))).counts) < 16 * 64


def zombie(pid: int, exited_s: int, reaped_s: int = 0, parent: int = 1, comm: str = "sh") -> Task:
    task = Task(task_id(pid, pid), parent)
    task.fate = Fate.ZOMBIE
    task.comm = comm
    task.exited_ns, task.reaped_ns, task.exit_code = exited_s * SECOND, reaped_s * SECOND, 0
    return task


def group(tasks: list[Task]) -> Group:
    made = Group()
    for task in tasks:
        made.add(task, 100 * SECOND, 2 * SECOND)
    return made


def test_a_zombie_is_young_by_how_long_it_stood() -> None:
    made = group([zombie(1, 97), zombie(2, 99), zombie(3, 10, reaped_s=11), zombie(4, 10, reaped_s=13)])
    assert (made.count, made.young, made.examples) == (2, 2, [1, 4])
    assert (made.first_exit_ns, made.last_exit_ns) == (10 * SECOND, 97 * SECOND)


def test_an_orphan_is_never_young() -> None:
    task = zombie(1, 99, reaped_s=99)
    task.fate = Fate.ORPHANED
    assert (group([task]).count, group([task]).young) == (1, 0)


def test_names_beyond_the_limit_are_counted_together() -> None:
    made = group([zombie(n, n % 90 + 1, parent=n, comm=f"job-{n}") for n in range(1, 1001)])
    assert len(made.parents) == len(made.comms) == MAX_NAMES + 1
    assert sum(made.parents.values()) == sum(made.comms.values()) == made.count == 1000
    assert (made.parents[0], made.comms["(other)"]) == (1000 - MAX_NAMES,) * 2
    assert made.examples == list(range(1, MAX_EXAMPLES + 1))


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 40)), max_size=100), st.integers(0, 100))
def test_merging_two_groups_is_one_group(rows: list[tuple[int, int]], cut: int) -> None:
    tasks = [zombie(n, exited, parent=parent) for n, (exited, parent) in enumerate(rows, 1)]
    merged, whole = group(tasks[:cut]), group(tasks)
    merged.merge(group(tasks[cut:]))
    assert (merged.count, merged.young, merged.first_exit_ns, merged.last_exit_ns, merged.examples) == (
        whole.count, whole.young, whole.first_exit_ns, whole.last_exit_ns, whole.examples,
    )  # fmt: skip
    assert sum(merged.parents.values()) == sum(whole.parents.values())
    if len({parent for _, parent in rows}) < MAX_NAMES:
        assert merged == whole
