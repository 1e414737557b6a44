"""Which RPM package a file belongs to, by the rpm database of the traced process's own root.

As ``dpkg``, for Fedora and its like.  Of rpm's formats the SQLite one is read (rpm 4.16, of 2020, and later; not
Berkeley DB, not SUSE's ndb).  Its table Basenames leads from a file's last name to headers in Packages.  A header is
big-endian: numbers of entries and of bytes, the entries (tag, type, offset, count), then the bytes.
"""

from __future__ import annotations

import re
import struct
from functools import partial
from typing import TYPE_CHECKING

from tracer.blame.databases import Databases
from tracer.blame.listing import Package
from tracer.blame.sqlitefile import BadDatabase, SqliteFile

if TYPE_CHECKING:
    from tracer.stacks.files import Root

# Fedora has the first one link to the second
DATABASE = "/var/lib/rpm/rpmdb.sqlite"
MAX_ENTRIES = 10_000
MAX_FILES = 1 << 20
PATIENCE = 4  # look-ups that find the file broken, before it is left alone

_NAME, _VERSION, _RELEASE, _EPOCH = 1000, 1001, 1002, 1003
_DIRECTORY_INDICES, _BASENAMES, _DIRECTORIES = 1116, 1117, 1118
_WANTED = frozenset({_NAME, _VERSION, _RELEASE, _EPOCH, _DIRECTORY_INDICES, _BASENAMES, _DIRECTORIES})
_INT32, _STRING, _STRINGS = 4, 6, 8
_ENTRY = struct.Struct(">IIiI")
_SANE_NAME = re.compile(rb"[A-Za-z0-9_][\w+.-]{0,127}")
_SANE_VERSION = re.compile(rb"[\w.+~^]{1,80}")


class Database:
    """One root's database.  Holds it open.  Raises OSError without one, ValueError for a file of another kind."""

    def __init__(self, root: Root) -> None:
        self._file = SqliteFile(root.open(DATABASE))
        self._patience = PATIENCE

    def owner(self, path: bytes) -> Package | None:
        directory, _, name = path.rpartition(b"/")
        if not self._patience:
            return None
        self._file.begin()
        try:
            for rowid in self._file.rowids("Basenames_key_idx", name):
                row = self._file.row("Basenames", rowid)
                if row is None or len(row) != 3:
                    continue
                _, header, index = row
                if not (isinstance(header, int) and isinstance(index, int)):
                    continue
                package = self._file.row("Packages", header)
                if package is None or len(package) != 2 or not isinstance(package[1], bytes):
                    continue
                found = _owner_in(package[1], directory + b"/", name, index)
                if found is not None:
                    return found
        except (BadDatabase, OSError):
            self._patience -= 1
        return None

    def files(self, _: Package, __: re.Pattern[bytes]) -> list[str]:
        """Nothing is looked for in there: RPM's Python and Ruby packages have their own metadata."""
        return []


def databases() -> Databases:
    """rpm writes into the file, at the latest when it has checkpointed its log."""
    return Databases(DATABASE, Database)


def _owner_in(header: bytes, directory: bytes, name: bytes, index: int) -> Package | None:
    """The package that a header describes, if its file number ``index`` is this one."""
    entries = _entries(header)
    strings, numbers = partial(_strings, entries), partial(_numbers, entries)
    names, directories, indices = strings(_BASENAMES), strings(_DIRECTORIES), numbers(_DIRECTORY_INDICES)
    if not (0 <= index < len(names) and index < len(indices) and indices[index] < len(directories)):
        return None
    if names[index] != name or directories[indices[index]] != directory:
        return None
    package, version, release = (next(iter(strings(tag)), b"") for tag in (_NAME, _VERSION, _RELEASE))
    if not _SANE_NAME.fullmatch(package):
        return None
    if not _SANE_VERSION.fullmatch(version) or not _SANE_VERSION.fullmatch(release):
        return Package(package.decode(), None)
    epoch = next(iter(numbers(_EPOCH)), 0)
    return Package(
        package.decode(), f"{epoch or ''}{':' if epoch else ''}{version.decode()}-{release.decode()}"
    )


def _entries(header: bytes) -> dict[int, tuple[int, int, bytes]]:
    """Tag to (type, count, the bytes from its first one on)."""
    try:
        count, _ = struct.unpack_from(">II", header, 0)
        if count > MAX_ENTRIES:
            return {}
        start = 8 + count * _ENTRY.size
        found = {}
        for n in range(count):
            tag, kind, offset, values = _ENTRY.unpack_from(header, 8 + n * _ENTRY.size)
            if tag in _WANTED and offset >= 0 and values <= MAX_FILES:
                found[tag] = kind, values, header[start + offset :]
    except struct.error:
        return {}
    return found


def _strings(entries: dict[int, tuple[int, int, bytes]], tag: int) -> list[bytes]:
    kind, count, data = entries.get(tag, (_STRINGS, 0, b""))
    return data.split(b"\0", count)[:count] if kind in (_STRING, _STRINGS) else []


def _numbers(entries: dict[int, tuple[int, int, bytes]], tag: int) -> list[int]:
    kind, count, data = entries.get(tag, (_INT32, 0, b""))
    count = min(count, len(data) // 4) if kind == _INT32 else 0
    return list(struct.unpack_from(f">{count}I", data, 0))
