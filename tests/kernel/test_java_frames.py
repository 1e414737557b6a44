"""Java's methods in the stack of a fork, by the map that `jcmd PID Compiler.perfmap` writes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from interpreted import PROGRAMS, running
from tracing import options_for, while_stepping

from tracer.session import Session
from tracer.trace import Trace

pytestmark = pytest.mark.kernel

OPTIONS = (
    "-Xcomp",
    "-XX:+PreserveFramePointer",
    "-XX:CompileCommand=quiet",
    "-XX:CompileCommand=compileonly,Leak::*",
    "-XX:CompileCommand=dontinline,Leak::*",
)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("javac") is None or shutil.which("jcmd") is None:
        pytest.skip("no Java development kit is installed")
    out = tmp_path_factory.mktemp("classes")
    subprocess.run(["javac", "-d", out, PROGRAMS / "Leak.java"], check=True, timeout=60)
    return out


def trace_java(classes: Path, write_map: bool, *options: str) -> tuple[Trace, int]:
    with running(["java", *options, "-cp", classes, "Leak"]) as program:
        if write_map:
            subprocess.run(
                ["jcmd", str(program.pid), "Compiler.perfmap"], check=True, capture_output=True, timeout=60
            )
        with Session(options_for(program.pid)) as session:
            session.start()
            program.go()
            while_stepping(session, program.truth)
            return session.finish(), program.pid


def test_compiled_and_interpreted_methods(classes: Path) -> None:
    trace, pid = trace_java(classes, True, *OPTIONS)
    Path(f"/tmp/perf-{pid}.map").unlink()
    stack, _ = trace.stacks[0]
    assert stack.cut is None
    names = [frame.function for frame in stack.frames if frame.language == "java"]
    assert names[0] == "Interpreter"  # java.lang.ProcessImpl
    assert names[-3:] == ["Leak.request", "Leak.main", "StubRoutines (1)"]
    assert trace.notes == ()


def test_without_a_map_a_note_says_how_to_get_one(classes: Path) -> None:
    trace, pid = trace_java(classes, False)
    assert any(f"jcmd {pid} Compiler.perfmap" in note for note in trace.notes)
