"""The graph of the family: what it groups and leaves out, and what Graphviz and Mermaid draw of it."""

from __future__ import annotations

import io
import json
import re
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import consumers
import lives
import pytest
import traces

from tracer.export import dot, mermaid
from tracer.export.attribution import ALL_FORKS, LEAKED, Selection
from tracer.export.family import MORE, Family, family
from tracer.trace import Trace

MERMAID = "11.17.2"
SVG = "{http://www.w3.org/2000/svg}"


def drawn(trace: Trace, selection: Selection = LEAKED, groups: int = 100, parents: int = 100) -> list[str]:
    """Each edge as `parent > child (by whom)`."""
    return sorted(described(family(trace, selection, groups, parents)))


def described(found: Family) -> list[str]:
    names = [" ".join(node.lines) for node in found.nodes]
    return [
        f"{names[edge.parent]} > {names[edge.child]}" + (f" ({' '.join(edge.label)})" if edge.label else "")
        for edge in found.edges
    ]


def test_like_children_are_one_group() -> None:
    assert drawn(lives.LIVES) == [
        "daemonize 4800 ended: 0 > 1 × sh orphaned (rack-streaming-proxy 1.0.3 proxy.rb:70, start)",
        "leaky 4711 > 1 × curl zombie (libfoo.so.1 1.2 foo.c:42, spawn_helper)",
        "leaky 4711 > 1 × sh zombie ([no stack])",
        "leaky 4711 > 1 × sh zombie (libfoo.so.1 1.2 foo.c:42, spawn_helper)",
        "leaky 4711 > 1 × sh zombie (rack-streaming-proxy 1.0.3 proxy.rb:70, start)",
        "leaky 4711 > daemonize 4800 ended: 0",
    ]
    children = drawn(lives.many(1000), ALL_FORKS)
    assert [line.partition(" (")[0] for line in children] == [
        "leaky 4711 > 250 × sh zombie",
        "leaky 4711 > 750 × sh waited",
    ]


def test_what_is_left_out_is_a_number() -> None:
    lines = drawn(lives.LIVES, ALL_FORKS, groups=1)
    assert [line for line in lines if "more" in line] == [
        "daemonize 4800 ended: 0 > 1 more child",
        "leaky 4711 > 6 more children",
    ]
    found = family(lives.LIVES, LEAKED, 100, 1)
    assert [node.lines for node in found.nodes if node.kind == MORE] == [("1 more parent of 1 child",)]


def test_a_parent_outside_of_the_trace_is_drawn() -> None:
    stray = lives.process(6000, "zombie", parent=77 << 32, forker=77 << 32, exited_s=5.0)
    lost = lives.process(6001, "zombie", parent=0, forker=0, exited_s=5.0)
    lines = drawn(replace(lives.LIVES, processes=(stray, lost)))
    assert [line.partition(" >")[0] for line in lines] == ["parent unknown", "pid 77"]


def written(module: object, trace: Trace, selection: Selection = LEAKED) -> str:
    out = io.StringIO()
    module.write(trace, out, selection)  # type: ignore[attr-defined]
    return out.getvalue()


def rendered(text: str) -> ElementTree.Element:
    program = consumers.program("dot", reason="no Graphviz to draw the graph with")
    done = subprocess.run(
        [program, "-Tsvg"], input=text.encode(), capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr == b""
    return ElementTree.fromstring(done.stdout)


def texts(svg: ElementTree.Element, kind: str) -> list[str]:
    groups = [group for group in svg.iter(f"{SVG}g") if group.get("class") == kind]
    return sorted(" ".join(text.text or "" for text in group.iter(f"{SVG}text")) for group in groups)


@pytest.mark.parametrize("trace", [lives.LIVES, traces.trace(processes=())], ids=["lives", "empty"])
def test_graphviz_draws_it(trace: Trace) -> None:
    svg = rendered(written(dot, trace, ALL_FORKS))
    found = family(trace, ALL_FORKS, 100, 100)
    assert texts(svg, "node") == sorted(" ".join(node.lines) for node in found.nodes)
    assert len(texts(svg, "edge")) == len(found.edges)


@pytest.mark.parametrize("name", lives.EVIL)
def test_hostile_names_are_text_in_graphviz(name: str) -> None:
    trace = lives.evil(name)
    text = written(dot, trace)
    svg = rendered(text)
    found = family(trace, LEAKED, 100, 100)
    assert [plain(each) for each in texts(svg, "node")] == sorted(
        plain(" ".join(node.lines)) for node in found.nodes
    )
    assert {each.tag for each in svg.iter()} <= {
        SVG + tag for tag in ("svg", "g", "title", "polygon", "ellipse", "path", "text")
    }
    assert len(text) < 10_000


def plain(text: str) -> str:
    """Without what differs in kind only: Graphviz makes no-break spaces of blanks, Mermaid gets word joiners."""
    return re.sub(r"\s+", " ", text.replace("\xa0", " ").replace("\u2060", "")).strip()


PAGE = """<!doctype html><meta charset="utf-8"><script src="%s"></script><pre id="said"></pre><div id="out"></div>
<script>
window.alert = function () { window.hacked = true; };
mermaid.initialize({startOnLoad: false});
mermaid.render("graph", %s).then(function (drawn) {
  document.getElementById("out").innerHTML = drawn.svg;
  var nodes = Array.from(document.querySelectorAll("#out .node")).map(function (node) {
    return Array.from(node.querySelectorAll("p")).map(function (p) { return p.innerText; }).join(" "); });
  document.getElementById("said").textContent = JSON.stringify({nodes: nodes, hacked: window.hacked === true,
    edges: document.querySelectorAll("#out .flowchart-link").length,
    odd: document.querySelectorAll("#out script, #out img, #out a, #out [onload], #out [onerror]").length});
}, function (error) { document.getElementById("said").textContent = JSON.stringify(String(error)); });
</script>"""


def drawn_by_mermaid(text: str, tmp_path: Path) -> dict[str, object]:
    script = consumers.npm_package("mermaid", MERMAID) / "dist/mermaid.min.js"
    page = tmp_path / "page.html"
    page.write_text(PAGE % (script.as_uri(), consumers.script(text)))
    shown = re.search(
        r'<pre id="said">(.*?)</pre>', consumers.dom(page.as_uri(), tmp_path / "browser"), re.DOTALL
    )
    assert shown
    said = json.loads(unescape(shown[1]))
    assert isinstance(said, dict), said
    return said


def test_mermaid_draws_it(tmp_path: Path) -> None:
    said = drawn_by_mermaid(written(mermaid, lives.LIVES, ALL_FORKS), tmp_path)
    found = family(lives.LIVES, ALL_FORKS, 100, 100)
    assert sorted(map(plain, said["nodes"])) == sorted(plain(" ".join(node.lines)) for node in found.nodes)  # type: ignore[arg-type]
    assert said["edges"] == len(found.edges)


def test_hostile_names_are_text_in_mermaid(tmp_path: Path) -> None:
    """All of them at once, for a browser is slow to start."""
    for name in lives.EVIL:
        text = written(mermaid, lives.evil(name))
        assert len(text) <= mermaid.MAX_TEXT
        assert set(re.sub(r"#\d+;", "", text)) - {"\n"} == set(
            filter(str.isprintable, re.sub(r"#\d+;", "", text))
        )
    processes = tuple(
        lives.process(5001 + n, "zombie", comm=name, forked_s=float(n)) for n, name in enumerate(lives.EVIL)
    )
    trace = replace(lives.LIVES, processes=(lives.PROCESSES[0], *processes))
    said = drawn_by_mermaid(written(mermaid, trace), tmp_path)
    assert (said["hacked"], said["odd"]) == (False, 0)
    found = family(trace, LEAKED, 100, 100)
    assert sorted(map(plain, said["nodes"])) == sorted(plain(" ".join(node.lines)) for node in found.nodes)  # type: ignore[arg-type]


def test_mermaid_stays_below_its_limit() -> None:
    names = tuple(
        lives.process(5001 + n, "zombie", comm=f"{n:03}" + "é<" * 40, forked_s=float(n)) for n in range(400)
    )
    text = written(mermaid, replace(lives.LIVES, processes=(lives.PROCESSES[0], *names)))
    assert len(text) <= mermaid.MAX_TEXT
    assert "more children" in text
