"""``forktrace report FILE``: the report of a capture, as the live trace printed it."""

from __future__ import annotations

import sys

import click

from tracer.blame.rules import Rules
from tracer.cli.captured import load_trace
from tracer.cli.options import Output, min_age_option, report_options, rules_option
from tracer.cli.output import open_report, print_report


@click.command()
@click.argument("file", metavar="FILE")
@min_age_option(None)
@rules_option
@click.option("-o", "--output", "report", metavar="FILE", help="Print to this file instead of stdout.")
@report_options
def report(file: str, min_age: float | None, rules: Rules | None, output: Output) -> None:
    """Print the report of a capture again.  Needs neither root nor BPF."""
    trace = load_trace(file, min_age, rules)
    with open_report(output, sys.stdout) as stream:
        status = print_report(trace, output, stream)
    raise SystemExit(status)
