"""Threads on records alone: who lives, who only grows in number, who ended and was joined by nobody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_of import SECOND, START, TARGET, Records, Watched, of

from tracer.lifecycle.snapshot import Process
from tracer.lifecycle.summary import NO_STACK, About, summarize
from tracer.lifecycle.threads import (
    IN_DOUBT_NS,
    MAX_SAMPLES,
    MIN_ALIVE,
    MIN_SAMPLES,
    MIN_STEPS,
    Threads,
    only_grows,
)
from tracer.records import (
    JOIN_FOREVER,
    STACK_SAMPLE,
    THREAD_DETACHED,
    THREAD_KILLED,
    THREAD_PTHREAD,
)
from tracer.trace import Frame, Library, Stack, ThreadTally, Trace

END = START + 60 * SECOND
HANDLE = 0x7F00_0000_0000


class Traced(Watched):
    """A graph that traces threads.  Stacks are numbered from 1."""

    def __init__(self, min_age_ns: int = 0, sees_joins: bool = True) -> None:
        super().__init__(min_age_ns)
        self.threads = self.graph.threads = Threads(min_age_ns)
        self.threads.sees_joins = sees_joins

    def unjoined(self) -> int:
        """By all accounts."""
        groups = self.threads.leaks(END)
        total = self.graph.snapshot(END).totals["threads_unjoined"]
        assert total == sum(
            group.count + group.young for (_, kind), group in groups.items() if kind != "thread"
        )
        return total


def joinable(tid: int, records: Records | None = None, **how: int) -> Records:
    """A thread whose pthread_t is HANDLE + tid."""
    given = {"handle": HANDLE + tid, "flags": THREAD_PTHREAD, "stack": 1, **how}
    return (records or Records()).thread(new=tid, **given)


def ended(tid: int, flags: int = 0) -> Records:
    return joinable(tid).thread_exit(tid=tid, flags=flags)


# --- unjoined -------------------------------------------------------------------------------------------------


def test_ended_and_never_joined() -> None:
    assert Traced().apply(ended(201)).unjoined() == 1


def test_running_is_not_unjoined() -> None:
    assert Traced().apply(joinable(201)).unjoined() == 0


@pytest.mark.parametrize("call", ["join", "detach"])
@pytest.mark.parametrize("first", [False, True], ids=["after its end", "before its end"])
def test_joined_or_detached(call: str, first: bool) -> None:
    records = joinable(201)
    if not first:
        records.thread_exit(tid=201)
    getattr(records, call)(HANDLE + 201)
    if first:
        records.thread_exit(tid=201)
    assert Traced().apply(records).unjoined() == 0


def test_made_detached() -> None:
    records = joinable(201, flags=THREAD_PTHREAD | THREAD_DETACHED).thread_exit(tid=201)
    assert Traced().apply(records).unjoined() == 0


def test_made_by_no_pthread_create_that_was_seen() -> None:
    traced = Traced().apply(joinable(201, flags=0).thread_exit(tid=201))
    assert (traced.unjoined(), traced.threads.unjudged) == (0, 1)
    assert traced.threads.take_unwatched() == [TARGET]
    assert traced.threads.take_unwatched() == []


@pytest.mark.parametrize(
    ("limit_ns", "left"),
    [
        (-SECOND, 1),
        (-2 * IN_DOUBT_NS, 1),
        (-IN_DOUBT_NS // 2, 0),  # it cannot be told
        (0, 0),
        (JOIN_FOREVER, 0),
        (SECOND, 0),
    ],
)
def test_a_join_with_a_limit(limit_ns: int, left: int) -> None:
    """limit_ns: by the thread's end."""
    records = joinable(201)
    end_ns = records.now + 10 * SECOND
    records.join(HANDLE + 201, JOIN_FOREVER if limit_ns == JOIN_FOREVER else end_ns + limit_ns)
    records.now = end_ns
    assert Traced().apply(records.thread_exit(tid=201)).unjoined() == left


def test_a_try_that_succeeds_after_one_that_did_not() -> None:
    records = joinable(201)
    records.join(HANDLE + 201, records.now)
    records.now += SECOND
    records.thread_exit(tid=201)
    records.join(HANDLE + 201, records.now)
    assert Traced().apply(records).unjoined() == 0


def test_memory_that_is_used_again_was_let_go() -> None:
    """The join was not seen, but the library has given the stack to another thread."""
    records = ended(201).thread(new=202, handle=HANDLE + 201, flags=THREAD_PTHREAD, stack=1)
    assert Traced().apply(records).unjoined() == 0


def test_the_same_memory_in_two_processes_is_not_the_same() -> None:
    records = ended(201).fork(of(300))
    records.thread(of(300), new=301, handle=HANDLE + 201, flags=THREAD_PTHREAD, stack=1)
    assert Traced().apply(records).unjoined() == 1
    assert Traced().apply(records.join(HANDLE + 201, JOIN_FOREVER, task=of(300))).unjoined() == 1


@pytest.mark.parametrize("end", ["exit", "exec"])
def test_what_ends_with_its_process_needs_no_join(end: str) -> None:
    records = joinable(201)
    joinable(202, records).thread_exit(tid=202, flags=THREAD_KILLED)
    getattr(records, end)(TARGET)
    assert Traced().apply(records).unjoined() == 0


@pytest.mark.parametrize("end", ["exit", "exec"])
def test_what_was_unjoined_when_its_process_ended(end: str) -> None:
    traced = Traced().apply(getattr(ended(201), end)(TARGET))
    assert traced.unjoined() == 1
    (leak,) = summary(traced).leaks
    assert (leak.count, leak.held_bytes) == (1, 0)


def test_what_ended_just_now_is_no_leak_yet() -> None:
    traced = Traced(min_age_ns=2 * SECOND)
    records = ended(201)
    traced.apply(records)
    (group,) = traced.threads.leaks(records.now + SECOND).values()
    assert (group.count, group.young) == (0, 1)
    (group,) = traced.threads.leaks(records.now + 2 * SECOND).values()
    assert (group.count, group.young) == (1, 0)
    traced.apply(Records(records.now + SECOND).exit(TARGET))
    (group,) = traced.threads.leaks(END).values()
    assert (group.count, group.young) == (0, 1)


def test_joins_that_may_have_been_missed() -> None:
    traced = Traced().apply(ended(201))
    traced.threads.doubt()
    assert traced.unjoined() == 0
    assert traced.apply(ended(202)).unjoined() == 1


def test_a_leader_that_goes_first_takes_the_uprobes_along() -> None:
    records = ended(201)
    joinable(202, records).thread_exit(tid=100)
    assert Traced().apply(joinable(203, records.thread_exit(tid=202)).thread_exit(tid=203)).unjoined() == 0


def test_a_leader_that_is_killed_with_its_process_does_not() -> None:
    records = ended(201).thread_exit(tid=100, flags=THREAD_KILLED).exit(TARGET)
    assert Traced().apply(records).unjoined() == 1


def test_without_uprobes_nothing_is_said() -> None:
    traced = Traced(sees_joins=False).apply(joinable(201, flags=0).thread_exit(tid=201))
    trace = summary(traced)
    assert trace.totals.threads_unjoined is None
    assert [tally.unjoined for _, tally in trace.threads] == [None]


events = st.lists(
    st.tuples(
        st.sampled_from(["made", "ended", "join", "detach", "exec"]), st.integers(0, 3), st.integers(0, 2)
    ),
    max_size=60,
)


@given(events)
def test_counts_add_up_whatever_comes(story: list[tuple[str, int, int]]) -> None:
    """Doubled, lost and impossible records: no count goes below zero, and a second look finds the same."""
    traced = Traced()
    records = Records().fork(of(300)).fork(of(301))
    for what, tid, place in story:
        task = (TARGET, of(300), of(301))[place]
        if what == "made":
            records.thread(task, new=200 + tid, handle=HANDLE + tid, flags=THREAD_PTHREAD, stack=place + 1)
        elif what == "ended":
            records.thread_exit(task, tid=200 + tid)
        elif what == "join":
            records.join(HANDLE + tid, JOIN_FOREVER, task=task)
        elif what == "detach":
            records.detach(HANDLE + tid, task=task)
        else:
            records.exec(task)
    traced.apply(records)
    counts = traced.threads.counts()
    assert counts == traced.threads.counts()
    for each in counts.values():
        assert 0 <= each.ended <= each.made
        assert 0 <= each.unjoined <= each.ended
    traced.unjoined()


# --- growth ---------------------------------------------------------------------------------------------------


def test_one_more_at_each_sample_only_grows() -> None:
    assert only_grows(range(1, 41))


def test_a_pool_that_grew_to_its_size_is_none() -> None:
    for size in (8, 64):
        for growing in range(1, 30):
            pool = [min(size, 1 + n * size // growing) for n in range(40)]
            assert not only_grows(pool), growing


def test_a_pool_that_grows_to_the_end_cannot_be_told_from_a_leak() -> None:
    assert only_grows([n // 4 for n in range(40)])


@pytest.mark.parametrize(
    ("live", "why"),
    [
        ([5] * 40, "it does not grow"),
        ([*range(1, 39), 37, 38], "it fell at the end"),
        ([1] * 38 + [20, 40], "two steps are a pool that is made"),
        ([n % 7 for n in range(40)], "threads that come and go"),
        (list(range(1, MIN_SAMPLES)), "too few samples"),
        ([max(0, n - 41 + MIN_ALIVE) for n in range(40)], "too few are alive"),
        ([0] * 40, "none"),
        ([], "nothing"),
    ],
)
def test_what_is_no_leak(live: list[int], why: str) -> None:
    assert not only_grows(live), why


def test_the_least_that_is_one() -> None:
    flat = MIN_SAMPLES - MIN_STEPS
    live = [MIN_ALIVE - MIN_STEPS] * flat + [MIN_ALIVE - MIN_STEPS + n for n in range(1, MIN_STEPS + 1)]
    assert only_grows(live)


def test_ups_and_downs_of_the_first_half_are_forgiven() -> None:
    assert only_grows([9, 1, 7, 2, *range(3, 30)])


@pytest.mark.parametrize("samples", [20, MAX_SAMPLES, 3 * MAX_SAMPLES + 7, 2000])
def test_growth_over_a_trace_of_any_length(samples: int) -> None:
    """A leak, a pool that stands since a third of the trace, and a thread for each sample that goes at once."""
    traced = Traced()
    tid = 1000
    for n in range(samples):
        records = Records(START + n * SECOND).thread(new=tid, stack=1)
        if n < samples // 3:
            records.thread(new=tid + 1, stack=2)
        records.thread(new=tid + 2, stack=3)
        if n:
            records.thread_exit(tid=tid - 1)
        traced.apply(records)
        traced.threads.sample()
        tid += 3
    leaks = traced.threads.leaks(START + samples * SECOND)
    assert {key: group.count for key, group in leaks.items()} == {(1, "thread"): samples}
    grown = traced.threads.counts()[1].grown
    assert grown == pytest.approx(samples / 2, rel=0.15)


def test_workers_that_each_have_a_pool_are_no_leak() -> None:
    """Processes that come one after the other: in each the number stands."""
    traced = Traced()
    for n in range(30):
        child = of(300 + n)
        records = Records(START + n * SECOND).fork(child)
        for thread in range(4):
            records.thread(child, new=1000 + 10 * n + thread, stack=1)
        traced.apply(records)
        traced.threads.sample()
    assert traced.threads.leaks(END) == {}


# --- what becomes of it ---------------------------------------------------------------------------------------

POOL = Library("python", "requests", "2.0", "/x/requests/a.py", 3, "go")
STACKS = {
    1: Stack(1, (Frame("make", None, None, None),)),
    2: Stack(2, (Frame("make", None, None, None),)),  # reads the same
    3: Stack(3, (Frame("go", None, None, None),), responsible=POOL),
}


def summary(traced: Traced, end_ns: int = END) -> Trace:
    return summarize(traced.graph.snapshot(end_ns), STACKS, About("1.0", {}, 0.0, ()))


def test_a_report_of_unjoined_threads() -> None:
    records = ended(201)
    joinable(202, records, stack=2).thread_exit(tid=202, comm=b"other")
    traced = Traced().apply(records)
    assert traced.threads.unjoined() == {TARGET: [HANDLE + 201, HANDLE + 202]}
    traced.threads.hold(TARGET, {HANDLE + 201: 8192, HANDLE + 202: 4096, HANDLE: 1})
    trace = summary(traced)
    (leak,) = trace.leaks
    assert (leak.kind, leak.count, leak.stack, leak.held_bytes) == ("unjoined_thread", 2, STACKS[1], 12288)
    assert (leak.comms, leak.exits, leak.examples) == ({"other": 1, "worker": 1}, {}, (201, 202))
    assert [(parent.pid, parent.comm, parent.count, parent.alive) for parent in leak.parents] == [
        (100, "service", 2, True)
    ]
    assert leak.oldest_age_s == pytest.approx(59 - 0.001)
    assert leak.rate_per_min == pytest.approx(2)
    assert leak.verdict.code == "never_joined"
    assert leak.verdict.evidence == {"threads_made": 2, "threads_ended": 2}
    assert trace.threads == ((STACKS[1], ThreadTally(2, 0, 2, 0, None)),)
    assert trace.totals.threads_unjoined == 2


def test_a_report_of_threads_that_only_grow() -> None:
    traced = Traced()
    for n in range(40):
        traced.apply(Records(START + n * SECOND).thread(new=1000 + n, stack=3))
        traced.threads.sample()
    traced.threads.name(TARGET, {1000: "first"})
    (leak,) = summary(traced, START + 40 * SECOND).leaks
    assert (leak.kind, leak.count, leak.held_bytes) == ("thread", 40, None)
    assert leak.comms == {"": 39, "first": 1}
    assert leak.oldest_age_s == 40
    assert leak.rate_per_min == pytest.approx(60, rel=0.1)
    assert leak.verdict.code == "only_grows"
    assert "ThreadPoolExecutor" in leak.verdict.advice


def test_names_of_the_living_tell_which_ends_were_lost() -> None:
    traced = Traced().apply(joinable(202, joinable(201)))
    traced.threads.name(TARGET, {201: "a", 100: "leader"}, complete=True)
    assert traced.threads.processes() == [TARGET]
    (counts,) = traced.threads.counts().values()
    assert (counts.made, counts.ended, counts.unjoined) == (2, 1, 0)


def test_a_process_that_has_gone_is_named_all_the_same() -> None:
    traced = Traced()
    records = Records().fork(of(300)).exec(of(300), b"helper")
    records.thread(of(300), new=301, handle=HANDLE, flags=THREAD_PTHREAD, stack=1).thread_exit(
        of(300), tid=301
    )
    records.exit(of(300)).wait(of(300)).release(of(300))
    (leak,) = [leak for leak in summary(traced.apply(records)).leaks if leak.kind == "unjoined_thread"]
    assert [(parent.pid, parent.comm, parent.alive) for parent in leak.parents] == [(300, "helper", False)]


def test_stacks_of_threads_come_as_samples_or_as_known_ones() -> None:
    sample = STACK_SAMPLE | 7
    records = (
        Records().thread(new=201, stack=sample).thread(new=202, stack=1).thread(new=203, stack=sample + 1)
    )
    traced = Traced().apply(records, {sample: 1})
    assert {stack: counts.made for stack, counts in traced.threads.counts().items()} == {1: 2, 0: 1}
    assert traced.graph.lost_stacks == 1
    assert {stack for stack, _ in summary(traced).threads} == {STACKS[1], NO_STACK}


def test_without_the_option_nothing_is_kept() -> None:
    watched = Watched().apply(ended(201).join(HANDLE + 201, JOIN_FOREVER).detach(HANDLE))
    snapshot = watched.graph.snapshot(END)
    assert (snapshot.threads, snapshot.thread_groups) == ({}, {})
    assert snapshot.totals["threads"] == 1
    assert "threads_unjoined" not in snapshot.totals


def test_threads_of_strangers_are_not_kept() -> None:
    traced = Traced().apply(Records().thread(of(999), new=201, stack=1).thread_exit(of(999), tid=201))
    assert traced.threads.counts() == {}


def test_processes_of_threads_are_in_the_snapshot() -> None:
    snapshot = Traced().apply(ended(201)).graph.snapshot(END)
    assert snapshot.processes == {TARGET: Process(TARGET, "service", 100, alive=True)}
