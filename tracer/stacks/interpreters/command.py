"""The script that an interpreter was started with, by its command line: what the walkers' frames call "the script".

A process may write over its command line: what stands there is its own claim, and only ever shown as a name.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

MAX_COMMAND = 1 << 17  # bytes of /proc/PID/cmdline that are looked at
STDIN = "standard input"


@dataclass(frozen=True, slots=True)
class Script:
    """said: the argument, as the interpreter's own structures have it.  path: as absolute as can be known, or "-c",
    or "standard input".
    """

    said: str
    path: str


@dataclass(frozen=True, slots=True)
class Syntax:
    """How an interpreter reads its options.

    code: letters of options whose argument is the script itself.  stdin: of those that make standard input the script.
    values: letters of options that take the next argument when theirs is empty; long_values: long options that do.
    """

    code: str
    stdin: str = ""
    values: str = ""
    long_values: frozenset[str] = frozenset()


PERL = Syntax("eE", "", "IMmFCDix")
SHELL = Syntax("c", "s", "oO", frozenset({"--rcfile", "--init-file"}))


def read_script(pid: int, syntax: Syntax) -> Script | None:
    """Of a process that lives; None when it is gone, or has no command line."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = os.fsdecode(file.read(MAX_COMMAND))
        directory = os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - it may end in " (deleted)"
    except OSError:
        return None
    arguments = text.split("\0")[:-1]
    return find_script(arguments, directory, syntax) if arguments else None


def find_script(arguments: Sequence[str], directory: str, syntax: Syntax) -> Script:
    """arguments: with the interpreter's own name first.  directory: where the process was."""
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "--":
            break
        if argument in ("-", "") or argument[0] not in "-+":
            return _named(argument, directory)
        if argument.startswith("--"):
            if argument in syntax.long_values:
                next(rest, None)
            continue
        for at, letter in enumerate(argument[1:], 2):
            if letter in syntax.code and argument[0] == "-":
                return Script("", f"-{letter}")
            if letter in syntax.stdin:
                return Script("", STDIN)
            if letter in syntax.values:
                if at == len(argument):
                    next(rest, None)
                break
    return _named(next(rest, "-"), directory)


def _named(argument: str, directory: str) -> Script:
    if argument in ("-", ""):
        return Script("", STDIN)
    if argument.startswith("/") or not directory.startswith("/"):
        return Script(argument, argument)
    return Script(argument, posixpath.normpath(posixpath.join(directory, argument)))
