"""Which children a selection counts, and how long they stood as zombies."""

from __future__ import annotations

import io
from collections import Counter

import lives
import pytest
import traces

from tracer.errors import ForktraceError
from tracer.export import FORMATS
from tracer.export.attribution import ALL_FORKS, FATES, LEAKED, ZOMBIE_SECONDS, Selection, counts, zombie_ns

FOO, BAR, OLDER = traces.FOO_STACK.id, traces.BAR_STACK.id, traces.OLDER.id


def by_stack(selection: Selection) -> dict[int, int]:
    sums: Counter[int] = Counter()
    for stack, count in counts(lives.LIVES, selection):
        sums[stack.id] += count
    return dict(sums)


@pytest.mark.parametrize(
    ("fates", "expected"),
    [
        (
            ("zombie", "orphaned"),
            {FOO: 2, BAR: 2, OLDER: 1},
        ),  # the report's leaks: no young ones, but older ones
        (("zombie",), {FOO: 2, BAR: 1, OLDER: 1}),
        (("waited",), {FOO: 2}),
        (("waited", "orphaned"), {FOO: 2, BAR: 1}),
        (("unknown",), {}),
        (FATES, {FOO: 7, BAR: 2}),  # all forks that the trace saw
    ],
)
def test_counts(fates: tuple[str, ...], expected: dict[int, int]) -> None:
    assert by_stack(Selection(frozenset(fates))) == expected


@pytest.mark.parametrize(
    ("fates", "seconds"),
    [
        (("zombie", "orphaned"), {FOO: 297.5 + 296.5, BAR: 295.5 + 2, OLDER: 290}),
        (("orphaned",), {BAR: 2}),
        (("waited",), {FOO: 0.5}),
        (("running",), {}),
        (FATES, {FOO: 297.5 + 296.5 + 0.2 + 0.5, BAR: 297.5}),
    ],
)
def test_zombie_seconds(fates: tuple[str, ...], seconds: dict[int, float]) -> None:
    found = zombie_ns(lives.LIVES, Selection(frozenset(fates)))
    assert {stack.id: ns for stack, ns in found} == {
        stack: round(each * 1e9) for stack, each in seconds.items()
    }
    assert [ns for _, ns in found] == sorted((ns for _, ns in found), reverse=True)


def test_a_trace_without_single_processes_says_so_and_still_counts() -> None:
    for name, form in FORMATS.items():
        out = io.BytesIO() if form.binary else io.StringIO()
        if form.weighs:
            form.write(traces.MANY, out, LEAKED)
            assert out.getvalue()
            with pytest.raises(ForktraceError, match="no single processes"):
                form.write(traces.MANY, out, Selection(weight=ZOMBIE_SECONDS))
        else:
            with pytest.raises(ForktraceError, match="no single processes"):
                form.write(traces.MANY, out, ALL_FORKS)
        assert name == form.name


def test_folded_and_svg_by_zombie_seconds() -> None:
    folded, svg = io.StringIO(), io.StringIO()
    FORMATS["folded"].write(lives.LIVES, folded, Selection(weight=ZOMBIE_SECONDS))
    assert folded.getvalue().splitlines() == [
        "[cut: the unwinder has no CFI for pc 0x7f12];main (leaky);start (rack-streaming-proxy);_Fork (libc6) 297500",
        "[no stack] 290000",
        "main (leaky);spawn_helper (libfoo.so.1);_Fork (libc6) 594000",
    ]
    FORMATS["svg"].write(lives.LIVES, svg, Selection(weight=ZOMBIE_SECONDS))
    assert ">1,181.500 s that children never waited for stood as zombies, by the stack" in svg.getvalue()
    assert "594.000 s of 1,181.500 s (50.3 %)" in svg.getvalue()
