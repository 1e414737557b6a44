"""Which children an export is about, and what a stack of them weighs; labels of frames that are safe on one line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import PurePosixPath

from tracer.errors import ForktraceError
from tracer.report.escape import visible
from tracer.report.layout import shorten
from tracer.trace import Frame, Process, Stack, Tally, Trace

FATES = tuple(each.name for each in fields(Tally) if each.name != "forks")
NEVER_WAITED = ("zombie", "orphaned")
COUNT, ZOMBIE_SECONDS = WEIGHTS = ("count", "zombie-seconds")
NO_STACK = "[no stack]"
MAX_LABEL = 300  # characters of one name; C++ templates and hostile symbols go on for kilobytes


@dataclass(frozen=True, slots=True)
class Selection:
    """Which children an export is about, by their fates, and what a stack of them weighs.

    With every fate it is about all forks that the trace saw.  Else never-waited ones are those that the report counts:
    without the young zombies, but with the children that were forked before the trace.
    """

    fates: frozenset[str] = frozenset(NEVER_WAITED)
    weight: str = COUNT

    @property
    def all_forks(self) -> bool:
        return self.fates.issuperset(FATES)

    @property
    def never_waited(self) -> bool:
        return self.fates == frozenset(NEVER_WAITED)


LEAKED = Selection()
ALL_FORKS = Selection(frozenset(FATES))


def counts(trace: Trace, selection: Selection) -> Iterator[tuple[Stack, int]]:
    """Each stack and how many of the selected children it forked; a stack may come more than once."""
    if selection.all_forks:
        yield from ((stack, tally.forks) for stack, tally in trace.stacks if tally.forks)
        return
    yield from ((leak.stack, leak.count) for leak in trace.leaks if leak.kind in selection.fates)
    for stack, tally in trace.stacks:
        if others := sum(getattr(tally, fate) for fate in selection.fates.difference(NEVER_WAITED)):
            yield stack, others


def zombie_ns(trace: Trace, selection: Selection) -> list[tuple[Stack, int]]:
    """Each stack and the nanoseconds that the selected children stood as zombies, all together; largest first.

    From a child's death to its reaping, or to the end of the trace.  Raises ``ForktraceError`` where the single
    processes are not known.
    """
    is_meant = chosen(trace, selection)
    sums: defaultdict[int, int] = defaultdict(int)
    stacks: dict[int, Stack] = {}
    for process in single(trace):
        if is_meant(process) and (stood := round(process.zombie_s(trace.duration_s) * 1e9)):
            sums[process.stack.id] += stood
            stacks[process.stack.id] = process.stack
    return sorted(
        ((stacks[ident], ns) for ident, ns in sums.items()), key=lambda each: (-each[1], each[0].id)
    )


def weights(trace: Trace, selection: Selection) -> Iterator[tuple[Stack, int]]:
    """Children, or milliseconds as a zombie: the formats that this is for have no fractions."""
    if selection.weight == COUNT:
        yield from counts(trace, selection)
    else:
        yield from ((stack, ms) for stack, ns in zombie_ns(trace, selection) if (ms := round(ns / 1e6)))


def single(trace: Trace) -> Iterator[Process]:
    if trace.processes is None:
        raise ForktraceError(
            "this trace has counts, but no single processes", "a capture has them: forktrace -p PID -o FILE"
        )
    yield from trace.processes


def chosen(trace: Trace, selection: Selection) -> Callable[[Process], bool]:
    """Whether a process is one of those that ``counts`` counts."""

    def every(process: Process) -> bool:
        return not process.root and not process.pre_existing

    def some(process: Process) -> bool:
        if process.root or process.fate not in selection.fates:
            return False
        stood_ns = round(process.zombie_s(trace.duration_s) * 1e9)
        return process.fate != "zombie" or stood_ns >= round(trace.min_age_s * 1e9)

    return every if selection.all_forks else some


def selected(selection: Selection) -> Callable[[Process], bool]:
    """Whether an export of single processes shows one: by its fate alone, and the targets always."""

    def is_meant(process: Process) -> bool:
        return process.root or process.fate in selection.fates

    return is_meant


def labels(stack: Stack) -> list[tuple[str, Frame | None]]:
    """Root first: a label and its frame; None for what stands in a frame's place.

    A stack that ends early gets a root that says why, so that it is not taken for one that began there.
    """
    if not stack.frames:
        return [(NO_STACK, None)]
    frames: list[tuple[str, Frame | None]] = [(label(frame), frame) for frame in reversed(stack.frames)]
    if stack.cut is not None:
        frames.insert(0, (f"[cut: {short(stack.cut)}]", None))
    return frames


def label(frame: Frame) -> str:
    """``function (library)``; always with the parenthesis, or a name that ends in a number would read as a count."""
    owner = frame.library.name if frame.library else PurePosixPath(frame.module).name if frame.module else ""
    function = frame.function
    if not function:
        function = f"+{frame.offset:#x}" if frame.offset is not None else "?"
    return f"{short(function)} ({short(owner) or 'anonymous memory'})"


def short(text: str) -> str:
    """A name on one line, not longer than a person reads."""
    return shorten(visible(text), MAX_LABEL)
