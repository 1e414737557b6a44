"""From counts to the finished model."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from records_of import MS, SECOND, START, TARGET, Records, Watched, of

from tracer.lifecycle.facts import ParentFacts, Waits
from tracer.lifecycle.graph import Seen
from tracer.lifecycle.summary import NO_STACK, OLDER, About, exit_name, summarize
from tracer.trace import Frame, Library, ReapLatency, Share, Stack, Tally, Trace, Verdict

STACKS = {n: Stack(n, (Frame(f"spawn_{n}", None, None, None),)) for n in (1, 2)}
END = START + 121 * SECOND


def summary(watched: Watched, **about: object) -> Trace:
    return summarize(watched.graph.snapshot(END), STACKS, About("1.0", {}, 0.0, (), **about))  # type: ignore[arg-type]


def test_leaks_the_largest_first() -> None:
    records = Records().fork(of(200), stack=1).exit(of(200))
    for pid in (201, 202):
        records.fork(of(pid), stack=2).exit(of(pid), status=9)
    trace = summary(Watched().apply(records))
    assert [(leak.stack, leak.kind, leak.count, leak.exits, leak.examples) for leak in trace.leaks] == [
        (STACKS[2], "zombie", 2, {"SIGKILL": 2}, (201, 202)),
        (STACKS[1], "zombie", 1, {"0": 1}, (200,)),
    ]
    first = trace.leaks[1]
    assert first.oldest_age_s == pytest.approx(120 - 0.001)
    assert first.rate_per_min == pytest.approx(60 / 121)
    assert [(parent.pid, parent.comm, parent.count, parent.alive) for parent in first.parents] == [
        (100, "service", 1, True)
    ]
    assert trace.stacks == ((STACKS[2], Tally(2, 0, 2)), (STACKS[1], Tally(1, 0, 1)))


def test_a_stack_that_was_lost_and_one_from_before_are_told_apart() -> None:
    watched = Watched()
    watched.graph.add_existing(Seen(of(200, -9), TARGET, "old", 200, zombie=False))
    trace = summary(watched.apply(Records().exit(of(200, -9)).fork(of(201), stack=99).exit(of(201))))
    assert {leak.stack: (leak.pre_existing, leak.verdict.code) for leak in trace.leaks if leak.verdict} == {
        OLDER: (True, "pre_existing"),
        NO_STACK: (False, "unknown"),
    }


def test_no_verdict_on_a_parent_that_nobody_looked_at() -> None:
    records = Records().fork(of(200)).exit(of(200)).fork(of(201)).exit(of(201)).wait(of(201))
    (leak,) = summary(Watched().apply(records)).leaks
    assert leak.verdict == Verdict("unknown", {}, "")


def judged(facts: dict[int, ParentFacts], records: Records) -> Verdict:
    snapshot = replace(Watched().apply(records).graph.snapshot(END), facts=facts)
    (leak,) = (
        each for each in summarize(snapshot, STACKS, About("1.0", {}, 0.0, ())).leaks if each.stack.id == 2
    )
    return leak.verdict


SILENT = ParentFacts(seen=True, state="S", waits=Waits())
BUSY = replace(SILENT, waits=Waits(any_calls=9, any_last_ns=END, any_empty_ns=END))
TWO_PARENTS = (
    Records()
    .fork(of(300))
    .fork(of(200), stack=2)
    .fork(of(201), parent=of(300), stack=2)
    .exit(of(200))
    .exit(of(201), parent=of(300))
)


def test_several_parents_with_one_reason() -> None:
    verdict = judged({TARGET: SILENT, of(300): SILENT}, TWO_PARENTS)
    assert (verdict.code, verdict.evidence["parents_with_this_reason"]) == ("never_waits", 2)


def test_several_parents_with_different_reasons() -> None:
    verdict = judged({TARGET: SILENT, of(300): BUSY}, TWO_PARENTS)
    assert verdict.code == "unknown"
    assert verdict.evidence["reasons_by_parent"] == "never_waits: 1, unknown: 1"


def test_an_exec_makes_another_program_of_it() -> None:
    """What the old one waited for proves nothing of the new one; and the exit signal becomes SIGCHLD."""
    records = Records().fork(of(201)).exit(of(201)).wait(of(201)).fork(of(200), stack=2)
    verdict = judged({TARGET: SILENT}, records.exec(TARGET, b"app").exit(of(200)))
    assert (verdict.code, verdict.evidence["children_it_did_reap"]) == ("never_waits", 0)


def test_failed_forks_by_errno() -> None:
    trace = summary(Watched().apply(Records().fail(errno.EAGAIN).fail(errno.EAGAIN).fail(9999)))
    assert [(each.errno, each.count, each.stack) for each in trace.failed_forks] == [
        ("EAGAIN", 2, STACKS[1]),
        ("9999", 1, STACKS[1]),
    ]


def test_shares_by_library() -> None:
    """Of what stands or runs at the end: what was released takes nothing."""
    lib = Library("elf", "libfoo", "1.2")
    stacks = {n: replace(STACKS[n], responsible=lib) for n in (1, 2)}
    records = Records()
    for pid, stack in ((200, 1), (201, 2), (202, 2), (203, 99), (204, 1)):
        records.fork(of(pid), stack=stack)
    for pid in (200, 201, 203, 204):
        records.exit(of(pid))
    snapshot = Watched().apply(records.wait(of(204))).graph.snapshot(END)
    assert summarize(snapshot, stacks, About("1.0", {}, 0.0, ())).shares == (
        Share(lib, zombies=2, running=1),
        Share(None, zombies=1, running=0),
    )


def test_complete_unless_there_is_a_reason() -> None:
    assert summary(Watched()).complete
    assert not summary(Watched(), incomplete_because=("3 records were lost",)).complete


def test_reap_latency_in_seconds() -> None:
    assert summary(Watched()).reap_latency == ReapLatency()
    latency = summary(Watched().apply(Records().fork(of(200)).exit(of(200)).wait(of(200)))).reap_latency
    assert (latency.p50, latency.max) == (MS / 1e9, MS / 1e9)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (0, "0"),
        (0x300, "3"),
        (9, "SIGKILL"),
        (0x8B, "SIGSEGV+core"),
        (64, "SIGRTMAX"),
        (40, "SIG40"),
        (-1, "unknown"),
    ],
)
def test_exits_in_words(status: int, name: str) -> None:
    assert exit_name(status) == name
