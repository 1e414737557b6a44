"""``forktrace export FILE -f FORMAT``: a capture for other programs."""

from __future__ import annotations

import sys

import click

from tracer.cli.captured import load_trace
from tracer.cli.export_file import open_export
from tracer.errors import UsageError
from tracer.export import FORMATS, Format
from tracer.export.attribution import ALL_FORKS, COUNT, FATES, LEAKED, WEIGHTS, Selection


@click.command()
@click.argument("file", metavar="FILE", required=False)
@click.option("-f", "--format", "form", required=True, help="`-f list` tells them, and what opens each.")
@click.option(
    "--weight",
    type=click.Choice(WEIGHTS),
    help="Weigh stacks by children, or by how long those stood as zombies; without it, by children.",
)
@click.option(
    "--fate",
    "fates",
    multiple=True,
    type=click.Choice(FATES),
    help="Only children that ended so; may be repeated. Without it, zombie and orphaned, or all where the format is "
    "a list or a timeline.",
)
@click.option("--all-forks", is_flag=True, help="All children, whatever became of them.")
@click.option("-o", "--output", metavar="FILE", help="Write to this file instead of stdout.")
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def export(
    file: str | None,
    form: str,
    weight: str | None,
    fates: tuple[str, ...],
    all_forks: bool,
    output: str | None,
    force: bool,
) -> None:
    """Export a capture: stacks that forked children nobody waited for, their family, or all that happened."""
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
    chosen = FORMATS[form]
    selection = _selection(chosen, weight, fates, all_forks)
    trace = load_trace(file)
    with open_export(output, force, chosen.binary, sys.stdout) as stream:
        chosen.write(trace, stream, selection)


def _selection(form: Format, weight: str | None, fates: tuple[str, ...], all_forks: bool) -> Selection:
    if all_forks and fates:
        raise UsageError("--all-forks and --fate exclude each other", "give one of them")
    if weight is not None and not form.weighs:
        weighing = ", ".join(each.name for each in FORMATS.values() if each.weighs)
        raise UsageError(
            f"{form.name} shows no stacks that could weigh something", f"--weight is for {weighing}"
        )
    by_itself = ALL_FORKS if all_forks or form.shows_all else LEAKED
    return Selection(frozenset(fates) or by_itself.fates, weight or COUNT)
