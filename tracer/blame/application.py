"""A file that no package owns -> the application that it is part of, with its git revision.

The last of the resolvers behind ``languages``: it always has an answer.
"""

from __future__ import annotations

import posixpath
import re

from tracer.blame.owner import Owner
from tracer.blame.tree import Tree, parents
from tracer.trace import Library

MAX_PACKED_REFS = 4 << 20
REVISION_DIGITS = 12

_MARKERS = frozenset(
    {".git", "pyproject.toml", "setup.py", "setup.cfg", "requirements.txt", "Pipfile", "manage.py", "Gemfile"}
    | {"Rakefile", "config.ru", "package.json", "composer.json", "cpanfile", "Makefile.PL", "pom.xml"}
    | {"build.gradle", "Procfile", "Dockerfile"}
)
_ARCHIVE = re.compile(r"(?P<archive>[^\n]*?\.(?:zip|pyz|pex|phar))(?:/.*)?", re.DOTALL)
_REVISION = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REF = re.compile(r"ref: (refs/[^\s\0]+)")


class Applications:
    """The projects of one root.  State: revisions read so far; a tree that moves on while it is traced is not seen."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._revisions: dict[str, str | None] = {}

    def owner(self, path: str) -> Owner:
        """Named by the project's directory; by the script itself where no file tells what the project is."""
        archive = _ARCHIVE.fullmatch(path)
        script = posixpath.basename(archive["archive"] if archive else path) or path
        project = next((d for d in parents(path) if self._tree.names(d) & _MARKERS), None)
        repository = next((d for d in parents(path) if ".git" in self._tree.names(d)), None)
        revision = self._revision(repository) if repository else None
        return Owner(Library("app", posixpath.basename(project) if project else script, revision))

    def _revision(self, directory: str) -> str | None:
        if directory not in self._revisions:
            found = self._read_revision(directory)
            self._revisions[directory] = found[:REVISION_DIGITS] if found else None
        return self._revisions[directory]

    def _read_revision(self, directory: str) -> str | None:
        """gitrepository-layout(5): HEAD is a revision or names a ref, which is a file or a line of packed-refs."""
        git = f"{directory}/.git"
        pointer = self._tree.text(git, 4096)
        if pointer.startswith("gitdir: "):  # a worktree or submodule
            git = posixpath.normpath(posixpath.join(directory, pointer[8:].strip()))
        head = self._tree.text(f"{git}/HEAD", 4096).strip()
        if _REVISION.fullmatch(head):
            return head
        ref = _REF.fullmatch(head)
        if not ref or ".." in ref[1]:
            return None
        common = self._tree.text(f"{git}/commondir", 4096).strip()
        for base in [git, posixpath.normpath(posixpath.join(git, common))] if common else [git]:
            loose = self._tree.text(f"{base}/{ref[1]}", 4096).strip()
            if _REVISION.fullmatch(loose):
                return loose
            packed = self._tree.text(f"{base}/packed-refs", MAX_PACKED_REFS)
            if found := re.search(rf"^([0-9a-f]+) {re.escape(ref[1])}$", packed, re.MULTILINE):
                return found[1] if _REVISION.fullmatch(found[1]) else None
        return None
