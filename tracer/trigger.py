"""Moments at which a trace keeps a second capture: ``--snapshot-on``.

The capture is written like the trace's own, once a second, and finished when its moment comes, so it costs no memory
and holds all that was known by then.  One whose moment never came is taken away.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.capture.writer import CaptureWriter

WITHOUT_CAPTURE = "forktrace.forktrace"  # the name that a snapshot's is made of where there is no -o


@dataclass(frozen=True, slots=True)
class Trigger:
    """The first clone that fails with EAGAIN, or, with ``zombies``, so many standing at once."""

    zombies: int = 0

    @classmethod
    def parse(cls, text: str) -> Trigger:
        """ "eagain" or "zombies=N".  Raises ValueError."""
        name, _, number = text.partition("=")
        if text == "eagain":
            return cls()
        if name == "zombies" and number.isascii() and number.isdigit() and int(number):
            return cls(int(number))
        raise ValueError(f"{text} is neither eagain nor zombies=N")

    def __str__(self) -> str:
        return f"zombies={self.zombies}" if self.zombies else "eagain"

    @property
    def moment(self) -> str:
        return f"{self.zombies:,} zombies at once" if self.zombies else "the first EAGAIN"

    def has_come(self, zombies: int, failed_with_eagain: bool) -> bool:
        return zombies >= self.zombies if self.zombies else failed_with_eagain

    def file(self, capture: str | None) -> Path:
        """Beside the trace's own capture: leak.forktrace gives leak.eagain.forktrace, leak.zombies-50.forktrace."""
        path = Path(capture or WITHOUT_CAPTURE)
        return path.with_name(f"{path.stem}.{str(self).replace('=', '-')}{path.suffix}")


@dataclass(frozen=True, slots=True)
class Awaited:
    """A capture that waits for its moment."""

    trigger: Trigger
    capture: CaptureWriter
