"""What the resolvers of ``blame`` see of one target's root: names of directories and contents of small files.

It stands on ``stacks.files.Root``: nothing outside the root is reached, and a file that cannot be had is None.
"""

from __future__ import annotations

import posixpath
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.stacks.files import Root

MAX_NAMES = 10_000  # of a directory; one with more is none of a package manager's
MAX_LISTINGS = 2048
MAX_TEXT = 4 << 20
MAX_READ = 256 << 20  # of one root, together: it is its owner who says how much there is
READ_COST = 4096  # of each file, besides its size
MAX_DEPTH = 32

_NOTHING: frozenset[str] = frozenset()


class Tree:
    """State: the listings asked for lately, and how much may still be read.

    A directory is read once: a trace looks at code that is loaded already.
    """

    def __init__(self, root: Root | None) -> None:
        """Without a root nothing is there."""
        self.root = root
        self._listings: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._left = MAX_READ

    def names(self, directory: str) -> frozenset[str]:
        """The names in it; none when it cannot be listed."""
        known = self._listings.get(directory)
        if known is not None:
            self._listings.move_to_end(directory)
            return known
        try:
            found = frozenset(self.root.listdir(directory, MAX_NAMES)) if self.root else _NOTHING
        except OSError:
            found = _NOTHING
        self._listings[directory] = found
        if len(self._listings) > MAX_LISTINGS:
            self._listings.popitem(last=False)
        return found

    def read(self, path: str, limit: int = MAX_TEXT) -> bytes | None:
        """The file's content; None when it cannot be had, is larger, or too much was read already."""
        if self.root is None or self._left <= 0:
            return None
        self._left -= READ_COST
        try:
            content = self.root.read(path, min(limit, self._left))
        except OSError:
            return None
        self._left -= len(content)
        return content

    def text(self, path: str, limit: int = MAX_TEXT) -> str:
        """As ``read``, as text; "" when it cannot be had."""
        return (self.read(path, limit) or b"").decode("utf-8", "replace")


def parents(path: str) -> Iterator[str]:
    """The directories above a file, the nearest first, without "/" itself."""
    directory = posixpath.dirname(path)
    for _ in range(MAX_DEPTH):
        if directory in ("", "/"):
            return
        yield directory
        directory = posixpath.dirname(directory)
