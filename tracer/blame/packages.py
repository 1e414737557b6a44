"""The distribution's package that a file belongs to, whichever package manager the target's root has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.blame.dpkg import Databases
from tracer.trace import Library

if TYPE_CHECKING:
    from tracer.stacks.files import Root

PACKAGED = frozenset({"deb", "apk", "rpm"})


class Packages:
    """State: the databases read lately, and their answers."""

    def __init__(self) -> None:
        self._dpkg = Databases()

    def owner(self, root: Root | None, path: str) -> Library | None:
        """The package's name and version, without a place in it."""
        package = self._dpkg.owner(root, path) if root else None
        return Library("deb", package.name, package.version) if package else None

    def beside(self, root: Root | None, path: str, pattern: re.Pattern[bytes]) -> list[str]:
        """Paths matching the pattern in the list of the Debian package that owns ``path``."""
        if root is None:
            return []
        package = self._dpkg.owner(root, path)
        return self._dpkg.files(root, package, pattern) if package else []
