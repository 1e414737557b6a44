"""Which Debian package a file belongs to, by the dpkg database of the traced process's own root.

It stands under ``packages``: a file's path in, a package's name and version out.  The database is read
through the target's root (a container has its own), and every byte of it is somebody else's: sizes and counts
are bounded, names are checked, and nothing in it can do more than misname the files of its own root.

Formats: deb(5) control stanzas in /var/lib/dpkg/status, one path a line in /var/lib/dpkg/info/*.list,
dpkg-divert(1)'s triplets of lines in /var/lib/dpkg/diversions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tracer.blame.databases import Databases
from tracer.blame.listing import Listing, Package

if TYPE_CHECKING:
    from tracer.stacks.files import Root

DATABASE = "/var/lib/dpkg"
STATUS = f"{DATABASE}/status"
MAX_STATUS = 64 << 20
MAX_LIST = 16 << 20
MAX_LISTS = 64 << 20  # of one root, together
MAX_PACKAGES = 50_000

_FIELD = re.compile(
    rb"^(Package|Status|Architecture|Multi-Arch|Version):[ \t]*([^\n]*?)[ \t]*$", re.MULTILINE
)
_NAME = re.compile(rb"[a-z0-9][a-z0-9+.-]*")
_ARCHITECTURE = re.compile(rb"[a-z0-9-]+")
_VERSION = re.compile(rb"[0-9A-Za-z.+:~-]+")
_WITHOUT_FILES = (b"not-installed", b"config-files")
# No code of a process lies there, and it is half of all paths.
_NEVER_MAPPED = re.compile(
    rb"^/usr/(?:share/(?:doc|man|locale|info|icons|zoneinfo|lintian|fonts)|include|src)/[^\n]*\n",
    re.MULTILINE,
)


class Database:
    """One root's database as it was at one time.  Raises OSError without one."""

    def __init__(self, root: Root) -> None:
        self._listing = Listing(MAX_PACKAGES, MAX_LISTS)
        for package, names in _installed(root.read(STATUS, MAX_STATUS)):
            listed = _first_readable(root, names)
            if listed is not None and not self._listing.add(package, _NEVER_MAPPED.sub(b"", listed)):
                break
        self._listing.end()
        self._diverted_by: dict[bytes, str] = {}  # original name -> package, or ":" for the administrator
        self._originals: dict[bytes, bytes] = {}  # the name it was moved to -> its original name
        for original, moved_to, diverter in _diversions(root):
            self._diverted_by[original] = os.fsdecode(diverter)
            self._originals[moved_to] = original

    def owner(self, path: bytes) -> Package | None:
        """A diversion by one package moves the file of every other one that lists the name out of the way."""
        original = self._originals.get(path, path)
        diverted_by = self._diverted_by.get(original)
        for package in self._listing.packages(original):
            if diverted_by is None or (package.name == diverted_by) == (path == original):
                return package
        return None

    def files(self, package: Package, pattern: re.Pattern[bytes]) -> list[str]:
        return self._listing.files(package, pattern)


def databases() -> Databases:
    """dpkg replaces the status file when it has changed anything."""
    return Databases(STATUS, Database)


def _installed(status: bytes) -> Iterator[tuple[Package, tuple[str, ...]]]:
    """Each package that has files, and the names its list may go by."""
    for stanza in status.split(b"\n\n"):
        fields = dict(_FIELD.findall(stanza))
        name = fields.get(b"Package", b"")
        if not _NAME.fullmatch(name) or fields.get(b"Status", b"").endswith(_WITHOUT_FILES):
            continue
        version = fields.get(b"Version", b"")
        package = Package(name.decode(), version.decode() if _VERSION.fullmatch(version) else None)
        names: tuple[str, ...] = (f"{package.name}.list",)
        architecture = fields.get(b"Architecture", b"")
        if _ARCHITECTURE.fullmatch(architecture):
            # Multi-Arch: same packages carry it in the list's name, others do not, and old databases never.
            qualified = f"{package.name}:{architecture.decode()}.list"
            names = (qualified, *names) if fields.get(b"Multi-Arch") == b"same" else (*names, qualified)
        yield package, names


def _first_readable(root: Root, names: tuple[str, ...]) -> bytes | None:
    for name in names:
        try:
            return root.read(f"{DATABASE}/info/{name}", MAX_LIST)
        except OSError:
            continue
    return None


def _diversions(root: Root) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(original name, the name that other packages' files get, the diverting package)"""
    try:
        lines = root.read(f"{DATABASE}/diversions", MAX_LIST).split(b"\n")
    except OSError:
        return iter(())
    return zip(lines[0::3], lines[1::3], lines[2::3], strict=False)
