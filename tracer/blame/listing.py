"""Many paths and the package of each, in little memory.

Under the readers of package databases.  The paths of all packages lie in one string (4 MB for 760 packages), searched
in a millisecond.  An index of them would take ten times the memory, for the few dozen files that a trace ever asks
about.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """name: without the architecture ("libc6").  version: None when the database holds no sane one."""

    name: str
    version: str | None


class Listing:
    """Packages in the order they were added, each with its paths."""

    def __init__(self, max_packages: int, max_bytes: int) -> None:
        self._max_packages = max_packages
        self._max_bytes = max_bytes
        self._packages: list[Package] = []
        self._starts: list[int] = []  # where each package's paths start
        self._parts: list[bytes] = []
        self._size = 0
        self._paths = b"\n"

    def add(self, package: Package, paths: bytes) -> bool:
        """paths: absolute, one a line.  False when there is no room for them: the database ends here."""
        paths = b"\n" + paths
        if self._size + len(paths) > self._max_bytes or len(self._packages) >= self._max_packages:
            return False
        self._packages.append(package)
        self._starts.append(self._size)
        self._parts.append(paths)
        self._size += len(paths)
        return True

    def end(self) -> None:
        """All packages were added."""
        self._paths = b"".join(self._parts) + b"\n"
        self._parts.clear()

    def packages(self, path: bytes) -> Iterator[Package]:
        """Those that list the path."""
        line = b"\n" + path + b"\n"
        at = self._paths.find(line)
        while at >= 0:
            yield self._packages[bisect_right(self._starts, at) - 1]
            at = self._paths.find(line, at + 1)

    def files(self, package: Package, pattern: re.Pattern[bytes]) -> list[str]:
        """The package's paths that the pattern matches as a whole."""
        if package not in self._packages:
            return []
        number = self._packages.index(package)
        start, *end = self._starts[number : number + 2]
        lines = self._paths[start : end[0] if end else None].split(b"\n")
        return [os.fsdecode(line) for line in lines if pattern.fullmatch(line)]
