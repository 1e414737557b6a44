"""The distribution's package that a file belongs to, whichever package manager the target's root has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.blame import apk, dpkg, rpm
from tracer.trace import Library

if TYPE_CHECKING:
    from tracer.stacks.files import Root

PACKAGED = frozenset({"deb", "apk", "rpm"})


class Packages:
    """State: the databases read lately."""

    def __init__(self) -> None:
        self._managers = {"deb": dpkg.databases(), "apk": apk.databases(), "rpm": rpm.databases()}

    def owner(self, root: Root | None, path: str) -> Library | None:
        """The package's name and version, without a place in it."""
        for kind, databases in self._managers.items():
            if root is not None and (package := databases.owner(root, path)):
                return Library(kind, package.name, package.version)
        return None

    def beside(self, root: Root | None, path: str, pattern: re.Pattern[bytes]) -> list[str]:
        """Paths that the pattern matches in the list of the package that owns ``path``."""
        for databases in self._managers.values():
            if root is not None and (package := databases.owner(root, path)):
                return databases.files(root, package, pattern)
        return []
