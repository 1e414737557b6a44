"""The CPythons that this machine has, and tests/programs/py_forks.py traced under one of them.

Others come from the roots of other distributions (scripts/interpreter-matrix), as for Ruby.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from interpreted import PROGRAMS, running
from support import wait_until
from tracing import options_for, while_stepping

from tracer.lifecycle.task import Task
from tracer.probe import build
from tracer.session import Session
from tracer.stacks.interpreters.python import MINORS
from tracer.trace import Stack, Trace

FILES: Final = ("py_forks.py", "py_witness.py", "py_witness_installed.py")
CUT_NAME: Final = 60  # characters at least are left of a name or a path that is too long
Place = tuple[str | None, str | None, int | None]  # file, function, line


class Python(NamedTuple):
    """root: the directory that the program is run in, by chroot."""

    program: Path
    root: Path | None = None

    def __str__(self) -> str:
        return f"{self.root.name}:{self.program}" if self.root else str(self.program)

    def command(self) -> list[str | Path]:
        return ["chroot", self.root, self.program] if self.root else [self.program]


def pythons() -> list[Python]:
    """The distribution's CPython and that of the tests; with FORKTRACE_PYTHONS=all each supported one of the machine;
    those of the roots below FORKTRACE_ROOTS."""
    found = [Path(sys.executable), Path("/usr/bin/python3")]
    for minor in MINORS if os.environ.get("FORKTRACE_PYTHONS") == "all" else ():
        name = f"python3.{minor}"
        found += [Path("/usr/bin") / name, Path("/usr/local/bin") / name]
        found += sorted((Path.home() / ".pyenv/versions").glob(f"3.{minor}.*/bin/{name}"))
    there = {path.resolve(): path for path in reversed(found) if path.is_file()}
    roots = os.environ.get("FORKTRACE_ROOTS")
    others = sorted(Path(roots).glob("*/usr/bin/python3.*")) if roots else []
    inside = [
        Python(Path("/usr/bin") / program.name, program.parents[2])
        for program in others
        if program.suffix[1:].isdigit()
    ]
    return [Python(program) for program in sorted(there.values())] + inside


@dataclass(frozen=True)
class Fork:
    """said: py_witness's line.  task, stack: what the trace has of the fork."""

    said: dict[str, Any]
    task: Task
    stack: Stack

    @property
    def case(self) -> str:
        return str(self.said["case"])

    @property
    def wanted(self) -> list[Place]:
        return [tuple(each) for each in self.said["stack"]]  # type: ignore[misc]

    @property
    def seen(self) -> list[Place]:
        return [(f.file, f.function, f.line) for f in self.stack.frames if f.language == "python"]


@dataclass(frozen=True)
class Traced:
    version: str
    forks: list[Fork]
    missing: dict[str, str]  # cases that this Python does not have, and why
    trace: Trace
    stacks: int


def trace_python(python: Python, directory: Path, cases: Sequence[str] = (), light: bool = False) -> Traced:
    """py_forks.py from its "go" until it is ready, with the walker there from the first fork on.

    directory: empty; the program is copied there, or into the interpreter's root.
    """
    with directory_for(python, directory) as place:
        program, work = (within(python, path) for path in copy_program(place))
        return trace_command([*python.command(), program, "--wait", work, *cases], light=light)


@contextmanager
def directory_for(python: Python, directory: Path) -> Iterator[Path]:
    if python.root is None:
        yield directory
        return
    with tempfile.TemporaryDirectory(dir=python.root / "tmp") as inside:
        yield Path(inside)


def within(python: Python, path: Path) -> Path:
    """As the interpreter sees it."""
    return path if python.root is None else Path("/") / path.relative_to(python.root)


def copy_program(directory: Path) -> tuple[Path, Path]:
    """py_forks.py, and an empty directory for it to write to."""
    work = directory / "work"
    work.mkdir()
    for file in FILES:
        shutil.copy(PROGRAMS / file, directory)
    return directory / FILES[0], work


def trace_command(
    command: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    light: bool = False,
    before: int = 0,
) -> Traced:
    """Whatever runs py_forks.py once it is told to go.  before: so often it forks by itself before it is
    ready for that, once it is told to go for the first time.
    """
    build.build_walker(
        "python", build.Options(syscalls=not light)
    )  # to the cache: loading it takes no time then
    with (
        running(command, env=env) as program,
        Session(options_for(program.pid, light=light), record_changes=True) as session,
    ):
        session.start()
        if before:
            program.go()
            while_stepping(session, program.truth)
        wait_until(lambda: session.step() or walker_is_loaded(session), what="the walker")
        program.go()
        said = while_stepping(session, program.truth)
        trace = session.finish()
        tasks = sorted((t for t in session.graph.take_changed() if t.forker), key=lambda t: t.forked_ns)
        forks = matched([line for line in said if "forker" in line], tasks[before:], session)
        missing = {line["no"]: line["why"] for line in said if "no" in line}
        version = next(line["version"] for line in (program.hello, *said) if "version" in line)
        return Traced(version, forks, missing, trace, len(session._stacks))


def walker_is_loaded(session: Session) -> bool:
    walkers = session._probe._walkers
    return "python" in walkers and walkers["python"] is None


def matched(said: list[dict[str, Any]], tasks: list[Task], session: Session) -> list[Fork]:
    """By the forking process, in its order.  Those that never said anything (shells) are none of ours."""
    lines: dict[int, list[dict[str, Any]]] = defaultdict(list)
    forked: dict[int, list[Task]] = defaultdict(list)
    for line in said:
        lines[line["forker"]].append(line)
    for task in tasks:
        forked[task.forker >> 32].append(task)
    found = []
    for forker, those in lines.items():
        assert len(those) == len(forked[forker]), f"process {forker} forked otherwise than it said"
        found += [
            Fork(line, task, session._stacks.stack(task.stack))
            for line, task in zip(those, forked[forker], strict=True)
        ]
    return found


def agree(seen: Place, wanted: Place) -> bool:
    """The same, or as much of a long path's end and of a long name's start as is kept."""
    (file, function, line), (path, name, number) = seen, wanted
    return line == number and ends_alike(file or "", path or "") and starts_alike(function or "", name or "")


def ends_alike(seen: str, wanted: str) -> bool:
    return seen == wanted or (seen[:1] == "…" and len(seen) > CUT_NAME and wanted.endswith(seen[1:]))


def starts_alike(seen: str, wanted: str) -> bool:
    cut = seen[-1:] == "…" and len(seen) > CUT_NAME // 2 and wanted.startswith(seen[:-1])
    return seen == wanted or cut
