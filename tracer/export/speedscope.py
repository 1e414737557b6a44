"""speedscope's own JSON format: one profile of how many children, one of how long they stood as zombies.

https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TextIO

from tracer.export.attribution import COUNT, LEAKED, WEIGHTS, Selection, counts, labels, short, zombie_ns
from tracer.trace import Frame, Stack, Trace

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def write(trace: Trace, stream: TextIO, selection: Selection = LEAKED) -> None:
    """Both weights where the single processes are known; the selection's is the one that is shown first."""
    frames = _Frames()
    profiles = [_profile("children", "none", list(counts(trace, selection)), frames)]
    if trace.processes is not None or selection.weight != COUNT:
        seconds = [(stack, ns / 1e9) for stack, ns in zombie_ns(trace, selection)]
        profiles.append(_profile("zombie-seconds", "seconds", seconds, frames))
    document = {
        "$schema": SCHEMA,
        "name": f"forktrace: {', '.join(sorted(selection.fates)) if not selection.all_forks else 'all forks'}",
        "exporter": f"forktrace {trace.version}",
        "activeProfileIndex": WEIGHTS.index(selection.weight),
        "shared": {"frames": frames.known},
        "profiles": profiles,
    }
    json.dump(document, stream)
    stream.write("\n")


class _Frames:
    """The table of frames, which the profiles share, and each one's place in it."""

    def __init__(self) -> None:
        self.known: list[dict[str, Any]] = []
        self._places: dict[tuple[object, ...], int] = {}

    def place(self, label: str, frame: Frame | None) -> int:
        file = short(frame.file) if frame is not None and frame.file else None
        line = frame.line if frame is not None and file else None
        key = label, file, line
        if key not in self._places:
            self._places[key] = len(self.known)
            entry = {"name": label, "file": file, "line": line}
            self.known.append({name: value for name, value in entry.items() if value is not None})
        return self._places[key]


def _profile(name: str, unit: str, weighed: Iterable[tuple[Stack, float]], frames: _Frames) -> dict[str, Any]:
    samples, weights = [], []
    for stack, weight in weighed:
        samples.append([frames.place(label, frame) for label, frame in labels(stack)])
        weights.append(weight)
    return {
        "type": "sampled",
        "name": name,
        "unit": unit,
        "startValue": 0,
        "endValue": sum(weights),
        "samples": samples,
        "weights": weights,
    }
