"""CSV and JSON lines: every process and event once, in order, and harmless to what opens them."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import lives
import pytest

from tracer.export import csv as table
from tracer.export import jsonl
from tracer.export.attribution import ALL_FORKS, Selection
from tracer.trace import Trace


def rows(trace: Trace, selection: Selection = ALL_FORKS) -> list[dict[str, str]]:
    out = io.StringIO()
    table.write(trace, out, selection)
    return list(csv.DictReader(io.StringIO(out.getvalue(), newline=""), strict=True))


def lines(trace: Trace, selection: Selection = ALL_FORKS) -> list[dict[str, Any]]:
    out = io.StringIO()
    jsonl.write(trace, out, selection)
    return [json.loads(line) for line in out.getvalue().split("\n")[:-1]]


def test_a_row_a_process() -> None:
    found = rows(lives.LIVES)
    assert [int(row["pid"]) for row in found] == [each.pid for each in lives.PROCESSES]
    assert found[3] == {
        "pid": "5002", "ns_pid": "5002", "comm": "sh", "fate": "zombie", "parent": "4711", "forker": "4711",
        "forker_comm": "leaky", "forked_s": "2.000000", "exited_s": "2.500000", "exit": "0", "reaped_s": "",
        "zombie_s": "297.500000", "reaper": "", "reaped_by": "", "execs": "0", "target": "0", "stack": "1",
        "responsible": "libfoo.so.1 1.2", "file": "/usr/src/libfoo/src/foo.c", "line": "42", "function": "spawn_helper",
        "forked_by": "libfoo.so.1 1.2",
    }  # fmt: skip
    assert [row["pid"] for row in rows(lives.LIVES, Selection(frozenset({"orphaned"})))] == ["4711", "5006"]


def test_no_cell_is_a_formula() -> None:
    for trace in (lives.LIVES, *map(lives.evil, lives.EVIL)):
        cells = [cell for row in rows(trace) for cell in row.values()]
        assert not [
            cell for cell in cells if cell.startswith(("=", "+", "-", "@")) and not cell[1:].isdecimal()
        ]
        assert all(cell.isprintable() for cell in cells)
        assert max(map(len, cells)) < 700


def test_events_in_the_order_of_time() -> None:
    found = lines(lives.LIVES)
    assert found[0]["event"] == "trace"
    times = [each["time"] for each in found if each.get("time") is not None]
    assert times == sorted(times)
    happened = [(each["event"], each["pid"]) for each in found if "pid" in each]
    assert len(happened) == len(set(happened))
    for each in lives.PROCESSES:
        begin = "existing" if each.pre_existing else "fork"
        expected = [begin, *["exit"] * (each.exited_s is not None), *["reap"] * (each.reaped_s is not None)]
        assert [event for event, pid in happened if pid == each.pid] == expected
    assert found[-1]["event"] == "failed_forks"
    reap = next(each for each in found if each["event"] == "reap")
    assert reap == {
        "event": "reap", "time": 1.75, "pid": 5001, "comm": "sh", "reaper": 4711, "call": "wait4", "latency_s": 0.25,
    }  # fmt: skip


def test_a_stack_comes_once_before_it_is_named() -> None:
    known: set[int] = set()
    for each in lines(lives.LIVES):
        if each["event"] == "stack":
            assert each["stack"] not in known
            known.add(each["stack"])
            assert each["responsible"]["name"] in ("libfoo.so.1", "rack-streaming-proxy")
        elif "stack" in each:
            assert each["stack"] in known
    assert known == {1, 2}


@pytest.mark.parametrize("name", lives.EVIL)
def test_hostile_names_are_one_line(name: str) -> None:
    out = io.StringIO()
    jsonl.write(lives.evil(name), out, ALL_FORKS)
    assert out.getvalue().isascii()
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    fork = next(each for each in found if each["event"] == "fork")
    assert fork["comm"] == name.replace("\ud800", "\\ud800").replace("\udce9", "\\xe9")
