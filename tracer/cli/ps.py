"""``forktrace ps``: the zombies of the host, or a few processes' children, threads and limits, right now.

Needs no root and no BPF: all of it is in /proc.  What is not there is who forked the zombies and when they died, so
the ages are those of the processes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click
from rich.cells import cell_len

from tracer import procfs
from tracer.census import Brood, Family, family, zombies_by_parent
from tracer.cli.pids import parse_pids
from tracer.limits import Limit, limits
from tracer.procfs import Stat
from tracer.report.escape import visible
from tracer.report.layout import duration, shorten, shorten_path
from tracer.report.wording import counted

SCHEMA = "forktrace.ps/1"
WIDTH = 80
LABEL = 12
MAX_COMMS = 8  # named a line; the rest is counted

STATES: Mapping[str, str] = {
    "R": "running",
    "S": "sleeping",
    "D": "in uninterruptible sleep",
    "T": "stopped",
    "t": "stopped by a tracer",
    "I": "idle",
    "X": "being released",
}


@click.command()
@click.option(
    "-p",
    "--pid",
    "pids",
    multiple=True,
    callback=parse_pids,
    metavar="PID[,PID...]",
    help="Show this process; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(pids: tuple[int, ...], as_json: bool) -> None:
    """Show all zombies by parent, or with -p the children, threads and limits of some processes.

    It reads /proc only: no root is needed and nothing is traced.  When a zombie died is not in /proc; the ages
    are since the processes were started.
    """
    now_ns = procfs.boottime_ns()
    stats = procfs.scan()
    found = [pid for pid in pids if pid in stats]
    if not pids:
        _print_zombies(stats, now_ns, as_json)
    elif as_json:
        processes = [_process_data(family(stats, pid), stats, now_ns) for pid in found]
        _print_json({"processes": processes})
    else:
        for pid in found:
            click.echo("\n".join(_process_lines(family(stats, pid), stats, now_ns)))
    missing = [pid for pid in pids if pid not in stats]
    if missing:
        raise click.ClickException("\n".join(_why_missing(pid) for pid in missing))


def _why_missing(pid: int) -> str:
    status = procfs.status(pid)
    if status is not None and status.is_thread:
        return f"{pid} is a thread of process {status.tgid}: use -p {status.tgid}"
    hidden = ", or it is hidden from you (hidepid): try as root" if procfs.hides_others() else ""
    return f"there is no process {pid}{hidden}"


# The zombies of the host


def _print_zombies(stats: Mapping[int, Stat], now_ns: int, as_json: bool) -> None:
    broods = zombies_by_parent(stats)
    count = sum(len(brood.children) for brood in broods)
    hidden = procfs.hides_others()
    if as_json:
        data = {"zombies": count, "processes_seen": len(stats), "others_hidden": hidden}
        _print_json({**data, "parents": [_brood_data(brood, now_ns) for brood in broods]})
        return
    for line in _conclusion(broods, count, len(stats)):
        click.echo(line)
    for brood in broods:
        head = f"{counted(len(brood.children), 'zombie')} of {_parent_name(brood)}:"
        for line in _wrapped([head, *_brood_words(brood, now_ns)], indent=4):
            click.echo(line)
    if hidden:
        click.echo(
            "note: /proc hides other users' processes from you (hidepid); root sees them all", err=True
        )


def _conclusion(broods: list[Brood], count: int, processes: int) -> Iterator[str]:
    if not broods:
        yield f"No zombies among {counted(processes, 'process', 'processes')}."
        return
    largest = broods[0]
    if len(broods) == 1:
        share = f"{', all' if count > 1 else ''} of"
    else:
        share = f" of {len(broods):,} parents, {len(largest.children):,} of them of"
    yield from _wrapped(f"{counted(count, 'zombie')}{share} {_parent_name(largest)}.".split(" "))
    culprit = next((brood.ppid for brood in broods if brood.ppid > 1), None)
    if culprit is not None:
        yield f"Which code forks them: sudo forktrace -p {culprit}"
    else:  # pid 1 adopts what others leave behind
        yield "Which code leaves them behind: sudo forktrace --all"
    yield ""


def _parent_name(brood: Brood) -> str:
    if not brood.ppid:
        return "a process outside of this pid namespace"
    if brood.parent is None:
        return f"pid {brood.ppid}, which is gone or hidden"
    return f"pid {brood.ppid} ({_name(brood.parent.comm)})"


def _brood_words(brood: Brood, now_ns: int) -> list[str]:
    """["sh x20,", "curl x6;", "oldest started 4m12s ago"]"""
    names = [f"{_name(comm)} x{count}" for comm, count in brood.comms.items()]
    if len(names) > MAX_COMMS:
        rest = sum(list(brood.comms.values())[MAX_COMMS:])
        names = [*names[:MAX_COMMS], f"others x{rest}"]
    age = duration(procfs.age_ns(brood.children[0], now_ns) / 1e9)
    oldest = "oldest started" if len(brood.children) > 1 else "started"
    return [*(f"{name}," for name in names[:-1]), f"{names[-1]};", f"{oldest} {age} ago"]


def _brood_data(brood: Brood, now_ns: int) -> dict[str, Any]:
    return {
        "pid": brood.ppid or None,
        "comm": brood.parent.comm if brood.parent else None,
        "zombies": len(brood.children),
        "comms": brood.comms,
        "oldest_start_age_s": _age_s(brood.children[0], now_ns),
        "children": [
            {
                "pid": child.pid,
                "comm": child.comm,
                "start_age_s": _age_s(child, now_ns),
                "wait_status": child.exit_code,
            }
            for child in brood.children
        ],
    }


# One process


def _process_lines(one: Family, stats: Mapping[int, Stat], now_ns: int) -> Iterator[str]:
    stat, status = one.stat, procfs.status(one.stat.pid)
    age = duration(procfs.age_ns(stat, now_ns) / 1e9)
    words = [f"pid {stat.pid} ({_name(stat.comm)}):", f"{_state(stat, stats)},"]
    if status is not None:
        words.append(f"uid {status.uid},")
        if status.ns_tgids[-1] != stat.pid:
            words.append(f"pid {status.ns_tgids[-1]} in its namespace,")
    yield from _wrapped([*words, f"started {age} ago"], indent=4)
    dead, living = len(one.zombies.children), len(one.living.children)
    yield from _labelled("children", [f"{dead + living:,}: {living:,} living, {counted(dead, 'zombie')}"])
    for label, brood in (("zombies", one.zombies), ("living", one.living)):
        if brood.children:
            yield from _labelled(label, _brood_words(brood, now_ns))
    yield from _labelled("threads", [f"{stat.num_threads:,}"])
    for number, limit in enumerate(limits(stat.pid, stats)):
        yield from _labelled("limits" if not number else "", [_limit_words(limit)])


def _state(stat: Stat, stats: Mapping[int, Stat]) -> str:
    if stat.state == "Z" and not procfs.is_zombie(stat):
        return f"its leader is dead, {counted(stat.num_threads - 1, 'thread lives', 'threads live')} on"
    if stat.state == "Z":
        parent = stats.get(stat.ppid)
        comm = f" ({_name(parent.comm)})" if parent else ""
        return f"a zombie that pid {stat.ppid}{comm} has to reap"
    return STATES.get(stat.state, f"in state {visible(stat.state)}")


def _limit_words(limit: Limit) -> str:
    current = "?" if limit.current is None else f"{limit.current:,}"
    words = f"{limit.name} {current} of {limit.value:,}"
    return f"{words}, {shorten_path(visible(limit.where), WIDTH - LABEL - len(words) - 2)}"


def _process_data(one: Family, stats: Mapping[int, Stat], now_ns: int) -> dict[str, Any]:
    stat, status = one.stat, procfs.status(one.stat.pid)
    parent = stats.get(stat.ppid)
    return {
        "pid": stat.pid,
        "ns_pid": status.ns_tgids[-1] if status else None,
        "comm": stat.comm,
        "state": stat.state,
        "zombie": procfs.is_zombie(stat),
        "uid": status.uid if status else None,
        "start_age_s": _age_s(stat, now_ns),
        "parent": {"pid": parent.pid, "comm": parent.comm} if parent else None,
        "threads": stat.num_threads,
        "children": {"living": len(one.living.children), "zombies": len(one.zombies.children)},
        "living": one.living.comms,
        "zombies": _brood_data(one.zombies, now_ns)["children"] if one.zombies.children else [],
        "limits": [dataclasses.asdict(limit) for limit in limits(stat.pid, stats)],
    }


# Both


def _age_s(stat: Stat, now_ns: int) -> float:
    return round(procfs.age_ns(stat, now_ns) / 1e9, 2)


def _name(comm: str) -> str:
    return shorten(visible(comm), 30)


def _labelled(label: str, words: list[str]) -> Iterator[str]:
    lines = _wrapped(words, indent=0, width=WIDTH - LABEL)
    for number, line in enumerate(lines):
        yield f"  {'' if number else label:{LABEL - 2}}{line}"


def _wrapped(words: Iterable[str], indent: int = 0, width: int = WIDTH) -> list[str]:
    """Lines of at most ``width`` cells, broken between the words only; all but the first are indented."""
    lines: list[str] = []
    for word in words:
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(" " * (indent if lines else 0) + word)
    return lines


def _print_json(data: Mapping[str, Any]) -> None:
    click.echo(json.dumps({"schema": SCHEMA, "host": procfs.host_facts(), **data}, indent=2))
