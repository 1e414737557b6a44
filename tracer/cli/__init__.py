"""The command line: a module a command, this one the group they hang in and the errors' way out.

``forktrace -p PID`` and ``--all`` are the group itself, so that the main job needs no command's name.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from tracer import __version__
from tracer.cli.options import Output, Tracing, output_options, target_options, tracing_options
from tracer.cli.output import abandon
from tracer.errors import EXIT_ERROR, EXIT_USAGE, ForktraceError, UsageError
from tracer.report.escape import visible

COMMANDS = {
    "run": "Start a command and trace it from its first instruction.",
    "ps": "Zombies, children, threads and limits right now; no root, no BPF.",
    "report": "Print the report of a capture again; no root, no BPF.",
    "export": "Turn a capture into a file for another program: flamegraph, pprof, Perfetto, CSV…",
    "doctor": "What works on this kernel, what does not, and what to do about it.",
}


class LazyGroup(click.Group):
    """Commands are imported when they are called: ``ps`` needs neither SQLite nor ELF files, nobody needs bcc."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"tracer.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="forktrace")
@target_options
@tracing_options
@output_options
@click.pass_context
def cli(
    ctx: click.Context,
    pids: tuple[int, ...],
    everything: bool,
    cgroup: str | None,
    tracing: Tracing,
    output: Output,
) -> None:
    """Find the code that forks children and never waits for them.

    \b
    sudo forktrace -p PID            a process and its descendants, until Ctrl-C
    sudo forktrace run -- CMD ARG    a command, from its first instruction
    forktrace ps                     the zombies there are now; no root needed

    The report names the stack that forked the leaked children, and the library, version and line that is
    responsible for them.

    Exit status: 0; 1 error; 2 usage; 3 leaks, with --fail-on-leak; 69 this kernel or BCC cannot; 70 the kernel
    refused BPF; 77 no permission; `run` passes the command's own status.
    """
    if ctx.invoked_subcommand is not None:
        given = [name for name, value in ctx.params.items() if _was_given(ctx, name) and value is not None]
        if given:
            raise UsageError(f"options go behind the command: forktrace {ctx.invoked_subcommand} …")
        return
    if not (pids or everything or cgroup):
        if len(sys.argv) <= 1:
            click.echo(ctx.get_help())
            raise SystemExit(EXIT_USAGE)
        raise UsageError(
            "what shall be traced?", "name a process with -p PID, a cgroup with --cgroup, or --all"
        )
    if sum(map(bool, (pids, everything, cgroup))) > 1:
        raise UsageError("-p, --cgroup and --all exclude each other", "give one of them")
    from tracer.cli.live import trace_targets  # noqa: PLC0415 - heavy, and only here

    raise SystemExit(trace_targets(pids, everything, cgroup, tracing, output))


def _was_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT)


def main(arguments: Sequence[str] | None = None) -> None:
    """The ``forktrace`` command.  Every error leaves here: one line, what to do, and its status."""
    _open_closed_streams()
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except ForktraceError as error:
        status = _say(error.message, error.help, error.status)
    except click.UsageError as error:
        hint = f"see: {error.ctx.command_path} --help" if error.ctx else ""
        status = _say(error.format_message(), hint, EXIT_USAGE)
    except click.ClickException as error:
        status = _say(error.format_message(), "", error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        status = 130
    except BrokenPipeError:  # `| head` has read enough
        status = 0
        abandon(sys.stdout)
    except MemoryError:
        status = _say("out of memory", "trace fewer processes, or without -o", EXIT_ERROR)
    except OSError as error:
        status = _say(_os_error(error), "", EXIT_ERROR)
        abandon(sys.stdout)
    except Exception as error:
        if os.environ.get("FORKTRACE_DEBUG"):
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        status = _say(
            f"internal error: {error!r} ({os.path.basename(where.filename)}:{where.lineno})",  # noqa: PTH119
            "please report it, with what FORKTRACE_DEBUG=1 prints",
            EXIT_ERROR,
        )
    sys.exit(status)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status = cli.main(args=arguments, prog_name="forktrace", standalone_mode=False)
    except SystemExit as end:
        status = end.code
    return status if isinstance(status, int) else 0


def _open_closed_streams() -> None:
    """A closed stdin, stdout or stderr becomes /dev/null: else the next file that is opened would take its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - it stays
            if stream.fileno() != number:  # the lower ones are open
                os.dup2(stream.fileno(), number)
            os.set_inheritable(number, True)  # by the command of ``run``
            setattr(sys, name, stream)


def _say(message: str, hint: str, status: int) -> int:
    try:
        for line in (f"forktrace: {message}", *([f"  {hint}"] if hint else [])):
            click.echo(visible(line), err=True)
    except OSError:
        pass  # nobody listens; the status tells
    return status


def _os_error(error: OSError) -> str:
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what
