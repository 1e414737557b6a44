"""The flamegraph: it says what the folded stacks say, no name gets out of its text, and it works in a browser."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import traces
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.export import folded, svg
from tracer.export.attribution import ALL_FORKS, LEAKED
from tracer.trace import Frame, Library, Stack, Trace

NS = "{http://www.w3.org/2000/svg}"


def drawn(trace: Trace, all_forks: bool = False) -> str:
    out = io.StringIO()
    svg.write(trace, out, ALL_FORKS if all_forks else LEAKED)
    return out.getvalue()


@dataclass(frozen=True)
class Drawn:
    label: str
    x: int
    n: int
    depth: int
    left: float
    width: float
    y: float
    text: str
    title: str
    colour: str


def frames_of(picture: str) -> list[Drawn]:
    root = ElementTree.fromstring(picture)
    found = []
    for group in root.iter(f"{NS}g"):
        if group.get("class") != "f":
            continue
        rect, text, title = (group.find(NS + name) for name in ("rect", "text", "title"))
        assert rect is not None
        assert text is not None
        assert title is not None
        found.append(
            Drawn(
                str(group.get("data-label")),
                int(str(group.get("data-x"))),
                int(str(group.get("data-n"))),
                int(str(group.get("data-d"))),
                float(str(rect.get("x"))),
                float(str(rect.get("width"))),
                float(str(rect.get("y"))),
                text.text or "",
                title.text or "",
                str(rect.get("fill")),
            )
        )
    return found


def refolded(frames: list[Drawn]) -> dict[str, int]:
    """The folded stacks, read back from the picture."""
    lines: Counter[str] = Counter()
    for frame in frames:
        inside = [other for other in frames if frame.x >= other.x and frame.x + frame.n <= other.x + other.n]
        path = sorted(
            (other for other in inside if other.depth <= frame.depth), key=lambda other: other.depth
        )
        own = frame.n - sum(
            other.n
            for other in frames
            if other.depth == frame.depth + 1 and frame.x <= other.x < frame.x + frame.n
        )
        if own:
            lines[";".join(each.label.replace(";", "\\x3b") for each in path[1:])] += own
    return dict(lines)


def folded_counts(trace: Trace, all_forks: bool) -> dict[str, int]:
    out = io.StringIO()
    folded.write(trace, out, ALL_FORKS if all_forks else LEAKED)
    return {line.rsplit(" ", 1)[0]: int(line.rsplit(" ", 1)[1]) for line in out.getvalue().splitlines()}


@pytest.mark.parametrize("all_forks", [False, True])
@pytest.mark.parametrize("name", ["many", "one_leak", "orphans", "hostile"])
def test_the_picture_says_what_the_folded_stacks_say(name: str, all_forks: bool) -> None:
    trace = traces.ALL[name]
    frames = frames_of(drawn(trace, all_forks))
    assert refolded(frames) == folded_counts(trace, all_forks)
    total = frames[0].n
    for frame in frames:
        assert frame.left == pytest.approx(10 + 1180 * frame.x / total, abs=0.01)
        assert frame.width == pytest.approx(1180 * frame.n / total - 0.5, abs=0.01)
        assert frame.y == frames[0].y - 18 * frame.depth
        assert len(frame.text) * 6.63 <= frame.width
        assert f"{frame.n:,} of {total:,}" in frame.title


def test_titles_tell_version_and_line_and_one_library_has_one_colour() -> None:
    frames = frames_of(drawn(traces.MANY))
    titles = {frame.label: frame.title for frame in frames}
    assert titles["spawn_helper (libfoo.so.1)"] == (
        "spawn_helper (libfoo.so.1)\nlibfoo.so.1 1.2\n/usr/src/libfoo/src/foo.c:42\n16 of 81 (19.8 %)"
    )
    colours = {
        frame.label: {other.colour for other in frames if other.label == frame.label} for frame in frames
    }
    assert all(len(colour) == 1 for colour in colours.values())
    assert colours["_Fork (libc6)"] != colours["spawn_helper (libfoo.so.1)"]


def test_narrow_frames_are_left_out() -> None:
    wide, narrow = traces.leak(count=1_000_000), traces.leak(traces.BAR_STACK, 10)
    labels = {frame.label for frame in frames_of(drawn(traces.trace(leaks=(wide, narrow))))}
    assert "spawn_helper (libfoo.so.1)" in labels
    assert "start (rack-streaming-proxy)" not in labels


def test_nothing_to_show() -> None:
    assert "no child was left unwaited for" in drawn(traces.EMPTY)
    assert frames_of(drawn(traces.EMPTY)) == []


EVIL = (
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "' onload='alert(1)",
    "]]></style><script>alert(1)</script>",
    "&lt;&#0;&#x1b;&nope;",
    "--><!--",
    "\x00\x0b\ufffe\uffff\ud800\x1b[31m",
    "A" * 4096,
)


@pytest.mark.parametrize("name", EVIL)
def test_hostile_names_are_text(name: str) -> None:
    evil = Library("elf", name, name, name, 1, name)
    stack = Stack(
        1, (Frame(name, name, 1, name, name, evil), Frame(name, None, None, name)), name, evil, evil, (evil,)
    )
    trace = replace(traces.MANY, leaks=(traces.leak(stack, 3),), targets=(traces.Target(1, name),))
    picture = drawn(trace)
    assert picture.isprintable() or not set(picture) - {"\n"} - set(filter(str.isprintable, picture))
    root = ElementTree.fromstring(picture)
    clean = ElementTree.fromstring(drawn(traces.ONE_LEAK))
    assert {each.tag for each in root.iter()} == {each.tag for each in clean.iter()}
    assert sum(each.tag == f"{NS}script" for each in root.iter()) == 1
    assert not [key for each in root.iter() for key in each.attrib if key.startswith("on")]
    assert len(picture) < 40_000


@given(st.text(), st.text())
@settings(max_examples=60, deadline=None)
def test_any_name_is_well_formed(function: str, library: str) -> None:
    stack = Stack(1, (Frame(function, library, 1, function, library=Library("elf", library)),), function)
    ElementTree.fromstring(drawn(traces.trace(leaks=(traces.leak(stack, 1),))))


def test_it_is_self_contained() -> None:
    picture = drawn(traces.MANY)
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", picture))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}
    assert "@import" not in picture
    assert "url(" not in picture


PROBE = """<script><![CDATA[
window.addEventListener("load", function () {
  var said = [];
  function say(what) {
    var shown = Array.from(document.querySelectorAll(".f")).filter(function (f) { return f.style.display !== "none"; });
    said.push(what + ": " + shown.length + " shown, " + document.querySelectorAll(".hit").length + " hit, "
      + document.getElementById("matched").textContent + "; reset "
      + (document.getElementById("reset").style.display === "none" ? "hidden" : "shown")
      + "; focus " + (document.activeElement
        ? document.activeElement.getAttribute("data-label") || document.activeElement.id : "nowhere"));
  }
  function frame(label) { return document.querySelector('.f[data-label="' + label + '"]'); }
  function key(name, more) {
    (document.activeElement || window).dispatchEvent(
      new KeyboardEvent("keydown", Object.assign({key: name, bubbles: true, cancelable: true}, more)));
  }
  say("start");
  frame("start (rack-streaming-proxy)").dispatchEvent(new MouseEvent("click", {bubbles: true}));
  say("zoomed");
  document.getElementById("reset").dispatchEvent(new MouseEvent("click", {bubbles: true}));
  say("reset");
  key("f", {ctrlKey: true});
  var input = document.getElementById("search");
  input.value = "LIBC6 2.36";
  input.dispatchEvent(new Event("input"));
  say("searched");
  key("Escape");
  say("escaped");
  frame("all").focus();
  key("ArrowUp");
  say("up");
  key("ArrowLeft");
  say("left");
  key("Enter");
  say("enter");
  var out = document.createElementNS("http://www.w3.org/2000/svg", "desc");
  out.id = "said";
  out.textContent = said.join("|");
  document.documentElement.appendChild(out);
});
]]></script></svg>"""


def test_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the flamegraph in")
    picture = tmp_path / "a.svg"
    picture.write_text(drawn(traces.MANY).removesuffix("</svg>\n") + PROBE)
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --window-size=1200,600 --dump-dom"
    )
    command = [browser, *options.split(), f"--user-data-dir={tmp_path / 'profile'}", picture.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    said = re.search(r'<desc id="said">(.*?)</desc>', dom)
    assert said, dom[-2000:]
    assert said[1].split("|") == [
        "start: 10 shown, 0 hit, ; reset hidden; focus nowhere",
        "zoomed: 5 shown, 0 hit, ; reset shown; focus nowhere",
        "reset: 10 shown, 0 hit, ; reset hidden; focus nowhere",
        "searched: 10 shown, 3 hit, matched 66 of 81 (81.5 %); reset hidden; focus search",
        "escaped: 10 shown, 0 hit, ; reset hidden; focus nowhere",
        "up: 10 shown, 0 hit, ; reset hidden; focus main (leaky)",
        "left: 10 shown, 0 hit, ; reset hidden; focus [no stack]",
        "enter: 2 shown, 0 hit, ; reset shown; focus [no stack]",
    ]
