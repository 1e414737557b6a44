"""Options that several commands share, as decorators, and what they add up to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from tracer.blame.rules import Rules
from tracer.cli.pids import parse_pids
from tracer.trigger import Trigger

Command = Callable[..., Any]
MAX_SECONDS = 1e9  # 31 years


@dataclass(frozen=True, slots=True)
class Tracing:
    """duration_s: None is until Ctrl-C or the end of the targets."""

    duration_s: float | None
    min_age_s: float
    light: bool
    stacks: bool
    rules: Rules | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """capture, report: file names.  report: None is the command's default stream, "-" is stdout.

    snapshots: moments at which a second capture is kept.
    """

    capture: str | None
    report: str | None
    form: str
    force: bool
    fail_on_leak: bool
    color: str
    quiet: bool
    verbose: bool
    snapshots: tuple[Trigger, ...] = ()


class Seconds(click.FloatRange):
    """A finite time: "nan" passes every comparison, and "inf" fits no counter."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not seconds <= MAX_SECONDS:
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


def _triggers(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[Trigger, ...]:
    try:
        return tuple(dict.fromkeys(map(Trigger.parse, values)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def target_options(command: Command) -> Command:
    return _decorate(
        command,
        [
            click.option(
                "-p",
                "--pid",
                "pids",
                multiple=True,
                callback=parse_pids,
                metavar="PID[,PID...]",
                help="Trace this process and its descendants; may be repeated.",
            ),
            click.option("--all", "everything", is_flag=True, help="Trace every process of the host."),
            click.option(
                "--cgroup",
                metavar="PATH",
                help="Trace the processes in this cgroup directory (a container) and their descendants.",
            ),
        ],
    )


def tracing_options(command: Command) -> Command:
    options: list[Callable[[Any], Any]] = [
        click.option(
            "-d",
            "--duration",
            type=Seconds(min=0, min_open=True),
            metavar="SECONDS",
            help="End the trace after so long; default: at Ctrl-C, or when the targets have ended.",
        ),
        min_age_option(1.0),
        click.option(
            "--light",
            is_flag=True,
            help="Without the syscall tracepoints, which cost every process on the host some 60 ns a call: reaping "
            "is seen some milliseconds late, and without the call; failed forks are not seen.",
        ),
        click.option("--no-stacks", is_flag=True, help="Count forks, but take no stacks."),
        rules_option,
    ]

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        duration: float | None,
        min_age: float,
        light: bool,
        no_stacks: bool,
        rules: Rules | None,
        **rest: Any,
    ) -> Any:
        return command(*args, tracing=Tracing(duration, min_age, light, not no_stacks, rules), **rest)

    return _decorate(wrapped, options)


def output_options(command: Command) -> Command:
    """Of a live trace: a capture, and the report."""
    options = [
        click.option(
            "-o",
            "--output",
            "capture",
            metavar="FILE",
            help="Write a capture, for `forktrace report` and `export`.",
        ),
        click.option(
            "--snapshot-on",
            "snapshots",
            multiple=True,
            callback=_triggers,
            metavar="eagain|zombies=N",
            help="Keep a capture of what was known at the first clone that failed with EAGAIN, or when N zombies "
            "stood, and go on; FILE.eagain.forktrace beside the capture FILE.forktrace. May be repeated.",
        ),
        click.option("--report", metavar="FILE", help="Print the report to this file; - is stdout."),
    ]
    return _decorate(report_options(command), options)


def _load_rules(_: click.Context, __: click.Parameter, path: str | None) -> Rules | None:
    """Raises ``BadRules``: before the trace, not after it."""
    return Rules.with_file(path) if path is not None else None


rules_option = click.option(
    "--rules",
    callback=_load_rules,
    metavar="FILE",
    help="More wrappers, which hand a child to their caller, and owners of files (JSON, see docs/rules.md).",
)


def min_age_option(default: float | None) -> Callable[[Command], Command]:
    return click.option(
        "--min-age",
        type=Seconds(min=0),
        default=default,
        show_default=default is not None,
        metavar="SECONDS",
        help="A zombie that stood for less is counted, but is no leak.",
    )


def report_options(command: Command) -> Command:
    """How a report is printed.  The command's own ``capture`` and ``report`` options, if any, go into ``Output``."""
    options = [
        click.option(
            "-f",
            "--format",
            "form",
            type=click.Choice(["text", "json"]),
            default="text",
            help="The report's format.",
        ),
        click.option("--json", "as_json", is_flag=True, help="The same as -f json."),
        click.option("--force", is_flag=True, help="Overwrite files that exist."),
        click.option("--fail-on-leak", is_flag=True, help="Exit with status 3 when there are leaks."),
        click.option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            help="Colour the report; auto is on a terminal, and not with NO_COLOR set.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on stderr."),
        click.option("-v", "--verbose", is_flag=True, help="More notes on stderr."),
    ]

    @functools.wraps(command)
    def wrapped(*args: Any, form: str, as_json: bool, **rest: Any) -> Any:
        given = {name: rest.pop(name, None) for name in ("capture", "report")}
        given["snapshots"] = rest.pop("snapshots", ())
        flags = {name: rest.pop(name) for name in ("force", "fail_on_leak", "color", "quiet", "verbose")}
        output = Output(form="json" if as_json else form, **given, **flags)
        return command(*args, output=output, **rest)

    return _decorate(wrapped, options)


def _decorate(command: Command, options: list[Callable[[Any], Any]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
