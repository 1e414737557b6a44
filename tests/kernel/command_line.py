"""The command as users run it: started, interrupted, its status and what it printed where."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from support import wait_until

FORKTRACE = (sys.executable, "-c", "from tracer.cli import main; main()")
NOBODY = 65534
AS_NOBODY = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
DEADLINE_S = 30.0


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str


def in_shell(script: str) -> tuple[str, ...]:
    """A prefix: the command is "$@" in the script."""
    return ("sh", "-c", script, "sh")


def hiding(*directories: str, then: str = 'exec "$@"') -> tuple[str, ...]:
    """A prefix: in a mount namespace of its own, with empty directories in place of these."""
    mounts = "; ".join(f"[ ! -d {each} ] || mount -t tmpfs none {each} || exit 9" for each in directories)
    return ("unshare", "--mount", *in_shell(f"{mounts}; {then}"))


def forktrace(
    *arguments: object, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None, **popen: Any
) -> Answer:
    """Run it to its end.  No traceback, whatever happens."""
    done = subprocess.run(
        [*prefix, *FORKTRACE, *map(str, arguments)],
        **{"stdin": subprocess.DEVNULL, **popen},
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
        env=environment(env),
    )
    return checked(done.returncode, done.stdout, done.stderr)


def checked(status: int, out: bytes, err: bytes) -> Answer:
    answer = Answer(status, out.decode(), err.decode())
    for text in (answer.out, answer.err):
        assert "Traceback" not in text
        assert "Exception ignored" not in text
        assert "internal error" not in text
    return answer


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what a terminal or sudo put into it.  An empty value takes a variable away."""
    dropped = ("SUDO_UID", "SUDO_GID", "NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TERM")
    found = {name: value for name, value in os.environ.items() if name not in dropped}
    return {name: value for name, value in {**found, **(more or {})}.items() if value}


class Tracer:
    """A forktrace that runs; ``said`` is what it has printed to stderr so far."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self._errors = errors

    def said(self) -> str:
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode()

    def await_saying(self, words: str) -> None:
        wait_until(
            lambda: words in self.said() or self.process.poll() is not None, DEADLINE_S, f"stderr: {words}"
        )
        assert words in self.said()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> Answer:
        """Wait for its end."""
        out, _ = self.process.communicate(timeout=DEADLINE_S)
        return checked(self.process.returncode, out or b"", self.said().encode())

    def interrupt(self) -> Answer:
        self.send(signal.SIGINT)
        return self.end()


@contextmanager
def tracing(
    *arguments: object,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    begun: str = "forktrace: tracing ",
    **popen: Any,
) -> Iterator[Tracer]:
    """A trace that has begun; it is gone when the block ends."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*prefix, *FORKTRACE, *map(str, arguments)],
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **popen},
            stderr=errors,
            env=environment(env),
        )
        tracer = Tracer(process, errors)
        try:
            if begun:
                tracer.await_saying(begun)
            yield tracer
        finally:
            process.kill()
            process.communicate()


def reachable(directory: Path) -> Path:
    """For a user other than root."""
    for each in (directory, directory.parent, directory.parent.parent):
        each.chmod(0o755)
    return directory
