"""Traces a program of tests/programs with the real session, and gives its own account beside the trace's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support import Program

from tracer.lifecycle.task import Task
from tracer.probe.probe import ProbeOptions
from tracer.session import Session, SessionOptions
from tracer.trace import Trace


@dataclass(frozen=True)
class Traced:
    """said: what the program printed.  tasks: every process that the graph ever held, the program itself included."""

    pid: int
    said: list[dict[str, Any]]
    tasks: list[Task]
    trace: Trace

    @property
    def children(self) -> list[Task]:
        return [task for task in self.tasks if not task.root]


def options_for(pid: int, **probe: Any) -> SessionOptions:
    """Trace this process; a zombie counts however short it stood."""
    return SessionOptions(pids=(pid,), min_age_s=0, probe=ProbeOptions(**probe))


def trace_program(
    program: Program, before_the_end: Callable[[Session], None] = lambda _: None, **probe: Any
) -> Traced:
    """Trace a program that was started with ``wait=True`` from its first instruction until it is ready."""
    with Session(options_for(program.pid, **probe), record_changes=True) as session:
        session.start()
        program.go()
        said = step_until_ready(session, program)
        before_the_end(session)
        trace = session.finish()
        return Traced(program.pid, said, session.graph.take_changed(), trace)


def step_until_ready(session: Session, program: Program) -> list[dict[str, Any]]:
    """Run the session until the program has said all that it knows."""
    return while_stepping(session, program.truth)


def while_stepping(session: Session, work: Callable[[], Any]) -> Any:
    """Do ``work`` in a thread and run the session meanwhile.  Raises what the work raises, a skip as well."""
    result: list[Any] = []
    problem: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # a skip is no Exception
            problem.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        session.step()
    thread.join()
    if problem:
        raise problem[0]
    return result[0]
