"""A symbolized stack -> the same stack with the library of each frame, their chain, and who is to blame.

The last step between ``stacks`` and the model in ``tracer.trace``.  Blame goes outward from the fork: whoever forks
because it was asked to is passed over, the first one that is left answers for the child.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tracer.blame.languages import STANDARD_LIBRARY, Languages, interpreter_version, is_standard
from tracer.blame.library import ANONYMOUS, Libraries, Module
from tracer.blame.owner import Owner
from tracer.blame.packages import Packages
from tracer.blame.rules import Role, Rules
from tracer.trace import Frame, Library, Stack

if TYPE_CHECKING:
    from tracer.stacks.files import Root


@dataclass(frozen=True, slots=True)
class _Link:
    """Neighbouring frames of one library.  ``library`` carries the place of the innermost one."""

    library: Library
    role: Role


class Blamer:
    """Attributes stacks.  State: what ``Libraries`` and ``Languages`` have learnt of the files."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or Rules.shipped()
        packages = Packages()
        self._languages = Languages(packages)
        self._libraries = Libraries(self._rules, packages, self._languages)

    def library_of(self, module: Module) -> Library:
        """The library that a mapped file belongs to, without a place in it."""
        return self._libraries.of(module)

    def attribute(
        self,
        stack: Stack,
        modules: Mapping[str, Module],
        root: Root | None = None,
        directory: str | None = None,
    ) -> Stack:
        """Fill in ``library`` of each frame, ``chain``, ``forked_by`` and ``responsible``.

        modules: the process's modules by path.  A frame whose library is known already keeps it, unless the rules
        rename it; one whose module is not among them is named by its path alone.  root: the process's root
        directory, where the files of interpreted frames are looked for; by default that of a module.  directory: its
        working directory as it sees it, for scripts with relative names.  Both answers are None only for a stack
        without frames.
        """
        if root is None:
            root = next((module.root for module in modules.values() if module.root is not None), None)
        owners = self._owners(stack.frames, modules, root, directory)
        frames = tuple(
            frame if frame.library is owner.library else replace(frame, library=_at(frame, owner.library))
            for frame, owner in zip(stack.frames, owners, strict=True)
        )
        links = self._links(frames, owners)
        forked_by, responsible = _answers(links, any(frame.language != "native" for frame in frames))
        return replace(
            stack,
            frames=frames,
            chain=tuple(link.library for link in links),
            forked_by=forked_by,
            responsible=responsible,
        )

    def _owners(
        self, frames: Sequence[Frame], modules: Mapping[str, Module], root: Root | None, directory: str | None
    ) -> list[Owner]:
        """The owner of each frame."""
        for frame in frames:
            if path := frame.module or frame.file:
                self._languages.notice(path, root)
        found = [self._owner(frame, modules, root, directory) for frame in frames]
        owners: list[Owner] = []
        # of each language, the nearest outer one: code that was made at run time is theirs
        callers: dict[str, Owner] = {}
        for frame, owner in zip(reversed(frames), reversed(found), strict=True):
            if owner is None:
                caller = callers.get(frame.language)
                made = Owner(Library("app", frame.file or frame.language))
                owner = made if caller is None or caller.standard else caller
            if frame.language != "native":
                callers[frame.language] = owner
            owners.append(owner)
        owners.reverse()
        return self._versioned(owners, modules)

    def _owner(
        self, frame: Frame, modules: Mapping[str, Module], root: Root | None, directory: str | None
    ) -> Owner | None:
        if renamed := self._rules.renamed(frame.file if frame.language != "native" else frame.module):
            return renamed
        if frame.library is not None:
            return Owner(frame.library, is_standard(frame.library, frame.file))
        if frame.language != "native":
            return self._languages.owner(frame, root, directory)
        if frame.module is None:
            return Owner(ANONYMOUS)
        if frame.module in modules:
            return Owner(self._libraries.of(modules[frame.module]))
        return Owner(self._libraries.unpackaged(frame.module))

    def _versioned(self, owners: list[Owner], modules: Mapping[str, Module]) -> list[Owner]:
        """Some of a language's own code lies in no file: its version is that of the rest of the stack."""
        nameless = {owner.library.name for owner in owners if _lacks_version(owner)}
        if not nameless:
            return owners
        known: dict[str, str | None] = {
            owner.library.name: owner.library.version
            for owner in owners
            if owner.library.kind == "stdlib" and owner.library.version is not None
        }
        for name in nameless - known.keys():
            known[name] = interpreter_version(name, modules, lambda path: self._libraries.of(modules[path]))
        return [
            replace(owner, library=replace(owner.library, version=known[owner.library.name]))
            if _lacks_version(owner)
            else owner
            for owner in owners
        ]

    def _links(self, frames: Sequence[Frame], owners: Sequence[Owner]) -> list[_Link]:
        links: list[_Link] = []
        for frame, owner in zip(frames, owners, strict=True):
            library = frame.library
            if library is None:
                continue
            same = bool(links) and _same(links[-1].library, library)
            # of one standard library, one file starts processes for others and the next does not
            if not same or owner.standard:
                role = self._rules.role(frame, owner)
                if not same or role is not links[-1].role:
                    links.append(_Link(library, role))
        return links


def _lacks_version(owner: Owner) -> bool:
    library = owner.library
    return library.kind == "stdlib" and library.version is None and library.name in STANDARD_LIBRARY.values()


def _at(frame: Frame, library: Library) -> Library:
    return replace(library, file=frame.file, line=frame.line, function=frame.function)


def _same(one: Library, other: Library) -> bool:
    """One library, whatever the place in it.  A package has several files, and so several build ids."""
    if (one.kind, one.name, one.version) != (other.kind, other.name, other.version):
        return False
    return one.kind not in ("elf", "app") or one.build_id == other.build_id


def _answers(links: list[_Link], has_interpreted_frames: bool) -> tuple[Library | None, Library | None]:
    """(forked_by, responsible).

    An interpreter is passed over when the frames of the code that it runs are on the stack, and so is the language's
    own library.  When they are not, that code stood where the interpreter stands: to look further out would blame
    those who only embed the interpreter.
    """
    passed = {Role.RUNTIME, Role.INTERPRETER} if has_interpreted_frames else {Role.RUNTIME}
    own = [link for link in links if link.role not in passed and link.library.kind == "stdlib"]
    others = [link for link in links if link.library.kind != "stdlib"]
    forked_by = (
        _innermost(others, passed | {Role.STANDARD})
        # nothing but the language: whoever in it acts by itself
        or _innermost(own, {Role.WRAPPER})
        or _innermost(own, set())
        or _innermost(links, {Role.RUNTIME})
        or _innermost(links, set())
    )
    responsible = _innermost(others, passed | {Role.STANDARD, Role.WRAPPER}) or forked_by
    return forked_by, responsible


def _innermost(links: list[_Link], passed: set[Role]) -> Library | None:
    return next((link.library for link in links if link.role not in passed), None)
