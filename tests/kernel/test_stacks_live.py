"""The stacks of forks on this kernel, against programs that know where they fork from."""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from support import Program
from tracing import Traced, options_for, step_until_ready, trace_program

from tracer.records import StackSample
from tracer.session import Session
from tracer.trace import Frame, Stack

pytestmark = pytest.mark.kernel

SOURCES: Final = Path(__file__).parent.parent / "programs"
WAYS: Final = ("fork", "vfork", "posix_spawn", "system", "popen", "clone", "raw_clone", "deep", "double_fork",
               "exec_double_fork")  # fmt: skip
THREADED: Final = tuple(f"thread_{way}" for way in WAYS)
LIBC_ENDS: Final = {
    "main": ("__libc_start_call_main", "__libc_start_main", "_start"),
    "thread": ("start_thread", "clone3"),
}
Start = Callable[..., Program]


def stacks_of(traced: Traced) -> dict[int, Stack]:
    """By id, as the report has them."""
    return {stack.id: stack for stack, _ in traced.trace.stacks}


def of_file(stack: Stack, name: str) -> tuple[tuple[str | None, int | None], ...]:
    """Functions and lines of the frames from one source file, leaf first."""
    return tuple((f.function, f.line) for f in stack.frames if f.file and Path(f.file).name == name)


def is_libc(frame: Frame) -> bool:
    return frame.module is not None and Path(frame.module).name.startswith(("libc.so", "libc-", "libpthread"))


def line_of(source: str, text: str) -> int:
    """The one line of a source file that has this text."""
    (line,) = (n for n, row in enumerate((SOURCES / source).read_text().splitlines(), 1) if text in row)
    return line


def test_the_programs_ways_are_those_tested_here(programs: Path) -> None:
    listed = subprocess.run([programs / "spawners", "--list"], capture_output=True, text=True, check=True)
    assert sorted(listed.stdout.split()) == sorted(WAYS + THREADED)


@pytest.mark.parametrize("way", WAYS + THREADED)
def test_every_way_to_fork_has_the_stack_that_the_program_knows(start: Start, way: str) -> None:
    program = start("spawners", way, 3, wait=True)
    traced = trace_program(program)
    assert traced.trace.incomplete_because == ()
    expected: Counter[tuple[Any, ...]] = Counter()
    for line in traced.said:
        expected[tuple((function, number) for function, number in line["frames"])] += line["forks"]
    found: Counter[tuple[Any, ...]] = Counter()
    for stack, tally in traced.trace.stacks:
        found[of_file(stack, "spawners.c")] += tally.forks
        assert stack.cut is None
        names = tuple(frame.function for frame in stack.frames)
        threaded = "in_a_thread" in names
        assert names[-1] in (("clone3", "__clone3", "clone", "__clone") if threaded else ("_start",)), names
        ours = [frame for frame in stack.frames if not is_libc(frame)]
        assert len(ours) == len(of_file(stack, "spawners.c")) + (not threaded)  # and _start
        leaf = stack.frames[0]
        assert is_libc(leaf) and leaf.function
    assert found == expected


def test_the_leaking_library_is_named_with_file_and_line(start: Start) -> None:
    traced = trace_program(start("leaky_main", 5, 1, wait=True))
    (leak,) = traced.trace.leaks
    frames = leak.stack.frames
    assert leak.count == 5
    named = [f for f in frames if f.file and Path(f.file).name in ("leaky.c", "leaky_main.c")]
    assert [(f.function, Path(f.file or "").name, f.line, Path(f.module or "").name) for f in named] == [
        ("leaky_spawn_helper", "leaky.c", line_of("leaky.c", "pid_t pid = fork();"), "libleaky.so.1.2"),
        (
            "leaky_request",
            "leaky.c",
            line_of("leaky.c", "pid_t pid = leaky_spawn_helper(what);"),
            "libleaky.so.1.2",
        ),
        ("main", "leaky_main.c", line_of("leaky_main.c", 'leaky_request("request")'), "leaky_main"),
    ]
    before, after = frames[: frames.index(named[0])], frames[frames.index(named[-1]) + 1 :]
    assert before and all(is_libc(frame) for frame in before)
    assert [is_libc(frame) for frame in after] == [True] * (len(after) - 1) + [False]
    assert frames[-1].function == "_start"
    assert leak.stack.cut is None
    assert leak.stack.responsible is not None
    assert (leak.stack.responsible.name, leak.stack.responsible.line) == ("libleaky", named[0].line)


class Samples:
    """Counts the stacks that the kernel did not recognise."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        add = session._stacks.add

        def counting(sample: StackSample) -> int:
            self.count += 1
            return add(sample)

        monkeypatch.setattr(session._stacks, "add", counting)


def test_one_call_site_is_one_stack_that_the_kernel_recognises(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start("spawners", "fork", 1000, wait=True)
    with Session(options_for(program.pid), record_changes=True) as session:
        samples = Samples(session, monkeypatch)
        session.start()
        program.go()
        step_until_ready(session, program)
        trace = session.finish()
        children = [task for task in session.graph.take_changed() if not task.root]
    assert trace.totals.forks == 1000
    assert len({child.stack for child in children}) == 1
    assert samples.count < 300  # those forked before the first batch was unwound


@pytest.mark.parametrize("sites", [2, 4, 8])
def test_call_sites_with_one_stack_pointer_are_never_confused(
    start: Start, monkeypatch: pytest.MonkeyPatch, sites: int
) -> None:
    """Eight share image, ip and sp: more than the kernel keeps ways for."""
    program = start("alternate", sites, 2000, wait=True)
    with Session(options_for(program.pid), record_changes=True) as session:
        samples = Samples(session, monkeypatch)
        session.start()
        program.go()
        said = step_until_ready(session, program)
        trace = session.finish()
        children = [task for task in session.graph.take_changed() if not task.root]
    stacks = {stack.id: stack for stack, _ in trace.stacks}
    assert sites_of(children, stacks) == {line["pid"]: line["function"] for line in said}
    assert len({child.stack for child in children}) == sites
    if sites <= 4:  # after the first batch
        assert samples.count < 1000


def sites_of(children: list[Any], stacks: dict[int, Stack]) -> dict[int, str | None]:
    """By pid, the function right below fork_below."""
    found = {}
    for child in children:
        names = [frame.function for frame in stacks[child.stack].frames]
        found[child.pid] = names[names.index("fork_below") + 1]
    return found


def test_after_exec_no_stack_of_the_program_before_it_is_used(
    programs: Path, tmp_path: Path, start: Start
) -> None:
    """The next program has the same code at the same addresses and stack pointers, under other names."""
    for directory, name in (("a", "alternate"), ("b", "alternate_shifted")):
        (tmp_path / directory).mkdir()
        shutil.copy(programs / name, tmp_path / directory / "alternate")
    first, second = tmp_path / "a/alternate", tmp_path / "b/alternate"
    program = start(str(first), 2, 50, 6, second, first, wait=True)
    traced = trace_program(program)
    truth = {line["pid"]: line["function"] for line in traced.said if "function" in line}
    assert len(truth) == 300
    assert len(set(truth.values())) == 4
    assert sites_of(traced.children, stacks_of(traced)) == truth


def test_a_library_at_the_address_of_another_gives_no_stale_stack(programs: Path, start: Start) -> None:
    """As far as the number of mapped code pages differs.

    Not covered: a library of the same number of pages at the same address, whose forks are recognised as those of the
    library before it if its call stands at the same offset; and a library that is closed within milliseconds of the
    fork, before the memory map could be read.
    """
    libraries = [
        argument
        for name in ("alpha", "gamma")
        for argument in (programs / f"plugin_{name}.so", f"fork_by_{name}")
    ]
    traced = trace_program(start("plugins", 10, 4, *libraries, wait=True))
    truth = {line["pid"]: line["function"] for line in traced.said}
    stacks = stacks_of(traced)
    found = {}
    for child in traced.children:
        frames = stacks[child.stack].frames
        (plugin,) = (frame for frame in frames if frame.module and "plugin_" in frame.module)
        found[child.pid] = plugin.function
        assert f"plugin_{str(plugin.function).removeprefix('fork_by_')}.so" in str(plugin.module)
    assert found == truth
    assert len({line["address"] for line in traced.said}) < 8, "no address was used twice: nothing was tested"


PYTHON = """
import os, subprocess, sys
print('{"hello": "python", "pid": %d}' % os.getpid(), flush=True)
sys.stdin.readline()
for _ in range(3):
    subprocess.Popen(["/bin/true"]).wait()
    os.system("/bin/true")
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
print('{"ready": true}', flush=True)
sys.stdin.read()
"""
RUBY = """
puts '{"hello": "ruby", "pid": %d}' % Process.pid
$stdout.flush
$stdin.gets
3.times do
  Process.wait(spawn("/bin/true"))
  system("/bin/true")
  Process.wait(fork { exit! })
  `/bin/true`
end
puts '{"ready": true}'
$stdout.flush
$stdin.read
"""


@pytest.mark.parametrize(("interpreter", "source"), [("/usr/bin/python3", PYTHON), ("/usr/bin/ruby", RUBY)])
def test_an_interpreters_stack_reaches_the_threads_start(
    start: Start, tmp_path: Path, interpreter: str, source: str
) -> None:
    if not Path(interpreter).exists():
        pytest.skip(f"{interpreter} is not installed")
    script = tmp_path / "program"
    script.write_text(f"#!{interpreter}\n{textwrap.dedent(source)}")
    script.chmod(0o755)
    traced = trace_program(start(str(script), wait=True))
    assert traced.trace.totals.forks >= 9
    # The walker over the script's frames, once it is there, puts them in place of the interpreter's own.
    interpreted = [
        stack
        for stack, _ in traced.trace.stacks
        if any(
            frame.language in ("python", "ruby") or re.search("python|libruby", str(frame.module))
            for frame in stack.frames
        )
    ]
    # The others are of shells, which may be gone before their memory map is read.
    assert len(interpreted) >= 3
    assert [stack for stack in interpreted if stack.cut] == []
    for stack in interpreted:
        native = [frame for frame in stack.frames if frame.language == "native"]
        assert [frame for frame in native if frame.module is None] == []
        assert "__libc_start_main" in [frame.function for frame in native[-2:]]
