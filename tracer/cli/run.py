"""``forktrace run -- COMMAND``: trace a command from its first instruction."""

from __future__ import annotations

import os
import pwd
import select
import signal
import sys
from dataclasses import dataclass

import click

from tracer.cli.live import Stopper, finish, follow, open_capture, probe_options, say
from tracer.cli.options import Output, Tracing, output_options, tracing_options
from tracer.cli.output import print_report
from tracer.errors import ForktraceError
from tracer.session import Session, SessionOptions

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as shells have it


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
        child = Child.start(list(command))
        try:
            options = SessionOptions((child.pid,), min_age_s=tracing.min_age_s, probe=probe_options(tracing))
            with Session(options, output.capture is not None) as session:
                session.start()
                open_capture(session, output)
                child.go()
                session.watch(child.pidfd)
                follow(session, stopper, tracing, session.over)
                report = finish(session, output)
        except BaseException:
            child.abandon()
            raise
        leaks = print_report(report, output, sys.stderr)
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
    def start(cls, command: list[str]) -> Child:
        gate_read, gate = os.pipe2(os.O_CLOEXEC)
        failure, failure_write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if not pid:
            os.close(gate)
            _become(command, gate_read, failure_write)
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
        if not stopper.stopped:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            poll.register(stopper.descriptor, select.POLLIN)
            poll.poll()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def _become(command: list[str], gate: int, failure: int) -> None:
    """In the child: wait for the gate, drop root, exec.  Never returns."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGPIPE:
                signal.signal(number, signal.SIG_DFL)
        if not os.read(gate, 1):
            os._exit(NOT_EXECUTABLE)  # the tracer is gone
        _drop_root()
        os.execvp(command[0], command)
    except OSError as error:
        os.write(failure, f"{error.errno or 0} {command[0]}: {error.strerror}".encode())
    except Exception as error:
        os.write(failure, f"0 {command[0]}: {error}".encode())
    os._exit(NOT_EXECUTABLE)


def _drop_root() -> None:
    """Under sudo: back to the user who called it, with his groups and his home."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not (uid.isdigit() and gid.isdigit()) or uid == "0":
        return
    user = pwd.getpwuid(int(uid))
    os.initgroups(user.pw_name, int(gid))
    os.setgid(int(gid))
    os.setuid(int(uid))
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
