"""Prints lines that fit a console: prose, headings and labelled items.

Every line is a ``rich.text.Text`` made to the console's width here: rich neither wraps nor reads markup in names.
All texts must have gone through ``escape.visible``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tracer.report.layout import pad, shorten

LABEL = 13  # cells of the label column
INDENT = 3  # before the labels
MIN_WIDTH = 40
MAX_PROSE = 100  # longer lines are hard to read
DIM, HEAD = "dim", "bold"

_TO_ASCII = str.maketrans("…←→", "~<>")


class Page:
    """Lines that fit a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = max(console.width, MIN_WIDTH)
        self.room = self.width - LABEL - INDENT  # beside a label
        self._ascii = console.options.ascii_only

    def line(self, *pieces: str | tuple[str, str]) -> None:
        """One line of plain or (text, style) pieces, which the caller has made to fit."""
        text = Text.assemble(*pieces)
        text.rstrip()
        text.truncate(self.width, overflow="ellipsis")
        if self._ascii:
            text.plain = text.plain.translate(_TO_ASCII).encode("ascii", "replace").decode()
        self.console.print(text, soft_wrap=True, highlight=False)

    def blank(self) -> None:
        self.line()

    def heading(self, title: str) -> None:
        self.blank()
        self.prose(title, style=HEAD)

    def prose(self, sentence: str | Sequence[str], style: str = "", indent: int = 0) -> None:
        """A sentence, or its parts, which are then broken between each other only."""
        parts = sentence.split() if isinstance(sentence, str) else sentence
        for each in wrapped(parts, min(self.width, MAX_PROSE) - indent):
            self.line(" " * indent, (each, style))

    def labelled(self, label: str, items: Sequence[str], separator: str = ", ", style: str = "") -> None:
        """A label, and items that are wrapped between each other rather than inside."""
        if not items:
            return
        whole = [item + separator.rstrip() for item in items[:-1]] + [items[-1]]
        if any(cell_len(item) > self.room for item in whole):
            whole = separator.join(items).split()
        for number, each in enumerate(wrapped(whole, self.room)):
            self.line(" " * INDENT, (pad("" if number else label, LABEL), DIM), (each, style))


def wrapped(words: Sequence[str], width: int) -> Iterable[str]:
    """Lines of whole words; a word that is wider than a line loses its middle."""
    line = ""
    for word in words:
        word = shorten(word, width)
        if line and cell_len(line) + 1 + cell_len(word) > width:
            yield line
            line = ""
        line += f" {word}" if line else word
    if line:
        yield line
