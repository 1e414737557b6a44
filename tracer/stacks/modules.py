"""Mapped files, each opened once and kept: what a pc belongs to.

Between ``maps`` and ``unwind``, ``symbolize``.  A module holds its file open, so that names can be found after the
process and even the file are gone.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from tracer.stacks import maps
from tracer.stacks.cfi import CfiTable
from tracer.stacks.debugfile import find_debug_file
from tracer.stacks.elf import BadElf, ElfFile
from tracer.stacks.files import FileRefused, Root, locate_mapped, open_located
from tracer.stacks.lines import LineTable, budget
from tracer.stacks.source import BytesSource, FileSource, Source
from tracer.stacks.symbols import SymbolTables

if TYPE_CHECKING:
    from tracer.stacks.maps import Mapping
    from tracer.stacks.unwind import Step
    from tracer.trace import Frame

VDSO = "[vdso]"
MAX_MODULES = 512
MAX_LINE_TABLES = 4  # files whose line tables are kept in memory at a time
MAX_NOTES = 16


class Module:
    """One mapped file.

    path: as the target sees it, without the kernel's " (deleted)".  elf: None when it cannot be read; ``problem``
    then completes "it ...".  root: the target's root directory, None for the vdso.  build_id: in hexadecimal.
    layouts: what was learnt of the interpreter in it, by its name.
    notes: a sentence for each thing that could not be read of it.  steps, frames: what ``unwind`` and ``symbolize``
    remember, by virtual address.
    """

    def __init__(
        self,
        path: str,
        elf: ElfFile | None,
        problem: str = "",
        root: Root | None = None,
        line_tables: OrderedDict[Module, LineTable] | None = None,
    ) -> None:
        self.path = path
        self.elf = elf
        self.problem = problem
        self.root = root
        self.build_id = elf.build_id if elf else None
        self.cfi = CfiTable(elf) if elf else None
        self.notes: dict[str, None] = {}
        self.layouts: dict[str, tuple[int, ...]] = {}
        self.steps: dict[int, Step | None] = {}
        self.frames: dict[int, Frame] = {}
        self._line_budget = budget()
        self._line_tables: OrderedDict[Module, LineTable] = (
            OrderedDict() if line_tables is None else line_tables
        )

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return PurePosixPath(self.path).name or self.path

    def note(self, sentence: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes[sentence] = None

    @cached_property
    def debug_elf(self) -> ElfFile | None:
        """The separate file with its symbols and line tables, looked for in the target's root."""
        if self.elf is None or self.root is None:
            return None
        return find_debug_file(self.elf, self.path, self.root, self.note)

    @cached_property
    def symbols(self) -> SymbolTables:
        return SymbolTables([elf for elf in (self.elf, self.debug_elf) if elf], self.note)

    @property
    def lines(self) -> LineTable:
        """Line tables, of the file itself or its debug file."""
        kept = self._line_tables
        table = kept.get(self)
        if table is None:
            table = kept[self] = LineTable(
                [elf for elf in (self.elf, self.debug_elf) if elf], self.note, self._line_budget
            )
            if len(kept) > MAX_LINE_TABLES:
                kept.popitem(last=False)
        kept.move_to_end(self)
        return table

    def __repr__(self) -> str:
        return f"Module({self.path!r})"


class Modules:
    """All modules of a trace: at most ``limit`` are kept, the longest unused goes first.

    A module is the same for all processes that map the same file at the same path in the same root directory.
    Whoever still holds a module that went can use it on; its file closes with its last user.
    """

    def __init__(self, limit: int = MAX_MODULES) -> None:
        self._limit = limit
        self._modules: OrderedDict[tuple[object, ...], Module] = OrderedDict()
        self._roots: weakref.WeakValueDictionary[tuple[int, int], Root] = weakref.WeakValueDictionary()
        self._line_tables: OrderedDict[Module, LineTable] = OrderedDict()

    def of(self, pid: int, mapping: Mapping) -> Module | None:
        """The module behind a mapping; None for memory without a file.

        Never raises for what the target did: a file that cannot be read makes a module without ``elf``.  The
        process must be alive.  About 50 us when the module is known, so keep the answer with the mapping.
        """
        if mapping.path == VDSO:
            return self._vdso(mapping)
        if not mapping.path.startswith("/"):
            return None
        path = mapping.path.removesuffix(" (deleted)")
        try:
            root = self._root(pid)
            located = locate_mapped(pid, mapping, root)
        except FileRefused as error:
            return Module(path, None, f"cannot be read: {error}")
        info = os.fstat(located)
        key = (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size, path, root.key)
        known = self._modules.get(key)
        if known is None:
            return self._keep(key, self._load(located, path, root))
        os.close(located)
        self._modules.move_to_end(key)
        return known

    def notes(self) -> tuple[str, ...]:
        """What could not be read, a sentence for each."""
        return tuple(f"{module.path}: {note}" for module in self._modules.values() for note in module.notes)

    def close(self) -> None:
        """Forget all of them."""
        self._modules.clear()
        self._line_tables.clear()

    def _root(self, pid: int) -> Root:
        root = Root.of(pid)
        return self._roots.setdefault(root.key, root)

    def _load(self, located: int, path: str, root: Root) -> Module:
        try:
            fd = open_located(located, path)
        except FileRefused as error:
            return Module(path, None, f"cannot be read: {error}", root)
        return self._module(FileSource(fd), path, root)

    def _module(self, source: Source, path: str, root: Root | None) -> Module:
        try:
            return Module(path, ElfFile(source, path), "", root, self._line_tables)
        except BadElf as error:
            return Module(path, None, str(error), root)

    def _vdso(self, mapping: Mapping) -> Module:
        size = mapping.end - mapping.start
        known = self._modules.get((VDSO, size))
        if known is not None:
            return known
        image = own_vdso()
        if len(image) != size:  # a 32-bit process's, or another one's since a checkpoint was restored
            return Module(VDSO, None, "is not the vdso of this program")
        return self._keep((VDSO, size), self._module(BytesSource(image), VDSO, None))

    def _keep(self, key: tuple[object, ...], module: Module) -> Module:
        self._modules[key] = module
        if len(self._modules) > self._limit:
            _, oldest = self._modules.popitem(last=False)
            self._line_tables.pop(oldest, None)
        return module


def own_vdso() -> bytes:
    """The kernel maps one image into every 64-bit process, so this one's stands for all.  b"" without one."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            space = maps.parse(file.read())
        mapping = next((m for m in space.mappings if m.path == VDSO), None)
        if mapping is None:
            return b""
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            memory.seek(mapping.start)
            return memory.read(mapping.end - mapping.start)
    except OSError:
        return b""
