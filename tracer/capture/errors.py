"""What can go wrong with a capture file."""

from __future__ import annotations

from tracer.errors import ForktraceError


class CaptureError(ForktraceError):
    """The capture cannot be written, or what was given cannot be read as one."""


class CaptureExists(CaptureError):
    """``-o`` names a file that is there already; it is never overwritten without --force."""
