"""Perfetto: what its own engine makes of the file, and the JSON by hand."""

from __future__ import annotations

import io
import json
from typing import Any

import consumers
import lives
import pytest

from tracer.export import perfetto
from tracer.export.attribution import ALL_FORKS, Selection
from tracer.trace import Trace

PROBLEMS = "SELECT name, value FROM stats WHERE value > 0 AND severity <> 'info'"
NS = 1_000_000_000


def written(trace: Trace, selection: Selection = ALL_FORKS) -> str:
    out = io.StringIO()
    perfetto.write(trace, out, selection)
    return out.getvalue()


def events(trace: Trace, selection: Selection = ALL_FORKS) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(written(trace, selection))["traceEvents"]
    return found


def test_its_engine_takes_all_of_it() -> None:
    problems, lives_of, zombies, forks, waits, groups, instants, depths = consumers.perfetto_query(
        written(lives.LIVES).encode(),
        PROBLEMS,
        "SELECT t.tid, s.name, s.ts, s.dur FROM slice s JOIN thread_track k ON s.track_id = k.id "
        "JOIN thread t USING (utid) WHERE s.category = 'life' ORDER BY t.tid",
        "SELECT t.tid, s.name, s.ts, s.dur FROM slice s JOIN thread_track k ON s.track_id = k.id "
        "JOIN thread t USING (utid) WHERE s.category = 'zombie' ORDER BY t.tid",
        "SELECT o.name, i.name, i.category, i.ts - o.ts FROM flow f JOIN slice o ON o.id = f.slice_out "
        "JOIN slice i ON i.id = f.slice_in WHERE o.category = 'fork' ORDER BY o.ts",
        "SELECT o.name, i.name, i.ts - o.ts FROM flow f JOIN slice o ON o.id = f.slice_out "
        "JOIN slice i ON i.id = f.slice_in WHERE o.category = 'wait' ORDER BY o.ts",
        "SELECT pid, name FROM process WHERE name IS NOT NULL ORDER BY pid",
        "SELECT name, ts, dur FROM slice WHERE category = 'failure'",
        "SELECT DISTINCT category, depth FROM slice WHERE category IN ('life', 'zombie', 'fork', 'wait') ORDER BY 1",
    )
    assert problems == []
    pids = [4711, 4712, 4800, 5001, 5002, 5003, 5004, 5006, 5007, 5008, 5299]
    assert [row[0] for row in lives_of] == pids
    assert lives_of[4] == (5002, "sh", 2 * NS, NS // 2)
    assert lives_of[0] == (4711, "leaky", 0, 300 * NS)
    assert zombies[3] == (5002, "zombie (zombie)", int(2.5 * NS), int(297.5 * NS))
    assert [row[0] for row in zombies] == [pid for pid in pids if pid not in (4711, 5008)]
    assert [row[:1] for row in forks] == [
        (f"fork {pid}",) for pid in (5001, 5002, 5003, 5004, 4800, 5006, 5007, 5008, 5299)
    ]
    assert {row[2:] for row in forks} == {("life", 0)}
    assert waits == [("wait4 5001", "reaped", 0), ("wait4 4800", "reaped", 0)]
    assert groups == [(4711, "leaky 4711"), (4800, "daemonize 4800")]
    assert instants == [("3 failed forks: EAGAIN", 300 * NS, 0)]
    assert depths == [("fork", 1), ("life", 0), ("wait", 1), ("zombie", 0)]


def test_children_stand_together_under_their_parent() -> None:
    tracks = {
        event["tid"]: event["pid"]
        for event in events(lives.LIVES)
        if event["ph"] == "X" and event["cat"] == "life"
    }
    assert tracks == {
        4711: 4711, 4712: 4711, 5001: 4711, 5002: 4711, 5003: 4711, 5004: 4711, 4800: 4711, 5006: 4800, 5007: 4711,
        5008: 4711, 5299: 4711,
    }  # fmt: skip


def test_a_fate_alone_keeps_the_parents() -> None:
    shown = events(lives.LIVES, Selection(frozenset({"orphaned"})))
    drawn = {event["tid"] for event in shown if event["ph"] == "X" and event["cat"] == "life"}
    assert drawn == {4711, 4800, 5006}


@pytest.mark.parametrize("name", lives.EVIL)
def test_hostile_names_are_text(name: str) -> None:
    text = written(lives.evil(name))
    assert text.isascii()
    assert set(text) - {"\n"} == set(filter(str.isprintable, text))
    assert len(text) < 100_000
    (problems,) = consumers.perfetto_query(text.encode(), PROBLEMS)
    assert problems == []


def test_arrows_have_numbers_of_their_own() -> None:
    arrows = [event for event in events(lives.LIVES) if event["ph"] in "sf"]
    assert sorted(event["id"] for event in arrows) == sorted([*range(1, 12), *range(1, 12)])
