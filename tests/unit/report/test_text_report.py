"""The text report, compared whole with what a person has read and approved (tests/golden/report/*.txt).

FORKTRACE_GOLDEN=write writes the files anew; read the difference before it is committed.
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import traces
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tracer.report.text import MAX_STACKS, render
from tracer.report.wording import headline
from tracer.trace import Frame, Parent, Stack, Target, Totals, Trace

GOLDEN = Path(__file__).parents[2] / "golden" / "report"


def printed(trace: Trace, width: int = 80, **options: object) -> str:
    out = io.StringIO()
    render(trace, Console(file=out, width=width, **options))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("name", traces.ALL)
def test_golden(name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    output = printed(traces.ALL[name])
    if os.environ.get("FORKTRACE_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(output)
    assert output == path.read_text()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 133, 200])
@pytest.mark.parametrize("name", traces.ALL)
def test_nothing_is_wider_than_the_console(name: str, width: int) -> None:
    output = printed(traces.ALL[name], width)
    assert max(cell_len(line) for line in output.split("\n")) <= width
    assert not any(line != line.rstrip() for line in output.split("\n"))


@given(text=st.text(max_size=120), width=st.integers(40, 120))
@settings(max_examples=100, deadline=None)
def test_any_names_stay_in_their_lines(text: str, width: int) -> None:
    frames = (Frame(text, text, 1, text), Frame(None, None, None, text, offset=1 << 60))
    library = replace(traces.LIBFOO, name=text, version=text, file=text, function=text)
    stack = Stack(1, frames, text, library, library, (traces.LIBC, library))
    leak = traces.leak(stack, 3, comms={text: 3}, exits={text: 3})
    trace = traces.trace(
        totals=Totals(forks=3, zombies=3),
        leaks=(leak,),
        targets=(Target(1, text),),
        incomplete_because=(text,),
        complete=False,
        notes=(text,),
    )
    for line in printed(trace, width).split("\n"):
        assert cell_len(line) <= width
        assert line.isprintable()


def test_frames_that_were_read_late_are_marked() -> None:
    late = traces.leak(replace(traces.FOO_STACK, read_late=True))
    output = " ".join(printed(traces.trace(leaks=(late,)), 120).split())
    assert "read some milliseconds after the fork: it may have gone on to other lines" in output
    assert "milliseconds after the fork" not in printed(traces.ONE_LEAK)


def test_colour_only_where_asked_for() -> None:
    assert "\x1b" not in printed(traces.ONE_LEAK)
    coloured = printed(traces.ONE_LEAK, force_terminal=True, color_system="standard", no_color=False)
    assert coloured.startswith("\x1b[1;31m26 children")
    plain = printed(traces.ONE_LEAK, force_terminal=True, color_system="standard", no_color=True)
    assert "[1;31m" not in plain


def test_a_terminal_without_unicode() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    render(traces.HOSTILE, Console(file=out, width=80))
    render(traces.ONE_LEAK, Console(file=out, width=80))
    out.flush()
    assert "libc6 2.36-9+deb12u9 < libfoo.so.1 1.2 < leaky" in out.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]


def test_many_stacks_and_deep_ones_are_cut_and_say_so() -> None:
    deep = Stack(5, (traces.MAIN,) * 100, None, traces.APP, traces.APP, (traces.APP,))
    leaks = tuple(traces.leak(replace(deep, id=n), 2) for n in range(MAX_STACKS + 7))
    output = printed(traces.trace(totals=Totals(forks=54, zombies=54), leaks=leaks))
    assert output.count("     … 60 more frames; --json has them all\n") == MAX_STACKS
    assert "… and 14 more from 7 other stacks; --json has them all\n" in output


def one(stack: Stack = traces.FOO_STACK, count: int = 1, **totals: int) -> Trace:
    return traces.trace(totals=Totals(**totals), leaks=(traces.leak(stack, count, rate_per_min=0.004),))


@pytest.mark.parametrize(
    ("trace", "sentence"),
    [
        (
            one(forks=1, zombies=1),
            "1 child never waited for, forked by libfoo.so.1 1.2 (foo.c:42, spawn_helper); "
            "oldest 4m12s, 5.8 a day",
        ),
        (
            one(traces.NO_STACK, 3, forks=3),
            "3 children never waited for, by code that no stack names; oldest 4m12s, 5.8 a day",
        ),
        (
            traces.trace(
                leaks=(
                    traces.leak(count=4),
                    traces.leak(
                        replace(traces.FOO_STACK, responsible=replace(traces.LIBFOO, line=99, function=None)),
                        2,
                    ),
                )
            ),
            "6 children never waited for, all forked by libfoo.so.1 1.2 (in 2 places); oldest 4m12s, 1.2 a minute",
        ),
        (
            traces.trace(leaks=(traces.leak(count=4), traces.leak(traces.NO_STACK, 5))),
            "9 children never waited for, 4 of them forked by libfoo.so.1 1.2 (foo.c:42, spawn_helper); "
            "oldest 4m12s, 1.8 a minute",
        ),
        (
            traces.trace(totals=Totals(forks=1, exits=1, waited=1)),
            "No leak: 1 fork, its child waited for",
        ),
        (
            traces.trace(totals=Totals(forks=2, waited=1, running=1)),
            "No leak: 2 forks, the one dead child waited for, 1 still runs",
        ),
        (traces.trace(totals=Totals(forks=2, running=2)), "No leak: 2 forks, no child has died"),
        (
            traces.trace(totals=Totals(forks=9, waited=2, autoreaped=4, zombies=2, running=1)),
            "No leak: 9 forks, 8 dead children: 2 waited for, 4 reaped by the kernel (SIGCHLD ignored), "
            "2 zombies for less than 1.0s, 1 still runs",
        ),
        (
            traces.trace(totals=Totals(pre_existing_zombies=7)),
            "No new leak: nothing forked in 5m00s; 7 zombies are older than the trace, which did not see the forks",
        ),
        (
            traces.trace(leaks=(traces.leak(traces.OLDER, 5, pre_existing=True),)),
            "5 children never waited for, all forked before the trace began; oldest 4m12s, 1.0 a minute",
        ),
        (
            traces.trace(leaks=(traces.leak(count=26), traces.leak(traces.OLDER, 5, pre_existing=True))),
            "31 children never waited for, 26 of them forked by libfoo.so.1 1.2 (foo.c:42, spawn_helper), "
            "5 before the trace began; oldest 4m12s, 6.2 a minute",
        ),
        (
            traces.trace(leaks=(traces.leak(kind="unjoined_thread", count=2),)),
            "2 unjoined threads, all forked by libfoo.so.1 1.2 (foo.c:42, spawn_helper); "
            "oldest 4m12s, 24.0 an hour",
        ),
    ],
)
def test_headline(trace: Trace, sentence: str) -> None:
    assert headline(trace) == sentence


def test_neighbouring_frames_without_a_name_share_a_line() -> None:
    def nameless(offset: int, module: str = "/usr/lib/libruby.so") -> Frame:
        return Frame(None, None, None, module, library=traces.LIBFOO, offset=offset)

    named = Frame("rb_ensure", None, None, "/usr/lib/libruby.so", library=traces.LIBC, offset=9)
    frames = (named, nameless(1), nameless(2), named, nameless(3), nameless(4, "/bin/ruby"))
    stack = Stack(1, frames, None, traces.LIBFOO, traces.LIBFOO, (traces.LIBC, traces.LIBFOO))
    output = printed(traces.trace(totals=Totals(forks=1, zombies=1), leaks=(traces.leak(stack, 1),)))
    shown = output.partition("   stack\n")[2].partition("\n\n")[0]
    assert [line.split()[:2] for line in shown.splitlines()] == [
        *(["rb_ensure", "/usr/lib/libruby.so+0x9"], ["→", "?"]),
        *(["rb_ensure", "/usr/lib/libruby.so+0x9"], ["?", "/usr/lib/libruby.so+0x3"]),
        ["?", "/bin/ruby+0x4"],
    ]
    assert "→ ? (2 frames)  /usr/lib/libruby.so+0x1" in shown


def test_many_parents_are_counted_together() -> None:
    parents = tuple(Parent(pid, "daemonize", 1, alive=False) for pid in range(1, 21))
    leak = replace(traces.leak(Stack(1, ()), 20), parents=parents)
    output = printed(traces.trace(totals=Totals(forks=20, zombies=20), leaks=(leak,)))
    assert "pid 5 daemonize: 1, has ended; 15 others: 15" in " ".join(output.split())
    assert "pid 6 daemonize" not in output


def test_limits_that_are_far_away_are_left_to_json() -> None:
    far = {"name": "pid_max", "where": "the host", "value": 32768, "current": 120, "full_in_s": None}
    assert "Limits" not in printed(traces.trace(limits=(far,)))
    for near in ({"current": 16_000}, {"full_in_s": 3600.0}):
        assert "Limits\n  pid_max " in printed(traces.trace(limits=({**far, **near},)))
