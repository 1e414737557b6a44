"""Shells that do not tell where they are (dash, busybox, mksh, ksh, zsh): the script's path is all there is.

Distributions strip them, so the variable that holds the line has no address.
"""

from __future__ import annotations

from tracer.records import CodeRecord, Language
from tracer.stacks.interpreters.base import Code, Found, ModuleOf
from tracer.stacks.interpreters.command import SHELL
from tracer.stacks.maps import AddressSpace

name = "shell"
syntax = SHELL
_PROGRAMS = frozenset({"dash", "mksh", "ksh", "ksh93", "zsh", "zsh5", "yash"})


def find(space: AddressSpace, modules: ModuleOf) -> Found | None:
    """The program itself, when it is a shell by its name."""
    if not space.mappings or space.mappings[0].path.rpartition("/")[2] not in _PROGRAMS:
        return None
    module = modules(space.mappings[0])
    return None if module is None else Found(Language.SHELL, "", module, b"", is_loop_at=lambda _: True)


def decode(record: CodeRecord, version: str) -> Code:
    """There is no walker that would send one."""
    raise NotImplementedError


def is_loop(function: str) -> bool:
    """All of its code stands for the script."""
    return True
