"""A place in Java code -> its archive, or the platform's library.

One of the resolvers behind ``languages``.  A place is a file within an archive ("/srv/a.jar!/com/x.class"), the archive
itself, or a class alone where no more is known.  An archive is named by Maven's pom.properties, the manifest, its
own name, in this order.
"""

from __future__ import annotations

import re

from tracer.blame.owner import Owner, owned, standard_library
from tracer.blame.tree import Tree
from tracer.blame.zips import ZipFile

_ARCHIVE = re.compile(
    r"(?:jar:|nested:|file:)*(?P<file>/.*?\.(?:jar|war|ear))(?:/?!(?P<inner>.*))?", re.DOTALL | re.IGNORECASE
)
_INNER = re.compile(r".*?(?P<name>[^/!]+\.jar)(?:/?!.*)?", re.DOTALL)
_NAME = re.compile(r"(?P<name>[\w.+-]+?)(?:-(?P<version>\d[\w.+-]*))?\.\w+")
_POM = re.compile(r"META-INF/maven/[^/]+/(?P<artifact>[^/]+)/pom\.properties")
_PROPERTY = re.compile(r"^(artifactId|version)[ \t]*=[ \t]*(\S+)", re.MULTILINE)
_ATTRIBUTE = re.compile(
    r"^(Implementation-Title|Implementation-Version|Bundle-SymbolicName|Bundle-Version|Automatic-Module-Name):"
    r" *([^\s;]+)[ \t]*\r?$",
    re.MULTILINE | re.IGNORECASE,
)
_PLATFORM_FILE = re.compile(r"jrt:/.*|.*/jre/lib/(?:rt|jce|jsse|charsets)\.jar.*|.*/lib/modules", re.DOTALL)
_PLATFORM_CLASS = re.compile(r"(?:java|javax|jdk|sun|com\.sun)\..+")


class Jar:
    """The archives of one root.  State: those seen so far."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._archives: dict[str, Owner | None] = {}

    def owner(self, path: str) -> Owner | None:
        if _PLATFORM_FILE.fullmatch(path):
            return standard_library("java")
        match = _ARCHIVE.fullmatch(path)
        if not match:
            return None
        inner = _INNER.fullmatch(match["inner"] or "")
        if inner:  # an archive in an archive, as Spring Boot packs them
            name = _NAME.fullmatch(inner["name"])
            return owned("jar", name["name"], name["version"]) if name else None
        file = match["file"]
        if file not in self._archives:
            self._archives[file] = self._read(file)
        return self._archives[file]

    def _read(self, file: str) -> Owner | None:
        named = _NAME.fullmatch(file.rpartition("/")[2])
        name, version = (named["name"], named["version"]) if named else (None, None)
        archive = ZipFile.at(self._tree.root, file)
        if archive is not None:
            found = _by_maven(archive, name) or _by_manifest(archive, name)
            archive.close()
            name, version = found[0] or name, found[1] or version
        return owned("jar", name, version)


def owner_of_class(function: str | None) -> Owner | None:
    """By the name of a method with its class, "java.lang.ProcessImpl.forkAndExec(int)", where no file is known."""
    name = class_of(function)
    if name is None:
        return None
    if _PLATFORM_CLASS.fullmatch(name):
        return standard_library("java")
    return owned("unknown", name.rpartition(".")[0] or name, None)


def class_of(function: str | None) -> str | None:
    """The class in "int com.x.Y.run(java.lang.String)", "Lcom/x/Y;::run" or "com.x.Y::run"; None for other names."""
    if not function:
        return None
    name = function.partition("(")[0].rpartition(" ")[2]
    owner, separator, _ = name.rpartition("::")
    if separator:
        return owner.removeprefix("L").removesuffix(";").replace("/", ".") or None
    return name.rpartition(".")[0] or None


def _by_maven(archive: ZipFile, name: str | None) -> tuple[str | None, str | None] | None:
    """An archive that was made of several has the properties of each: then the one that is called like the file."""
    found = {match["artifact"]: match.string for entry in archive.names if (match := _POM.fullmatch(entry))}
    entry = found.get(name or "") or (next(iter(found.values())) if len(found) == 1 else None)
    if entry is None:
        return None
    properties = dict(_PROPERTY.findall((archive.read(entry) or b"").decode("utf-8", "replace")))
    return (properties["artifactId"], properties.get("version")) if "artifactId" in properties else None


def _by_manifest(archive: ZipFile, name: str | None) -> tuple[str | None, str | None]:
    """The title is often a sentence: the file's own name is better then."""
    manifest = (
        (archive.read("META-INF/MANIFEST.MF") or b"").decode("utf-8", "replace").partition("\r\n\r\n")[0]
    )
    attributes = {key.lower(): value for key, value in _ATTRIBUTE.findall(manifest)}
    version = attributes.get("implementation-version") or attributes.get("bundle-version")
    title = attributes.get("implementation-title") or attributes.get("bundle-symbolicname")
    return name or title or attributes.get("automatic-module-name"), version
