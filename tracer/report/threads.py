"""The section of the text report about threads: which stacks made them, and how many of those live."""

from __future__ import annotations

from rich.cells import cell_len

from tracer.report.escape import visible
from tracer.report.layout import duration, shorten
from tracer.report.page import DIM, Page
from tracer.report.wording import counted, place_in, version_of
from tracer.trace import Stack, Trace

MAX_STACKS = 20  # shown; the JSON report has them all


def section(page: Page, trace: Trace) -> None:
    """A row a stack that made threads."""
    if not trace.threads:
        return
    page.heading("Threads, by the stack that made them")
    rows = [("alive", "made", "unjoined", "oldest", "")]
    for stack, tally in trace.threads[:MAX_STACKS]:
        grown = f"{tally.alive:,}" + (f" (+{tally.grown:,})" if tally.grown > 0 else "")
        unjoined = "?" if tally.unjoined is None else f"{tally.unjoined:,}"
        age = "" if tally.oldest_age_s is None else duration(tally.oldest_age_s)
        rows.append((grown, f"{tally.made:,}", unjoined, age, _maker(stack)))
    widths = [max(cell_len(row[column]) for row in rows) for column in range(4)]
    room = page.width - 2 - sum(widths) - 2 * 4
    for number, row in enumerate(rows):
        cells = [" " * (width - cell_len(cell)) + cell for cell, width in zip(row, widths, strict=False)]
        page.line("  ", ("  ".join(cells), "" if number else DIM), "  ", shorten(row[4], max(room, 10)))
    if rest := trace.threads[MAX_STACKS:]:
        page.prose(f"… and {counted(len(rest), 'other stack')}; --json has them all", DIM, indent=2)


def _maker(stack: Stack) -> str:
    library = stack.responsible
    if library is None:
        return visible(stack.cut or "no stack names it")
    place = place_in(library)
    return version_of(library) + (f" ({place})" if place else "")
