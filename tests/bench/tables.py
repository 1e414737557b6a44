"""The measurements as tables for a terminal and for docs/overhead.md, which quotes them as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from consumer import Consumed, Replayed
from kernel import Load
from slowdown import Slowdown
from startup import Memory, Times


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(head))]
    text = [title, ""]
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=False)),
        ]
        text.append("  " + "  ".join(cells).rstrip())
    return "\n".join(text)


def slowdown(rows: list[Slowdown], untraced: list[float]) -> str:
    lines = []
    for row in rows:
        name = f"{row.tracer} ({row.version})" if row.version else row.tracer
        if row.problem:
            lines.append([name, "-", "-", "-", "-"])
            continue
        low, middle, high = row.quartiles()
        lines.append(
            [
                name,
                f"{middle:.2f}x",
                f"{low:.2f}-{high:.2f}",
                f"{median(row.seconds) * 1e6:.0f}",
                str(len(row.ratios)),
            ]
        )
    title = (
        f"Slowdown of a loop of fork, _exit, waitpid (untraced: {median(untraced) * 1e6:.0f} us a round); the "
        "fastest of four\nloops by the fastest of four untraced ones beside them, median and quartiles of the pairs"
    )
    problems = "".join(f"\n  {row.tracer}: {row.problem}" for row in rows if row.problem)
    return table(title, ["", "slowdown", "quartiles", "us/round", "pairs"], lines) + problems


def consumer(rows: list[Consumed], replayed: Replayed, rest: float) -> str:
    lines = [
        [f"{row.tracer}: {row.account}", row.load, "-", "-", "-", "-"]
        if not row.events_per_s
        else [
            row.tracer,
            row.load,
            f"{row.forks_per_s:,.0f}",
            f"{row.events_per_s:,.0f}",
            f"{row.us_per_event:.2f}",
            "all" if row.complete else row.account,
        ]
        for row in rows
    ]
    head = ["", "loops at once", "forks/s", "records/s", "CPU us/record", "forks accounted for"]
    title = "CPU time of the tracer a record (fork, exit, wait, release), at full load"
    return table(title, head, lines) + (
        f"\n  of it, replayed from memory ({replayed.records:,} records): decode {replayed.decode_us:.2f} us, "
        f"decode and graph {replayed.decode_and_graph_us:.2f} us"
        f"\n  forktrace while nothing happens: {rest:.2%} of one CPU"
    )


def times(found: Times) -> str:
    rows = {
        "start, never compiled before": found.cold_start,
        "start, programs in the cache": found.warm_start,
        "Ctrl-C until it has reported and ended": found.stop,
    }
    lines = [
        [name, f"{median(times):.2f}", f"{times[0]:.2f}-{times[-1]:.2f}"] for name, times in rows.items()
    ]
    title = f"From the command to its tracing, and back: seconds, of {len(found.stop)} times"
    return table(title, ["", "median", "range"], lines)


def memory(rows: list[Memory]) -> str:
    lines = [
        [
            row.when,
            f"{row.rss:.0f}",
            f"{row.pss:.0f}" if row.pss else "-",
            f"{row.rings:.0f}" if row.rings else "-",
        ]
        for row in rows
    ]
    title = "Memory of the tracer (MB); the rings are mapped twice in a row, which RSS counts twice"
    return table(title, ["", "RSS", "PSS", "of RSS: rings"], lines)


def kernel(rows: list[Load]) -> str:
    shown = {
        "on_newtask": "fork",
        "on_exec": "exec",
        "on_exit": "exit",
        "on_wait4_return": "wait4",
        "on_free": "release",
    }
    lines = [
        [
            row.name,
            *(f"{row.bpf_us.get(name, 0):.2f}" for name in shown),
            f"{sum(row.bpf_us.values()):.1f}",
            f"{row.samples}/{row.forks}",
            f"{row.tracer_us:.1f}",
        ]
        for row in rows
    ]
    head = ["", *shown.values(), "all BPF", "unknown stacks", "tracer"]
    title = "Microseconds a fork: in each BPF program, in all of them, and of the tracer's CPU time"
    return table(title, head, lines)
