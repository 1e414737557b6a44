"""The family as a Graphviz graph: `dot -Tsvg` draws it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from tracer.export.attribution import LEAKED, Selection
from tracer.export.family import MORE, family
from tracer.trace import Trace

MAX_GROUPS, MAX_PARENTS = 500, 200
STYLES = {
    "parent": 'shape=box, fillcolor="#eef1f5"',
    "zombie": 'fillcolor="#f7a8a8", penwidth=2',
    "orphaned": 'fillcolor="#f9cf9c", penwidth=2',
    "running": 'fillcolor="#bfe3c0"',
    "waited": 'fillcolor="#dfe4ea"',
    "autoreaped": 'fillcolor="#dfe4ea", style="filled,dashed"',
    "unknown": 'fillcolor="#ffffff", style="filled,dotted"',
    MORE: 'shape=plaintext, fillcolor="#ffffff"',
}


def write(trace: Trace, stream: TextIO, selection: Selection = LEAKED) -> None:
    drawn = family(trace, selection, MAX_GROUPS, MAX_PARENTS)
    stream.write(
        "digraph forktrace {\n"
        "  rankdir=LR\n"
        '  node [style=filled, fontname="Helvetica", fontsize=11, shape=ellipse]\n'
        '  edge [fontname="Helvetica", fontsize=9]\n'
    )
    for number, node in enumerate(drawn.nodes):
        stream.write(f"  n{number} [label={_quoted(node.lines)}, {STYLES[node.kind]}]\n")
    for edge in drawn.edges:
        label = f" [label={_quoted(edge.label)}]" if edge.label else ""
        stream.write(f"  n{edge.parent} -> n{edge.child}{label}\n")
    stream.write("}\n")


def _quoted(lines: Iterable[str]) -> str:
    """A label of several lines.  Graphviz reads escapes and entities in it, so what they begin with is spelled."""
    return '"' + "\\n".join(map(_spelled, lines)) + '"'


def _spelled(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
