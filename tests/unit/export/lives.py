"""Hand-made traces with single processes, which the tests of exports share."""

from __future__ import annotations

from dataclasses import replace

import traces

from tracer.trace import FailedFork, Library, Process, Stack, Tally, Target, Trace

END_S = 300.0
ROOT = 4711 << 32 | 5
DAEMON = 4800 << 32 | 900


def process(pid: int, fate: str, stack: Stack = traces.FOO_STACK, **changes: object) -> Process:
    made = Process(
        id=pid << 32 | pid,
        parent=ROOT,
        forker=ROOT,
        fate=fate,
        stack=stack,
        comm="sh",
        fork_comm="leaky",
        ns_pid=pid,
        forked_s=(pid - 5000) * 1.0,
        exited_s=(pid - 5000) * 1.0 + 0.5 if fate != "running" else None,
        exit="0" if fate != "running" else None,
    )
    if fate == "waited":
        reaped = (pid - 5000) * 1.0 + 0.75
        made = replace(made, reaped_s=reaped, reaper=ROOT, reaped_by="wait4")
    return replace(made, **changes)  # type: ignore[arg-type]


# In the order of their forks, as a capture gives them.
PROCESSES = (
    replace(
        process(4711, "running", traces.OLDER, parent=0, forker=0, forked_s=None, fork_comm=""),
        id=ROOT,
        comm="leaky",
        root=True,
        pre_existing=True,
    ),
    process(4712, "zombie", traces.OLDER, forker=0, forked_s=None, exited_s=10.0, pre_existing=True),
    process(5001, "waited"),
    process(5002, "zombie"),  # stands for 297.5 s
    process(5003, "zombie", comm="curl", exit="SIGKILL"),  # 296.5 s
    process(5004, "zombie", traces.BAR_STACK),  # 295.5 s
    replace(process(5005, "waited"), id=DAEMON, comm="daemonize", exited_s=6.25, reaped_s=6.5),  # a parent itself
    process(5006, "orphaned", traces.BAR_STACK, parent=DAEMON, forker=DAEMON, reaped_s=8.5, reaper=1 << 32),  # 2 s
    process(5007, "autoreaped", reaped_s=7.5),
    process(5008, "running", comm="=cmd|' /C calc'!A0"),
    process(5299, "zombie", exited_s=299.8, forked_s=299.0),  # 0.2 s: too young for a leak
)  # fmt: skip

LIVES = traces.trace(
    duration_s=END_S,
    leaks=(
        traces.leak(count=2),
        traces.leak(traces.BAR_STACK, 1),
        traces.leak(traces.BAR_STACK, 1, kind="orphaned"),
        traces.leak(traces.OLDER, 1, pre_existing=True),
    ),
    stacks=(
        (traces.FOO_STACK, Tally(forks=7, waited=2, zombie=3, autoreaped=1, running=1)),
        (traces.BAR_STACK, Tally(forks=2, zombie=1, orphaned=1)),
        (traces.OLDER, Tally(zombie=1)),
    ),
    failed_forks=(FailedFork("EAGAIN", 3, False, traces.FOO_STACK),),
    young_zombies=1,
    processes=PROCESSES,
)

EVIL = (
    "<script>alert(1)</script>",
    '"];n9 [label="x" URL="javascript:alert(1)',
    "' onload='alert(1)",
    "\\N\\G\\l\\",
    "&lt;&#60;b&#62;#60;img src=x onerror=alert(1)#62;",
    '`"]:::x\nclick n0 href "javascript:alert(1)"',
    "\x00\x0b\ufffe\ud800\udce9\x1b[31m\u202egnp\r\n\u2028",
    "=HYPERLINK(\"http://x\")",
    "a,b;c\"d'e\tf",
    "A" * 4096,
    "",
)  # fmt: skip


def evil(name: str) -> Trace:
    """LIVES, in which everything that a traced process chooses is ``name``."""
    library = Library("elf", name, name, name, 1, name, name)
    frames = tuple(
        replace(frame, function=name, file=name, module=name, library=library)
        for frame in traces.FOO_STACK.frames
    )
    stack = Stack(1, frames, name, library, library, (library,))
    return replace(
        LIVES,
        targets=(Target(4711, name),),
        leaks=(traces.leak(stack, 4),),
        stacks=((stack, Tally(forks=9, zombie=4)),),
        failed_forks=(FailedFork(name, 3, True, stack),),
        incomplete_because=(name,),
        processes=tuple(
            replace(each, stack=stack, comm=name, fork_comm=name, exit=each.exit and name)
            for each in PROCESSES
        ),
    )


def many(count: int) -> Trace:
    """So many children of one parent, three of four waited for."""
    fates = ("waited", "waited", "waited", "zombie")
    children = tuple(
        process(5001 + n, fates[n % 4], forked_s=n * END_S / count, exited_s=n * END_S / count + 0.001)
        for n in range(count)
    )
    return replace(LIVES, processes=(PROCESSES[0], *children))
