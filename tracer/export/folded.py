"""Folded stacks: ``root;caller;leaf count`` a line, as flamegraph.pl, inferno and speedscope read them."""

from __future__ import annotations

from collections import Counter
from typing import TextIO

from tracer.export.attribution import LEAKED, Selection, labels, weights
from tracer.trace import Trace


def write(trace: Trace, stream: TextIO, selection: Selection = LEAKED) -> None:
    """Sorted lines, equal stacks merged; whole numbers of children, or milliseconds as a zombie.

    The format has no quoting: a semicolon in a name is spelled ``\\x3b``, and what does not print likewise.
    """
    lines: Counter[str] = Counter()
    for stack, count in weights(trace, selection):
        lines[";".join(label.replace(";", "\\x3b") for label, _ in labels(stack))] += count
    for line, count in sorted(lines.items()):
        stream.write(f"{line} {count}\n")
