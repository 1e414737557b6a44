"""A capture file as a finished trace: what ``report`` and ``export`` read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tracer.blame.attribute import Blamer
from tracer.blame.rules import Rules
from tracer.capture.reader import load, tasks
from tracer.lifecycle.lifelines import processes
from tracer.lifecycle.summary import About, summarize
from tracer.trace import Process, Stack, Trace


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
    stacks: Mapping[int, Stack] = found.stacks
    if rules is not None:
        blamer = Blamer(rules)
        stacks = {ident: blamer.attribute(stack, {}) for ident, stack in stacks.items()}
    lives = _Processes(path, stacks, found.snapshot.start_ns)
    return replace(summarize(found.snapshot, stacks, about), processes=lives)


@dataclass(frozen=True, slots=True)
class _Processes:
    """Reads the file when it is asked to, a row at a time; what is wrong with it then is a ``CaptureError``."""

    path: str
    stacks: Mapping[int, Stack]
    start_ns: int

    def __iter__(self) -> Iterator[Process]:
        return processes(tasks(self.path), self.stacks, self.start_ns)
