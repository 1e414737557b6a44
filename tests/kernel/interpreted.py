"""Traces scripts run by a given interpreter; gives what the stack of each fork says of it beside what it said itself.

A script talks the protocol of truth.h.  Before it forks, it prints {"way": ..., "line": ..., "functions": "inner
outer"}, with "forks": N when it forks more than once from there.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from support import DEADLINE_S, Program
from tracing import options_for, while_stepping

from tracer.probe import build
from tracer.session import Session
from tracer.trace import Stack

PROGRAMS = Path(__file__).parent.parent / "programs"


Place = tuple[str | None, str | None, int | None]  # function, file, line


class Forked(NamedTuple):
    """said: what the script printed before it forked.  seen: its frames on each fork's stack, innermost first."""

    said: dict[str, Any]
    seen: list[list[Place]]


@contextmanager
def running(
    command: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """Started, and waiting for its "go"."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [str(each) for each in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=cwd,
            env={**os.environ, **(env or {})},
        )
        with Program(process, errors, DEADLINE_S) as program:
            yield program


def trace_script(program: Program, walker: str | None, language: str | None = None) -> list[Forked]:
    """From its "go" until it is ready, once its interpreter's walker is there.

    language: of the script's frames, where it goes by another name than its walker.
    """
    if walker:
        build.build_walker(walker, build.Options())  # into the cache: loading it takes no time then
    language = language or walker
    with Session(options_for(program.pid), record_changes=True) as session:
        session.start()
        session.step()
        program.go()
        said = while_stepping(session, program.truth)
        session.finish()
        stacks = session._stacks
        tasks = sorted(
            (task for task in session.graph.take_changed() if task.forker), key=lambda t: t.forked_ns
        )
        places = iter([places_of(stacks.stack(task.stack), language) for task in tasks])
    forked = [Forked(each, list(islice(places, each.get("forks", 1)))) for each in said]
    assert not list(places), "it forked more often than it said"
    return forked


def places_of(stack: Stack, language: str | None) -> list[Place]:
    return [(frame.function, frame.file, frame.line) for frame in stack.frames if frame.language == language]
