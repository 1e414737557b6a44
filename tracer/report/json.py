"""The report for programs: one JSON document, as forktrace.report-1.schema.json (beside this file) describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, TextIO

from tracer.report.escape import encodable
from tracer.trace import SCHEMA, FailedFork, Frame, Leak, Library, Stack, Trace


def render(trace: Trace, stream: TextIO) -> None:
    json.dump(to_dict(trace), stream, indent=2, allow_nan=False)
    stream.write("\n")


def to_dict(trace: Trace) -> dict[str, Any]:
    """The document.  Unknown is None; texts are Unicode, with stray bytes of a name as ``\\xff``."""
    shares = [
        {"responsible": _library(each.responsible), "zombies": each.zombies, "running": each.running}
        for each in trace.shares
    ]
    document = {
        "schema": SCHEMA,
        "version": trace.version,
        "host": dict(trace.host),
        "trace": {
            "started_at": _iso_time(trace.started_at),
            "duration_s": _seconds(trace.duration_s),
            "targets": [asdict(target) for target in trace.targets],
            "lost_events": trace.lost_events,
            "complete": trace.complete,
            "incomplete_because": list(trace.incomplete_because),
            "min_age_s": trace.min_age_s,
        },
        "totals": {**asdict(trace.totals), "young_zombies": trace.young_zombies},
        "leaks": [_leak(leak) for leak in trace.leaks],
        "failed_forks": [_failed(failed) for failed in trace.failed_forks],
        "limits": [{**limit, "share": shares} for limit in trace.limits],
        "reap_latency_s": asdict(trace.reap_latency),
        "late_reaping": [
            {"count": late.count, "latency_s": asdict(late.latency), **_blame(late.stack)}
            for late in trace.late
        ],
        "reconciliation": asdict(trace.reconciliation) if trace.reconciliation else None,
        "notes": list(trace.notes),
    }
    cleaned: dict[str, Any] = _clean(document)
    return cleaned


def _leak(leak: Leak) -> dict[str, Any]:
    return {
        "kind": leak.kind,
        "count": leak.count,
        "rate_per_min": round(leak.rate_per_min, 4),
        "oldest_age_s": _seconds(leak.oldest_age_s),
        "pre_existing": leak.pre_existing,
        **_blame(leak.stack),
        "parents": [asdict(parent) for parent in leak.parents],
        "children": {"comms": dict(leak.comms), "exits": dict(leak.exits), "examples": list(leak.examples)},
        "verdict": asdict(leak.verdict),
        "waits": [
            {"target": site.target, "nohang": site.nohang, **_blame(site.stack)} for site in leak.waits
        ],
    }


def _failed(failed: FailedFork) -> dict[str, Any]:
    return {
        "errno": failed.errno,
        "count": failed.count,
        "thread": failed.thread,
        "limit": dict(failed.limit) if failed.limit is not None else None,
        "reason": failed.reason,
        **_blame(failed.stack),
    }


def _blame(stack: Stack) -> dict[str, Any]:
    return {
        "responsible": _library(stack.responsible),
        "forked_by": _library(stack.forked_by),
        "chain": [_library(library) for library in stack.chain],
        "stack": [_frame(frame) for frame in stack.frames],
        "stack_cut": stack.cut,
        "stack_read_late": stack.read_late,
    }


def _frame(frame: Frame) -> dict[str, Any]:
    return {**asdict(frame), "library": _library(frame.library)}


def _library(library: Library | None) -> dict[str, Any] | None:
    return asdict(library) if library is not None else None


def _iso_time(epoch_s: float) -> str:
    return (
        datetime.fromtimestamp(epoch_s, timezone.utc)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def _seconds(value: float) -> float:
    return round(value, 6)


def _clean(value: Any) -> Any:
    """The same with every text fit for UTF-8, keys too, and every sequence a list."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable(str(key)): _clean(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(each) for each in value]
    return value
