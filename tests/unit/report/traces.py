"""Hand-made finished traces, which the tests of reports and exports share."""

from __future__ import annotations

from dataclasses import replace

from tracer.trace import (
    FailedFork,
    Frame,
    LateReaping,
    Leak,
    Library,
    Parent,
    ReapLatency,
    Reconciliation,
    Share,
    Stack,
    Tally,
    Target,
    Totals,
    Trace,
    Verdict,
    WaitSite,
)

LIBC = Library("deb", "libc6", "2.36-9+deb12u9", "/usr/lib/x86_64-linux-gnu/libc.so.6", None, "_Fork")
LIBFOO = Library("elf", "libfoo.so.1", "1.2", "/usr/src/libfoo/src/foo.c", 42, "spawn_helper")
LIBBAR = Library(
    "gem", "rack-streaming-proxy", "1.0.3", "/gems/rack-streaming-proxy-1.0.3/lib/proxy.rb", 70, "start"
)
APP = Library("app", "leaky", None, "/home/app/leaky.c", 10, "main", "df7963a96e6c01b2")

FORK = Frame("_Fork", None, None, LIBC.file, library=LIBC, offset=0xE12A4)
SPAWN = Frame("spawn_helper", LIBFOO.file, 42, "/opt/foo/lib/libfoo.so.1", library=LIBFOO, offset=0x1139)
PROXY = Frame("start", LIBBAR.file, 70, None, "ruby", LIBBAR)
MAIN = Frame("main", APP.file, 10, "/home/app/leaky", library=APP, offset=0x2010)

FOO_STACK = Stack(1, (FORK, SPAWN, MAIN), None, LIBFOO, LIBFOO, (LIBC, LIBFOO, APP))
BAR_STACK = Stack(
    2, (FORK, PROXY, MAIN), "the unwinder has no CFI for pc 0x7f12", LIBBAR, LIBBAR, (LIBC, LIBBAR, APP)
)
NO_STACK = Stack(0, (), "no stack came with this fork")
OLDER = Stack(-1, (), "forked before the trace began")

UNKNOWN = Verdict("unknown", {}, "")
ALIVE = Verdict(
    "never_waits",
    {"waits": 0, "sigchld": "default"},
    "the parent is alive: an init (tini, --init) will not help",
)


def leak(stack: Stack = FOO_STACK, count: int = 26, kind: str = "zombie", **changes: object) -> Leak:
    made = Leak(
        kind=kind,
        count=count,
        rate_per_min=count / 5,
        oldest_age_s=252.0,
        stack=stack,
        parents=(Parent(4711, "leaky", count, True),),
        comms={"sh": count},
        exits={"0": count},
        examples=tuple(range(4712, 4712 + min(count, 10))),
        verdict=UNKNOWN,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def trace(**changes: object) -> Trace:
    made = Trace(
        version="0.1.0",
        host={"kernel": "6.18.0", "boot_id": "7d0c"},
        started_at=1_790_000_000.0,
        duration_s=300.0,
        targets=(Target(4711, "leaky"),),
        lost_events=0,
        complete=True,
        totals=Totals(),
        leaks=(),
        reconciliation=Reconciliation(0, 0, 0, 0),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


EMPTY = trace(duration_s=12.34)

CLEAN = trace(
    totals=Totals(forks=120, execs=100, exits=118, waited=118, running=2),
    reap_latency=ReapLatency(0.000035, 0.0009, 0.0021, 0.35),
    stacks=((FOO_STACK, Tally(forks=120, waited=118, running=2)),),
)

ONE_LEAK = trace(
    totals=Totals(forks=120, execs=100, exits=119, waited=90, zombies=29, zombies_now=29, running=1),
    leaks=(
        leak(
            exits={"0": 20, "SIGKILL": 6},
            comms={"sh": 20, "curl": 6},
            parents=(Parent(4711, "leaky", 26, True, 7),),
            verdict=ALIVE,
        ),
    ),
    young_zombies=3,
    reap_latency=ReapLatency(0.000035, 0.0009, 0.0021, 0.35),
    reconciliation=Reconciliation(29, 29, 0, 0),
    stacks=((FOO_STACK, Tally(forks=120, waited=90, zombie=29, running=1)),),
)

MANY = trace(
    totals=Totals(
        forks=2120,
        threads=14,
        execs=100,
        exits=2119,
        waited=2036,
        zombies=51,
        zombies_now=49,
        zombies_peak=61,
        orphaned=30,
        autoreaped=7,
        running=1,
        pre_existing_zombies=5,
    ),
    leaks=(
        leak(
            kind="orphaned",
            count=30,
            stack=Stack(3, (FORK, MAIN), None, APP, APP, (LIBC, APP)),
            parents=(Parent(4800, "daemonize", 29, False), Parent(0, "", 1, False)),
        ),
        leak(
            BAR_STACK,
            20,
            oldest_age_s=11_100.0,
            verdict=Verdict(
                "waits_for_others",
                {"waits_for_named": 7, "waiting_now_for": "pid 99"},
                "its waits name other children",
            ),
            waits=(WaitSite("pid 4711", True, FOO_STACK), WaitSite("any child", False, NO_STACK)),
        ),
        leak(count=16, exits={"0": 10, "unknown": 1, "SIGSEGV+core": 5}),
        leak(NO_STACK, 10),
        leak(
            OLDER,
            5,
            pre_existing=True,
            rate_per_min=0.0,
            oldest_age_s=187_200.0,
            exits={"unknown": 5},
            verdict=Verdict("pre_existing", {}, "restart the parent, or trace from its start"),
        ),
    ),
    reap_latency=ReapLatency(0.000035, 0.0009, 0.0021, 0.35),
    reconciliation=Reconciliation(54, 47, 5, 2, (901, 902)),
    stacks=(
        (FOO_STACK, Tally(forks=1000, waited=984, zombie=16)),
        (BAR_STACK, Tally(forks=1000, waited=980, zombie=20)),
        (Stack(3, (FORK, MAIN), None, APP, APP, (LIBC, APP)), Tally(forks=100, waited=70, orphaned=30)),
        (NO_STACK, Tally(forks=20, waited=2, zombie=10, autoreaped=7, running=1)),
    ),
    late=(LateReaping(FOO_STACK, 12, ReapLatency(1.2, 3.4, 9.0, 61.0)),),
    notes=("No line numbers for /opt/foo/lib/libfoo.so.1: it has no debug information.",),
)

ORPHANS = trace(
    totals=Totals(forks=40, exits=40, waited=20, orphaned=20),
    leaks=(leak(kind="orphaned", count=20),),
    stacks=((FOO_STACK, Tally(forks=40, waited=20, orphaned=20)),),
)

INCOMPLETE = trace(
    totals=Totals(forks=120, exits=118, waited=115, unknown=3, running=2),
    lost_events=17,
    complete=False,
    incomplete_because=(
        "17 records were lost: the ring was full",
        "the tracer was killed or is still running: data ends at 2026-09-21 14:14:20 UTC",
    ),
    reconciliation=None,
)

EVIL = "\x1b[31m[bold]evil[/bold]\x1b]0;x\x07\r\n\u202egnp.exe\u2028" + "A" * 4096
EVIL_LIBRARY = Library("elf", EVIL, "1\n2", "/tmp/" + EVIL, 7, EVIL)
EVIL_STACK = Stack(
    9,
    (
        Frame(EVIL, EVIL, 7, EVIL, EVIL, EVIL_LIBRARY, 1),
        Frame("日本語" * 30, None, None, "/x/" * 60 + "lib日本.so", offset=3),
    ),
    EVIL,
    EVIL_LIBRARY,
    EVIL_LIBRARY,
    (EVIL_LIBRARY, LIBFOO),
)
HOSTILE = trace(
    targets=(Target(4711, EVIL),),
    totals=Totals(forks=2, exits=2, zombies=2, zombies_now=2, failed_forks=1),
    leaks=(
        leak(
            EVIL_STACK,
            2,
            parents=(Parent(4711, EVIL, 2, True),),
            comms={EVIL: 1, "caf\udce9": 1},
            exits={EVIL: 2},
            verdict=Verdict(EVIL, {EVIL: EVIL}, EVIL),
            waits=(WaitSite(EVIL, True, EVIL_STACK),),
        ),
    ),
    failed_forks=(
        FailedFork(EVIL, 1, False, EVIL_STACK, {"name": EVIL, "where": EVIL, "value": 1, "current": 1}, EVIL),
    ),
    limits=(
        {
            "name": EVIL,
            "where": EVIL,
            "value": 1,
            "current": 1,
            "growth_per_min": 0.0,
            "growth_by_kind": {"processes": 1.0, "zombies": None, "threads": 0.0},
            "full_in_s": None,
        },
    ),
    shares=(Share(EVIL_LIBRARY, 1, 1),),
    late=(LateReaping(EVIL_STACK, 1, ReapLatency(1.0, 1.0, 1.0, 1.0)),),
    complete=False,
    incomplete_because=(EVIL,),
    notes=(EVIL,),
    stacks=((EVIL_STACK, Tally(forks=2, zombie=2)),),
)

PIDS_MAX = {"name": "pids.max", "where": "/sys/fs/cgroup/app", "value": 50, "current": 50}
FAILED = trace(
    totals=Totals(
        forks=10,
        threads=4,
        exits=9,
        waited=9,
        running=1,
        failed_forks=5,
        threads_running=4,
        threads_unjoined=0,
    ),
    failed_forks=(
        FailedFork("EAGAIN", 3, True, FOO_STACK, PIDS_MAX),
        FailedFork(
            "EPERM", 2, False, NO_STACK, reason="refused by a filter (seccomp) or a rule, not by a limit"
        ),
    ),
    limits=(
        {
            **PIDS_MAX,
            "growth_per_min": 5.0,
            "growth_by_kind": {"processes": -0.5, "zombies": 5.5, "threads": 0.0},
            "full_in_s": 0.0,
        },
    ),
    shares=(Share(LIBFOO, 26, 0), Share(None, 2, 1)),
)

ALL = {
    "empty": EMPTY,
    "clean": CLEAN,
    "one_leak": ONE_LEAK,
    "many": MANY,
    "orphans": ORPHANS,
    "incomplete": INCOMPLETE,
    "hostile": HOSTILE,
    "failed_forks": FAILED,
}
