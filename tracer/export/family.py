"""The family as a graph that a person can look at: parents one by one, their children in groups of like ones.

What ``dot`` and ``mermaid`` draw.  A hundred thousand children are few groups; where there are more than can be drawn,
the largest are, and the rest is a number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from tracer.export.attribution import NO_STACK, Selection, chosen, single
from tracer.report.escape import visible
from tracer.report.layout import shorten
from tracer.report.wording import counted, place_in, version_of
from tracer.trace import Library, Process, Trace, pid_of

MAX_NAME = 60
MORE = "more"  # in place of a fate: what was left out


@dataclass(frozen=True, slots=True)
class Node:
    """A parent, or a group of children.  lines: what to write into it; kind: "parent", a fate, or ``MORE``."""

    lines: tuple[str, ...]
    kind: str


@dataclass(frozen=True, slots=True)
class Edge:
    """From a parent to its child or children; places in ``Family.nodes``.  label: by which code."""

    parent: int
    child: int
    label: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class _Likeness:
    parent: int
    comm: str
    fate: str
    stack: int


def family(trace: Trace, selection: Selection, max_groups: int, max_parents: int) -> Family:
    """The selected children by (parent, name, fate, stack), under their parents and those parents' parents."""
    is_meant = chosen(trace, selection)
    groups: Counter[_Likeness] = Counter()
    libraries: dict[int, Library | None] = {}
    elders: dict[int, int] = {}
    for process in single(trace):
        elders[process.id] = process.parent
        if is_meant(process):
            stack = process.stack
            groups[_Likeness(process.parent, process.comm, process.fate, stack.id)] += 1
            libraries[stack.id] = stack.responsible
    ranked = sorted(groups.items(), key=lambda each: (-each[1], each[0].parent, each[0].comm, each[0].stack))
    parents = _largest(groups, max_parents)
    shown = [(each, count) for each, count in ranked if each.parent in parents][:max_groups]
    drawing = _Drawing()
    _draw_parents(drawing, trace, parents, elders)
    for like, count in shown:
        name = f"{count:,} × {_name(like.comm)}"
        label = _blamed(libraries[like.stack])
        drawing.edge(drawing.parents[like.parent], drawing.node((name, like.fate), like.fate), label)
    _draw_rest(drawing, groups, dict(shown), parents)
    return Family(tuple(drawing.nodes), tuple(drawing.edges))


class _Drawing:
    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self.parents: dict[int, int] = {}

    def node(self, lines: tuple[str, ...], kind: str) -> int:
        self.nodes.append(Node(lines, kind))
        return len(self.nodes) - 1

    def edge(self, parent: int, child: int, label: tuple[str, ...] = ()) -> None:
        self.edges.append(Edge(parent, child, label))


def _largest(groups: Counter[_Likeness], most: int) -> set[int]:
    """The parents of most children."""
    children: Counter[int] = Counter()
    for like, count in groups.items():
        children[like.parent] += count
    return {parent for parent, _ in sorted(children.items(), key=lambda each: (-each[1], each[0]))[:most]}


def _draw_parents(drawing: _Drawing, trace: Trace, parents: set[int], elders: dict[int, int]) -> None:
    """They and their ancestors, as far as the trace knows them."""
    wanted: set[int] = set()
    for parent in parents:
        while parent in elders and parent not in wanted:
            wanted.add(parent)
            parent = elders[parent]
    for process in single(trace):
        if process.id in wanted:
            drawing.parents[process.id] = drawing.node(_described(process), "parent")
    for parent in sorted(parents - wanted):  # reparented to somebody outside of the trace, or not seen
        name = f"pid {pid_of(parent)}" if parent else "parent unknown"
        drawing.parents[parent] = drawing.node((name,), "parent")
    for ident in sorted(wanted):
        if (elder := elders[ident]) in drawing.parents and elder != ident:
            drawing.edge(drawing.parents[elder], drawing.parents[ident])


def _described(process: Process) -> tuple[str, ...]:
    state = () if process.exited_s is None else (f"ended: {visible(process.exit or 'unknown')}",)
    return (f"{_name(process.comm)} {process.pid}", *state)


def _draw_rest(
    drawing: _Drawing, groups: Counter[_Likeness], shown: dict[_Likeness, int], parents: Collection[int]
) -> None:
    rest: defaultdict[int, int] = defaultdict(int)
    strangers: defaultdict[int, int] = defaultdict(int)
    for like, count in groups.items():
        if like.parent not in parents:
            strangers[like.parent] += count
        elif like not in shown:
            rest[like.parent] += count
    for parent, count in rest.items():
        more = counted(count, "more child", "more children")
        drawing.edge(drawing.parents[parent], drawing.node((more,), MORE))
    if strangers:
        children = counted(sum(strangers.values()), "child", "children")
        drawing.node((f"{counted(len(strangers), 'more parent')} of {children}",), MORE)


def _blamed(library: Library | None) -> tuple[str, ...]:
    if library is None:
        return (NO_STACK,)
    return tuple(filter(None, (version_of(library), place_in(library))))


def _name(comm: str) -> str:
    return shorten(visible(comm), MAX_NAME) or "?"
