"""Exports: a finished trace in the formats of other programs.

One module a format, each with ``write(trace, stream, selection)``; ``FORMATS`` lists them.  ``attribution`` is what
those of stacks weigh, ``family`` what those of graphs draw.  They read the model alone: single processes are in it as
far as the trace comes from a capture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tracer.export import csv, dot, folded, jsonl, mermaid, perfetto, pprof, speedscope, svg
from tracer.export.attribution import Selection
from tracer.trace import Trace


class Writer(Protocol):
    def __call__(self, trace: Trace, stream: Any, selection: Selection = ..., /) -> None: ...


@dataclass(frozen=True, slots=True)
class Format:
    """weighs: it shows stacks by a weight.  shows_all: all processes, if nothing else is asked for, and not only the
    never-waited ones.  binary: its stream takes bytes.
    """

    name: str
    description: str
    opened_by: str
    write: Writer
    weighs: bool = False
    shows_all: bool = False
    binary: bool = False


FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        Format(
            "folded",
            "folded stacks, one a line, with counts",
            "inferno, flamegraph.pl, speedscope",
            folded.write,
            weighs=True,
        ),
        Format(
            "svg", "flamegraph of who forked, coloured by library", "any web browser", svg.write, weighs=True
        ),
        Format(
            "speedscope",
            "stacks by children and by zombie-seconds",
            "https://www.speedscope.app",
            speedscope.write,
            weighs=True,
        ),
        Format(
            "pprof",
            "the same as profile.proto, gzipped",
            "go tool pprof -http=:, and what reads its profiles",
            pprof.write,
            weighs=True,
            binary=True,
        ),
        Format(
            "perfetto",
            "lives over time, zombies marked",
            "https://ui.perfetto.dev, or chrome://tracing",
            perfetto.write,
            shows_all=True,
        ),
        Format("dot", "graph of parents and their children", "dot -Tsvg (Graphviz)", dot.write),
        Format("mermaid", "the same as a flowchart", "GitHub, GitLab, https://mermaid.live", mermaid.write),
        Format("csv", "table of processes", "spreadsheets, pandas, sqlite3", csv.write, shows_all=True),
        Format(
            "jsonl", "events in the order of time", "jq, pandas, log pipelines", jsonl.write, shows_all=True
        ),
    )
}
