"""The family as a Mermaid flowchart, which GitHub, GitLab and many wikis draw inside a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TextIO

from tracer.export.attribution import LEAKED, Selection
from tracer.export.family import MORE, Family, family
from tracer.trace import Trace

MAX_GROUPS, MAX_PARENTS = 80, 40
MAX_TEXT = 50_000  # characters; Mermaid refuses longer ones, and those of more than 500 edges
CLASSES = {
    "parent": "fill:#eef1f5,stroke:#5f6b7a,color:#16191d",
    "zombie": "fill:#f7a8a8,stroke:#a33,color:#16191d,stroke-width:2px",
    "orphaned": "fill:#f9cf9c,stroke:#a63,color:#16191d,stroke-width:2px",
    "running": "fill:#bfe3c0,stroke:#484,color:#16191d",
    "waited": "fill:#dfe4ea,stroke:#5f6b7a,color:#16191d",
    "autoreaped": "fill:#dfe4ea,stroke:#5f6b7a,color:#16191d,stroke-dasharray:4",
    "unknown": "fill:#ffffff,stroke:#5f6b7a,color:#16191d,stroke-dasharray:2",
    MORE: "fill:#ffffff,stroke:#ffffff,color:#16191d",
}


def write(trace: Trace, stream: TextIO, selection: Selection = LEAKED) -> None:
    """As much of it as Mermaid draws: with long names that is less."""
    groups, parents = MAX_GROUPS, MAX_PARENTS
    while True:
        text = _chart(family(trace, selection, groups, parents))
        if len(text) <= MAX_TEXT or groups == 1:
            stream.write(text)
            return
        groups, parents = groups // 2, max(parents // 2, 1)


def _chart(drawn: Family) -> str:
    lines = ["flowchart LR"]
    for number, node in enumerate(drawn.nodes):
        left, right = ("[", "]") if node.kind in ("parent", MORE) else ("([", "])")
        lines.append(f'  n{number}{left}"{_text(node.lines)}"{right}:::{node.kind}')
    for edge in drawn.edges:
        label = f'|"{_text(edge.label)}"|' if edge.label else ""
        lines.append(f"  n{edge.parent} -->{label} n{edge.child}")
    for kind in sorted({node.kind for node in drawn.nodes}):
        lines.append(f"  classDef {kind} {CLASSES[kind]}")
    return "\n".join(lines) + "\n"


def _text(lines: Iterable[str]) -> str:
    return "<br/>".join(map(_spelled, lines))


def _spelled(text: str) -> str:
    """All that could be markup, as the numeric entities that Mermaid reads."""
    text = text.encode("utf-8", "backslashreplace").decode()
    text = text.replace("\\", "\\\u2060")  # a word joiner, or the \n in a name would end its line
    return re.sub(r"[^\w .,:/+×…-]|_", lambda found: f"#{ord(found[0])};", text)
