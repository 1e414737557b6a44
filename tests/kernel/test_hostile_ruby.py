"""A process that looks like Ruby and has anything at all where frames should be (tests/programs/hostile_ruby.c)."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interpreted import PROGRAMS, running
from tracing import options_for, while_stepping

from tracer.probe import build
from tracer.records import StackSample, Walk
from tracer.session import Session
from tracer.stacks import maps
from tracer.stacks.interpreters import ruby
from tracer.stacks.interpreters.late import Memory
from tracer.trace import Stack

pytestmark = pytest.mark.kernel

SCENARIOS = {
    "honest": Walk.DONE,
    "no_context": Walk.NO_THREAD,
    "kernel_context": Walk.NO_THREAD,
    "another_thread's": Walk.NO_THREAD,
    "kernel_stack": Walk.UNREADABLE,
    "huge_stack": Walk.BROKEN,
    "misaligned": Walk.BROKEN,
    "between_frames": Walk.BROKEN,
    "no_environment": Walk.UNREADABLE,
    "no_frame": Walk.BROKEN,
    "no_code": Walk.BROKEN,
    "no_method": Walk.UNREADABLE,
    "many_frames": Walk.TOO_DEEP,
    "cyclic_fibers": Walk.TOO_DEEP,
    "foreign_fiber": Walk.DONE,
}
FORKS = 200


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, beside a library that calls itself Ruby 3.1."""
    out = tmp_path_factory.mktemp("hostile_ruby")
    flags = ["-g", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    library = out / "libruby-3.1.so.3.1"
    version = '-DVERSION="3.1.2"'
    source = PROGRAMS / "hostile_libruby.c"
    subprocess.run(["gcc", *flags, version, "-fPIC", "-shared", source, "-o", library], check=True)
    program = out / "hostile_ruby"
    sources = [PROGRAMS / "hostile_ruby.c", PROGRAMS / "truth.c"]
    command = ["gcc", *flags, "-pthread", *sources, library, "-Wl,-rpath,$ORIGIN", "-o", program]
    subprocess.run(command, check=True)
    return program


class Recorder:
    """Keeps the samples that a session gets."""

    def __init__(self, session: Session) -> None:
        self.samples: dict[int, StackSample] = {}
        self._take = session._probe.take_samples
        session._probe.take_samples = self._recorded  # type: ignore[method-assign]

    def _recorded(self) -> Iterator[Any]:
        for sample in self._take():
            if isinstance(sample, StackSample):
                self.samples[sample.child] = sample
            yield sample


def trace_hostile(
    program: Path, *arguments: str
) -> tuple[list[StackSample], list[Stack], Walk, list[tuple[str | None, int | None]]]:
    """The samples and stacks of its forks, and how the walk from user space ends on its last state, with its lines."""
    build.build_walker("ruby", build.Options())
    with (
        running([program, "--wait", *arguments]) as process,
        Session(options_for(process.pid), record_changes=True) as session,
    ):
        recorder = Recorder(session)
        session.start()
        session.step()
        process.go()
        said = while_stepping(session, process.truth)
        session.drain()
        space = maps.parse(Path(f"/proc/{process.pid}/maps").read_text())
        found = session._stacks._scripts.found(recorder.samples[said[0]["pid"]].image)
        assert found is not None
        assert found.value
        with Memory(process.pid, space) as memory:
            walked = ruby.walk(memory, found.value, said[-1]["thread"])
        lines = [(ruby.decode(record, "3.1.2").function, position) for record, position, _ in walked.frames]
        session.finish()
        tasks = {task.pid: task for task in session.graph.take_changed()}
        stacks = [session._stacks.stack(tasks[each["pid"]].stack) for each in said]
        # A stack that is known by then is not sent again.
        sent = {tasks[pid].stack: sample for pid, sample in recorder.samples.items() if pid in tasks}
        return [sent[stack.id] for stack in stacks], stacks, walked.walk, lines


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_walk_ends_with_a_reason(hostile: Path, scenario: str) -> None:
    (sample,), (stack,), walk, _ = trace_hostile(hostile, scenario)
    assert Walk(sample.walk) == SCENARIOS[scenario]
    assert walk == SCENARIOS[scenario]  # in user space as in the kernel
    assert "rb_vm_exec" in [frame.function for frame in stack.frames]


def test_whatever_the_memory_holds(hostile: Path) -> None:
    samples, stacks, walk, lines = trace_hostile(hostile, "random", str(FORKS))
    ends = Counter(Walk(sample.walk) for sample in samples)
    assert ends[Walk.NONE] == 0
    assert ends[Walk.BROKEN] > FORKS / 4
    assert ends[Walk.UNREADABLE] > FORKS / 20
    assert all(stack.frames[0].language == "native" for stack in stacks)
    assert walk == samples[-1].walk
    assert len(lines) == len(samples[-1].frames)
    assert [line for _, line in lines] == [position for _, position, _ in samples[-1].frames]
