"""Native and script frames in one stack, leaf first.

The C frames of an interpreter say nothing to a reader: each run of neighbouring ones is replaced by the script frames
that it executed.  Which those are is counted: a C function of the interpreter's loop executes frames up to and with
one that is marked as its entry.  C extensions stay in their place between two runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tracer.trace import Frame


class ScriptFrame(NamedTuple):
    """entry: the outermost frame that its invocation of the C loop executes."""

    function: str | None
    file: str | None
    line: int | None
    entry: bool


def merge(
    native: Sequence[Frame],
    script: Sequence[ScriptFrame],
    language: str,
    is_interpreter: Callable[[Frame], bool],
    is_loop: Callable[[Frame], bool],
) -> tuple[Frame, ...]:
    """is_interpreter: a native frame in the interpreter's own file.  Without script frames the native ones stay."""
    if not script:
        return tuple(native)
    groups = _groups(script)
    runs = _runs(native, is_interpreter)
    loops = [sum(map(is_loop, frames)) if inside else 0 for inside, frames in runs]
    interpreting = [index for index, (inside, _) in enumerate(runs) if inside]
    if sum(loops) < len(groups) and interpreting:
        # A loop without a name (stripped, or cut off with the stack): what is left was executed furthest out.
        loops[interpreting[-1]] += len(groups) - sum(loops)
    merged: list[Frame] = []
    used = 0
    for (inside, frames), count in zip(runs, loops, strict=True):
        if inside and count:
            executed = [each for group in groups[used : used + count] for each in group]
            used += count
            merged += [Frame(each.function, each.file, each.line, None, language) for each in executed]
        elif not inside or not any(loops):
            merged += frames
    for group in groups[used:]:
        merged += [Frame(each.function, each.file, each.line, None, language) for each in group]
    return tuple(merged)


def _groups(script: Sequence[ScriptFrame]) -> list[list[ScriptFrame]]:
    groups: list[list[ScriptFrame]] = [[]]
    for frame in script:
        groups[-1].append(frame)
        if frame.entry:
            groups.append([])
    return groups if groups[-1] else groups[:-1]


def _runs(native: Sequence[Frame], is_interpreter: Callable[[Frame], bool]) -> list[tuple[bool, list[Frame]]]:
    runs: list[tuple[bool, list[Frame]]] = []
    for frame in native:
        inside = is_interpreter(frame)
        if runs and runs[-1][0] == inside:
            runs[-1][1].append(frame)
        else:
            runs.append((inside, [frame]))
    return runs
