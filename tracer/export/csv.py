"""A table of processes, one a line, for spreadsheets, pandas and databases."""

from __future__ import annotations

import csv
from typing import TextIO

from tracer.export.attribution import LEAKED, Selection, selected, short, single
from tracer.report.wording import version_of
from tracer.trace import Process, Stack, Trace, pid_of

COLUMNS = (
    "pid", "ns_pid", "comm", "fate", "parent", "forker", "forker_comm", "forked_s", "exited_s", "exit", "reaped_s",
    "zombie_s", "reaper", "reaped_by", "execs", "target", "stack", "responsible", "file", "line", "function",
    "forked_by",
)  # fmt: skip


def write(trace: Trace, stream: TextIO, selection: Selection = LEAKED) -> None:
    """With a header.  Times are seconds since the trace began; what is unknown is empty.

    A text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    is_meant = selected(selection)
    blamed: dict[int, tuple[object, ...]] = {}
    for process in filter(is_meant, single(trace)):
        stack = process.stack
        if stack.id not in blamed:
            blamed[stack.id] = _blamed(stack)
        table.writerow((*_lived(process, trace.duration_s), *blamed[stack.id]))


def _lived(process: Process, end_s: float) -> tuple[object, ...]:
    return (
        process.pid,
        process.ns_pid,
        _text(process.comm),
        process.fate,
        *(pid_of(each) or "" for each in (process.parent, process.forker)),
        _text(process.fork_comm) if process.forker else "",
        _seconds(process.forked_s),
        _seconds(process.exited_s),
        _text(process.exit),
        _seconds(process.reaped_s),
        _seconds(None if process.exited_s is None else process.zombie_s(end_s)),
        pid_of(process.reaper) or "",
        _text(process.reaped_by),
        process.execs,
        int(process.root),
    )


def _blamed(stack: Stack) -> tuple[object, ...]:
    forked_by = _text(version_of(stack.forked_by)) if stack.forked_by else ""
    library = stack.responsible
    if library is None:
        return stack.id, "", "", "", "", forked_by
    place = _text(library.file), library.line or "", _text(library.function)
    return stack.id, _text(version_of(library)), *place, forked_by


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _text(text: str | None) -> str:
    text = short(text or "")
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text
