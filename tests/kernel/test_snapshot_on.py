"""--snapshot-on: a capture of what was known at a moment, beside a trace that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import forktrace, tracing
from support import Program, wait_until

from tracer.capture.reader import load

pytestmark = pytest.mark.kernel

Start = Callable[..., Program]


def test_at_the_first_eagain(start: Start, tmp_path: Path) -> None:
    program = start("fork_fail", "nproc", wait=True)
    capture = tmp_path / "leak.forktrace"
    options = ("-p", program.pid, "--snapshot-on", "eagain", "--snapshot-on", "zombies=1000", "-o", capture)
    with tracing(*options, "--json") as tracer:
        program.go()
        truth = program.truth()
        tracer.await_saying("forktrace: the first EAGAIN: wrote ")
        taken = load(tmp_path / "leak.eagain.forktrace")
        assert "finished" not in " ".join(taken.meta.incomplete_because)
        answer = tracer.interrupt()
    report = json.loads(answer.out)
    assert taken.meta.finished
    assert taken.meta.notes[-1] == "a snapshot of the trace at the first EAGAIN"
    (limit,) = {each["name"] for each in taken.snapshot.failed_limits.values()}
    assert limit == "RLIMIT_NPROC"
    assert 1 <= taken.snapshot.totals["failed_forks"] <= 6
    # The trace went on, and has all of them.
    assert report["totals"]["failed_forks"] == sum(line.get("count", 0) for line in truth) == 6
    assert load(capture).meta.end_ns > taken.meta.end_ns
    assert "no snapshot was taken: 1,000 zombies at once did not happen" in report["notes"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["leak.eagain.forktrace", "leak.forktrace"]


def test_when_so_many_zombies_stand(start: Start, tmp_path: Path) -> None:
    """Without -o; and `forktrace report` reads it like any capture."""
    program = start("verdicts", "never_waits", wait=True)
    options = ("-p", program.pid, "--snapshot-on", "zombies=3", "--min-age", 0)
    path = tmp_path / "forktrace.zombies-3.forktrace"
    with tracing(*options, cwd=tmp_path) as tracer:
        program.go()
        program.truth()
        wait_until(lambda: "wrote" in tracer.said())
        assert [(group.count, group.parents.total()) for group in load(path).snapshot.groups.values()] == [
            (3, 3)
        ]
        answer = tracer.interrupt()
    assert "forktrace: 3 zombies at once: wrote forktrace.zombies-3.forktrace\n" in answer.err
    (leak,) = json.loads(forktrace("report", "--json", path).out)["leaks"]
    assert (leak["count"], leak["verdict"]["code"]) == (3, "never_waits")


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    """Said before anything is traced, and no file is left or touched."""
    (tmp_path / "leak.eagain.forktrace").write_text("precious")
    answer = forktrace("-p", 1, "--snapshot-on", "eagain", "-o", tmp_path / "leak.forktrace")
    assert answer.status == 1
    assert "leak.eagain.forktrace is there already" in answer.err
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [
        ("leak.eagain.forktrace", "precious")
    ]


def test_a_moment_that_is_none() -> None:
    answer = forktrace("-p", 1, "--snapshot-on", "never")
    assert answer.status == 2
    assert "never is neither eagain nor zombies=N" in answer.err
