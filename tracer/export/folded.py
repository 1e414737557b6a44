"""Folded stacks: ``root;caller;leaf count`` a line, as flamegraph.pl, inferno and speedscope read them."""

from __future__ import annotations

from collections import Counter
from typing import TextIO

from tracer.export.attribution import counts, labels
from tracer.trace import Trace


def write(trace: Trace, stream: TextIO, all_forks: bool = False) -> None:
    """Sorted lines, equal stacks merged; counts of children never waited for, or with ``all_forks`` of all forks.

    The format has no quoting: a semicolon in a name is spelled ``\\x3b``, and what does not print likewise.
    """
    lines: Counter[str] = Counter()
    for stack, count in counts(trace, all_forks):
        lines[";".join(label.replace(";", "\\x3b") for label, _ in labels(stack))] += count
    for line, count in sorted(lines.items()):
        stream.write(f"{line} {count}\n")
