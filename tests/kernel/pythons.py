"""The CPythons that this machine has, and tests/programs/py_forks.py traced under one of them.

Others come from chroots (scripts/interpreter-matrix).
"""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from interpreted import PROGRAMS, running
from tracing import options_for, while_stepping

from tracer.lifecycle.task import Task
from tracer.probe import build
from tracer.session import Session
from tracer.stacks.interpreters.python import MINORS
from tracer.trace import Stack, Trace

FILES: Final = ("py_forks.py", "py_witness.py", "py_witness_installed.py")
CUT_NAME: Final = 60  # characters at least are left of a name or a path that is too long
Place = tuple[str | None, str | None, int | None]  # file, function, line


def pythons() -> list[Path]:
    """Each supported CPython of the machine, and that of the tests, once."""
    found = [Path(sys.executable)]
    for minor in MINORS:
        name = f"python3.{minor}"
        found += [Path("/usr/bin") / name, Path("/usr/local/bin") / name]
        found += sorted((Path.home() / ".pyenv/versions").glob(f"3.{minor}.*/bin/{name}"))
    there = {path.resolve(): path for path in reversed(found) if path.is_file()}
    return sorted(there.values())


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


def trace_python(command: Sequence[str | Path], directory: Path, cases: Sequence[str] = ()) -> Traced:
    """py_forks.py from its "go" until it is ready, with the walker there from the first fork on.

    command: the interpreter, with options.  directory: empty; the program is copied there.
    """
    build.build_walker("python", build.Options())  # into the cache: loading it takes no time then
    work = directory / "work"
    work.mkdir()
    for file in FILES:
        shutil.copy(PROGRAMS / file, directory)
    program_command = [*command, directory / FILES[0], "--wait", work, *cases]
    with (
        running(program_command) as program,
        Session(options_for(program.pid), record_changes=True) as session,
    ):
        session.start()
        session.step()
        program.go()
        said = while_stepping(session, program.truth)
        trace = session.finish()
        tasks = sorted((t for t in session.graph.take_changed() if t.forker), key=lambda t: t.forked_ns)
        forks = matched([line for line in said if "forker" in line], tasks, session)
        missing = {line["no"]: line["why"] for line in said if "no" in line}
        return Traced(program.hello["version"], forks, missing, trace, len(session._stacks))


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
