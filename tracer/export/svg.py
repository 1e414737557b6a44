"""A flamegraph of who forked, as one SVG file that any browser opens: no network, no other file.

The root is at the bottom; a frame is as wide as the children forked below it; its colour is its library's.  Python
draws the whole picture, so that a viewer without scripts shows it too; ``flamegraph.js`` adds zoom and search.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from typing import TextIO
from xml.sax.saxutils import escape, quoteattr

from tracer.export.attribution import (
    COUNT,
    LEAKED,
    MAX_LABEL,
    NEVER_WAITED,
    Selection,
    label,
    labels,
    weights,
)
from tracer.report.escape import visible
from tracer.report.layout import shorten
from tracer.report.wording import counted, identified
from tracer.trace import Frame, Trace

WIDTH = 1200  # until the script knows the window's
MARGIN = 10
TOP = 74  # above the frames: title, subtitle, details
ROW = 18
CHAR = 6.63  # the width of a character at 11 px in a monospace font
MIN_FRAME = 0.3  # px; narrower frames are left out
MAX_DEPTH = 500
MAX_LEGEND = 12
MAX_PLACES = 3  # named in one frame's title

_STYLE = """
svg { background: var(--paper); --paper: #fff; --ink: #1b1f24; --faint: #5f6b7a; --line: #d5dbe3; --hit: #e4007f; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #15181d; --ink: #e7ebf0; --faint: #98a3b1; --line: #3a424d; --hit: #ff5fb0; }
}
text { font: 11px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--ink); }
.title { font: 600 17px system-ui, sans-serif; }
.sub, #details, #matched { fill: var(--faint); }
.f text { fill: #16191d; pointer-events: none; }
.f { cursor: pointer; outline: none; }
.f:hover rect, .f:focus rect { stroke: var(--ink); stroke-width: 1.5; }
.a { opacity: 0.55; }
.searching .f rect { opacity: 0.3; }
.searching .f:not(.hit) text { fill: var(--ink); }
.searching .f.hit rect { opacity: 1; stroke: var(--hit); stroke-width: 1.2; }
.l { cursor: pointer; outline: none; }
.l:hover text, .l:focus text { text-decoration: underline; }
#reset { cursor: pointer; text-decoration: underline; }
#box { display: none; }
.scripted #box { display: block; }
input { box-sizing: border-box; width: 100%; height: 24px; padding: 2px 8px; font: 12px system-ui, sans-serif;
  color: var(--ink); background: var(--paper); border: 1px solid var(--line); border-radius: 4px; }
"""


@dataclass(slots=True)
class _Node:
    """A frame of the picture: all calls with one label below the same callers."""

    label: str
    frame: Frame | None
    count: int = 0
    places: dict[str, None] = field(default_factory=dict)  # in the order they came
    children: dict[str, _Node] = field(default_factory=dict)


def write(trace: Trace, stream: TextIO, selection: Selection = LEAKED) -> None:
    """The picture of the selected children, or of the time that they stood as zombies."""
    tree = _tree(trace, selection)
    frames, depth = _frames(tree)
    height = max(depth, 1) * ROW
    legend = _legend(tree)
    total = tree.count
    amount = _children if selection.weight == COUNT else _zombie_seconds
    subtitle = _subtitle(trace, total, selection)
    bottom = TOP + height + 30 + 20 * (_legend_rows(legend) - 1) + 24
    script = (files("tracer.export") / "flamegraph.js").read_text()
    stream.write(
        f"""<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom}" viewBox="0 0 {WIDTH} {bottom}">
<title>{escape(_TITLE)}</title>
<style>{_STYLE}</style>
<text class="title" x="{MARGIN}" y="28">{escape(_TITLE)}</text>
<text class="sub" x="{MARGIN}" y="46">{_text(subtitle)}</text>
<text id="details" x="{MARGIN}" y="64"></text>
<g class="right">
<text id="reset" tabindex="0" role="button" x="850" y="28" style="display:none">reset zoom</text>
<foreignObject id="box" x="940" y="10" width="250" height="26"><input xmlns="http://www.w3.org/1999/xhtml" id="search" \
type="search" placeholder="search (Ctrl-F)" aria-label="search frames and libraries" /></foreignObject>
<text id="matched" x="1190" y="50" text-anchor="end"></text>
</g>
<g id="canvas" role="group" aria-label="flamegraph" data-total="{total}" data-row="{ROW}" data-height="{height}" \
data-top="{TOP}" data-weight="{selection.weight}">
"""
    )
    if not frames:
        nothing = _nothing(selection)
        stream.write(f'<text x="{MARGIN}" y="{TOP + 13}">{nothing}</text>\n')
    for number, (node, start, level) in enumerate(frames):
        title = _title(node, total, amount)
        _write_frame(stream, node, start, level, total, height, title, tabindex=0 if number == 0 else -1)
    stream.write("</g>\n")
    _write_legend(stream, legend, TOP + height + 30)
    stream.write(f"<script><![CDATA[\n{script}]]></script>\n</svg>\n")


_TITLE = "Who forked the children"


def _subtitle(trace: Trace, total: int, selection: Selection) -> str:
    whom = ", ".join(f"{target.pid} {shorten(visible(target.comm), 20)}" for target in trace.targets[:3])
    spoiled = "" if trace.complete else " · INCOMPLETE"
    what = _what(trace, total, selection)
    return f"{what}, by the stack that forked them" + (f" · traced {whom}" if whom else "") + spoiled


def _what(trace: Trace, total: int, selection: Selection) -> str:
    if selection.weight != COUNT:
        return f"{_zombie_seconds(total)} that {_whose(selection)} stood as zombies"
    if selection.all_forks:
        return counted(total, "fork")
    what = f"{counted(total, 'child', 'children')} {_described(selection)}"
    if selection.never_waited:
        orphans = sum(leak.count for leak in trace.leaks if leak.kind == NEVER_WAITED[1])
        what += f" ({total - orphans:,} zombies, {orphans:,} orphaned)" if orphans else ""
    return what


def _whose(selection: Selection) -> str:
    return "all children" if selection.all_forks else f"children {_described(selection)}"


def _described(selection: Selection) -> str:
    return "never waited for" if selection.never_waited else f"({', '.join(sorted(selection.fates))})"


def _nothing(selection: Selection) -> str:
    if selection.weight != COUNT:
        return "Nothing to show: no child stood as a zombie."
    if selection.all_forks:
        return "Nothing forked."
    if selection.never_waited:
        return "Nothing to show: no child was left unwaited for."
    return f"Nothing to show: no children {_described(selection)}."


def _children(count: int) -> str:
    return f"{count:,}"


def _zombie_seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:,.3f} s"


def _tree(trace: Trace, selection: Selection) -> _Node:
    root = _Node("all", None)
    for stack, count in weights(trace, selection):
        root.count += count
        node = root
        for name, frame in labels(stack)[:MAX_DEPTH]:
            node = node.children.setdefault(name, _Node(name, frame))
            node.count += count
            if frame is not None and frame.file and len(node.places) < MAX_PLACES:
                node.places[visible(frame.file) + (f":{frame.line}" if frame.line else "")] = None
    return root


def _frames(root: _Node) -> tuple[list[tuple[_Node, int, int]], int]:
    """Every frame that is wide enough to see, with its first child's number and its level; and how many levels."""
    frames: list[tuple[_Node, int, int]] = []
    depth = 0
    waiting = [(root, 0, 0)] if root.count else []
    while waiting:
        node, start, level = waiting.pop()
        if node.count / root.count * (WIDTH - 2 * MARGIN) < MIN_FRAME:
            continue
        frames.append((node, start, level))
        depth = max(depth, level + 1)
        below = []
        for child in sorted(node.children.values(), key=lambda each: each.label):
            below.append((child, start, level + 1))
            start += child.count
        waiting.extend(reversed(below))
    return frames, depth


def _write_frame(
    stream: TextIO, node: _Node, start: int, level: int, total: int, height: int, title: str, tabindex: int
) -> None:
    scale = (WIDTH - 2 * MARGIN) / total
    x, width, y = MARGIN + start * scale, node.count * scale, TOP + height - (level + 1) * ROW
    stream.write(
        f'<g class="f" tabindex="{tabindex}" role="button" data-x="{start}" data-n="{node.count}" data-d="{level}" '
        f"data-label={_attribute(node.label)} aria-label={_attribute(title)}><title>{_text(title)}</title>"
        f'<rect x="{x:.2f}" y="{y}" width="{max(width - 0.5, MIN_FRAME):.2f}" height="{ROW - 1}" rx="1.5" '
        f'fill="{_colour(node.frame)}"/>'
        f'<text x="{x + 3:.2f}" y="{y + 12.5}">{_text(_fit(node.label, width))}</text></g>\n'
    )


def _title(node: _Node, total: int, amount: Callable[[int], str]) -> str:
    lines = [node.label]
    if node.frame is not None and node.frame.library is not None:
        lines.append(identified(node.frame.library))
    lines.extend(shorten(place, MAX_LABEL) for place in node.places)
    lines.append(f"{amount(node.count)} of {amount(total)} ({node.count / total:.1%})".replace("%", " %"))
    return "\n".join(lines)


def _fit(name: str, width: float) -> str:
    """As much of a label as its frame has room for; nothing when that says nothing."""
    most = int((width - 6) / CHAR)
    return "" if most < 3 else shorten(name, most, head=1)


def _owner(frame: Frame | None) -> str:
    """The library that gives a frame its colour."""
    if frame is None:
        return ""
    return frame.library.name if frame.library else frame.module or ""


def _colour(frame: Frame | None) -> str:
    """One hue a library, the same in every picture; light enough for dark text on any paper."""
    owner = _owner(frame)
    if not owner:
        return "hsl(215,10%,78%)"
    digest = sha256(owner.encode("utf-8", "surrogatepass")).digest()
    hue, saturation, lightness = digest[0] % 18 * 20, (55, 80)[digest[1] % 2], (65, 73, 81)[digest[2] % 3]
    return f"hsl({hue},{saturation}%,{lightness}%)"


def _legend(root: _Node) -> list[tuple[str, Frame, int]]:
    """The libraries that take most of the picture: name, a frame of it, area."""
    areas: dict[str, tuple[str, Frame, int]] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        waiting.extend(node.children.values())
        if node.frame is not None and (owner := _owner(node.frame)):
            name = label(node.frame).rpartition(" (")[2][:-1]
            area = areas[owner][2] if owner in areas else 0
            areas[owner] = (name, node.frame, area + node.count)
    return sorted(areas.values(), key=lambda each: (-each[2], each[0]))[:MAX_LEGEND]


def _legend_width(name: str) -> float:
    return round(len(shorten(name, 40)) * CHAR + 40, 1)


def _legend_rows(legend: list[tuple[str, Frame, int]]) -> int:
    return 1 + max((row for _, row, _, _ in _legend_places(legend)), default=0)


def _legend_places(legend: list[tuple[str, Frame, int]]) -> list[tuple[float, int, str, Frame]]:
    places = []
    x, row = float(MARGIN), 0
    for name, frame, _ in legend:
        width = _legend_width(name)
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, row = float(MARGIN), row + 1
        places.append((x, row, name, frame))
        x += width
    return places


def _write_legend(stream: TextIO, legend: list[tuple[str, Frame, int]], top: int) -> None:
    for x, row, name, frame in _legend_places(legend):
        stream.write(
            f'<g class="l" tabindex="0" role="button" transform="translate({x:.1f},{top + 20 * row})" '
            f'data-w="{_legend_width(name)}" data-label={_attribute(name)}><title>search for it</title>'
            f'<rect width="12" height="12" rx="2" fill="{_colour(frame)}"/>'
            f'<text x="18" y="10">{_text(shorten(name, 40))}</text></g>\n'
        )


def _text(text: str) -> str:
    return escape(_legal(text))


def _attribute(text: str) -> str:
    return quoteattr(_legal(text), {"\n": "&#10;"})


_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _legal(text: str) -> str:
    """Without the characters that no XML document may hold, not even escaped (https://www.w3.org/TR/xml/#charsets)."""
    return _ILLEGAL.sub("", text)
