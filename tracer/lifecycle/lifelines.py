"""From the tasks of the graph to ``trace.Process``: single lives, for the exports that draw or list them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tracer import trace
from tracer.lifecycle.summary import NO_STACK, exit_name, merged_ids, with_placeholders
from tracer.lifecycle.task import PRE_EXISTING, Task


def processes(
    tasks: Iterable[Task], stacks: Mapping[int, trace.Stack], start_ns: int
) -> Iterator[trace.Process]:
    """One for one.  Stacks that read the same are one, as in ``summarize``; start_ns: CLOCK_BOOTTIME."""
    known = with_placeholders(stacks)
    stack_of = {ident: known[merged] for ident, merged in merged_ids(known).items()}
    for task in tasks:
        yield trace.Process(
            id=task.id,
            parent=task.parent,
            forker=task.forker,
            fate=task.fate.value,
            stack=stack_of.get(task.stack, NO_STACK),
            comm=task.comm,
            fork_comm=task.fork_comm,
            ns_pid=task.ns_pid,
            execs=task.execs,
            forked_s=_seconds(task.forked_ns, start_ns),
            exited_s=_seconds(task.exited_ns, start_ns),
            exit=None if task.exit_code is None else exit_name(task.exit_code),
            reaped_s=_seconds(task.reaped_ns, start_ns),
            reaper=task.reaper,
            reaped_by=task.reaped_by_call,
            root=task.root,
            pre_existing=task.stack == PRE_EXISTING,
        )


def _seconds(at_ns: int, start_ns: int) -> float | None:
    return (at_ns - start_ns) / 1e9 if at_ns else None
