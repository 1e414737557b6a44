"""What happened, one JSON object a line, in the order of time: for jq, pandas, log pipelines.

Lines by ``event``: ``trace`` comes first; ``stack`` before the first line that names its id; ``existing``, ``fork``,
``exit`` and ``reap`` of processes; ``failed_forks`` at the end, which are known in numbers only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from heapq import heappop, heappush
from typing import Any, TextIO

from tracer.export.attribution import LEAKED, Selection, selected, single
from tracer.report.escape import encodable
from tracer.trace import Library, Process, Stack, Trace, pid_of

_EXIT, _REAP = 0, 1  # a process dies before it is reaped, also where both times are the same


def write(trace: Trace, stream: TextIO, selection: Selection = LEAKED) -> None:
    """Times are seconds since the trace began, null where unknown.  Names are as they were, for JSON quotes them."""
    known: set[int] = set()
    for stack, event in _events(trace, selection):
        if stack is not None:
            if stack.id not in known:
                known.add(stack.id)
                _line(stream, {"event": "stack", **_stack(stack)})
            event["stack"] = stack.id
        _line(stream, event)


def _events(trace: Trace, selection: Selection) -> Iterator[tuple[Stack | None, dict[str, Any]]]:
    """Each event, and the stack that it belongs to."""
    yield None, _header(trace)
    # Processes come as they were forked: what is still to come of the earlier ones waits here.
    waiting: list[tuple[float, int, int, Process]] = []
    is_meant = selected(selection)
    for process in filter(is_meant, single(trace)):
        if process.forked_s is not None:
            while waiting and waiting[0][0] < process.forked_s:
                yield None, _end(heappop(waiting))
        yield (process.stack if not process.pre_existing else None), _begin(process)
        for at, kind in ((process.exited_s, _EXIT), (process.reaped_s, _REAP)):
            if at is not None:
                heappush(waiting, (at, kind, process.id, process))
    while waiting:
        yield None, _end(heappop(waiting))
    for failed in trace.failed_forks:
        count = {"count": failed.count, "thread": failed.thread}
        yield failed.stack, {"event": "failed_forks", "errno": failed.errno, **count}


def _begin(process: Process) -> dict[str, Any]:
    if process.pre_existing or process.forked_s is None:
        event: dict[str, Any] = {"event": "existing", "time": None}
    else:
        event = {"event": "fork", "time": _seconds(process.forked_s)}
    return {
        **event,
        "pid": process.pid,
        "ns_pid": process.ns_pid,
        "parent": pid_of(process.parent) or None,
        "forker": pid_of(process.forker) or None,
        "comm": process.fork_comm,
        "fate": process.fate,
        "target": process.root,
    }


def _end(waiting: tuple[float, int, int, Process]) -> dict[str, Any]:
    at, kind, _, process = waiting
    event: dict[str, Any] = {"event": "exit" if kind == _EXIT else "reap", "time": _seconds(at)}
    event |= {"pid": process.pid, "comm": process.comm}
    if kind == _EXIT:
        return event | {"exit": process.exit, "execs": process.execs}
    latency = None if process.exited_s is None else _seconds(at - process.exited_s)
    caller = {"reaper": pid_of(process.reaper) or None, "call": process.reaped_by or None}
    return event | caller | {"latency_s": latency}


def _header(trace: Trace) -> dict[str, Any]:
    return {
        "event": "trace",
        "version": trace.version,
        "started_at": trace.started_at,
        "duration_s": _seconds(trace.duration_s),
        "targets": [asdict(target) for target in trace.targets],
        "complete": trace.complete,
        "incomplete_because": list(trace.incomplete_because),
    }


def _stack(stack: Stack) -> dict[str, Any]:
    return {
        "stack": stack.id,
        "responsible": _library(stack.responsible),
        "forked_by": _library(stack.forked_by),
        "frames": [
            {"function": each.function, "file": each.file, "line": each.line, "module": each.module}
            for each in stack.frames
        ],
        "cut": stack.cut,
    }


def _library(library: Library | None) -> dict[str, Any] | None:
    return asdict(library) if library is not None else None


def _seconds(value: float) -> float:
    return round(value, 9)


def _line(stream: TextIO, event: dict[str, Any]) -> None:
    stream.write(json.dumps(_clean(event), allow_nan=False) + "\n")


def _clean(value: Any) -> Any:
    """The same with every text fit for UTF-8."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean(each) for each in value]
    return value
