"""Python's frames in the stack of every fork, against what the program's own interpreter says at that moment."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from interpreted import running
from pythons import Fork, Python, Traced, agree, copy_program, pythons, trace_command, trace_python
from support import wait_until
from tracing import options_for, while_stepping

from tracer.probe.probe import Probe
from tracer.records import MAX_FRAMES
from tracer.session import Session
from tracer.stacks.store import GONE
from tracer.trace import Stack

pytestmark = pytest.mark.kernel

CASES = 39
TOO_DEEP = "too_deep"
HUGE = "huge_function"  # of a line table that is too large to be taken, from 3.11 on: its line is not known
MISSED = "python was not read at the fork: its walker was not loaded yet, and soon after it the process had gone on"
SYSTEM = Path("/usr/bin/python3")
PYENV = sorted((Path.home() / ".pyenv/versions").glob("3.1[123].*/bin/python3"))


def differing(fork: Fork) -> list[str]:
    """What is wrong with the frames, a line each."""
    seen, wanted = fork.seen, fork.wanted
    if fork.case == TOO_DEEP:
        wanted = wanted[:MAX_FRAMES]
    if fork.case == HUGE and seen[1:2] and seen[1][2] is None:
        wanted[1] = (*wanted[1][:2], None)
    wrong = [f"{a} is {b}" for a, b in zip(seen, wanted) if not agree(a, b)]  # noqa: B905
    wrong += [f"{each} is not so" for each in seen[len(wanted) :]]
    wrong += [f"no {each}" for each in wanted[len(seen) :]]
    return [f"{fork.case}: {each}" for each in wrong[:3]] + ([str(fork.stack.cut)] if wrong else [])


def check(traced: Traced, notes: tuple[str, ...] = ()) -> None:
    """Every fork is as it was said.  Of a process that has just begun to be one of Python, the first may be missed."""
    walked: set[int] = set()
    wrong = []
    for fork in traced.forks:
        if fork.stack.read_late or fork.stack.cut in (MISSED, GONE):
            assert fork.task.forker not in walked
            assert fork.stack.read_late or fork.seen == []
        else:
            walked.add(fork.task.forker)
            wrong += differing(fork)
    assert wrong == []
    assert traced.forks[0].task.forker in walked
    assert traced.trace.notes == notes


@pytest.mark.parametrize("python", pythons(), ids=str)
def test_every_way_to_fork(python: Python, tmp_path: Path) -> None:
    traced = trace_python(python, tmp_path)
    check(traced)
    assert traced.missing == {}
    assert len({fork.case for fork in traced.forks}) == CASES
    cut = {fork.case: fork.stack.cut for fork in traced.forks if fork.stack.cut not in (None, MISSED, GONE)}
    assert set(cut) == {TOO_DEEP}
    assert "deeper than the frames that are taken" in str(cut) or "stack copy ends" in str(cut)
    between = [fork.stack.frames for fork in traced.forks if fork.case == "ctypes_callback"]
    for frames in between:
        names = [frame.function for frame in frames]
        qsort = next(at for at, name in enumerate(names) if name and "qsort" in name)
        inside, outside = names.index("fork_once"), names.index("case_ctypes_callback")
        assert inside < qsort < outside


def test_light(tmp_path: Path) -> None:
    traced = trace_python(Python(SYSTEM), tmp_path, ("fork", "popen", "thread"), light=True)
    check(traced, notes=traced.trace.notes)
    assert [note for note in traced.trace.notes if "--light" not in note] == []


OPTIONS = [["-X", "perf"], ["-X", "dev"], ["-O", "-I", "-S"], ["-X", "frozen_modules=off"]]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
@pytest.mark.parametrize("python", [SYSTEM, *PYENV], ids=str)
def test_options_of_the_interpreter(python: Path, options: list[str], tmp_path: Path) -> None:
    """-X perf (3.12) calls all functions through trampolines that nothing unwinds; Python's frames are all there."""
    program, work = copy_program(tmp_path)
    runs = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[0] = __file__ = {str(program)!r}; "
    runs += "exec(compile(open(__file__).read(), __file__, 'exec'))"
    cases = ("fork", "methods", "popen", "thread", "called_by_c", "system")
    traced = trace_command([python, *options, "-c", runs, "--wait", work, *cases])
    check(traced)
    assert {fork.case for fork in traced.forks} == set(cases)
    for fork in traced.forks:
        complete = fork.stack.cut is None or fork.stack.cut.endswith("the python frames are all here")
        assert complete, fork.stack.cut


@pytest.mark.parametrize("copies", [[], ["--copies"]], ids=["links", "copies"])
def test_a_virtual_environment(tmp_path: Path, copies: list[str]) -> None:
    venv = tmp_path / "venv"
    subprocess.run([SYSTEM, "-m", "venv", "--without-pip", *copies, venv], check=True)
    check(trace_python(Python(venv / "bin/python"), tmp_path, ("fork", "popen", "multiprocessing_spawn")))


def libpythons() -> list[tuple[Path, Path]]:
    """(library, its sys.prefix)"""
    library = Path("/usr/lib/x86_64-linux-gnu") / str(sysconfig.get_config_var("INSTSONAME"))
    found = [(library, Path("/usr"))] if library.is_file() else []
    return found + [
        (next(python.parents[1].glob("lib/libpython3.*.so.1.0")), python.parents[1]) for python in PYENV
    ]


EMBEDDED = """
import json, os, sys
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
print(json.dumps({"ready": True}), flush=True)
sys.stdin.readline()
program = sys.argv[0]
sys.path.insert(0, program.rpartition("/")[0])
exec(compile(open(program).read(), program, "exec"), {"__name__": "__main__", "__file__": program})
"""


@pytest.mark.parametrize(("library", "prefix"), libpythons(), ids=str)
def test_libpython_that_is_loaded_later(programs: Path, tmp_path: Path, library: Path, prefix: Path) -> None:
    program, work = copy_program(tmp_path)
    cases = ("fork", "methods", "popen", "thread", "called_by_c", "ctypes_callback")
    command = [programs / "embed_python", "--wait", library, EMBEDDED, program, work, *cases]
    traced = trace_command(command, env={"PYTHONHOME": str(prefix)}, before=2)
    check(traced)
    assert {fork.case for fork in traced.forks} == set(cases)
    assert any(fork.seen for fork in traced.forks)


# It is in system() until the test lets it go, so that what is read late is what was there at the fork.
HELD = """
import json, os, sys
def say(**what):
    print(json.dumps(what), flush=True)
def inner(fifo):
    os.system("read x < " + fifo)
def outer(fifo):
    sorted([1], key=lambda _: inner(fifo))
say(hello="held", pid=os.getpid())
sys.stdin.readline()
for turn in range(2):
    outer(sys.argv[1])
say(ready=True)
sys.stdin.read()
"""


def trace_held(fifo: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Stack], list[bytes]]:
    """The stacks of HELD's two forks, and the keys of those that the kernel was told to know."""
    known: list[bytes] = []
    monkeypatch.setattr(Probe, "remember_stack", lambda _self, key, _value: known.append(key))
    os.mkfifo(fifo)
    with (
        running([python, "-c", HELD, fifo]) as program,
        Session(options_for(program.pid), record_changes=True) as session,
    ):
        session.start()
        program.go()
        forked: set[int] = set()
        for _ in range(2):
            await_child(session, forked)
            fifo.write_text("x\n")
        while_stepping(session, program.truth)
        session.finish()
        tasks = sorted((t for t in session.graph.take_changed() if t.forker), key=lambda t: t.forked_ns)
        return [session._stacks.stack(task.stack) for task in tasks], known


def await_child(session: Session, known: set[int]) -> None:
    """Until a child is traced that is not known yet."""
    wait_until(lambda: session.step() or children(session) - known, what="a fork")
    known |= children(session)


def children(session: Session) -> set[int]:
    return {task.id for task in session.graph.tasks.values() if task.forker}


def expected_of_held() -> list[tuple[str, int]]:
    lines = HELD.splitlines()
    numbers = [
        next(n for n, line in enumerate(lines, 1) if text in line)
        for text in ("os.system", "sorted", "outer(sys")
    ]
    names = ["inner", "<lambda>", "outer", "<module>"]
    return list(zip(names, [numbers[0], numbers[1], numbers[1], numbers[2]], strict=True))


@pytest.mark.parametrize("python", [python.program for python in pythons() if not python.root], ids=str)
def test_what_the_kernel_missed_is_read_late(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "walk_interpreter", lambda *_: None)
    stacks, known = trace_held(tmp_path / "fifo", python, monkeypatch)
    assert len(stacks) == 2
    for stack in stacks:
        assert stack.read_late
        assert stack.cut is None
        seen = [(frame.function, frame.line) for frame in stack.frames if frame.language == "python"]
        assert [(str(name).rpartition(".")[2], line) for name, line in seen] == expected_of_held()
        assert "do_system" in [frame.function for frame in stack.frames]
    assert known == []


GONE_ON = """
import json, os, sys
def say(**what):
    print(json.dumps(what), flush=True)
def fork_once():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
say(hello="gone on", pid=os.getpid())
sys.stdin.readline()
sorted([1], key=lambda _: fork_once())
say(ready=True)
sys.stdin.read()
"""


def test_frames_that_do_not_fit_the_fork_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the sample comes to be read, the program is in read(), called from its module."""
    monkeypatch.setattr(Probe, "walk_interpreter", lambda *_: None)
    with (
        running([SYSTEM, "-c", GONE_ON]) as program,
        Session(options_for(program.pid), record_changes=True) as session,
    ):
        session.start()
        program.go()
        program.truth()
        session.finish()
        [task] = [task for task in session.graph.take_changed() if task.forker]
        stack = session._stacks.stack(task.stack)
    assert stack.cut == MISSED
    assert not stack.read_late
    assert {frame.language for frame in stack.frames} == {"native"}
