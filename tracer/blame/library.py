"""A mapped file -> the library it belongs to: a language's package, the distribution's, or the file itself.

It stands between ``stacks`` (whose modules it is given) and ``attribute``.  Answers are kept: a trace asks about the
same few files for every stack.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from tracer.blame.languages import Languages
from tracer.blame.packages import Packages
from tracer.blame.rules import Role, Rules
from tracer.stacks.elf import BadElf, ElfFile
from tracer.trace import Library

if TYPE_CHECKING:
    from tracer.stacks.files import Root

MAX_ANSWERS = 1 << 16
ANONYMOUS = Library("unknown", "anonymous memory")

# "libfoo.so.1.2": a single number would be the ABI's, which is part of the name.
_VERSIONED = re.compile(r"(?P<name>.+)\.so\.(?P<version>\d+(?:\.\d+)+)", re.ASCII)
_SHARED_OBJECT = re.compile(r".*\.(?:so(?:\.[\w.+-]+)?|node|jnilib|dll)")
_NO_FILE = re.compile(
    r"//anon|/dev/zero|/memfd:.*|/SYSV[0-9a-f]{8}|anon_inode:.*|\[(?!vdso\]|vsyscall\]).*", re.DOTALL
)


class Module(Protocol):
    """A mapped file, as ``tracer.stacks.modules`` describes it.

    path: as the process sees it.  build_id: hexadecimal.  root: where the path leads to the file, None for the vdso.
    """

    @property
    def path(self) -> str: ...
    @property
    def build_id(self) -> str | None: ...
    @property
    def root(self) -> Root | None: ...


class Libraries:
    """Names the library of each module.  State: the answers so far."""

    def __init__(self, rules: Rules, packages: Packages, languages: Languages) -> None:
        self._rules = rules
        self._packages = packages
        self._languages = languages
        self._answers: dict[Hashable, Library] = {}

    def of(self, module: Module) -> Library:
        """The library without a place in it (file, line and function are None)."""
        key = module.root.key if module.root is not None else None, module.path, module.build_id
        library = self._answers.get(key)
        if library is None:
            if len(self._answers) >= MAX_ANSWERS:
                self._answers.clear()
            library = self._answers[key] = self._find(module)
        return library

    def _find(self, module: Module) -> Library:
        if not module.path or _NO_FILE.fullmatch(module.path):
            return ANONYMOUS
        if module.root is not None:
            library = self._languages.owner_of_native(module.path, module.root) or self._packages.owner(
                module.root, module.path
            )
            if library is not None:
                version = None if _was_replaced(module, module.root) else library.version
                return replace(library, version=version, build_id=module.build_id)
        return self.unpackaged(module.path, module.build_id)

    def unpackaged(self, path: str, build_id: str | None = None) -> Library:
        """The file stands for itself.  A program that no package owns is the application, unless it runs scripts."""
        name = PurePosixPath(path).name or path
        if versioned := _VERSIONED.fullmatch(name):
            return Library("elf", versioned["name"], versioned["version"], build_id=build_id)
        is_program = path.startswith("/") and not _SHARED_OBJECT.fullmatch(name)
        kind = "app" if is_program and self._rules.role_of_file(path) is Role.OTHER else "elf"
        return Library(kind, name, build_id=build_id)


def _was_replaced(module: Module, root: Root) -> bool:
    """The file on disk is another one than is mapped: an upgrade, of which the database knows the new version only."""
    if module.build_id is None:
        return False
    try:
        return ElfFile.from_fd(root.open(module.path), module.path).build_id != module.build_id
    except (BadElf, OSError):
        return True
