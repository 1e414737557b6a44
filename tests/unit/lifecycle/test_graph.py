"""The graph's account of single lives, record by record.  The trap numbers are those of docs/lifecycle.md."""

from __future__ import annotations

import errno

import pytest
from records_of import INIT, MS, SECOND, START, TARGET, Records, Watched, of, seen

from tracer.lifecycle.graph import WNOWAIT, Graph, Seen
from tracer.lifecycle.snapshot import FailedKey, Process
from tracer.lifecycle.task import PRE_EXISTING, Fate
from tracer.records import FAIL_CLONE3, FAIL_THREAD, STACK_SAMPLE

CHILD, OTHER, GRANDCHILD = of(200), of(201, 11), of(300, 20)
SUBREAPER = of(150, 5)


# --- fates ----------------------------------------------------------------------------------------------------


def test_waited() -> None:
    watched = Watched().apply(
        Records()
        .fork(CHILD)
        .exec(CHILD, b"sh")
        .exit(CHILD, status=3 << 8, comm=b"sh")
        .wait(CHILD)
        .release(CHILD)
    )
    task = watched.task(CHILD)
    assert (task.fate, task.exit_code, task.reaper, task.reaped_by_call) == (
        Fate.WAITED,
        0x300,
        TARGET,
        "wait4",
    )
    assert (task.parent, task.forker, task.stack, task.comm, task.fork_comm) == (
        TARGET,
        TARGET,
        1,
        "sh",
        "service",
    )
    assert (task.exited_ns - task.forked_ns, task.reaped_ns - task.exited_ns) == (2 * MS, MS)
    assert watched.totals() == {"forks": 1, "execs": 1, "exits": 1, "waited": 1}
    assert list(watched.graph.tasks) == [TARGET]


def test_zombie() -> None:
    watched = Watched().apply(Records().fork(CHILD).exit(CHILD, status=9))
    assert watched.totals() == {"forks": 1, "exits": 1, "zombies": 1, "zombies_now": 1}
    snapshot = watched.graph.snapshot(START + 60 * SECOND)
    group = snapshot.groups[1, "zombie"]
    assert (group.count, group.parents, group.exits, group.examples) == (1, {TARGET: 1}, {9: 1}, [200])
    assert snapshot.processes == {TARGET: Process(TARGET, "service", 100, alive=True, reaped_others=0)}


def test_the_most_zombies_at_once() -> None:
    records = Records()
    for pid in (200, 201, 202):
        records.fork(of(pid)).exit(of(pid))
    records.wait(of(200)).wait(of(201)).wait(of(202)).fork(of(203)).exit(of(203), autoreap=True)
    assert Watched().apply(records).graph.snapshot(records.now).totals["zombies_peak"] == 3


def test_suspects_have_zombies() -> None:
    watched = Watched().apply(Records().fork(CHILD).fork(OTHER).exit(CHILD, handler=0x401000))
    assert watched.graph.suspects() == {TARGET: 0x401000}
    assert watched.apply(Records().wait(CHILD).exit(OTHER, autoreap=True)).graph.suspects() == {}


def test_a_release_under_the_parent_is_a_wait_that_was_not_seen() -> None:  # trap 1
    watched = Watched().apply(Records().fork(CHILD).exit(CHILD).release(CHILD))
    assert (watched.task(CHILD).fate, watched.task(CHILD).reaped_by_call) == (Fate.WAITED, "")


@pytest.mark.parametrize("call", ["wait4", "waitid"])
def test_a_wait_that_could_not_say_whom_gives_time_and_call_to_the_release(call: str) -> None:  # traps 1, 2
    records = Records().fork(CHILD).exit(CHILD)
    waited_ns = records.now
    (records.wait if call == "wait4" else records.waitid)(CHILD, value=0)
    task = Watched().apply(records.release(CHILD)).task(CHILD)
    assert (task.fate, task.reaped_by_call, task.reaped_ns) == (Fate.WAITED, call, waited_ns)


def test_looking_is_no_reaping() -> None:  # trap 2
    watched = Watched().apply(Records().fork(CHILD).exit(CHILD).waitid(CHILD, options=WNOWAIT))
    assert watched.totals()["zombies_now"] == 1


def test_autoreaped() -> None:  # trap 3
    watched = Watched().apply(Records().fork(CHILD).exit(CHILD, autoreap=True).release(CHILD))
    assert watched.task(CHILD).fate is Fate.AUTOREAPED
    assert watched.totals() == {"forks": 1, "exits": 1, "autoreaped": 1}


def test_threads() -> None:  # trap 4: a leader that goes before its threads is a thread's end, no more
    watched = Watched().apply(Records().fork(CHILD).thread(CHILD).thread(CHILD).thread_exit(CHILD))
    assert watched.totals() == {"forks": 1, "running": 1, "threads": 2, "threads_running": 1}
    assert watched.task(CHILD).fate is Fate.RUNNING


def test_the_one_who_must_wait_is_not_the_one_who_forked() -> None:  # trap 7
    records = Records().fork(CHILD, stack=1).fork(OTHER, parent=TARGET, forker=CHILD, stack=2)
    watched = Watched().apply(records.exit(OTHER).wait(OTHER))
    assert (watched.task(OTHER).parent, watched.task(OTHER).forker) == (TARGET, CHILD)
    assert watched.task(OTHER).fate is Fate.WAITED


@pytest.mark.parametrize("reaped", [True, False])
def test_orphaned_whoever_reaps_it(reaped: bool) -> None:  # trap 8
    records = Records().fork(CHILD).fork(GRANDCHILD, parent=CHILD).exit(CHILD).wait(CHILD)
    records.exit(GRANDCHILD, parent=INIT)
    watched = Watched().apply(records.release(GRANDCHILD, parent=INIT) if reaped else records)
    assert watched.task(GRANDCHILD).fate is Fate.ORPHANED
    assert watched.totals().get("zombies_now", 0) == (not reaped)


def test_orphaned_while_its_parent_is_a_zombie_that_the_kernel_did_not_yet_take_it_from() -> None:
    records = Records().fork(CHILD).fork(GRANDCHILD, parent=CHILD).exit(CHILD).exit(GRANDCHILD, parent=CHILD)
    assert Watched().apply(records).task(GRANDCHILD).fate is Fate.ORPHANED


def test_a_subreaper_that_waits_makes_no_waited_child() -> None:  # trap 8
    records = Records().fork(SUBREAPER).fork(CHILD, parent=SUBREAPER).fork(GRANDCHILD, parent=CHILD)
    records.exit(GRANDCHILD, parent=CHILD).exit(CHILD, parent=SUBREAPER).wait(CHILD, SUBREAPER)
    task = Watched().apply(records.wait(GRANDCHILD, SUBREAPER)).task(GRANDCHILD)
    assert (task.fate, task.reaper, task.reaped_by_call) == (Fate.ZOMBIE, SUBREAPER, "wait4")


def test_a_debugger_sees_it_first_and_the_parent_must_still_wait() -> None:  # trap 9
    debugger = of(160)
    records = Records().fork(debugger).fork(CHILD).exit(CHILD).wait(CHILD, waiter=debugger)
    watched = Watched().apply(records)
    assert watched.totals()["zombies_now"] == 1
    assert watched.apply(Records(records.now).wait(CHILD)).task(CHILD).fate is Fate.WAITED


def test_a_pid_used_twice_is_two_processes() -> None:  # trap 10
    again = of(200, 99)
    records = Records().fork(CHILD).exit(CHILD, status=1).wait(CHILD).fork(again).exit(again, status=2)
    watched = Watched().apply(records.release(CHILD))  # late: after the pid came back
    assert (watched.task(CHILD).fate, watched.task(again).fate) == (Fate.WAITED, Fate.ZOMBIE)
    assert watched.graph.standing() == {200: watched.task(again)}


def test_a_wait_names_the_pid_of_the_waiters_namespace() -> None:  # trap 11
    init, inside, namesake = of(400), of(401, 12), of(7, 13)
    records = Records().fork(init, ns_pid=1).fork(inside, parent=init, ns_pid=7, forker_ns_pid=7)
    records.fork(namesake, parent=TARGET).exit(namesake).exit(inside, parent=init).wait(inside, init, value=7)
    watched = Watched().apply(records)
    assert (watched.task(inside).fate, watched.task(namesake).fate) == (Fate.WAITED, Fate.ZOMBIE)


def test_a_namespaces_init_that_exits_waits_for_nobody() -> None:  # trap 11
    init, inside = of(400), of(401, 12)
    records = Records().fork(init, ns_pid=1).fork(inside, parent=init, ns_pid=7, forker_ns_pid=7)
    records.exit(inside, parent=init).exit(init).release(inside, parent=init)
    assert Watched().apply(records).task(inside).fate is Fate.ZOMBIE


def test_a_zombie_that_goes_with_its_parent() -> None:
    records = Records().fork(CHILD).fork(GRANDCHILD, parent=CHILD).exit(GRANDCHILD, parent=CHILD).exit(CHILD)
    watched = Watched().apply(records.release(GRANDCHILD, parent=INIT).wait(CHILD))
    assert watched.task(GRANDCHILD).fate is Fate.ZOMBIE
    assert watched.totals() == {"forks": 2, "exits": 2, "waited": 1, "zombies": 1}
    assert watched.graph.snapshot(START).processes == {CHILD: Process(CHILD, "helper", 200, alive=False)}


def test_a_young_zombie_is_no_leak() -> None:
    records = Records().fork(CHILD).exit(CHILD).fork(OTHER).exit(OTHER)
    watched = Watched(min_age_ns=10 * MS).apply(records)
    (group,) = watched.graph.snapshot(records.now + 7 * MS).groups.values()  # one stood for 10 ms, one for 8
    assert (group.count, group.young, group.examples) == (1, 1, [200])
    assert watched.totals()["zombies"] == 2


# --- stacks, and forks that fail --------------------------------------------------------------------------------


def test_stacks_known_sampled_and_lost() -> None:
    number = STACK_SAMPLE | 5
    records = (
        Records().fork(CHILD, stack=3).fork(OTHER, stack=number).fork(GRANDCHILD, stack=STACK_SAMPLE | 6)
    )
    watched = Watched().apply(records, {number: 8})
    assert [watched.task(each).stack for each in (CHILD, OTHER, GRANDCHILD)] == [3, 8, 0]
    assert watched.graph.lost_stacks == 1
    assert {key: c.forks for key, c in watched.graph.snapshot(START).stacks.items()} == {3: 1, 8: 1, 0: 1}


def test_failed_forks() -> None:
    records = Records().fail(errno.EAGAIN).fail(errno.EAGAIN).fail(errno.EAGAIN, flags=FAIL_THREAD, stack=2)
    snapshot = Watched().apply(records.fail(errno.ENOMEM, task=of(999))).graph.snapshot(START)
    assert snapshot.failed == {
        FailedKey(1, errno.EAGAIN, thread=False): 2,
        FailedKey(2, errno.EAGAIN, thread=True): 1,
    }
    assert snapshot.totals["failed_forks"] == 3


def test_clone3_refused_by_seccomp_is_no_failure_if_clone_works() -> None:  # trap 12
    records = Records().fail(errno.ENOSYS, flags=FAIL_CLONE3, tid=7).fork(CHILD, tid=7)
    records.fail(errno.ENOSYS, flags=FAIL_CLONE3 | FAIL_THREAD, tid=7).thread(tid=7)
    assert Watched().apply(records).graph.snapshot(START).failed == {}


def test_clone3_refused_and_clone_as_well_is_one_failure() -> None:
    records = Records().fail(errno.ENOSYS, flags=FAIL_CLONE3, tid=7).fail(errno.EPERM, tid=7)
    assert Watched().apply(records).graph.snapshot(START).failed == {
        FailedKey(1, errno.EPERM, thread=False): 1
    }


def test_clone3_refused_and_nothing_after_it() -> None:
    records = Records().fail(errno.ENOSYS, flags=FAIL_CLONE3, tid=7).fork(CHILD, tid=8)
    assert Watched().apply(records).graph.snapshot(START).failed == {
        FailedKey(1, errno.ENOSYS, thread=False): 1
    }


# --- the start (trap 15) -----------------------------------------------------------------------------------------


def test_strangers_are_left_out() -> None:
    watched = Watched().apply(
        Records().fork(of(500), parent=of(501)).exit(of(500), parent=of(501)).exec(of(502))
    )
    assert watched.totals() == {}


def test_children_from_before_the_trace() -> None:
    living, dead = of(200, -50), of(201, -50)
    watched = Watched()
    watched.graph.add_existing(Seen(living, TARGET, "old", 200, zombie=False, threads=3))
    watched.graph.add_existing(Seen(dead, TARGET, "old", 201, zombie=True))
    assert watched.totals() == {"running": 1, "pre_existing_zombies": 1, "threads_running": 2}
    assert watched.graph.is_old_zombie(201)
    watched.apply(Records().exit(living).wait(dead).release(dead))
    assert watched.totals() == {"exits": 1, "zombies": 1, "zombies_now": 1, "pre_existing_zombies": 1}
    assert watched.task(living).stack == PRE_EXISTING
    assert not watched.graph.is_old_zombie(201)


def test_forked_between_attaching_and_the_scan_is_one_child() -> None:
    watched = Watched()
    watched.graph.add_existing(Seen(CHILD, TARGET, "service", 200, zombie=False))
    watched.apply(Records().fork(CHILD, stack=4))
    assert watched.totals() == {"forks": 1, "running": 1}
    assert watched.task(CHILD).stack == 4


def test_forked_and_dead_between_attaching_and_the_scan_is_one_zombie() -> None:
    watched = Watched()
    watched.graph.add_existing(Seen(CHILD, TARGET, "service", 200, zombie=True))
    watched.apply(Records().fork(CHILD, stack=4).exit(CHILD))
    assert watched.totals() == {"forks": 1, "exits": 1, "zombies": 1, "zombies_now": 1}
    assert not watched.graph.is_old_zombie(200)


@pytest.mark.parametrize("scanned", [True, False])
def test_forked_before_attaching_and_dead_before_the_scan(scanned: bool) -> None:
    child = of(200, -1)
    watched = Watched()
    if scanned:
        watched.graph.add_existing(Seen(child, TARGET, "service", 200, zombie=True))
    watched.apply(Records().exit(child))
    assert watched.totals() == {"exits": 1, "zombies": 1, "zombies_now": 1}
    assert watched.task(child).stack == PRE_EXISTING
    assert watched.graph.anomalies == 0


# --- records that were lost (trap 14), and /proc ----------------------------------------------------------------


def resynced(watched: Watched, now: int, shown: dict[int, Seen]) -> Watched:
    watched.graph.lossy = True
    watched.graph.expect_scan()
    watched.graph.resync({**seen(TARGET, INIT), **shown}, now)
    return watched


def test_an_exit_whose_fork_was_lost_is_a_child_all_the_same() -> None:
    watched = Watched().apply(Records().exit(CHILD))
    assert watched.totals() == {"forks": 1, "exits": 1, "zombies": 1, "zombies_now": 1}
    assert watched.graph.anomalies == 1


def test_released_without_an_exit_is_unknown() -> None:
    watched = Watched().apply(Records().fork(CHILD).release(CHILD))
    assert watched.totals() == {"forks": 1, "unknown": 1}
    assert watched.graph.anomalies == 1


def test_gone_without_any_record_is_unknown() -> None:
    records = Records().fork(CHILD)
    watched = resynced(Watched().apply(records), records.now, {})
    assert watched.totals() == {"forks": 1, "unknown": 1}
    assert (watched.graph.anomalies, list(watched.graph.tasks)) == (1, [TARGET])


def test_a_zombie_that_is_gone_was_reaped_by_its_parent_if_that_one_lives() -> None:
    records = Records().fork(CHILD).exit(CHILD)
    watched = resynced(Watched().apply(records), records.now, {})
    task = watched.task(CHILD)
    assert (task.fate, task.reaper, task.reaped_by_call, task.reaped_ns) == (
        Fate.WAITED,
        TARGET,
        "",
        records.now,
    )
    assert watched.graph.anomalies == 0


def test_a_zombie_that_is_gone_with_its_parent_is_unknown() -> None:
    records = Records().fork(CHILD).fork(GRANDCHILD, parent=CHILD).exit(GRANDCHILD, parent=CHILD).exit(CHILD)
    watched = resynced(Watched().apply(records.wait(CHILD)), records.now, {})
    assert watched.task(GRANDCHILD).fate is Fate.UNKNOWN
    assert watched.graph.anomalies == 1


@pytest.mark.parametrize("fate", [Fate.AUTOREAPED, Fate.ORPHANED])
def test_what_reaps_itself_or_is_reaped_by_others_is_known_when_it_is_gone(fate: Fate) -> None:
    records = Records().fork(CHILD)
    records.exit(CHILD, parent=TARGET if fate is Fate.AUTOREAPED else INIT, autoreap=True)
    watched = resynced(Watched().apply(records), records.now, {})
    assert (watched.task(CHILD).fate, watched.graph.anomalies) == (fate, 0)


@pytest.mark.parametrize(("parent", "fate"), [(TARGET, "zombies"), (INIT, "orphaned")])
def test_a_zombie_whose_exit_was_lost_is_found(parent: int, fate: str) -> None:
    records = Records().fork(CHILD)
    watched = resynced(Watched().apply(records), records.now, seen(CHILD, parent, zombie=True))
    assert watched.totals() == {"forks": 1, fate: 1, "zombies_now": 1}
    assert watched.task(CHILD).exit_code is None
    assert watched.graph.anomalies == 1


def test_children_whose_fork_was_lost_are_adopted_with_theirs() -> None:
    shown = {**seen(GRANDCHILD, CHILD, zombie=True), **seen(CHILD)}
    watched = resynced(Watched(), START + 60 * SECOND, shown)
    assert watched.totals() == {"forks": 2, "running": 1, "zombies": 1, "zombies_now": 1}
    assert watched.graph.anomalies == 2


def test_a_stranger_that_was_reparented_to_a_target_is_no_child_of_it() -> None:
    watched = Watched()
    watched.graph.expect_scan()
    watched.graph.resync({**seen(TARGET, INIT), **seen(CHILD)}, START + 60 * SECOND)
    assert (watched.totals(), watched.graph.anomalies) == ({}, 0)


def test_a_healthy_graph_agrees_with_proc() -> None:
    records = Records().fork(CHILD).fork(OTHER).exit(OTHER).fork(GRANDCHILD, parent=CHILD)
    watched = Watched().apply(records)
    shown = {**seen(TARGET, INIT), **seen(CHILD), **seen(OTHER, zombie=True), **seen(GRANDCHILD, CHILD)}
    assert watched.graph.agrees_with(shown, records.now)
    before = watched.totals()
    resynced(watched, records.now, shown)
    assert (watched.totals(), watched.graph.anomalies) == (before, 0)


def test_what_happened_after_the_scan_is_no_contradiction() -> None:
    records = Records().fork(CHILD)
    at_ns = records.now
    watched = Watched()
    watched.graph.lossy = True
    watched.graph.expect_scan()
    late = of(600, (at_ns - START) // (10 * MS) + 1)
    watched.apply(records.exit(CHILD).wait(CHILD).fork(late))
    watched.graph.resync({**seen(TARGET, INIT), **seen(CHILD)}, at_ns)
    assert watched.totals() == {"forks": 2, "exits": 1, "waited": 1, "running": 1}
    assert watched.graph.anomalies == 0


def test_doubled_records_count_once() -> None:
    records = Records().fork(CHILD).fork(CHILD).exit(CHILD).exit(CHILD).wait(CHILD).wait(CHILD)
    watched = Watched().apply(records.release(CHILD).release(CHILD))
    assert watched.totals() == {"forks": 1, "exits": 1, "waited": 1}


def test_an_exit_that_comes_before_its_parents_by_time_is_no_orphans() -> None:
    """Reordered: by the times in the records the child died first, and its parent reaped it unseen."""
    records = Records().fork(CHILD).fork(GRANDCHILD, parent=CHILD).exit(GRANDCHILD, parent=CHILD).exit(CHILD)
    records.release(GRANDCHILD, parent=CHILD)
    events = records.events
    graph = Graph(START, 0)
    graph.add_existing(Seen(TARGET, INIT, "service", 100, zombie=False), root=True)
    graph.apply([*events[:2], events[3], events[2], events[4]], {})
    assert graph.snapshot(START).totals["waited"] == 1


def test_names_of_untrusted_processes_are_decoded() -> None:
    watched = Watched().apply(Records().fork(CHILD).exec(CHILD, b"\xff\x1b[31m"))
    assert watched.task(CHILD).comm == "\\xff\x1b[31m"
