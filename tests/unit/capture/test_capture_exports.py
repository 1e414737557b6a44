"""Exports of a capture file by the command itself: single processes, weights, files, and a hundred thousand tasks."""

from __future__ import annotations

import csv
import json
import os
import pty
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from graphs import SECOND, STACK, START, meta, snapshot, task

from tracer.capture.writer import CaptureWriter
from tracer.cli.captured import load_trace
from tracer.errors import ForktraceError
from tracer.export import FORMATS
from tracer.lifecycle.lifelines import processes
from tracer.lifecycle.task import PRE_EXISTING, Fate, Task, task_id
from tracer.trace import FailedFork, Stack

BAR = Stack(2, STACK.frames[:1])
ROOT = task(100, stack=PRE_EXISTING, id=task_id(100, 5), parent=0, forker=0, forked_ns=0, root=True)


def capture(path: Path, tasks: list[Task]) -> Path:
    with CaptureWriter(path, meta()) as writer:
        writer.flush(snapshot(tasks), tasks, [STACK, BAR], final=True)
    return path


@pytest.fixture
def leak(tmp_path: Path) -> Path:
    """Children that stand for so long as zombies that every sum is another one."""
    return capture(
        tmp_path / "leak.forktrace",
        [
            ROOT,
            *(task(200 + n, Fate.ZOMBIE, exited_ns=START + n * SECOND, comm="\x1b[2J<b>") for n in range(5)),
            *(task(300 + n, Fate.WAITED, 2, reaped_ns=START + 7 * SECOND, exited_ns=START) for n in range(3)),
            task(400, Fate.ORPHANED, 2, exited_ns=START + SECOND, reaped_ns=START + 3 * SECOND),
            task(500, Fate.ZOMBIE, 2, exited_ns=START + 60 * SECOND - 1000),  # too young for a leak
        ],
    )


def export(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracer", "export", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_the_processes_are_the_tasks(leak: Path) -> None:
    trace = load_trace(str(leak))
    assert trace.processes is not None
    first, again = list(trace.processes), list(trace.processes)
    assert first == again
    with sqlite3.connect(leak) as db:
        rows = db.execute("SELECT id, comm, exited_ns, fate FROM tasks ORDER BY forked_ns, id").fetchall()
    assert [(p.id, p.comm, round((p.exited_s or 0) * 1e9) + START, p.fate) for p in first[1:]] == rows[1:]
    assert (first[0].root, first[0].pre_existing, first[0].exited_s) == (True, True, None)
    assert first[1].exit == "0"


def test_stacks_that_read_the_same_are_one_as_in_the_report() -> None:
    twin = Stack(7, STACK.frames, STACK.cut, STACK.forked_by, STACK.responsible, STACK.chain)
    tasks = [task(1, stack=1), task(2, stack=7), task(3, stack=0), task(4, stack=99)]
    found = [each.stack.id for each in processes(tasks, {1: STACK, 7: twin}, START)]
    assert found == [1, 1, 0, 0]


def test_zombie_seconds_are_what_sql_says(leak: Path) -> None:
    done = export(leak, "-f", "folded", "--weight", "zombie-seconds")
    assert (done.returncode, done.stderr) == (0, "")
    sums = {
        line.rpartition(" ")[0].count(";"): int(line.rpartition(" ")[2]) for line in done.stdout.splitlines()
    }
    with sqlite3.connect(leak) as db:
        rows = db.execute(
            "SELECT stack, sum(iif(reaped_ns, reaped_ns, m.value) - exited_ns) / 1000000 FROM tasks, meta AS m "
            "WHERE m.key = 'end_ns' AND fate IN ('zombie', 'orphaned') AND NOT root AND id >> 32 <> 500 GROUP BY stack"
        ).fetchall()
    assert dict(rows) == {1: sums[3], 2: sums[0]} == {1: 290_000, 2: 2_000}


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ((), {1, 5}),
        (("--fate", "waited"), {3}),
        (("--fate", "waited", "--fate", "zombie"), {3, 5}),
        (("--all-forks",), {5}),
    ],
)
def test_fates(leak: Path, options: tuple[str, ...], counts: set[int]) -> None:
    lines = export(leak, "-f", "folded", *options).stdout.splitlines()
    assert {int(line.rpartition(" ")[2]) for line in lines} == counts


def test_the_list_names_each_and_what_opens_it() -> None:
    lines = export("-f", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(FORMATS)
    assert all("(open it with " in line for line in lines)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-f", "dot", "--weight", "count"), "dot shows no stacks that could weigh something"),
        (("-f", "svg", "--fate", "zombie", "--all-forks"), "--all-forks and --fate exclude each other"),
        (("-f", "svg", "--fate", "gone"), "'gone' is not one of"),
        (("-f", "svg", "--weight", "tons"), "'tons' is not one of"),
    ],
)
def test_what_makes_no_sense_is_said(leak: Path, options: tuple[str, ...], message: str) -> None:
    done = export(leak, *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_file_is_made_and_not_replaced_unless_asked(leak: Path, tmp_path: Path) -> None:
    for name in FORMATS:
        file = tmp_path / f"out.{name}"
        assert export(leak, "-f", name, "-o", file).returncode == 0
        written = file.read_bytes()
        assert written
        assert oct(file.stat().st_mode & 0o777) == "0o644"
        file.write_bytes(b"old")
        assert export(leak, "-f", name, "-o", file).returncode == 1
        assert file.read_bytes() == b"old"
        assert export(leak, "-f", name, "-o", file, "--force").returncode == 0
        assert file.read_bytes() == written
        assert b"\x1b" not in written or name == "pprof"
    assert export(leak, "-f", "csv", "-o", "/dev/null", "--force").returncode == 0
    assert {each.name for each in tmp_path.iterdir()} == {leak.name, *(f"out.{name}" for name in FORMATS)}


def test_an_error_leaves_no_file_and_keeps_the_old_one(leak: Path, tmp_path: Path) -> None:
    with sqlite3.connect(leak) as db:
        db.execute("UPDATE tasks SET execs = 'no number' WHERE id >> 32 = 302")  # read by the exports alone
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_text("old")
    for file, options in ((new, ()), (old, ("--force",))):
        done = export(leak, "-f", "csv", "-o", file, *options)
        assert done.returncode == 1
        assert "is damaged" in done.stderr
    assert not new.exists()
    assert old.read_text() == "old"
    assert {each.name for each in tmp_path.iterdir()} == {leak.name, "old"}


def test_nothing_binary_goes_to_a_terminal(leak: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tracer", "export", leak, "-f", "pprof"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert "name a file with -o FILE" in done.stderr


def test_a_reader_that_has_enough(leak: Path) -> None:
    for name in FORMATS:
        command = f"{sys.executable} -m tracer export {leak} -f {name} | head -c 1 | wc -c"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
        assert (done.stdout.strip(), done.stderr) == ("1", "")


def test_failed_forks_and_the_live_trace_have_their_place(leak: Path) -> None:
    trace = load_trace(str(leak))
    assert {type(each) for each in trace.failed_forks} == {FailedFork}
    last = json.loads(export(leak, "-f", "jsonl").stdout.splitlines()[-1])
    assert (last["event"], last["count"]) == ("failed_forks", 1)
    missing = load_trace(str(leak))
    leak.unlink()
    with pytest.raises(ForktraceError, match="cannot read"):
        list(missing.processes or ())


MEASURED = """
import resource, sys
from tracer.cli import main
try:
    main(["export", *sys.argv[1:]])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def test_a_hundred_thousand_tasks(tmp_path: Path) -> None:
    """Each within 20 s on a slow machine, and in memory that does not grow with the file."""
    fates = (Fate.WAITED, Fate.WAITED, Fate.WAITED, Fate.ZOMBIE)
    children = [task(1000 + n, fates[n % 4], 1 + n % 2) for n in range(100_000)]
    file = capture(tmp_path / "large.forktrace", [ROOT, *children])
    for name in FORMATS:
        out = tmp_path / name
        began = time.monotonic()
        command = [sys.executable, "-c", MEASURED, file, "-f", name, "--all-forks", "-o", out]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        seconds, kilobytes = time.monotonic() - began, int(done.stderr.split()[-1])
        assert done.returncode == 0, done.stderr
        print(f"{name}: {seconds:.1f} s, {kilobytes // 1024} MB, {out.stat().st_size / 1e6:.1f} MB written")
        assert seconds < 20
        assert kilobytes < 200 * 1024
    with (tmp_path / "csv").open(newline="") as table:
        assert sum(1 for _ in csv.reader(table)) == 100_002
