"""Lives over time as JSON trace events, which ui.perfetto.dev and chrome://tracing open.

The tracks of a parent's children stand together under the parent's name.  Each child has a slice for its life and, in
another colour, one for the time that it stood as a zombie; arrows lead from a fork to the child and from a wait to the
child that it reaped.  The events: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any, TextIO

from tracer.export.attribution import LEAKED, NEVER_WAITED, Selection, selected, short, single
from tracer.report.wording import place_in, version_of
from tracer.trace import FailedFork, Process, Trace, pid_of

Event = dict[str, Any]
Track = tuple[int, int]  # pid and tid: of the group, and in it


def write(trace: Trace, stream: TextIO, selection: Selection = LEAKED) -> None:
    """The selected processes, and those that forked or reaped them.  Times are microseconds since the trace began.

    Failed forks are known in numbers, without their times: they stand at the end of the trace.
    """
    stream.write('{"displayTimeUnit":"ms","traceEvents":[')
    separator = "\n"
    for event in _events(trace, selection):
        text = json.dumps(event, separators=(",", ":"), allow_nan=False)
        # Perfetto takes the quote after a name's last backslash for a part of the name.
        stream.write(separator + text.replace("\\\\", "\\u005c"))
        separator = ",\n"
    stream.write("\n]}\n")


def _events(trace: Trace, selection: Selection) -> Iterator[Event]:
    is_meant = selected(selection)
    leaked: Counter[int] = Counter()  # by whom, for the order of the groups
    needed: set[int] = set()
    for process in filter(is_meant, single(trace)):
        needed.update((process.parent, process.forker, process.reaper))
        if process.fate in NEVER_WAITED and not process.root:
            leaked[process.parent] += 1
    tracks: dict[int, Track] = {}  # of those that others refer to
    arrows = count(1)
    for process in single(trace):
        if is_meant(process) or process.id in needed:
            group = process.parent if process.parent in tracks else process.id
            track = pid_of(group), process.pid
            if process.id in needed:
                tracks[process.id] = track
                yield _name("process_name", track=(process.pid, process.pid), name=_named(process))
                order = {"sort_index": -leaked[process.id]}
                yield {"ph": "M", "name": "process_sort_index", "pid": process.pid, "tid": 0, "args": order}
            yield from _life(process, track, tracks, arrows, trace.duration_s)
    for failed in trace.failed_forks:
        yield _failure(failed, trace.duration_s)
    for reason in trace.incomplete_because:
        yield _instant(f"INCOMPLETE: {short(reason)}", trace.duration_s, {})


def _life(
    process: Process, track: Track, tracks: dict[int, Track], arrows: Iterator[int], end_s: float
) -> Iterator[Event]:
    yield _name("thread_name", track, _named(process))
    born = max(process.forked_s or 0.0, 0.0)
    died = end_s if process.exited_s is None else process.exited_s
    yield _slice(track, short(process.comm) or "?", "life", born, died, _about(process))
    forker, reaper = tracks.get(process.forker), tracks.get(process.reaper)
    if forker is not None and process.forked_s is not None:
        yield _slice(forker, f"fork {process.pid}", "fork", born, born)
        yield from _arrow(next(arrows), forker, track, born)
    if process.exited_s is None:
        return
    gone = end_s if process.reaped_s is None else process.reaped_s
    why = {"fate": process.fate, "seconds": round(max(gone - died, 0), 9)}
    yield _slice(track, f"zombie ({process.fate})", "zombie", died, gone, why)
    if process.reaped_s is not None:
        call = process.reaped_by or "reaped"
        yield _slice(
            track, "reaped", "reap", gone, gone, {"by": pid_of(process.reaper), "call": process.reaped_by}
        )
        if reaper is not None and process.fate == "waited":
            yield _slice(reaper, f"{call} {process.pid}", "wait", gone, gone)
            yield from _arrow(next(arrows), reaper, track, gone)


def _about(process: Process) -> Event:
    library = process.stack.responsible
    return {
        "pid": process.pid,
        "parent": pid_of(process.parent),
        "forker": f"{pid_of(process.forker)} {short(process.fork_comm)}" if process.forker else "",
        "fate": process.fate,
        "exit": process.exit or "",
        "execs": process.execs,
        "responsible": version_of(library) if library else "",
        "place": place_in(library) if library else "",
        "stack": process.stack.id,
    }


def _failure(failed: FailedFork, end_s: float) -> Event:
    library = failed.stack.responsible
    what = f"{failed.count} failed {'threads' if failed.thread else 'forks'}: {short(failed.errno)}"
    blamed = version_of(library) if library else ""
    return _instant(what, end_s, {"count": failed.count, "errno": short(failed.errno), "responsible": blamed})


def _instant(name: str, at_s: float, args: Event) -> Event:
    place = {"ts": _us(at_s), "pid": 0, "tid": 0}
    return {"ph": "i", "s": "g", "cat": "failure", "name": name, **place, "args": args}


def _named(process: Process) -> str:
    return f"{short(process.comm)} {process.pid}"


def _name(kind: str, track: Track, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": track[0], "tid": track[1], "args": {"name": name}}


def _slice(
    track: Track, name: str, category: str, start_s: float, end_s: float, args: Event | None = None
) -> Event:
    begin, end = _us(start_s), _us(end_s)
    place = {"pid": track[0], "tid": track[1], "ts": begin, "dur": round(max(end - begin, 0), 3)}
    return {"ph": "X", "cat": category, "name": name, **place, "args": args or {}}


def _arrow(ident: int, source: Track, target: Track, at_s: float) -> Iterator[Event]:
    both = {"cat": "family", "name": "child", "id": ident, "ts": _us(at_s)}
    yield {"ph": "s", **both, "pid": source[0], "tid": source[1]}
    yield {"ph": "f", "bp": "e", **both, "pid": target[0], "tid": target[1]}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
