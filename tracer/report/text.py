"""The report for people.  The verdict comes first, then what spoils it, then the leaks by stack, then the accounts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from itertools import groupby
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from tracer.report.escape import visible
from tracer.report.layout import (
    column_widths,
    duration,
    latency,
    pad,
    rate,
    shorten,
    shorten_path,
)
from tracer.report.page import DIM, HEAD, Page, wrapped
from tracer.report.wording import (
    KIND_OF_LEAK,
    KIND_OF_LIBRARY,
    MAX_NAME,
    by_count,
    counted,
    exits_in_words,
    headline,
    identified,
    parent_in_words,
    place_in,
    version_of,
    where,
)
from tracer.trace import FailedFork, Frame, LateReaping, Leak, Library, Share, Stack, Trace

MAX_STACKS = 20  # shown a section; the JSON report has them all
LATE = "the script's frames were read some milliseconds after the fork: it may have gone on to other lines"
MAX_FRAMES = 40
MAX_WAITS = 4
MAX_PARENTS = 6
MAX_SHARES = 4
NEAR = 0.2  # so full, or filling, a limit is worth a line

BAD, WARN, GOOD = "bold red", "bold yellow", "bold green"


def render(trace: Trace, console: Console) -> None:
    """Print the report of ``trace``.  No line is wider than the console (40 cells at least)."""
    page = Page(console)
    bad = any(leak.kind != "orphaned" for leak in trace.leaks) or trace.totals.failed_forks
    page.prose(headline(trace), style=BAD if bad else GOOD if trace.complete else WARN)
    _what_spoils_it(page, trace)
    page.prose(_trace_line(trace), style=DIM)
    number = 0
    for title, leaks in _sections(trace):
        if title:
            page.heading(title)
        for leak in leaks[:MAX_STACKS]:
            number += 1
            _leak(page, number, leak)
        if rest := leaks[MAX_STACKS:]:
            count = sum(leak.count for leak in rest)
            page.blank()
            page.prose(
                f"… and {count:,} more from {counted(len(rest), 'other stack')}; --json has them all", DIM
            )
    if trace.failed_forks:
        page.heading("Failed forks")
        for failed in trace.failed_forks[:MAX_STACKS]:
            _failed(page, failed)
    if trace.late:
        page.heading(
            f"Reaped late: children that stood for {duration(trace.min_age_s)} or more before they were waited for"
        )
        for late in trace.late[:MAX_STACKS]:
            _late(page, late)
    _limits(page, trace)
    _totals(page, trace)
    _reconciliation(page, trace)
    if trace.notes:
        page.heading("Notes")
        for note in trace.notes:
            page.prose(visible(note), indent=2)


def _what_spoils_it(page: Page, trace: Trace) -> None:
    reasons = [visible(reason) for reason in trace.incomplete_because]
    if trace.lost_events and not any("lost" in reason for reason in reasons):
        reasons.insert(0, f"{counted(trace.lost_events, 'record')} lost: the counts may be wrong")
    if not trace.complete and not reasons:
        reasons.append("the counts may be wrong")
    for reason in reasons:
        page.prose(f"INCOMPLETE: {reason}", style=WARN)


def _trace_line(trace: Trace) -> str:
    targets = [f"{target.pid} {shorten(visible(target.comm), 20)}" for target in trace.targets[:4]]
    if len(trace.targets) > 4:
        targets.append(f"{len(trace.targets) - 4} more")
    moment = datetime.fromtimestamp(trace.started_at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    whom = f"Traced {', '.join(targets)}" if targets else "Traced the whole host"
    return f"{whom} for {duration(trace.duration_s)} from {moment}"


def _sections(trace: Trace) -> Iterable[tuple[str, list[Leak]]]:
    """Leaks, then what is perhaps none: a title and its leaks, largest first."""
    yield "", [leak for leak in trace.leaks if leak.kind != "orphaned"]
    if orphans := [leak for leak in trace.leaks if leak.kind == "orphaned"]:
        yield "Orphaned: their parents died first, as daemons do on purpose", orphans


def _leak(page: Page, number: int, leak: Leak) -> None:
    page.blank()
    kind = counted(leak.count, *KIND_OF_LEAK.get(leak.kind, (leak.kind, leak.kind)))
    facts = [f"oldest {duration(leak.oldest_age_s)}", rate(leak.rate_per_min)]
    style = HEAD if leak.kind == "orphaned" else BAD
    page.line((f"{number}. {kind}", style), ", ".join(["", *filter(None, facts)]))
    _blame(page, leak.stack)
    shown = leak.parents if len(leak.parents) <= MAX_PARENTS else leak.parents[: MAX_PARENTS - 1]
    parents = [parent_in_words(parent) for parent in shown]
    if others := leak.parents[len(shown) :]:
        parents.append(f"{len(others):,} others: {sum(parent.count for parent in others):,}")
    page.labelled("parent" if len(parents) == 1 else "parents", parents, "; ")
    page.labelled(
        "children", [f"{shorten(visible(name), 30)}: {count:,}" for name, count in by_count(leak.comms)]
    )
    page.labelled("ended by", exits_in_words(leak.exits))
    more = ["…"] if leak.count > len(leak.examples) else []
    page.labelled("pids", [str(pid) for pid in leak.examples] + more)
    _why(page, leak)
    _waits(page, leak)
    _stack(page, leak.stack)


def _waits(page: Page, leak: Leak) -> None:
    """Where the parent does wait: a line a place, its first frame outside of the runtime."""
    for site in leak.waits[:MAX_WAITS]:
        how = f"{visible(site.target)}{', WNOHANG' if site.nohang else ''}"
        caller = site.stack.responsible
        place = f" in {version_of(caller)}" if caller else ""
        if caller is not None and (at := place_in(caller, page.room)):
            place += f" ({at})"
        page.labelled("it waits for", [f"{how}{place}"])


def _blame(page: Page, stack: Stack) -> None:
    library = stack.responsible
    if library is not None:
        kind = KIND_OF_LIBRARY.get(library.kind)
        page.labelled("forked by", [identified(library) + (f", {kind}" if kind else "")], style=HEAD)
        if place := place_in(library, page.room, whole_path=True):
            page.labelled("", [place])
    names = list(dict.fromkeys(map(version_of, stack.chain)))  # C library start-up code would come again
    if len(names) > 1:
        page.labelled("chain", [names[0], *(f"← {name}" for name in names[1:])], " ")


def _why(page: Page, leak: Leak) -> None:
    verdict = leak.verdict
    if verdict.code not in ("unknown", "pre_existing"):
        page.labelled("why", [visible(verdict.code).replace("_", " ")], style=HEAD)
    page.labelled("advice", visible(verdict.advice).split(), " ", style=HEAD)
    names = {visible(name).replace("_", " "): visible(str(value)) for name, value in verdict.evidence.items()}
    page.labelled("evidence", [f"{name}: {value}" for name, value in names.items()])


def _stack(page: Page, stack: Stack, why_none: str = "") -> None:
    if not stack.frames:
        page.labelled(
            "stack", [f"none: {visible(stack.cut or '') or why_none or 'no stack came with the fork'}"]
        )
        return
    runs = list(_runs(stack.frames))
    rows = [(_function(run), where(run[0]), _owner(run[0])) for run in runs[:MAX_FRAMES]]
    widths = column_widths(rows, page.width - 5 - 4)
    blamed = _blamed_frame(stack)
    page.line("   ", ("stack", DIM))
    entered = 0  # frames of the rows above
    for run, (function, place, owner) in zip(runs, rows, strict=False):
        name = shorten(function, widths[0])
        is_blamed = blamed is not None and entered <= blamed < entered + len(run)
        entered += len(run)
        mark, style = ("→", HEAD) if is_blamed else (" ", "")
        cells = (
            pad(name, widths[0]),
            pad(shorten_path(place, widths[1]), widths[1]),
            shorten(owner, widths[2]),
        )
        page.line(
            "   ", (f"{mark} ", style), (cells[0], style), "  ", cells[1], "  ", (cells[2].rstrip(), DIM)
        )
    if hidden := sum(map(len, runs[MAX_FRAMES:])):
        page.line("     ", (f"… {counted(hidden, 'more frame')}; --json has them all", DIM))
    if stack.read_late:
        page.prose(LATE, style=WARN, indent=5)
    if stack.cut:
        page.prose(f"… the stack ends here: {visible(stack.cut)}", style=WARN, indent=5)


def _runs(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    """Each named frame by itself; neighbours without a name in one file together: they tell a reader nothing."""
    for _, run in groupby(
        enumerate(frames),
        key=lambda pair: pair[0] if pair[1].function or pair[1].file else f"unnamed {pair[1].module}",
    ):
        yield [frame for _, frame in run]


def _function(run: list[Frame]) -> str:
    name = run[0].function
    return visible(name) if name else "?" if len(run) == 1 else f"? ({len(run)} frames)"


def _owner(frame: Frame) -> str:
    """Its name; the version stands above the stack."""
    return shorten(visible(frame.library.name), MAX_NAME) if frame.library else ""


def _blamed_frame(stack: Stack) -> int | None:
    """Where the stack enters the responsible library."""
    blamed = stack.responsible
    if blamed is None:
        return None
    libraries = [frame.library for frame in stack.frames]
    return next((n for n, library in enumerate(libraries) if library and _same(library, blamed)), None)


def _same(one: Library, other: Library) -> bool:
    return (one.kind, one.name, one.version) == (other.kind, other.name, other.version)


def _failed(page: Page, failed: FailedFork) -> None:
    page.blank()
    kind = "thread" if failed.thread else "fork"
    page.line((f"{counted(failed.count, kind)} failed with {visible(failed.errno)}", BAD))
    if failed.limit:
        page.labelled("limit", _refusal(failed.limit).split(" "), " ", style=HEAD)
    if failed.reason:
        page.labelled("cause", visible(failed.reason).split(" "), " ", style=HEAD)
    _blame(page, failed.stack)
    _stack(page, failed.stack)


def _late(page: Page, late: LateReaping) -> None:
    page.blank()
    spread = late.latency
    times = [
        f"{name} {latency(each)}"
        for name, each in (
            ("half within", spread.p50),
            ("90 % within", spread.p90),
            ("99 % within", spread.p99),
            ("all within", spread.max),
        )
        if each is not None
    ]
    page.prose(", ".join([counted(late.count, "child", "children"), *times]), style=HEAD)
    _blame(page, late.stack)


def _refusal(limit: Mapping[str, Any]) -> str:
    """What refused a clone.  A limit of 0 is none that was set: nothing can be made there any more."""
    if limit.get("value") == 0:
        return f"{visible(str(limit.get('name')))}: {visible(str(limit.get('where')))}"
    return _limit(limit)


def _limit(limit: Mapping[str, Any]) -> str:
    now, most = ("?" if limit.get(name) is None else f"{limit[name]:,}" for name in ("current", "value"))
    text = f"{visible(str(limit.get('name')))} {now} of {most}"
    if limit.get("where"):
        text += f" ({visible(str(limit['where']))})"
    if growth := rate(limit.get("growth_per_min") or 0.0):
        text += f", +{growth}"
    if limit.get("full_in_s") is not None:
        text += f", full in {duration(limit['full_in_s'])}"
    return text


def _is_near(limit: Mapping[str, Any]) -> bool:
    now, most = limit.get("current"), limit.get("value")
    if limit.get("full_in_s") is not None or now is None or most is None:
        return True
    return bool(now >= NEAR * most)


def _limits(page: Page, trace: Trace) -> None:
    near = [limit for limit in trace.limits if _is_near(limit)]
    if near:
        page.heading("Limits")
        for limit in near:
            page.prose(_limit(limit), indent=2)
            if growth := _growth_by_kind(limit):
                page.prose(f"of which {growth}", indent=5)
        if trace.shares:
            page.prose(
                f"The traced children in them: {'; '.join(map(_share, trace.shares[:MAX_SHARES]))}", indent=2
            )


def _growth_by_kind(limit: Mapping[str, Any]) -> str:
    growth = limit.get("growth_by_kind") or {}
    return ", ".join(f"{visible(kind)} {change:+,.1f} a minute" for kind, change in growth.items() if change)


def _share(share: Share) -> str:
    whose = version_of(share.responsible) if share.responsible else "forked by code that is not known"
    parts = [(share.zombies, "zombie"), (share.running, "running child")]
    held = [
        counted(count, one, "running children" if one == "running child" else "")
        for count, one in parts
        if count
    ]
    return f"{whose}: {' and '.join(held)}"


def _totals(page: Page, trace: Trace) -> None:
    totals = trace.totals
    reaped = trace.reap_latency
    waited = ""
    if totals.waited and reaped.p50 is not None and reaped.p99 is not None and reaped.max is not None:
        p50, p99, most = (latency(each) for each in (reaped.p50, reaped.p99, reaped.max))
        waited = f"half within {p50}, 99 % within {p99}, all within {most}"
    zombies = f"{totals.zombies_now:,} standing now" if totals.zombies else ""
    if trace.young_zombies:
        zombies += f", {trace.young_zombies:,} for less than {duration(trace.min_age_s)} (no leak)"
    if trace.late and totals.zombies_peak > totals.zombies_now:
        zombies += f"{', ' if zombies else ''}{totals.zombies_peak:,} at once at most"
    rows: list[tuple[int | None, str, str]] = [
        (totals.forks, "forks", ""),
        (totals.waited, "waited for", waited),
        (totals.zombies, "zombies", zombies),
        (totals.orphaned, "orphaned", ""),
        (totals.autoreaped or None, "autoreaped", "SIGCHLD ignored, or SA_NOCLDWAIT"),
        (totals.running, "still running", ""),
        (totals.unknown or None, "of unknown fate", "records were lost"),
        (totals.failed_forks or None, "failed forks", ""),
        (totals.pre_existing_zombies or None, "older zombies", "dead before the trace saw them"),
        (totals.execs, "execs", ""),
        (totals.exits, "exits", ""),
        (totals.threads or None, "threads made", ""),
        (totals.threads_running, "threads running", ""),
        (totals.threads_unjoined, "threads unjoined", ""),
    ]
    page.heading("Totals")
    shown = [(f"{count:,}", label, remark) for count, label, remark in rows if count is not None]
    numbers = max(cell_len(number) for number, _, _ in shown)
    labels = max(cell_len(label) for _, label, _ in shown)
    room = page.width - numbers - labels - 6
    for number, label, remark in shown:
        lines = list(wrapped(remark.split(), max(room, 10))) or [""]
        page.line(
            "  ",
            pad("", numbers - cell_len(number)) + number,
            "  ",
            pad(label, labels if lines[0] else 0),
            "  " * bool(lines[0]),
            (lines[0], DIM),
        )
        for each in lines[1:]:
            page.line(" " * (numbers + labels + 6), (each, DIM))


def _reconciliation(page: Page, trace: Trace) -> None:
    found = trace.reconciliation
    if found is None:
        return
    page.blank()
    parts = (
        f"zombies in /proc now: {found.standing:,} =",
        f"{found.explained:,} explained",
        f"+ {found.pre_existing:,} older than the trace",
        f"+ {found.unexplained:,} unexplained",
    )
    page.prose(parts, style=WARN if found.unexplained else "")
    if found.unexplained_pids:
        more = " …" if found.unexplained > len(found.unexplained_pids) else ""
        pids = ", ".join(map(str, found.unexplained_pids))
        page.prose(f"unexplained: {pids}{more}", style=WARN)
