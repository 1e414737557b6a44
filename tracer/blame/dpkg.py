"""Which Debian package a file belongs to, by the dpkg database of the traced process's own root.

It stands under ``library``: a mapped file's path in, a package's name and version out.  The database is read
through the target's root (a container has its own), and every byte of it is somebody else's: sizes and counts
are bounded, names are checked, and nothing in it can do more than misname the files of its own root.

Formats: deb(5) control stanzas in /var/lib/dpkg/status, one path a line in /var/lib/dpkg/info/*.list,
dpkg-divert(1)'s triplets of lines in /var/lib/dpkg/diversions.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.stacks.files import Root

DATABASE = "/var/lib/dpkg"
MAX_STATUS = 64 << 20
MAX_LIST = 16 << 20
MAX_LISTS = 64 << 20  # of one root, together
MAX_PACKAGES = 50_000
MAX_ROOTS = 4  # databases kept: a host and a few of its containers

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
# Of a root with merged /usr: dpkg knows /lib/x, the kernel shows /usr/lib/x; or the other way about.
_MERGED = re.compile(r"(?:/usr)?(/(?:bin|sbin|lib|lib32|lib64|libx32|libo32)/.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Package:
    """name: without the architecture ("libc6").  version: None when the database holds no sane one."""

    name: str
    version: str | None


class Database:
    """One root's database as it was at one time.

    The paths of all packages lie in one string (4 MB for 760 packages), searched in a millisecond.  An index
    of them would take ten times the memory, for the few dozen files that a trace ever asks about.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._packages: list[Package] = []
        self._starts: list[int] = []  # where each package's paths start in _paths
        parts: list[bytes] = []
        size = 0
        for package, names in _installed(root.read(f"{DATABASE}/status", MAX_STATUS)):
            listed = _first_readable(root, names)
            if listed is None:
                continue
            paths = b"\n" + _NEVER_MAPPED.sub(b"", listed)
            if size + len(paths) > MAX_LISTS or len(self._packages) >= MAX_PACKAGES:
                break
            self._packages.append(package)
            self._starts.append(size)
            parts.append(paths)
            size += len(paths)
        self._paths = b"".join(parts) + b"\n"
        self._diverted_by: dict[bytes, str] = {}  # original name -> package, or ":" for the administrator
        self._originals: dict[bytes, bytes] = {}  # the name it was moved to -> its original name
        for original, moved_to, diverter in _diversions(root):
            self._diverted_by[original] = os.fsdecode(diverter)
            self._originals[moved_to] = original

    def owner(self, path: str) -> Package | None:
        """The package that brought this file; None when none did.  No symbolic link may be in the path."""
        if "\n" in path or not path.startswith("/"):
            return None
        package = self._owner(os.fsencode(path))
        if package is not None or not (match := _MERGED.fullmatch(path)):
            return package
        other = match[1] if path.startswith("/usr/") else "/usr" + path
        package = self._owner(os.fsencode(other))
        return package if package is not None and _same_file(self._root, path, other) else None

    def files(self, package: Package, pattern: re.Pattern[bytes]) -> list[str]:
        """The package's paths that the pattern matches as a whole."""
        if package not in self._packages:
            return []
        number = self._packages.index(package)
        start, *end = self._starts[number : number + 2]
        lines = self._paths[start : end[0] if end else None].split(b"\n")
        return [os.fsdecode(line) for line in lines if pattern.fullmatch(line)]

    def _owner(self, path: bytes) -> Package | None:
        """A diversion by one package moves the file of every other one that lists the name out of the way."""
        original = self._originals.get(path, path)
        diverted_by = self._diverted_by.get(original)
        for package in self._listing(original):
            if diverted_by is None or (package.name == diverted_by) == (path == original):
                return package
        return None

    def _listing(self, path: bytes) -> Iterator[Package]:
        """The packages whose lists hold the path."""
        line = b"\n" + path + b"\n"
        at = self._paths.find(line)
        while at >= 0:
            yield self._packages[bisect_right(self._starts, at) - 1]
            at = self._paths.find(line, at + 1)


class Databases:
    """The databases of the roots asked about lately; each is read anew when dpkg has changed it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[Hashable, Database | None]] = OrderedDict()

    def owner(self, root: Root, path: str) -> Package | None:
        """As ``Database.owner``; None also in a root without dpkg, or whose database cannot be read."""
        database = self._database(root)
        return database.owner(path) if database is not None else None

    def files(self, root: Root, package: Package, pattern: re.Pattern[bytes]) -> list[str]:
        """As ``Database.files``, for a package that ``owner`` named."""
        database = self._database(root)
        return database.files(package, pattern) if database is not None else []

    def _database(self, root: Root) -> Database | None:
        version = _version_of(root)
        kept = self._kept.pop(root.key, None)
        if kept is None or kept[0] != version:
            kept = version, _read(root) if version is not None else None
        self._kept[root.key] = kept
        if len(self._kept) > MAX_ROOTS:
            self._kept.popitem(last=False)
        return kept[1]


def _read(root: Root) -> Database | None:
    try:
        return Database(root)
    except OSError:
        return None


def _version_of(root: Root) -> Hashable:
    """dpkg replaces the status file when it has changed anything."""
    try:
        fd = root.open(f"{DATABASE}/status")
    except OSError:
        return None
    try:
        stat = os.fstat(fd)
    finally:
        os.close(fd)
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


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
