"""The package databases of the roots asked about lately, of one package manager.

Between ``packages`` and the readers (``dpkg``, ``apk``, ``rpm``).  A reader's database is one root's as it was at one
time; here each is read anew when the package manager has changed it.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Protocol

from tracer.blame.listing import Package

if TYPE_CHECKING:
    from tracer.stacks.files import Root

MAX_ROOTS = 4  # databases kept: a host and a few of its containers

# Of a root with merged /usr: the database knows /lib/x, the kernel shows /usr/lib/x; or the other way about.
_MERGED = re.compile(r"(?:/usr)?(/(?:bin|sbin|lib|lib32|lib64|libx32|libo32)/.+)", re.DOTALL)


class Database(Protocol):
    """One root's database."""

    def owner(self, path: bytes) -> Package | None:
        """The package that brought this file; None when none did."""

    def files(self, package: Package, pattern: re.Pattern[bytes]) -> list[str]:
        """The package's paths that the pattern matches as a whole."""


class Databases:
    """State: the databases kept.  file: the one that the package manager replaces or changes with every change.

    read: raises OSError or ValueError for what is no database.
    """

    def __init__(self, file: str, read: Callable[[Root], Database]) -> None:
        self._file = file
        self._read = read
        self._kept: OrderedDict[Hashable, tuple[Hashable, Database | None]] = OrderedDict()

    def owner(self, root: Root, path: str) -> Package | None:
        """The package that brought this file; None when none did, in a root without a database, or with a broken one.

        No symbolic link may be in the path, except those of a merged /usr.
        """
        database = self._database(root)
        if database is None or "\n" in path or not path.startswith("/"):
            return None
        package = database.owner(os.fsencode(path))
        if package is not None or not (match := _MERGED.fullmatch(path)):
            return package
        other = match[1] if path.startswith("/usr/") else "/usr" + path
        package = database.owner(os.fsencode(other))
        return package if package is not None and _same_file(root, path, other) else None

    def files(self, root: Root, package: Package, pattern: re.Pattern[bytes]) -> list[str]:
        """Paths of a package that ``owner`` named."""
        database = self._database(root)
        return database.files(package, pattern) if database is not None else []

    def _database(self, root: Root) -> Database | None:
        version = _version_of(root, self._file)
        kept = self._kept.pop(root.key, None)
        if kept is None or kept[0] != version:
            kept = version, self._try(root) if version is not None else None
        self._kept[root.key] = kept
        if len(self._kept) > MAX_ROOTS:
            self._kept.popitem(last=False)
        return kept[1]

    def _try(self, root: Root) -> Database | None:
        try:
            return self._read(root)
        except (OSError, ValueError):
            return None


def _version_of(root: Root, file: str) -> Hashable:
    try:
        fd = root.open(file)
    except OSError:
        return None
    try:
        stat = os.fstat(fd)
    finally:
        os.close(fd)
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _same_file(root: Root, path: str, other: str) -> bool:
    """Both names lead to one file: /usr is merged here.  A root that is not merged may hold two."""
    found = []
    for name in (path, other):
        try:
            fd = root.open(name)
        except OSError:
            return False
        try:
            stat = os.fstat(fd)
        finally:
            os.close(fd)
        found.append((stat.st_dev, stat.st_ino))
    return found[0] == found[1]
