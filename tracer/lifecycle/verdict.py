"""Why nobody reaped them: from what a parent's wait calls did, and its state, to a verdict with its evidence.

Pure.  The codes are a contract (docs/lifecycle.md).  A verdict needs proof within the trace; where two reasons are
left, it is ``unknown``, with the evidence listed.  The facts are those of the end of the trace, and of the wait calls
that returned during it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracer.trace import Library, Verdict

SIGCHLD = 17
WALL, WCLONE = 0x40000000, 0x80000000
AN_INIT_WILL_NOT_HELP = "the parent is alive: an init (tini, --init) will not help"


@dataclass(frozen=True, slots=True)
class Waits:
    """The wait calls of a process that returned, for any child and for named ones.

    Times: ns of CLOCK_BOOTTIME, 0: none.  empty: found nothing (WNOHANG, ECHILD).  options: of all calls, or-ed.
    some_target: of the last one, a pid, a negated process group, or None for a pidfd or the caller's own group.
    """

    any_calls: int = 0
    any_last_ns: int = 0
    any_empty_ns: int = 0
    some_calls: int = 0
    some_last_ns: int = 0
    some_empty_ns: int = 0
    any_options: int = 0
    some_options: int = 0
    some_target: int | None = None


@dataclass(frozen=True, slots=True)
class ParentFacts:
    """What was seen of a parent.  state: its letter in /proc, None when it is gone.

    waits: None where wait calls are not seen (--light).  waiting_for: what a thread of it waits for at this moment
    (-1: any child), None when none does.  held: pid of the tracer that holds one of its zombies, 0 if none does.
    handler: the SIGCHLD handler's function.  namespace_init: it is PID 1 of its pid namespace.
    """

    state: str | None = None
    sigchld_blocked: bool = False
    sigchld_caught: bool = False
    waits: Waits | None = None
    waiting_for: int | None = None
    held: int = 0
    handler: str | None = None
    handler_waits: bool = False  # a wait was made from a signal handler
    namespace_init: bool = False


@dataclass(frozen=True, slots=True)
class Deaths:
    """The leaked children of one group.  exit_signals: exit signal to count.  pids: of some of them."""

    first_ns: int
    last_ns: int
    exit_signals: Mapping[int, int]
    pids: tuple[int, ...] = ()


def why(
    kind: str, facts: ParentFacts, deaths: Deaths, reaped_others: int, responsible: Library | None
) -> Verdict:
    """Of the parent that holds most of a group's children.  kind: "zombie" or "orphaned"."""
    evidence = _evidence(facts, reaped_others)
    if kind == "orphaned":
        return _orphans(facts, evidence)
    alive = facts.state is not None
    if facts.held:
        evidence["tracer_pid"] = facts.held
        return Verdict(
            "held_by_tracer",
            evidence,
            f"process {facts.held} traces them and has not let go: the parent cannot reap them before it does",
        )
    if alive and facts.state in ("T", "t", "D"):
        evidence["state"] = facts.state
        return Verdict(
            "parent_stuck", evidence, f"the parent {_STUCK[facts.state]}: it can wait for nobody as it is"
        )
    waits = facts.waits
    if waits is None:
        return Verdict("unknown", evidence, _advice(alive, responsible))
    odd = [number for number in deaths.exit_signals if number != SIGCHLD]
    if (
        odd
        and len(odd) == len(deaths.exit_signals)
        and not (waits.any_options | waits.some_options) & (WALL | WCLONE)
    ):
        evidence["exit_signal"] = odd[0]
        if waits.any_calls or waits.some_calls or reaped_others:
            return Verdict(
                "clone_signal",
                evidence,
                "their exit signal is not SIGCHLD: a wait sees them with __WALL or __WCLONE only",
            )
    if not (waits.any_calls or waits.some_calls or facts.waiting_for is not None or reaped_others):
        if facts.sigchld_blocked and facts.sigchld_caught:
            return Verdict(
                "sigchld_blocked",
                evidence,
                f"SIGCHLD is blocked, so {_handler(facts)} never runs: unblock it (sigprocmask, pthread_sigmask)",
            )
        return Verdict("never_waits", evidence, _advice(alive, responsible))
    return _waits_that_do_not_help(facts, waits, deaths, evidence, alive, responsible)


def _waits_that_do_not_help(
    facts: ParentFacts,
    waits: Waits,
    deaths: Deaths,
    evidence: dict[str, Any],
    alive: bool,
    responsible: Library | None,
) -> Verdict:
    last_poll = max(waits.any_empty_ns, waits.some_empty_ns)
    if waits.any_calls == 0 and facts.waiting_for in (None, *_named(facts)):
        if waits.some_empty_ns and waits.some_last_ns < deaths.first_ns:
            return Verdict(
                "polled_too_early",
                evidence,
                f"it asked before they died (WNOHANG), and never again: {_advice(alive, responsible)}",
            )
        names_them = (
            waits.some_target in deaths.pids or facts.waiting_for in deaths.pids
        )  # WNOWAIT leaves the zombie
        if (waits.some_calls or facts.waiting_for is not None) and not names_them:
            return Verdict(
                "waits_for_others",
                evidence,
                f"its waits name other children: {_advice(alive, responsible)}",
            )
    if (
        waits.any_calls
        and facts.sigchld_blocked
        and facts.sigchld_caught
        and waits.any_last_ns < deaths.first_ns
    ):
        return Verdict(
            "sigchld_blocked",
            evidence,
            f"SIGCHLD is blocked, so {_handler(facts)} does not run any more: unblock it",
        )
    if (
        waits.any_calls
        and facts.sigchld_caught
        and facts.handler_waits
        and waits.any_last_ns >= deaths.first_ns
    ):
        if not waits.any_empty_ns:
            return Verdict(
                "handler_waits_once",
                evidence,
                f"{_handler(facts)} waits once a signal, but one SIGCHLD stands for several deaths: wait in a loop, "
                f"with WNOHANG, until nothing is left",
            )
    elif waits.any_calls and last_poll and max(waits.any_last_ns, waits.some_last_ns) < deaths.first_ns:
        return Verdict(
            "polled_too_early",
            evidence,
            f"it asked before they died (WNOHANG), and never again: {_advice(alive, responsible)}",
        )
    return Verdict("unknown", evidence, _advice(alive, responsible))


def _named(facts: ParentFacts) -> tuple[int, ...]:
    return () if facts.waiting_for in (None, -1) else (facts.waiting_for,)  # type: ignore[return-value]


_STUCK = {"T": "is stopped", "t": "is stopped by a tracer", "D": "hangs in the kernel (state D)"}


def _orphans(facts: ParentFacts, evidence: dict[str, Any]) -> Verdict:
    """facts: of the process that they stand under now."""
    if facts.namespace_init and facts.state is not None:
        return Verdict(
            "pid1_not_reaping",
            evidence,
            "PID 1 of the container does not reap what it adopts: run it with an init (docker run --init, tini)",
        )
    return Verdict(
        "unknown",
        evidence,
        "their parents ended first and never waited for them; daemons do so on purpose (double fork). Whoever adopts "
        "them must reap them: PID 1, or the nearest subreaper",
    )


def _evidence(facts: ParentFacts, reaped_others: int) -> dict[str, Any]:
    evidence: dict[str, Any] = {
        "parent_alive": facts.state is not None,
        "children_it_did_reap": reaped_others,
    }
    if facts.waits is not None:
        evidence["waits_for_any"] = facts.waits.any_calls
        evidence["waits_for_named"] = facts.waits.some_calls
    if facts.waiting_for is not None:
        evidence["waiting_for_now"] = "any" if facts.waiting_for == -1 else facts.waiting_for
    if facts.sigchld_caught:
        evidence["sigchld_handler"] = facts.handler or True
    if facts.sigchld_blocked:
        evidence["sigchld_blocked"] = True
    return evidence


def _handler(facts: ParentFacts) -> str:
    return f"its handler {facts.handler}" if facts.handler else "its handler"


def _advice(alive: bool, responsible: Library | None) -> str:
    kind = responsible.kind if responsible else ""
    call = {
        "gem": "Process.wait(pid), or Process.detach(pid)",
        "python": "Popen.wait(), or a with block around the Popen",
        "npm": "keep the child's 'exit' event handled by the process that spawned it",
    }.get(kind, "waitpid for each child, or in a loop with WNOHANG at SIGCHLD")
    if alive:
        return f"call {call}; {AN_INIT_WILL_NOT_HELP}"
    return f"call {call}; the zombies went when their parent ended, and come back with the next one"
