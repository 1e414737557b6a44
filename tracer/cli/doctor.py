"""``forktrace doctor``: what works on this machine, what does not, and what to do about it.

Prints what ``tracer.probe.trials`` found out: a line a check, the remedies under what is missing, the verdict last.
"""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import asdict

import click

from tracer import __version__, procfs
from tracer.probe.trials import INFO, MISSING, OK, UNTRIED, Check, Diagnosis, diagnose
from tracer.report.escape import visible

SCHEMA = "forktrace.doctor/1"
WIDTH = 80
STATE, NAME = 9, 19  # cells of the columns before the finding
COLORS = {OK: "green", MISSING: "red", UNTRIED: "yellow", INFO: None}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Try all that a trace needs, one after the other, and say what works here.

    Without root it says what it cannot try.  Exit status: 0 when forktrace can trace here, else the status that
    a trace would end with: 69 this kernel or BCC cannot, 70 the kernel refused BPF, 77 no permission.
    """
    found = diagnose()
    if as_json:
        click.echo(json.dumps(_data(found), indent=2))
    else:
        color = False if "NO_COLOR" in os.environ else None
        for line in [*(line for check in found.checks for line in _lines(check)), "", *_verdict(found)]:
            click.echo(line, color=color)
    raise SystemExit(found.status)


def _lines(check: Check) -> list[str]:
    state = click.style(f"{check.state:{STATE}}", fg=COLORS[check.state])
    room = WIDTH - STATE - NAME
    words = textwrap.wrap(visible(check.found), room, break_on_hyphens=False) or [""]
    lines = [f"{state}{check.name:{NAME}}{words[0]}"]
    for line in words[1:]:
        lines.append(" " * (STATE + NAME) + line)
    for number, line in enumerate(textwrap.wrap(visible(check.remedy), room - 3, break_on_hyphens=False)):
        lines.append(" " * (STATE + NAME) + ("   " if number else "-> ") + line)
    return lines


def _verdict(found: Diagnosis) -> list[str]:
    lines = textwrap.wrap(f"{visible(found.conclusion)}.", WIDTH, break_on_hyphens=False)
    if found.remedy:
        lines += textwrap.wrap(
            visible(found.remedy), WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
    return lines


def _data(found: Diagnosis) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "version": __version__,
        "host": procfs.host_facts(),
        "can_trace": found.status == 0,
        "needs_light": found.needs_light,
        "status": found.status,
        "conclusion": found.conclusion,
        "remedy": found.remedy or None,
        "checks": [{**asdict(check), "remedy": check.remedy or None} for check in found.checks],
    }
