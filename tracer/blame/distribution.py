"""What one directory says of the Python distributions in it: names, versions, and the files of each.

Under ``python``, which knows which directory to ask.  Formats: the core metadata's Name and Version headers; RECORD of
*.dist-info (CSV, the path first); top_level.txt of *.egg-info; direct_url.json (PEP 610), *.egg-link and
``__editable__`` files for what is installed where it is developed.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tracer.blame.owner import Owner, owned
from tracer.blame.tree import Tree

MAX_DISTRIBUTIONS = 5000  # of a directory
MAX_METADATA = 1 << 20
MAX_RECORD = 4 << 20
MAX_RECORDS = 32 << 20  # kept of a directory, together

_ENTRY = re.compile(
    r"(?P<linked>[\w.-]+)\.egg-link|"
    r"(?P<name>[\w.]+?)(?:-(?P<version>[^-/]+)(?:-py[\d.]+(?:-[\w.-]+)?)?)?\.(?P<suffix>dist-info|egg-info)"
)
_HEADER = re.compile(r"^(Name|Version):[ \t]*([^\s]+)[ \t]*\r?$", re.MULTILINE)
_HASH_AND_SIZE = re.compile(rb",[^,\n]*,[^,\n]*$", re.MULTILINE)
_QUOTED = re.compile(rb'"((?:[^"\n]|"")*)"')
_COMPILED = re.compile(rb"^[^\n]*__pycache__/[^\n]*\n", re.MULTILINE)
_TOP = re.compile(rb"^[^/\n]+", re.MULTILINE)
_SUFFIXES = re.compile(r"\.(?:py[cdiwx]?|so|[\w-]+\.so)$")
_EDITABLE_FILE = re.compile(
    r"__editable__(?:\.|_+)(?P<name>\w[\w.]*?)[-_](?P<version>\d[\w.]*?)(?:_finder\.py|\.pth)"
)
_EDITABLE_PATH = re.compile(r"""^(/[^\n]+)$|['"](/[^'"\n]+)['"]""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Distribution:
    """files: b"\\n" around each path, relative to the directory of the metadata; None when nothing lists them.

    tops: the first parts of the paths that belong to it.  develops: directories elsewhere whose code it is.
    """

    name: str
    version: str | None
    files: bytes | None
    tops: frozenset[str]
    develops: tuple[str, ...] = ()

    def owner(self) -> Owner | None:
        return owned("python", self.name, self.version)


class Site:
    """The distributions whose metadata lies in one directory (site-packages, or any other).

    State: those read so far.  A file is looked for first in the distributions that are called like it.
    """

    def __init__(self, tree: Tree, directory: str) -> None:
        self._tree = tree
        self.directory = directory
        found = [match for name in tree.names(directory) if (match := _ENTRY.fullmatch(name))]
        # dist-info first: of two for one distribution it is the one that lists files
        found.sort(key=lambda match: (match["suffix"] or "egg-link", match.string))
        self._entries = {match.string: match for match in found[:MAX_DISTRIBUTIONS]}
        self._keys = {entry: _key(match["name"] or match["linked"]) for entry, match in self._entries.items()}
        self._read: dict[str, Distribution] = {}
        self._left = MAX_RECORDS

    def __bool__(self) -> bool:
        return bool(self._entries)

    def owner(self, path: str) -> Owner | None:
        """path: relative to the directory.  By the lists of files; else by whose the first part of the path is."""
        if owner := self.lister(path):
            return owner
        top = path.partition("/")[0]
        names = {top, _SUFFIXES.sub("", top)}
        claims = [d for d in map(self._distribution, self._closest_first(path)) if names & d.tops]
        if claims and (len({_key(d.name) for d in claims}) == 1 or _key(claims[0].name) in _keys(path)):
            return claims[0].owner()
        return None

    def lister(self, path: str) -> Owner | None:
        """Of a file that a distribution lists.  path: relative to the directory, also "../../../bin/name"."""
        line = b"\n" + path.encode("utf-8", "surrogateescape") + b"\n"
        for entry in self._closest_first(path):
            distribution = self._distribution(entry)
            if distribution.files is not None and line in distribution.files:
                return distribution.owner()
        return None

    def named(self, entry: str) -> Owner | None:
        """Of the distribution whose metadata has this name in the directory."""
        return self._distribution(entry).owner() if entry in self._entries else None

    def developed(self) -> dict[str, Owner]:
        """Directories elsewhere whose code was installed here without a copy."""
        found: dict[str, Owner] = {}
        for entry in self._entries:
            distribution = self._distribution(entry)
            owner = distribution.owner()
            if owner is not None:
                found.update((directory, owner) for directory in distribution.develops)
        for name in self._tree.names(self.directory):
            match = _EDITABLE_FILE.fullmatch(name)
            if match and (owner := owned("python", match["name"], match["version"].replace("_", "."))):
                text = self._tree.text(f"{self.directory}/{name}")
                for line, quoted in _EDITABLE_PATH.findall(text)[:100]:
                    found.setdefault(posixpath.normpath(line or quoted), owner)
        return found

    def _closest_first(self, path: str) -> list[str]:
        """Entries, "google-cloud" before "google" for google/cloud/x.py, and both before strangers."""
        keys = _keys(path)
        return sorted(self._entries, key=lambda entry: -keys.get(self._keys[entry], 0))

    def _distribution(self, entry: str) -> Distribution:
        known = self._read.get(entry)
        if known is None:
            known = self._read[entry] = self._load(entry, self._entries[entry])
            self._left -= len(known.files or b"")
        return known

    def _load(self, entry: str, match: re.Match[str]) -> Distribution:
        at = f"{self.directory}/{entry}"
        if match["linked"]:
            return self._linked(at, match["linked"])
        # Debian has egg-info that is a file, the metadata alone
        places = (f"{at}/METADATA", f"{at}/PKG-INFO", at)
        headers = _headers(next(filter(None, (self._tree.text(place, MAX_METADATA) for place in places)), ""))
        name = headers.get("Name", match["name"])
        files = _recorded(self._tree.read(f"{at}/RECORD", MAX_RECORD))
        if files is None:
            files = _installed(self._tree.read(f"{at}/installed-files.txt", MAX_RECORD), entry)
        tops = frozenset(self._tree.text(f"{at}/top_level.txt").split())
        if files is not None:
            tops |= _tops(files)
            files = files if len(files) <= self._left else None
        elif not tops:
            tops = frozenset({name, name.replace("-", "_"), match["name"]})
        return Distribution(
            name,
            headers.get("Version", match["version"]),
            files,
            tops,
            _project_of(self._tree.text(f"{at}/direct_url.json")),
        )

    def _linked(self, at: str, name: str) -> Distribution:
        """The first line is the directory that holds the code and its egg-info."""
        directory = self._tree.text(at).partition("\n")[0].strip()
        if not directory.startswith("/"):
            return Distribution(name, None, None, frozenset())
        directory = posixpath.normpath(directory)
        entry = f"{name.replace('-', '_')}.egg-info"
        text = self._tree.text(f"{directory}/{entry}/PKG-INFO")
        headers = _headers(text)
        return Distribution(
            headers.get("Name", name), headers.get("Version"), None, frozenset(), (directory,)
        )


def _keys(path: str) -> dict[str, int]:
    """How a distribution with this file may be called, by how much of the path that is."""
    parts = _SUFFIXES.sub("", path).split("/")[:5]
    return {_key("-".join(parts[:n])): n for n in range(1, len(parts) + 1)}


def _headers(metadata: str) -> dict[str, str]:
    """Name and Version: the first of each, and not what the description below the headers says."""
    head = re.split(r"\r?\n\r?\n", metadata, maxsplit=1)[0]
    return dict(reversed(_HEADER.findall(head)))


def _key(name: str) -> str:
    """Equal for all spellings of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _recorded(record: bytes | None) -> bytes | None:
    """The paths of a RECORD, each between newlines."""
    if record is None:
        return None
    record = _COMPILED.sub(b"", record.replace(b"\r\n", b"\n"))
    if b'"' in record:
        lines = record.split(b"\n")
        return b"\n".join([b"", *(_unquoted(line) or _HASH_AND_SIZE.sub(b"", line) for line in lines), b""])
    return b"\n" + _HASH_AND_SIZE.sub(b"", record) + b"\n"


def _unquoted(line: bytes) -> bytes | None:
    """The first field of a CSV line, if it is quoted: a path with a comma."""
    match = _QUOTED.match(line)
    return match[1].replace(b'""', b'"') if match else None


def _installed(listed: bytes | None, entry: str) -> bytes | None:
    """installed-files.txt has paths relative to the egg-info itself."""
    if listed is None:
        return None
    paths = [posixpath.normpath(f"{entry}/{line}") for line in listed.decode("utf-8", "replace").splitlines()]
    return "\n".join(["", *paths, ""]).encode("utf-8", "surrogateescape")


def _tops(files: bytes) -> frozenset[str]:
    first = {match[0] for match in _TOP.finditer(files)}
    return frozenset(top.decode("utf-8", "surrogateescape") for top in first - {b".."})


def _project_of(direct_url: str) -> tuple[str, ...]:
    """The directory of an editable install."""
    try:
        data = json.loads(direct_url or "null")
        if not data["dir_info"]["editable"]:
            return ()
        url = urlsplit(data["url"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()
    path = posixpath.normpath(unquote(url.path))
    return (path,) if url.scheme == "file" and path.startswith("/") and path != "/" else ()
