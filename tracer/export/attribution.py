"""What the exports count: children by the stack that forked them, root first, with labels that are safe on one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from tracer.report.escape import visible
from tracer.report.layout import shorten
from tracer.trace import Frame, Stack, Trace

NEVER_WAITED = ("zombie", "orphaned")
NO_STACK = "[no stack]"
MAX_LABEL = 300  # characters of one name; C++ templates and hostile symbols go on for kilobytes


def counts(trace: Trace, all_forks: bool = False) -> Iterator[tuple[Stack, int]]:
    """Each stack, and how many children of it were never waited for (as the report counts), or all it forked."""
    if all_forks:
        yield from ((stack, tally.forks) for stack, tally in trace.stacks if tally.forks)
    else:
        yield from ((leak.stack, leak.count) for leak in trace.leaks if leak.kind in NEVER_WAITED)


def labels(stack: Stack) -> list[tuple[str, Frame | None]]:
    """Root first: a label and its frame; None for what stands in a frame's place.

    A stack that ends early gets a root that says why, so that it is not taken for one that began there.
    """
    if not stack.frames:
        return [(NO_STACK, None)]
    frames: list[tuple[str, Frame | None]] = [(label(frame), frame) for frame in reversed(stack.frames)]
    if stack.cut is not None:
        frames.insert(0, (f"[cut: {_short(stack.cut)}]", None))
    return frames


def label(frame: Frame) -> str:
    """``function (library)``; always with the parenthesis, or a name that ends in a number would read as a count."""
    owner = frame.library.name if frame.library else PurePosixPath(frame.module).name if frame.module else ""
    function = frame.function
    if not function:
        function = f"+{frame.offset:#x}" if frame.offset is not None else "?"
    return f"{_short(function)} ({_short(owner) or 'anonymous memory'})"


def _short(text: str) -> str:
    return shorten(visible(text), MAX_LABEL)
