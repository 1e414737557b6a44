"""A capture file as a finished trace: what ``report`` and ``export`` read."""

from __future__ import annotations

from tracer.blame.attribute import Blamer
from tracer.blame.rules import Rules
from tracer.capture.reader import load
from tracer.lifecycle.summary import About, summarize
from tracer.trace import Trace


def load_trace(path: str, min_age_s: float | None = None, rules: Rules | None = None) -> Trace:
    """rules: who is to blame by other ones than the trace had; the files of then are not looked at again.

    Raises ``CaptureError`` for what is no capture.
    """
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
    stacks = found.stacks
    if rules is not None:
        blamer = Blamer(rules)
        stacks = {ident: blamer.attribute(stack, {}) for ident, stack in stacks.items()}
    return summarize(found.snapshot, stacks, about)
