"""Code of an interpreter, or a native file that a language's package brought -> the library that it belongs to.

It stands between ``attribute`` and the resolvers, one for each way to package code.  What no package of the language
owns may be of a package of the distribution, and else is the application.
"""

from __future__ import annotations

import posixpath
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING

from tracer.blame.application import Applications
from tracer.blame.jar import Jar, owner_of_class
from tracer.blame.npm import Npm
from tracer.blame.owner import Owner, Resolver, standard_library, upstream_version
from tracer.blame.packages import PACKAGED, Packages
from tracer.blame.python import Python
from tracer.blame.ruby import Ruby, is_default_gem
from tracer.blame.tree import Tree
from tracer.trace import Frame, Library

if TYPE_CHECKING:
    from tracer.stacks.files import Root

MAX_ROOTS = 16
MAX_ANSWERS = 1 << 16
# what runs a language, by the name that its standard library goes by
STANDARD_LIBRARY = {
    "python": "python",
    "ruby": "ruby",
    "javascript": "node",
    "java": "java",
    "php": "php",
    "perl": "perl",
}

_GENERATED = re.compile(r"<.*>|\(.*\)|\[.*\].*|-|-e|-c|evalmachine\.<anonymous>|REPL\d*", re.DOTALL)
_EVALUATED = re.compile(r"\(eval at (?P<file>/.+):\d+\)", re.DOTALL)  # Ruby 3.3 tells where
_PERL = re.compile(
    r".*/(?:perl|perl5)/(?:perl-base|(?P<version>\d+\.\d+(?:\.\d+)?))/.+|.*/perl-base/.+", re.DOTALL
)
_PERL_FOREIGN = re.compile(r"/(?:site|vendor)_perl/|/local/share/perl/|/local/lib/[\w-]+/perl/")
_INTERPRETERS = {
    "python": re.compile(r"(?:lib)?(?:python|pypy)-?(?P<version>\d+\.\d+)?.*"),
    "ruby": re.compile(r"(?:lib)?ruby(?:-|\.so\.)?(?P<version>\d+\.\d+(?:\.\d+)?)?.*"),
    "node": re.compile(r"(?:lib)?node(?:js)?(?P<version>)?(?:\.so.*)?"),
    "java": re.compile(r"(?:java|libjvm\.so|libjava\.so)(?P<version>)?"),
    "php": re.compile(r"(?:lib)?php(?:-fpm|-cgi)?(?P<version>\d+\.\d+)?.*"),
    "perl": re.compile(r"(?:lib)?perl(?P<version>\d+\.\d+\.\d+)?(?:\.so.*)?"),
}
_VERSIONED_DIRECTORY = re.compile(r"/(?:[\w.]+-)?v?(\d+\.\d+\.\d+)(?:-[\w-]+)?/")


class Languages:
    """State: what the resolvers of each root have read, and the answers so far."""

    def __init__(self, packages: Packages) -> None:
        self._packages = packages
        self._roots: OrderedDict[Hashable, _InRoot] = OrderedDict()

    def owner(self, frame: Frame, root: Root | None, directory: str | None = None) -> Owner | None:
        """Whose code an interpreted frame runs; None for code that was made at run time.

        root: where its file is looked for; without one, the file is nobody's but the application's.  directory: the
        working directory in it, where that is known, for a script that was started by a relative name.
        """
        standard = STANDARD_LIBRARY.get(frame.language)
        if frame.language == "java" and frame.file is None:
            return owner_of_class(frame.function)
        if frame.file is None:  # a function of the interpreter itself
            return standard_library(standard) if standard else None
        if match := _EVALUATED.fullmatch(frame.file):
            return self._in(root).owner(frame.language, match["file"])
        generated = _GENERATED.fullmatch(frame.file)
        is_relative = directory is not None and not generated and frame.language != "javascript"
        path = posixpath.join(directory or "", frame.file) if is_relative else frame.file
        owner = self._in(root).owner(frame.language, _normal(path))
        return owner if owner.standard or not generated else None

    def notice(self, path: str, root: Root | None) -> None:
        """A file of a process's stack: it may tell of environments that files elsewhere belong to."""
        self._in(root).notice(path)

    def owner_of_native(self, path: str, root: Root) -> Library | None:
        """The distribution, gem or npm package that brought a mapped file."""
        return self._in(root).owner_of_native(path)

    def _in(self, root: Root | None) -> _InRoot:
        key = root.key if root else None
        known = self._roots.get(key)
        if known is None:
            known = self._roots[key] = _InRoot(root, self._packages)
            if len(self._roots) > MAX_ROOTS:
                self._roots.popitem(last=False)
        self._roots.move_to_end(key)
        return known


class _InRoot:
    """The resolvers of one root."""

    def __init__(self, root: Root | None, packages: Packages) -> None:
        self._root = root
        self._packages = packages
        tree = Tree(root)
        self._python, self._ruby, self._npm = Python(tree, packages), Ruby(tree, packages), Npm(tree)
        self._resolvers: dict[str, Resolver] = {
            "python": self._python,
            "ruby": self._ruby,
            "javascript": self._npm,
            "java": Jar(tree),
            "perl": _Perl(),
        }
        self._applications = Applications(tree)
        self._answers: dict[tuple[str, str], Owner] = {}

    def notice(self, path: str) -> None:
        if self._python.notice(path):
            self._answers.clear()

    def owner(self, language: str, path: str) -> Owner:
        known = self._answers.get((language, path))
        if known is None:
            if len(self._answers) >= MAX_ANSWERS:
                self._answers.clear()
            known = self._answers[language, path] = self._find(language, path)
        return known

    def _find(self, language: str, path: str) -> Owner:
        resolver = self._resolvers.get(language)
        if resolver is not None and (owner := resolver.owner(path)):
            return owner
        if package := self._packages.owner(self._root, path):
            return Owner(package)
        return self._applications.owner(path)

    def owner_of_native(self, path: str) -> Library | None:
        for resolver in (self._python, self._ruby, self._npm):
            if owner := resolver.owner_of_native(path):
                return owner.library
        return None


class _Perl:
    """Perl's own modules; those of the distribution are its packages'."""

    def owner(self, path: str) -> Owner | None:
        match = _PERL.fullmatch(path)
        if not match or _PERL_FOREIGN.search(path):
            return None
        return standard_library("perl", match["version"])


def is_standard(library: Library, file: str | None) -> bool:
    """Whether what is known to be this library's came with the language: for frames of an earlier trace."""
    return library.kind == "stdlib" or (library.kind == "gem" and file is not None and is_default_gem(file))


def interpreter_version(
    standard: str, paths: Iterable[str], library_of: Callable[[str], Library]
) -> str | None:
    """The version of a language by the native files that run it, where its own files do not tell."""
    for path in paths:
        match = _INTERPRETERS[standard].fullmatch(posixpath.basename(path))
        if not match:
            continue
        library = library_of(path)
        packaged = upstream_version(library.version) if library.kind in PACKAGED else None
        directory = _VERSIONED_DIRECTORY.search(path)
        if version := packaged or (directory[1] if directory else None) or match["version"]:
            return version
    return None


def _normal(path: str) -> str:
    return posixpath.normpath(path) if path.startswith("/") else path
