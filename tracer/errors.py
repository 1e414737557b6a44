"""Errors that reach the user: one line of what is wrong, one of what to do, and the exit status that goes with it."""

from __future__ import annotations

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_LEAKS = 3
EXIT_UNAVAILABLE = 69  # this kernel, or this machine's BCC, cannot
EXIT_BPF_REFUSED = 70  # the kernel refused a BPF program or map
EXIT_NO_PERMISSION = 77


class ForktraceError(Exception):
    """message: what is wrong; help: the command or the step that mends it; details: lines that -v shows besides."""

    status = EXIT_ERROR

    def __init__(self, message: str, help: str = "", details: str = "") -> None:  # noqa: A002 - the users' word
        super().__init__(message)
        self.message = message
        self.help = help
        self.details = details


class UsageError(ForktraceError):
    status = EXIT_USAGE


class Unavailable(ForktraceError):
    status = EXIT_UNAVAILABLE


class BpfRefused(ForktraceError):
    status = EXIT_BPF_REFUSED


class NoPermission(ForktraceError):
    status = EXIT_NO_PERMISSION
