"""A table of processes, one a line, for spreadsheets, pandas and databases."""

from __future__ import annotations

import csv
from typing import TextIO

from tracer.export.attribution import LEAKED, Selection, selected, short, single
from tracer.report.wording import place_in, version_of
from tracer.trace import Library, Process, Trace, pid_of

COLUMNS = (
    "pid", "ns_pid", "comm", "fate", "parent", "forker", "forker_comm", "forked_s", "exited_s", "exit", "reaped_s",
    "zombie_s", "reaper", "reaped_by", "execs", "root", "stack", "responsible", "place", "forked_by",
)  # fmt: skip


def write(trace: Trace, stream: TextIO, selection: Selection = LEAKED) -> None:
    """RFC 4180, with a header.  Times are seconds since the trace began; what is unknown is empty.

    A text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    table = csv.writer(stream)
    table.writerow(COLUMNS)
    is_meant = selected(selection)
    named: dict[int, tuple[str, str, str]] = {}
    for process in single(trace):
        if is_meant(process):
            stack = process.stack
            if stack.id not in named:
                place = _cell(place_in(stack.responsible, whole_path=True)) if stack.responsible else ""
                named[stack.id] = _library(stack.responsible), place, _library(stack.forked_by)
            table.writerow((*_row(process, trace.duration_s), *named[stack.id]))


def _row(process: Process, end_s: float) -> tuple[object, ...]:
    return (
        process.pid,
        process.ns_pid,
        _cell(short(process.comm)),
        process.fate,
        *(pid_of(each) or "" for each in (process.parent, process.forker)),
        _cell(short(process.fork_comm)),
        _seconds(process.forked_s),
        _seconds(process.exited_s),
        process.exit or "",
        _seconds(process.reaped_s),
        _seconds(None if process.exited_s is None else process.zombie_s(end_s)),
        pid_of(process.reaper) or "",
        process.reaped_by,
        process.execs,
        int(process.root),
        process.stack.id,
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _library(library: Library | None) -> str:
    return _cell(version_of(library)) if library is not None else ""


def _cell(text: str) -> str:
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text
