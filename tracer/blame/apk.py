"""Which Alpine package a file belongs to, by the apk database of the traced process's own root.

As ``dpkg``, for Alpine.  Format: apk-tools' installed database, a paragraph for each package with a letter before
each line: P name, V version, then F for a directory and R for each file in it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.blame.databases import Databases
from tracer.blame.listing import Listing, Package

if TYPE_CHECKING:
    from tracer.stacks.files import Root

INSTALLED = "/lib/apk/db/installed"
MAX_INSTALLED = 64 << 20
MAX_PATHS = 64 << 20
MAX_PACKAGES = 50_000

_LINE = re.compile(rb"^([PVFR]):([^\n]*)$", re.MULTILINE)
_NAME = re.compile(rb"[A-Za-z0-9_][\w+.-]{0,127}")
_VERSION = re.compile(rb"[\w.+~-]{1,80}")


class Database:
    """One root's database as it was at one time.  Raises OSError without one."""

    def __init__(self, root: Root) -> None:
        self._listing = Listing(MAX_PACKAGES, MAX_PATHS)
        for paragraph in root.read(INSTALLED, MAX_INSTALLED).split(b"\n\n"):
            name, version, directory = b"", b"", b""
            paths: list[bytes] = []
            for letter, value in _LINE.findall(paragraph):
                if letter == b"P":
                    name = value
                elif letter == b"V":
                    version = value
                elif letter == b"F":
                    directory = b"/" + value + b"/" if value else b"/"
                else:
                    paths.append(directory + value + b"\n")
            if not _NAME.fullmatch(name):
                continue
            package = Package(name.decode(), version.decode() if _VERSION.fullmatch(version) else None)
            if not self._listing.add(package, b"".join(paths)):
                break
        self._listing.end()

    def owner(self, path: bytes) -> Package | None:
        return next(self._listing.packages(path), None)

    def files(self, package: Package, pattern: re.Pattern[bytes]) -> list[str]:
        return self._listing.files(package, pattern)


def databases() -> Databases:
    """apk writes the file anew with every change."""
    return Databases(INSTALLED, Database)
