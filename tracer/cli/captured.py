"""A capture file as a finished trace: what ``report`` and ``export`` read."""

from __future__ import annotations

from tracer.capture.reader import load
from tracer.lifecycle.summary import About, summarize
from tracer.trace import Trace


def load_trace(path: str, min_age_s: float | None = None) -> Trace:
    """Raises ``CaptureError`` for what is no capture."""
    found = load(path, min_age_s)
    meta = found.meta
    about = About(
        version=meta.version,
        host=meta.host,
        started_at=meta.started_at,
        targets=meta.targets,
        lost_events=meta.lost_events,
        incomplete_because=meta.incomplete_because,
        notes=meta.notes,
        limits=meta.limits,
        reconciliation=meta.reconciliation,
    )
    return summarize(found.snapshot, found.stacks, about)
