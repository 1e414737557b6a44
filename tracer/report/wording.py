"""What a trace says in words: the verdict line, libraries, places, parents.  Plain strings, safe for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from tracer.report.escape import visible
from tracer.report.layout import duration, rate, shorten
from tracer.trace import Frame, Leak, Library, Parent, Totals, Trace

KIND_OF_LIBRARY: Mapping[str, str] = {
    "deb": "Debian package",
    "apk": "Alpine package",
    "rpm": "RPM package",
    "elf": "ELF file",
    "gem": "Ruby gem",
    "python": "Python package",
    "npm": "npm package",
    "jar": "Java archive",
    "stdlib": "standard library",
    "app": "the application",
}
KIND_OF_LEAK: Mapping[str, tuple[str, str]] = {
    "zombie": ("zombie", "zombies"),
    "orphaned": ("orphan", "orphans"),
    "running": ("running child", "running children"),
    "thread": ("thread", "threads"),
    "unjoined_thread": ("unjoined thread", "unjoined threads"),
}
MAX_NAME = 60  # cells of one name in a sentence


def counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def version_of(library: Library) -> str:
    """libfoo 1.2"""
    version = f" {shorten(visible(library.version), 30)}" if library.version else ""
    return shorten(visible(library.name), MAX_NAME) + version


def identified(library: Library) -> str:
    """libfoo 1.2, or libfoo (build id 3f2a90bc17d4…): what names this very build."""
    if library.version or not library.build_id:
        return version_of(library)
    return f"{version_of(library)} (build id {shorten(visible(library.build_id), 13, head=1)})"


def place_in(library: Library, width: int = MAX_NAME, whole_path: bool = False) -> str:
    """foo.c:42, spawn_helper"""
    words = []
    if library.file:
        file = visible(library.file if whole_path else PurePosixPath(library.file).name)
        words.append(shorten(file + (f":{library.line}" if library.line else ""), width))
    if library.function:
        words.append(shorten(visible(library.function), width))
    return ", ".join(words)


def where(frame: Frame) -> str:
    """foo.c:42, or libfoo.so+0x1139 where no line table says more."""
    if frame.file:
        return visible(frame.file) + (f":{frame.line}" if frame.line else "")
    offset = "" if frame.offset is None else f"{frame.offset:#x}"
    return f"{visible(frame.module)}+{offset}".rstrip("+") if frame.module else offset


def exits_in_words(exits: Mapping[str, int]) -> list[str]:
    """exited 0: 20, SIGKILL: 6"""
    words = []
    for name, count in by_count(exits):
        words.append(f"{'exited ' if name.isdecimal() else ''}{visible(name)}: {count:,}")
    return words


def by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def parent_in_words(parent: Parent) -> str:
    """4711 leaky (7 in its namespace): 26, has ended"""
    if not parent.pid:
        return f"others: {parent.count:,}"
    inside = "" if parent.ns_pid in (None, parent.pid) else f" ({parent.ns_pid} in its namespace)"
    ended = "" if parent.alive else ", has ended"
    return f"pid {parent.pid} {shorten(visible(parent.comm), 30)}{inside}: {parent.count:,}{ended}"


def headline(trace: Trace) -> str:
    """The verdict: one sentence that a person can act on."""
    sentence = _zombies(trace) or _other_leaks(trace) or _clean(trace)
    if trace.totals.failed_forks:
        errnos = ", ".join(sorted({visible(failed.errno) for failed in trace.failed_forks}))
        sentence += f"; {counted(trace.totals.failed_forks, 'fork')} failed" + (
            f" ({errnos})" if errnos else ""
        )
    return sentence


def _zombies(trace: Trace) -> str:
    leaks = [leak for leak in trace.leaks if leak.kind == "zombie"]
    if not leaks:
        return ""
    count = sum(leak.count for leak in leaks)
    parts = [f"{counted(count, 'child', 'children')} never waited for, {_culprit(leaks, count)}"]
    parts.append(", ".join(_age_and_rate(leaks)))
    if older := trace.totals.pre_existing_zombies:
        parts.append(f"{counted(older, 'zombie is', 'zombies are')} older than the trace")
    return "; ".join(parts)


def _other_leaks(trace: Trace) -> str:
    """Threads and children that never end; each kind in its turn."""
    for kind in ("unjoined_thread", "thread", "running"):
        leaks = [leak for leak in trace.leaks if leak.kind == kind]
        if leaks:
            count = sum(leak.count for leak in leaks)
            what = counted(count, *KIND_OF_LEAK[kind])
            return f"{what}, {_culprit(leaks, count)}; {', '.join(_age_and_rate(leaks))}"
    return ""


def _age_and_rate(leaks: Iterable[Leak]) -> Iterable[str]:
    yield f"oldest {duration(max(leak.oldest_age_s for leak in leaks))}"
    if pace := rate(sum(leak.rate_per_min for leak in leaks)):
        yield pace


def _culprit(leaks: list[Leak], count: int) -> str:
    """Who forked them: "all" only where that is so."""
    shares: Counter[tuple[str, str, str | None]] = Counter()
    blamed: dict[tuple[str, str, str | None], list[Library]] = {}
    for leak in leaks:
        if (library := leak.stack.responsible) is not None:
            key = library.kind, library.name, library.version
            shares[key] += leak.count
            blamed.setdefault(key, []).append(library)
    before = sum(leak.count for leak in leaks if leak.pre_existing)
    if not shares:
        return (
            f"{_part(before, count)} forked before the trace began"
            if before
            else "by code that no stack names"
        )
    key, share = shares.most_common(1)[0]
    places = {place_in(library) for library in blamed[key]}
    place = f" (in {len(places)} places)" if len(places) > 1 else f" ({place_in(blamed[key][0])})"
    culprit = f"{_part(share, count)} forked by {version_of(blamed[key][0])}{place.replace(' ()', '')}"
    return f"{culprit}, {before:,} before the trace began".lstrip() if before else culprit.lstrip()


def _part(share: int, count: int) -> str:
    return f"{share:,} of them" if share < count else "all" if count > 1 else ""


def _clean(trace: Trace) -> str:
    totals = trace.totals
    older = totals.pre_existing_zombies
    sentence = "No new leak" if older else "No leak of zombies" if totals.orphaned else "No leak"
    sentence += f"{'' if trace.complete else ' seen'}: {_children(totals, trace)}"
    if older:
        sentence += f"; {counted(older, 'zombie is', 'zombies are')} older than the trace, which did not see the forks"
    return sentence


def _children(totals: Totals, trace: Trace) -> str:
    if not totals.forks:
        return f"nothing forked in {duration(trace.duration_s)}"
    # Not forks - running: of the children from before the trace only the end was seen.
    ended = totals.waited + totals.autoreaped + totals.orphaned + totals.zombies + totals.unknown
    running = (
        f", {totals.running:,} still {'runs' if totals.running == 1 else 'run'}" if totals.running else ""
    )
    forks = counted(totals.forks, "fork")
    if not ended:
        return f"{forks}, no child has died" + (running if totals.running != totals.forks else "")
    if totals.waited == ended:
        children = (
            "its child"
            if totals.forks == 1
            else "the one dead child"
            if ended == 1
            else f"all {ended:,} dead children"
        )
        return f"{forks}, {children} waited for{running}"
    fates = (
        (totals.waited, "waited for"),
        (totals.autoreaped, "reaped by the kernel (SIGCHLD ignored)"),
        (totals.orphaned, "orphaned (their parents died first, as daemons do on purpose)"),
        (totals.zombies, f"zombies for less than {duration(trace.min_age_s)}"),
        (totals.unknown, "of unknown fate"),
    )
    dead = counted(ended, "dead child", "dead children")
    return f"{forks}, {dead}: {', '.join(f'{count:,} {words}' for count, words in fates if count)}{running}"
