"""A symbolized stack -> the same stack with the library of each frame, their chain, and who is to blame.

The last step between ``stacks`` and the model in ``tracer.trace``.  Blame goes outward from the fork: whoever forks
because it was asked to is passed over, the first one that is left answers for the child.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tracer.blame.library import ANONYMOUS, Libraries, Module
from tracer.blame.rules import Role, Rules
from tracer.trace import Frame, Library, Stack


@dataclass(frozen=True, slots=True)
class _Link:
    """Neighbouring frames of one library.  ``library`` carries the place of the innermost one."""

    library: Library
    role: Role


class Blamer:
    """Attributes stacks.  State: what ``Libraries`` has learnt of the modules."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or Rules.shipped()
        self._libraries = Libraries(self._rules)

    def library_of(self, module: Module) -> Library:
        """The library that a mapped file belongs to, without a place in it."""
        return self._libraries.of(module)

    def attribute(self, stack: Stack, modules: Mapping[str, Module]) -> Stack:
        """Fill in ``library`` of each frame, ``chain``, ``forked_by`` and ``responsible``.

        modules: the process's modules by path.  A frame whose library is known already keeps it; one whose module
        is not among them is named by its path alone.  Both answers are None only for a stack without frames.
        """
        frames = tuple(self._with_library(frame, modules) for frame in stack.frames)
        links = self._links(frames)
        forked_by, responsible = _answers(links, any(frame.language != "native" for frame in frames))
        return replace(
            stack,
            frames=frames,
            chain=tuple(link.library for link in links),
            forked_by=forked_by,
            responsible=responsible,
        )

    def _with_library(self, frame: Frame, modules: Mapping[str, Module]) -> Frame:
        if frame.library is not None:
            return frame
        if frame.module is None:
            library = ANONYMOUS
        elif frame.module in modules:
            library = self._libraries.of(modules[frame.module])
        else:
            library = self._libraries.unpackaged(frame.module)
        return replace(
            frame, library=replace(library, file=frame.file, line=frame.line, function=frame.function)
        )

    def _links(self, frames: tuple[Frame, ...]) -> list[_Link]:
        links: list[_Link] = []
        for frame in frames:
            library = frame.library
            if library is not None and not (links and _same(links[-1].library, library)):
                links.append(_Link(library, self._rules.role(frame.module, library)))
        return links


def _same(one: Library, other: Library) -> bool:
    """One library, whatever the place in it.  A package has several files, and so several build ids."""
    if (one.kind, one.name, one.version) != (other.kind, other.name, other.version):
        return False
    return one.kind == "deb" or one.build_id == other.build_id


def _answers(links: list[_Link], has_interpreted_frames: bool) -> tuple[Library | None, Library | None]:
    """(forked_by, responsible).

    An interpreter is passed over when the frames of the code that it runs are on the stack.  When they are not, that
    code stood where the interpreter stands: to look further out would blame those who only embed the interpreter.
    """
    passed = {Role.RUNTIME, Role.INTERPRETER} if has_interpreted_frames else {Role.RUNTIME}
    forked_by = _innermost(links, passed) or _innermost(links, {Role.RUNTIME}) or _innermost(links, set())
    responsible = _innermost(links, passed | {Role.WRAPPER}) or forked_by
    return forked_by, responsible


def _innermost(links: list[_Link], passed: set[Role]) -> Library | None:
    return next((link.library for link in links if link.role not in passed), None)
