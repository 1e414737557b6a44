"""``forktrace run -- COMMAND``: trace a command from its first instruction."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import click

from tracer.cli.live import STOP_SIGNALS, Handlers, Stopper, begun, finish, follow, probe_options, say
from tracer.cli.options import Output, Tracing, output_options, tracing_options
from tracer.cli.output import open_report, print_report
from tracer.errors import ForktraceError
from tracer.invoker import become_invoking_user
from tracer.session import SessionOptions

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as shells have it
GRACE_MS = 200  # a terminal's Ctrl-C goes to the command as well, and it may be about to end


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@tracing_options
@output_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...], tracing: Tracing, output: Output) -> None:
    """Start a command and trace it from its first instruction.

    The command has stdout to itself: the report goes to stderr, or to a file with --report.  Under sudo it runs as
    the user who called sudo.  -d ends the trace, not the command.  Its exit status is passed on (128 + signal).
    """
    with Stopper().installed() as stopper:
        with open_report(output, sys.stderr) as stream:
            child = Child.start(list(command), stopper.before)
            try:
                target = SessionOptions(
                    (child.pid,),
                    min_age_s=tracing.min_age_s,
                    probe=probe_options(tracing),
                    rules=tracing.rules,
                )
                with begun(target, output) as session:
                    try:
                        child.go()
                    except ForktraceError:
                        session.discard_capture()
                        raise
                    session.watch(child.pidfd)
                    follow(session, stopper, tracing, output, session.over)
                    report = finish(session, output)
            except BaseException:
                child.abandon()
                raise
            leaks = print_report(report, output, stream)
        status = child.status(stopper)
        if status is None:
            say(output, f"the command (pid {child.pid}) is still running")
            status = 0
    raise SystemExit(leaks or status)


@dataclass(slots=True)
class Child:
    """The command, stopped before its exec until ``go``."""

    pid: int
    pidfd: int
    _gate: int
    _failure: int

    @classmethod
    def start(cls, command: list[str], handlers: Handlers) -> Child:
        """handlers: what the command shall find, and not this program's own."""
        gate_read, gate = os.pipe2(os.O_CLOEXEC)
        failure, failure_write = os.pipe2(os.O_CLOEXEC)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        pid = os.fork()
        if not pid:
            os.close(gate)
            _restore_signals(handlers, mask)
            _become(command, gate_read, failure_write)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(gate_read)
        os.close(failure_write)
        return cls(pid, os.pidfd_open(pid), gate, failure)

    def go(self) -> None:
        """Let it exec.  Raises ``ForktraceError`` when that fails, with the status that a shell would give."""
        os.write(self._gate, b"\0")
        os.close(self._gate)
        self._gate = -1
        said = os.read(self._failure, 4096).decode()  # nothing, at the exec
        if said:
            os.waitpid(self.pid, 0)
            number, _, message = said.partition(" ")
            error = ForktraceError(message)
            error.status = NOT_FOUND if int(number) == 2 else NOT_EXECUTABLE
            raise error

    def abandon(self) -> None:
        """It was never let go: end it.  One that runs is left alone."""
        if self._gate >= 0:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def status(self, stopper: Stopper) -> int | None:
        """Wait for it, unless Ctrl-C ended the trace; its exit status, None while it runs."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not stopper.stopped:
            poll.register(stopper.descriptor, select.POLLIN)
            poll.poll()
            poll.unregister(stopper.descriptor)
        if stopper.stopped:
            poll.poll(GRACE_MS)
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def _restore_signals(handlers: Handlers, mask: Iterable[int]) -> None:
    """In the child: as they were, so that what was ignored (nohup, a shell's "&") stays ignored."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_IGN if handler is signal.SIG_IGN else signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them for itself
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _become(command: list[str], gate: int, failure: int) -> None:
    """In the child: wait for the gate, drop root, exec.  Never returns."""
    try:
        if not os.read(gate, 1):
            os._exit(NOT_EXECUTABLE)  # the tracer is gone
        become_invoking_user()
        os.execvp(command[0], command)
    except OSError as error:
        os.write(failure, f"{error.errno or 0} {command[0]}: {error.strerror}".encode())
    except Exception as error:
        os.write(failure, f"0 {command[0]}: {error}".encode())
    os._exit(NOT_EXECUTABLE)
