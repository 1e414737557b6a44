"""Ruby's frames at each fork, against what the program itself said of its stack on the line that forks.

The machine's own Ruby, and those of other distributions: every directory below FORKTRACE_ROOTS that is the root of one,
as `mmdebstrap --variant=minbase --include=ruby trixie DIRECTORY/trixie` makes it (bullseye: 2.7, trixie: 3.3,
experimental: 3.4), or a program at any path named in FORKTRACE_RUBIES (a static one, say), colons between them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from interpreted import PROGRAMS, running
from tracing import options_for, while_stepping

from tracer.probe import build
from tracer.records import MAX_FILE, MAX_FRAMES, MAX_NAME
from tracer.session import Session
from tracer.trace import Stack, Trace

pytestmark = pytest.mark.kernel

Place = tuple[str | None, str | None, int | None]  # function, file, line

CLASS = re.compile(r"[A-Z]\w*(?:::[A-Z]\w*)*[.#](?=[^ .#]+$)")
TOO_DEEP = "ruby is deeper than the frames that are taken"


class Ruby(NamedTuple):
    """root: the directory that the program is run in, by chroot."""

    program: str
    root: Path | None = None

    def __str__(self) -> str:
        return f"{self.root.name}{self.program}" if self.root else self.program

    def command(self, script: Path, *arguments: str) -> list[str | Path]:
        prefix: list[str | Path] = ["chroot", self.root] if self.root else []
        inside = f"/{script.relative_to(self.root)}" if self.root else str(script)
        return [*prefix, self.program, inside, *arguments]


def rubies(*, static: bool = True) -> Iterator[Ruby]:
    """static: also those that may be unable to load an extension."""
    yield Ruby("/usr/bin/ruby")
    for program in filter(None, os.environ.get("FORKTRACE_RUBIES", "").split(":")) if static else ():
        yield Ruby(program)
    roots = os.environ.get("FORKTRACE_ROOTS")
    for program in sorted(Path(roots).glob("*/usr/bin/ruby[0-9].[0-9]")) if roots else ():
        yield Ruby(f"/usr/bin/{program.name}", program.parents[2])


class Traced(NamedTuple):
    """said: by the program, of each child.  stacks: by child."""

    version: tuple[int, ...]
    said: list[dict[str, Any]]
    stacks: dict[int, Stack]
    trace: Trace


@pytest.fixture(scope="module", params=list(rubies()), ids=str)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    ruby: Ruby = request.param
    with directory_for(ruby, tmp_path_factory.mktemp("ruby")) as directory:
        script = directory / "forks.rb"
        shutil.copy(PROGRAMS / "ruby_forks.rb", script)
        files = directory / "files"
        files.mkdir()
        inside = f"/{files.relative_to(ruby.root)}" if ruby.root else str(files)
        yield trace_ruby(ruby.command(script, "--wait", inside))


@contextmanager
def directory_for(ruby: Ruby, here: Path) -> Iterator[Path]:
    """A temporary one, in the root that the program runs in."""
    if ruby.root is None:
        yield here
        return
    with tempfile.TemporaryDirectory(dir=ruby.root / "tmp") as directory:
        yield Path(directory)


def trace_ruby(command: Sequence[str | Path]) -> Traced:
    build.build_walker("ruby", build.Options())  # into the cache: loading it takes no time then
    with running(command, env={"LANG": "C.UTF-8"}) as program:
        with Session(options_for(program.pid), record_changes=True) as session:
            session.start()
            session.step()
            program.go()
            said = while_stepping(session, program.truth)
            trace = session.finish()
            tasks = {task.pid: task for task in session.graph.take_changed()}
            said += [each for line in said for each in line.pop("children", ())]
            said = [each for each in said if each]
            stacks = {each["pid"]: session._stacks.stack(tasks[each["pid"]].stack) for each in said}
        return Traced(tuple(map(int, program.hello["ruby"].split("."))), said, stacks, trace)


def as_ruby_says(places: list[Place], version: tuple[int, ...]) -> list[Place]:
    """The frames as caller_locations of that version would list them, from the innermost frame in Ruby on."""
    found: list[Place] = []
    file: str | None = None
    line: int | None = None
    for function, own_file, own_line in reversed(places):
        if own_file is not None:
            file, line = own_file, own_line
        name = function or ""
        if version < (3, 4):
            name = CLASS.sub("", name)
        elif name.startswith(("rescue in ", "ensure in ")):
            found.pop()  # it stands for the one that it is part of
            name = name.split(" in ", 1)[1]
        found.append((name, file, line))
    innermost = next(index for index, place in enumerate(places) if place[1] is not None)
    return found[::-1][innermost:]


def ruby_places(stack: Stack) -> list[Place]:
    return [(f.function, f.file, f.line) for f in stack.frames if f.language == "ruby"]


def agree(seen: Place, said: Place) -> bool:
    """The same, or as much of a long name's start and of a long path's end as is kept."""
    (name, file, line), (label, path, number) = seen, said
    return line == number and starts_alike(name or "", label or "") and ends_alike(file or "", path or "")


def starts_alike(seen: str, said: str) -> bool:
    if seen.endswith("…") and len(seen.encode()) > MAX_NAME:
        return CLASS.sub("", said).startswith(CLASS.sub("", seen[:-1]))  # the class is left out, too
    return seen == said


def ends_alike(seen: str, said: str) -> bool:
    return seen == said or (
        seen.startswith("…") and len(seen.encode()) > MAX_FILE and said.endswith(seen[1:])
    )


def test_every_fork_has_the_frames_that_the_program_says(traced: Traced) -> None:
    assert len(traced.said) > 100
    for each in traced.said:
        stack = traced.stacks[each["pid"]]
        seen = as_ruby_says(ruby_places(stack), traced.version)[each["inner"] :]
        said = [(label, path, line) for path, label, _, line in each["frames"]]
        if len(said) > MAX_FRAMES - 2:
            assert stack.cut == TOO_DEEP
            assert len(seen) >= MAX_FRAMES - 3
            said = said[: len(seen)]
        else:
            assert stack.cut is None
        # A fiber's outermost frames in C have no place; ours have that of who resumed it.
        seen = [s if w[1] else (s[0], None, 0) for s, w in zip(seen, said, strict=False)] + seen[len(said) :]
        different = [(s, w) for s, w in zip(seen, said, strict=False) if not agree(s, w)]
        assert not different, each["way"]
        # Further out than caller_locations looks are only those who resumed the fiber.
        assert len(seen) == len(said) or (len(seen) > len(said) and seen[len(said)][0] in RESUMERS)


RESUMERS = {"resume", "Fiber#resume", "next", "Enumerator#next"}


@pytest.mark.parametrize("ruby", list(rubies(static=False)), ids=str)
def test_an_extension_in_c_stays_in_its_place(ruby: Ruby, tmp_path: Path) -> None:
    with directory_for(ruby, tmp_path) as directory:
        build_extension(directory)
        traced = trace_ruby(ruby.command(directory / "ruby_extension.rb", "--wait"))
    (said,) = traced.said
    stack = traced.stacks[said["pid"]]
    assert stack.cut is None
    named = [(f.language, f.function) for f in stack.frames if f.function]
    first = named.index(("native", "forker_fork_once"))
    assert named[first : first + 10] == [
        ("native", "forker_fork_once"),
        ("ruby", "Forker.fork_once"),
        ("ruby", "Object#inner"),
        ("ruby", "block (2 levels) in <main>"),
        ("native", "forker_each"),
        ("ruby", "Forker.each"),
        ("ruby", "block in <main>"),
        ("native", "forker_each"),
        ("ruby", "Forker.each"),
        ("ruby", "<main>"),
    ]
    assert {language for language, _ in named[first + 10 :]} == {"native"}


def build_extension(directory: Path) -> None:
    shutil.copy(PROGRAMS / "ruby_extension.rb", directory)
    library = directory / "ruby_extension.so"
    flags = ["-g", "-O2", "-fPIC", "-shared", "-Wall", "-Werror"]
    subprocess.run(["gcc", *flags, PROGRAMS / "ruby_extension.c", "-o", library], check=True)


@pytest.mark.parametrize("ruby", list(rubies()), ids=str)
def test_the_first_fork_is_read_late(ruby: Ruby, tmp_path: Path) -> None:
    """Before the walker is compiled; the program still stands on the line that forked."""
    with directory_for(ruby, tmp_path) as directory:
        script = directory / "late.rb"
        shutil.copy(PROGRAMS / "ruby_late.rb", script)
        with (
            running(ruby.command(script, "--wait")) as program,
            Session(options_for(program.pid, cache=None), record_changes=True) as session,
        ):
            session.start()
            program.go()
            (said,) = while_stepping(session, program.truth)
            session.finish()
            (child,) = (task for task in session.graph.take_changed() if task.pid == said["pid"])
            stack = session._stacks.stack(child.stack)
    assert stack.read_late
    assert stack.cut is None
    path = f"/{script.relative_to(ruby.root)}" if ruby.root else str(script)
    places = [place for place in ruby_places(stack) if place[1] == path]
    assert places == [
        ("Object#leak", path, said["line"]),
        ("block in <main>", path, said["line"] + 5),
        ("<main>", path, said["line"] + 5),
    ]
