"""Exports: a finished trace in the formats of other programs.

One module a format, each with ``write(trace, stream, all_forks)``; ``FORMATS`` lists them, ``attribution`` is what all
of them draw: how many children each stack forked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TextIO

from tracer.export import folded, svg
from tracer.trace import Trace


class Writer(Protocol):
    def __call__(self, trace: Trace, stream: TextIO, all_forks: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    description: str
    opened_by: str
    write: Writer


FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        Format(
            "folded",
            "folded stacks, one a line, with counts",
            "inferno, flamegraph.pl, speedscope",
            folded.write,
        ),
        Format("svg", "flamegraph of who forked, coloured by library", "any web browser", svg.write),
    )
}
