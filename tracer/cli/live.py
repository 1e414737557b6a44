"""Trace until enough: what ``forktrace -p``, ``--all`` and ``run`` share."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from tracer.cli.options import Output, Tracing
from tracer.cli.output import open_report, print_report
from tracer.errors import ForktraceError
from tracer.probe.probe import ProbeOptions
from tracer.report.escape import visible
from tracer.session import DRAIN_S, Session, SessionOptions, check_target, meta_of
from tracer.trace import Trace
from tracer.trigger import Awaited

if TYPE_CHECKING:
    from tracer.capture.writer import CaptureWriter

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handlers = dict[signal.Signals, Any]


class Stopper:
    """The first Ctrl-C (or SIGTERM, SIGHUP) ends the trace, the second ends the program at once.

    descriptor becomes readable with the first, so that nobody waits for it.  before: the handlers it stands in for.
    """

    def __init__(self) -> None:
        self.descriptor, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.stopped = self.typed = False
        self.before: Handlers = {}

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.stopped:
            os._exit(128 + number)  # the capture holds the last flush
        self.stopped = True
        self.typed = number == signal.SIGINT
        os.write(self._write, b"\0")

    @contextmanager
    def installed(self) -> Iterator[Stopper]:
        self.before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, handler in self.before.items():
            # nohup means its SIGHUP; but a shell's "&" has SIGINT ignored, and `kill -INT` must still end the trace.
            if number != signal.SIGHUP or handler is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        try:
            yield self
        finally:
            for number, handler in self.before.items():
                signal.signal(number, handler)
            os.close(self.descriptor)
            os.close(self._write)


def trace_targets(
    pids: tuple[int, ...], everything: bool, cgroup: str | None, tracing: Tracing, output: Output
) -> int:
    """Returns the exit status."""
    options = SessionOptions(
        pids, everything, cgroup, tracing.min_age_s, probe_options(tracing), tracing.rules
    )
    with Stopper().installed() as stopper, open_report(output, sys.stdout) as stream:
        with begun(options, output) as session:
            what = "every process" if everything else f"cgroup {cgroup}" if cgroup else _named(session)
            say(output, f"tracing {what}; {_until(tracing)}")
            follow(session, stopper, tracing, output, session.over)
            trace = finish(session, output)
        return print_report(trace, output, stream)


def probe_options(tracing: Tracing) -> ProbeOptions:
    return ProbeOptions(light=tracing.light, stacks=tracing.stacks)


@contextmanager
def begun(options: SessionOptions, output: Output) -> Iterator[Session]:
    """A session that traces.  Its capture, if one is asked for, is made first: what is wrong with its name is said
    before anything is loaded.  When the trace cannot begin no capture is left.
    """
    for pid in options.pids:
        check_target(pid)
    begin = time.monotonic()
    capture, snapshots = _captures(options, output)
    try:
        session = Session(options, capture, snapshots=snapshots)
        try:
            session.start()
        except BaseException:
            session.close()
            raise
    except BaseException as error:
        for each in (capture, *(snapshot.capture for snapshot in snapshots)):
            if each is not None:
                each.discard()
        if isinstance(error, ForktraceError) and output.verbose:
            for line in error.details.splitlines():
                say(output, line)
        raise
    if output.verbose:
        took = time.monotonic() - begin
        say(output, f"attached after {took:.2f} s; {len(session.graph.tasks):,} processes are followed")
    with session:
        yield session


def _captures(options: SessionOptions, output: Output) -> tuple[CaptureWriter | None, list[Awaited]]:
    """All of them, or none."""
    if output.capture is None and not output.snapshots:
        return None, []
    from tracer.capture.writer import CaptureWriter  # noqa: PLC0415 - sqlite3, where it is used

    made: list[CaptureWriter] = []
    names = [trigger.file(output.capture) for trigger in output.snapshots]
    try:
        for name in (*((output.capture,) if output.capture is not None else ()), *names):
            made.append(CaptureWriter(name, meta_of(options), output.force))
    except BaseException:
        for each in made:
            each.discard()
        raise
    capture = made.pop(0) if output.capture is not None else None
    return capture, [Awaited(trigger, each) for trigger, each in zip(output.snapshots, made, strict=True)]


def follow(
    session: Session, stopper: Stopper, tracing: Tracing, output: Output, over: Callable[[], bool]
) -> None:
    """Until a signal, the end of the duration or ``over``."""
    session.watch(stopper.descriptor)
    end = time.monotonic() + tracing.duration_s if tracing.duration_s is not None else float("inf")
    while not stopper.stopped and not over():
        left = end - time.monotonic()
        if left <= 0:
            break
        session.step(min(DRAIN_S, left))
        while session.news:
            say(output, session.news.pop(0))
    if stopper.typed and sys.stderr.isatty():
        with suppress(OSError):
            click.echo(err=True)  # the terminal has shown ^C, and stands behind it


def finish(session: Session, output: Output) -> Trace:
    trace = session.finish()
    if output.verbose:
        spent = time.process_time()
        say(output, f"traced; {len(trace.stacks):,} different stacks, {spent:.2f} s of CPU time in all")
    if session.capture_problem:
        say(output, session.capture_problem, always=True)
    return trace


def say(output: Output, sentence: str, always: bool = False) -> None:
    """A note on stderr; a closed stderr is no reason to stop a trace."""
    if output.quiet and not always:
        return
    with suppress(OSError):
        click.echo(f"forktrace: {visible(sentence)}", err=True)


def _named(session: Session) -> str:
    names = [f"{target.pid} ({target.comm})" for target in session.targets[:3]]
    more = f" and {len(session.targets) - 3} more" if len(session.targets) > 3 else ""
    return f"process {', '.join(names)}{more} and descendants"


def _until(tracing: Tracing) -> str:
    return (
        f"for {tracing.duration_s:g} s, or until Ctrl-C"
        if tracing.duration_s is not None
        else "Ctrl-C ends it"
    )
