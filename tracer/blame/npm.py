"""A JavaScript file -> its npm package, or Node's own library.

One of the resolvers behind ``languages``.  A package is the directory right below the innermost node_modules (scoped
names have two parts), whoever laid it out: npm, Yarn, pnpm's store with its links, Debian's /usr/share/nodejs.
"""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

from tracer.blame.owner import Owner, owned, standard_library
from tracer.blame.tree import Tree, parents

_PACKAGE = re.compile(
    r"(?P<directory>(?P<above>.*)(?:/node_modules|/(?:share|lib|lib/[\w-]+)/nodejs)/"
    r"(?P<name>@[^/]+/[^/@]+|[^/@.][^/]*))/.+",
    re.DOTALL,
)
# pnpm's .pnpm/NAME@VERSION(PEERS)/node_modules and Yarn's .yarn/cache/NAME-npm-VERSION-HASH.zip/node_modules
_STORE = re.compile(
    r".*/(?:\.pnpm/(?:@[^/+]+\+)?[^/@]+@(?P<pnpm>\d[\w.+-]*?)(?:[_(][^/]*)?|[^/]+-npm-(?P<yarn>\d[\w.-]*?)-[0-9a-f]{10}(?:-\w+)?\.zip)",
    re.DOTALL,
)
_URL = re.compile(r"file://(?P<path>/.*)", re.DOTALL)
_NATIVE = re.compile(r".*(?:/node_modules|/nodejs)/.*\.(?:node|so(?:\.[\w.-]+)?)", re.DOTALL)
MAX_PACKAGE = 1 << 20


class Npm:
    """The packages of one root.  State: those seen so far."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._packages: dict[str, Owner | None] = {}

    def owner(self, path: str) -> Owner | None:
        if path.startswith("node:"):
            return standard_library("node")
        if match := _URL.fullmatch(path):
            path = unquote(match["path"])
        if not path.startswith("/"):
            # before Node 16 its own files had no prefix; everything else has an absolute path
            return standard_library("node") if path.endswith(".js") and not path.startswith(".") else None
        return self._installed(path) or self._project(path)

    def owner_of_native(self, path: str) -> Owner | None:
        """Of an add-on."""
        return self._installed(path) if _NATIVE.fullmatch(path) else None

    def _installed(self, path: str) -> Owner | None:
        match = _PACKAGE.fullmatch(path)
        if not match:
            return None
        directory = match["directory"]
        if directory not in self._packages:
            name, version = self._described(directory)
            if name is None or version is None:
                store = _STORE.fullmatch(match["above"])
                version = version or (store["pnpm"] or store["yarn"] if store else None)
            self._packages[directory] = owned("npm", name or match["name"], version)
        return self._packages[directory]

    def _project(self, path: str) -> Owner | None:
        """The application, by its own package.json; others in it (dist/, test/) may have no name."""
        for directory in parents(path):
            if "package.json" in self._tree.names(directory):
                if directory not in self._packages:
                    self._packages[directory] = owned("app", *self._described(directory))
                if owner := self._packages[directory]:
                    return owner
        return None

    def _described(self, directory: str) -> tuple[str | None, str | None]:
        """(name, version) of a package.json."""
        try:
            data = json.loads(self._tree.read(f"{directory}/package.json", MAX_PACKAGE) or b"null")
        except (ValueError, RecursionError):
            return None, None
        if not isinstance(data, dict):
            return None, None
        name, version = data.get("name"), data.get("version")
        return name if isinstance(name, str) else None, version if isinstance(version, str) else None
