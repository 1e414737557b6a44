"""``forktrace export FILE -f FORMAT``: a capture for other programs."""

from __future__ import annotations

import sys

import click

from tracer.cli.captured import load_trace
from tracer.cli.output import open_output
from tracer.errors import UsageError
from tracer.export import FORMATS


@click.command()
@click.argument("file", metavar="FILE", required=False)
@click.option("-f", "--format", "form", required=True, help="folded or svg; `-f list` tells what opens each.")
@click.option("--all-forks", is_flag=True, help="Weigh stacks by every fork, not by the never-waited ones.")
@click.option("-o", "--output", metavar="FILE", help="Write to this file instead of stdout.")
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def export(file: str | None, form: str, all_forks: bool, output: str | None, force: bool) -> None:
    """Export a capture: stacks that forked children nobody waited for, or all that forked."""
    if form == "list":
        width = max(map(len, FORMATS))
        for name, each in FORMATS.items():
            click.echo(f"{name:<{width}}  {each.description} (open it with {each.opened_by})")
        return
    if form not in FORMATS:
        raise UsageError(f"there is no format {form}", f"the formats are: {', '.join(FORMATS)}")
    if file is None:
        raise UsageError(
            "which capture?", "forktrace export FILE -f folded; `forktrace -p PID -o FILE` makes one"
        )
    trace = load_trace(file)
    with open_output(output, force, sys.stdout) as stream:
        FORMATS[form].write(trace, stream, all_forks)
