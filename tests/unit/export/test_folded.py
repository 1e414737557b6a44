"""Folded stacks: golden, merged, and readable by what reads the format."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
import traces
from hypothesis import given
from hypothesis import strategies as st

from tracer.export import FORMATS
from tracer.export.attribution import ALL_FORKS, LEAKED
from tracer.export.folded import write
from tracer.trace import Frame, Library, Stack, Tally, Trace

GOLDEN = Path(__file__).parents[2] / "golden" / "export"


def folded(trace: Trace, all_forks: bool = False) -> str:
    out = io.StringIO()
    write(trace, out, ALL_FORKS if all_forks else LEAKED)
    return out.getvalue()


@pytest.mark.parametrize("all_forks", [False, True])
def test_golden(all_forks: bool) -> None:
    path = GOLDEN / ("many.all-forks.folded" if all_forks else "many.folded")
    output = folded(traces.MANY, all_forks)
    if os.environ.get("FORKTRACE_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(output)
    assert output == path.read_text()


def test_counts_are_the_reports() -> None:
    lines = folded(traces.MANY).splitlines()
    assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == sum(leak.count for leak in traces.MANY.leaks)
    lines = folded(traces.MANY, all_forks=True).splitlines()
    assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == traces.MANY.totals.forks


def test_equal_lines_are_merged_and_empty_traces_are_empty() -> None:
    other_line = Stack(
        77, (traces.FORK, Frame("spawn_helper", "foo.c", 99, None, library=traces.LIBFOO), traces.MAIN)
    )
    trace = traces.trace(leaks=(traces.leak(count=3), traces.leak(other_line, 4)))
    assert folded(trace) == "main (leaky);spawn_helper (libfoo.so.1);_Fork (libc6) 7\n"
    assert folded(traces.EMPTY) == ""


def test_frames_without_names() -> None:
    frames = (
        Frame(None, None, None, "/opt/lib/x.so", offset=0x10),
        Frame(None, None, None, None, offset=0x7F),
        Frame(None, None, None, None),
    )
    trace = traces.trace(leaks=(traces.leak(Stack(1, frames), 1),))
    assert folded(trace) == "? (anonymous memory);+0x7f (anonymous memory);+0x10 (x.so) 1\n"


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1, max_size=5), st.none() | st.text())
def test_any_names_make_one_line_of_so_many_frames(
    names: list[tuple[str, str, str]], cut: str | None
) -> None:
    frames = tuple(
        Frame(function, None, None, module, library=Library("elf", library) if library else None)
        for function, module, library in names
    )
    stack = Stack(1, frames, cut)
    output = folded(traces.trace(stacks=((stack, Tally(forks=12)),)), all_forks=True)
    assert output.endswith("\n")
    line = output[:-1]
    assert line.isprintable()
    found = re.fullmatch(r"(.*)\s+?(\d+(?:\.\d*)?)", line)  # as flamegraph.pl reads it
    assert found
    assert found[2] == "12"
    assert not re.fullmatch(
        r"(.*)\s+?(\d+(?:\.\d*)?)", found[1]
    )  # else it would be taken for a differential one
    assert len(found[1].split(";")) == len(names) + (cut is not None)


def test_formats_know_their_names() -> None:
    assert all(name == each.name and each.description and each.opened_by for name, each in FORMATS.items())
