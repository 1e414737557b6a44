"""A Python file -> its distribution, or the standard library.

One of the resolvers behind ``languages``.  The distribution is the one whose metadata lies in a directory above the
file and that lists it: in site-packages of any environment, in Debian's dist-packages, beside the code (pip --target,
setup.py develop), or elsewhere (editable installs, known once the environment was seen).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.blame.distribution import Site
from tracer.blame.owner import Owner, owned, standard_library, upstream_version
from tracer.blame.tree import Tree, parents
from tracer.blame.zips import ZipFile

if TYPE_CHECKING:
    from tracer.blame.packages import Packages

MAX_SITES = 256
ENVIRONMENTS = (".venv", "venv", "env")  # as people call them beside their project

_STANDARD = re.compile(
    r"(?P<prefix>.*)/(?P<lib>lib(?:32|64)?)/(?:python|pypy)(?P<version>\d+\.\d+)t?/(?P<rest>.+)", re.DOTALL
)
_ZIPPED_STANDARD = re.compile(r".*/lib(?:32|64)?/python(?P<version>\d)(?P<minor>\d+)t?\.zip/.+", re.DOTALL)
_FOREIGN = re.compile(r"(?:site|dist)-packages/")
_SITE = re.compile(r"(?P<site>.*/(?:site|dist)-packages)/(?P<top>[^/]+).*", re.DOTALL)
_EGG = re.compile(
    r"(?P<file>.*/(?P<name>[\w.]+?)(?:-(?P<version>[^-/]+))?(?:-[^/]*)?\.(?P<suffix>egg|whl))/.+", re.DOTALL
)
_VERSION_MACRO = re.compile(r'^#define\s+PY_VERSION\s+"([\w.+]+)"', re.MULTILINE)
_HEADER = re.compile(r"^(Name|Version):[ \t]*(\S+)", re.MULTILINE)
_METADATA = re.compile(
    rb"/usr/lib/python[^/]*/dist-packages/[^/]+\.(?:dist|egg)-info(?:/PKG-INFO|/METADATA)?"
)
_SCRIPT = re.compile(r"(?P<prefix>.*)/bin/(?P<name>[^/]+)", re.DOTALL)
_EXTENSION = re.compile(r".*\.(?:cpython-[\w-]+|pypy[\w-]+|abi3)\.so", re.DOTALL)
_MODULE = re.compile(r".*(?:/(?:site|dist)-packages|\.egg)/.*\.so(?:\.[\w.-]+)?", re.DOTALL)


class Python:
    """The distributions of one root.  State: the directories of metadata seen so far."""

    def __init__(self, tree: Tree, packages: Packages) -> None:
        self._tree = tree
        self._packages = packages
        self._sites: dict[str, Site] = {}
        self._developed: dict[str, Owner] = {}
        self._standard: dict[str, Owner] = {}

    def notice(self, path: str) -> bool:
        """A file of a process: an environment that it belongs to may have editable installs of files elsewhere.

        True when it told of new ones, so that earlier answers may be wrong.
        """
        before = len(self._developed)
        if match := _SITE.fullmatch(path):
            self._site(match["site"])
        return len(self._developed) > before

    def owner(self, path: str) -> Owner | None:
        if path.startswith("<frozen "):
            return standard_library("python")
        if not path.startswith("/"):
            return None
        return (
            self._zipped(path)
            or self._standard_library(path)
            or self._installed(path)
            or self._script(path)
            or self._editable(path)
        )

    def owner_of_native(self, path: str) -> Owner | None:
        """Of an extension module, or a library that a distribution brings."""
        if not (_MODULE.fullmatch(path) or _EXTENSION.fullmatch(path)) or "/lib-dynload/" in path:
            return None
        return self._zipped(path) or self._installed(path)

    def _installed(self, path: str) -> Owner | None:
        for directory in parents(path):
            site = self._site(directory)
            if site and (owner := site.owner(path[len(directory) + 1 :])):
                return owner
        match = _SITE.fullmatch(path)
        if not match:
            return None
        return self._of_package(path) or owned("python", match["top"].partition(".")[0], None)

    def _of_package(self, path: str) -> Owner | None:
        """The Debian package that has the file has the metadata of the distribution too, and may name it otherwise."""
        found = self._packages.beside(self._tree.root, path, _METADATA)
        entries = {match["site"] + "/" + match["top"] for name in found if (match := _SITE.fullmatch(name))}
        if len(entries) != 1:
            return None
        site, _, entry = entries.pop().rpartition("/")
        return self._site(site).named(entry)

    def _script(self, path: str) -> Owner | None:
        """What pip put into bin/: the distribution's list has it relative to site-packages."""
        match = _SCRIPT.fullmatch(path)
        if not match:
            return None
        for name in self._tree.names(f"{match['prefix']}/lib"):
            if name.startswith(("python3", "pypy3")):
                site = self._site(f"{match['prefix']}/lib/{name}/site-packages")
                if site and (owner := site.lister(f"../../../bin/{match['name']}")):
                    return owner
        return None

    def _editable(self, path: str) -> Owner | None:
        for directory in parents(path):
            for environment in ENVIRONMENTS:
                if environment in self._tree.names(directory):
                    self._notice_environment(f"{directory}/{environment}")
        return next((self._developed[at] for at in (path, *parents(path)) if at in self._developed), None)

    def _notice_environment(self, environment: str) -> None:
        for name in self._tree.names(f"{environment}/lib"):
            if name.startswith(("python3", "pypy3")):
                self._site(f"{environment}/lib/{name}/site-packages")

    def _site(self, directory: str) -> Site:
        known = self._sites.get(directory)
        if known is None:
            if len(self._sites) >= MAX_SITES:
                self._sites.clear()
            known = self._sites[directory] = Site(self._tree, directory)
            if known and directory.endswith("-packages"):
                self._developed.update(known.developed())
        return known

    def _zipped(self, path: str) -> Owner | None:
        """In an egg, zipped or not, or in a wheel on the path."""
        match = _EGG.fullmatch(path)
        if not match:
            return None
        text = self._tree.text(f"{match['file']}/EGG-INFO/PKG-INFO")
        if not text and match["suffix"] == "egg" and (archive := ZipFile.at(self._tree.root, match["file"])):
            text = (archive.read("EGG-INFO/PKG-INFO") or b"").decode("utf-8", "replace")
        headers = dict(reversed(_HEADER.findall(text)))
        name, version = headers.get("Name", match["name"]), headers.get("Version", match["version"])
        return owned("python", name, version)

    def _standard_library(self, path: str) -> Owner | None:
        if match := _ZIPPED_STANDARD.fullmatch(path):
            return standard_library("python", f"{match['version']}.{match['minor']}")
        match = _STANDARD.fullmatch(path)
        if not match or _FOREIGN.search(path, match.start("rest")):
            return None
        directory = path[: match.start("rest") - 1]
        names = self._tree.names(directory)
        if names and not names & {"os.py", "os.pyc"}:  # somebody's own lib/python3.x
            return None
        known = self._standard.get(directory)
        if known is None:
            version = self._exact_version(match["prefix"], match["version"], path)
            known = self._standard[directory] = standard_library("python", version)
        return known

    def _exact_version(self, prefix: str, version: str, path: str) -> str:
        """X.Y.Z by the header file or the package, else the X.Y that is known anyhow."""
        header = self._tree.text(f"{prefix}/include/python{version}/patchlevel.h")
        macro = _VERSION_MACRO.search(header)
        if macro:
            return macro[1]
        package = self._packages.owner(self._tree.root, path)
        upstream = upstream_version(package.version if package else None)
        return upstream if upstream and upstream.startswith(f"{version}.") else version
