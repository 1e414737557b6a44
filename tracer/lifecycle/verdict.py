"""Why nobody reaped them: from what a parent's wait calls did, and its state, to a verdict with its evidence.

Pure.  The codes are a contract; docs/lifecycle.md says what each proves, needs and cannot tell.  A verdict needs proof
within the trace: where two reasons are left, or a call may have been missed, it is ``unknown``, with the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tracer.lifecycle.facts import ECHILD, NamedWait, ParentFacts, Waits
from tracer.lifecycle.snapshot import Death, Deaths
from tracer.records import WAIT_ANY, WAIT_OTHER
from tracer.trace import Verdict

SIGCHLD = 17
WALL, WCLONE = 0x40000000, 0x80000000
LOOK_NS = 2_000_000_000  # a suspect is looked at each second: what the first look after a death shows held at the death
SILENCE = 2  # times the usual time between two polls: after that, no further one is to be expected
AN_INIT_WILL_NOT_HELP = "the parent is alive: an init (tini, --init) will not help"


@dataclass(frozen=True, slots=True)
class Case:
    """The children of one group for which one process had to wait.

    reaped: children that it did wait for, however that was seen.  language: of the code that forked them.
    start_ns, end_ns: of the trace.
    """

    facts: ParentFacts
    deaths: Deaths
    reaped: int
    language: str
    start_ns: int
    end_ns: int

    @property
    def waits(self) -> Waits:
        return self.facts.waits or Waits()

    @property
    def alive(self) -> bool:
        return self.facts.state is not None

    @property
    def waits_now(self) -> bool:
        return bool(self.facts.waiting_for)

    @property
    def has_waited(self) -> bool:
        return bool(self.waits.calls or self.waits_now or self.reaped)

    @property
    def names_only(self) -> bool:
        """Each of its waits was for one child, and it is known for which."""
        return not (
            self.waits.any_calls
            or self.waits.by_group
            or self.waits.by_pidfd
            or any(target <= 0 for target in self.facts.waiting_for)
            or self.reaped > self.waits.reaped  # by calls that nobody saw, such as io_uring's
        )

    @property
    def is_blocked(self) -> bool:
        """SIGCHLD is blocked, since its first child died."""
        since = self.facts.blocked_since_ns
        return bool(since) and since - self.deaths.first_ns <= LOOK_NS

    def children(self) -> Iterator[tuple[Death, NamedWait | None]]:
        """Some of them, and the waits for each: None where those were not looked up."""
        named = {wait.pid: wait for wait in self.facts.named}
        for death in self.deaths.examples:
            wait = named.get(death.pid)
            if wait is not None and wait.last_ns < death.forked_ns:  # for another process that had its pid
                wait = NamedWait(death.pid)
            yield death, wait


def why(case: Case) -> Verdict:
    """Of zombies, whose parent the case's process is."""
    evidence = _evidence(case)
    for rule in _RULES:
        found = rule(case, evidence)
        if found is not None:
            return found
    return _unknown(case, evidence)


def why_orphans(case: Case, count: int) -> Verdict:
    """Of ``count`` orphans, those of the case being the zombies that the case's process adopted."""
    facts = case.facts
    evidence = {"standing": case.deaths.count, "of": count, "adopted_by": facts.comm, **_evidence(case)}
    waits = case.waits
    may_have_waited = (
        waits.any_calls
        or waits.by_group
        or waits.by_pidfd
        or any(target <= 0 for target in facts.waiting_for)
        or any(wait is None or wait.calls for _, wait in case.children())
    )
    if not case.alive or facts.waits is None or may_have_waited or _stuck(case, evidence) or facts.held:
        return ended_first(evidence)
    return Verdict("pid1_not_reaping", evidence, _ADVICE_TO_ADOPTERS[facts.init].format(comm=facts.comm))


def ended_first(evidence: dict[str, Any]) -> Verdict:
    """Of orphans, where nothing more is proven."""
    return Verdict(
        "unknown",
        evidence,
        "their parents ended first and never waited for them; daemons do so on purpose (double fork). Whoever adopts "
        "them must reap them: PID 1, or the nearest subreaper",
    )


# --- rules: each gives a verdict, or None for the next one to try ---------------------------------------------------


def _held(case: Case, evidence: dict[str, Any]) -> Verdict | None:
    facts = case.facts
    if not facts.held:
        return None
    evidence |= {"tracer_pid": facts.held_by, "held": facts.held}
    if facts.held < facts.asked:
        return _unknown(case, evidence)
    return Verdict(
        "held_by_tracer",
        evidence,
        f"process {facts.held_by} traces them (ptrace) and has not let go: the parent cannot reap them before it does",
    )


def _stuck(case: Case, evidence: dict[str, Any]) -> Verdict | None:
    facts = case.facts
    if not facts.stuck_since_ns or facts.state not in _STUCK:
        return None
    evidence["state"] = facts.state
    if facts.stuck_since_ns - case.deaths.first_ns > LOOK_NS:  # it had its time before
        return _unknown(case, evidence)
    words = _STUCK[facts.state]
    return Verdict("parent_stuck", evidence, f"the parent {words}: it can wait for nobody as it is")


def _not_seen(case: Case, evidence: dict[str, Any]) -> Verdict | None:
    if case.facts.waits is not None and case.facts.seen:
        return None
    advice = _advice(case)
    if case.facts.seen:
        advice += "; its wait calls were not seen (--light): a trace with them may tell why"
    return Verdict("unknown", evidence, advice)


def _clone_signal(case: Case, evidence: dict[str, Any]) -> Verdict | None:
    """A plain wait does not see a child whose exit signal is another."""
    odd = [number for number in case.deaths.exit_signals if number != SIGCHLD]
    if not odd:
        return None
    evidence["exit_signal"] = odd[0]
    if not case.has_waited:
        return _never_waits(case, evidence, "; with __WALL: their exit signal is not SIGCHLD")
    waits = case.waits
    asked = (
        WAIT_ANY in case.facts.waiting_for
        or waits.any_last_ns >= case.deaths.first_ns
        or all(wait is not None and wait.last_ns >= death.exited_ns for death, wait in case.children())
    )
    if waits.options & (WALL | WCLONE) or SIGCHLD in case.deaths.exit_signals or not asked:
        return _unknown(case, evidence)
    return Verdict(
        "clone_signal",
        evidence,
        "their exit signal is not SIGCHLD, and a plain wait does not see them: wait with __WALL or __WCLONE, or clone "
        "with SIGCHLD",
    )


def _blocked(case: Case, evidence: dict[str, Any]) -> Verdict | None:
    """It waits in a handler which cannot run."""
    if not (case.facts.blocked_since_ns and case.facts.caught):
        return None
    evidence["sigchld_blocked"] = True
    waits = case.waits
    stopped_waiting = waits.any_calls and waits.any_last_ns < case.deaths.first_ns
    if not case.is_blocked or case.waits_now or not (stopped_waiting or not case.has_waited):
        return _unknown(case, evidence)
    return Verdict(
        "sigchld_blocked",
        evidence,
        f"SIGCHLD is blocked in every thread, so {_handler(case.facts)} does not run: unblock it (sigprocmask, "
        f"pthread_sigmask)",
    )


def _busy_reader(case: Case, evidence: dict[str, Any]) -> Verdict | None:
    """It reads SIGCHLD from a signalfd, and has not read it: it may wait when it does."""
    if not case.facts.by_signalfd:
        return None
    evidence["sigchld_unread"] = True
    return _unknown(case, evidence)


def _never(case: Case, evidence: dict[str, Any]) -> Verdict | None:
    return None if case.has_waited else _never_waits(case, evidence)


def _never_waits(case: Case, evidence: dict[str, Any], more: str = "") -> Verdict:
    return Verdict("never_waits", evidence, _advice(case, more))


def _for_others(case: Case, evidence: dict[str, Any]) -> Verdict | None:
    if not case.names_only or any(wait is None or wait.calls for _, wait in case.children()):
        return None
    waiting_for = set(case.facts.waiting_for)
    if any(waiting_for & {death.pid, death.ns_pid} for death in case.deaths.examples):
        return None
    is_late = case.waits.some_last_ns < case.deaths.first_ns and not waiting_for
    if case.facts.caught and is_late:  # a handler ran at the death: it may be about to wait for them, too
        return None
    return Verdict("waits_for_others", evidence, f"its waits name other children: {_advice(case)}")


def _too_early(case: Case, evidence: dict[str, Any]) -> Verdict | None:
    """It asked for each of them with WNOHANG while it lived, and not again, long after the next time was due."""
    waits = case.waits
    if case.waits_now or waits.by_group or waits.by_pidfd or case.reaped > waits.reaped:
        return None
    if waits.any_calls and waits.any_last_ns >= case.deaths.first_ns:
        return None
    if case.facts.caught:  # a handler ran at the death: what it set in motion may be under way
        return None
    for death, wait in case.children():
        if wait is None or not _polled_early(case, death, wait):
            return None
    advice = f"it asked before they died (WNOHANG), and never again: {_advice(case)}"
    return Verdict("polled_too_early", evidence, advice)


def _polled_early(case: Case, death: Death, wait: NamedWait) -> bool:
    waits = case.waits
    if wait.calls:
        last, found_nothing = wait.last_ns, not wait.result
        between = (wait.last_ns - death.forked_ns) // wait.calls
    else:
        last, found_nothing = waits.any_last_ns, waits.any_last_ns == waits.any_empty_ns > death.forked_ns
        between = (waits.any_last_ns - case.start_ns) // max(waits.any_calls, 1)
    silence = case.end_ns - death.exited_ns
    return found_nothing and last < death.exited_ns and silence >= SILENCE * between


def _handler_once(case: Case, evidence: dict[str, Any]) -> Verdict | None:
    """Since the first death all its waits, from a handler, took one child: a loop would have come to find nothing."""
    facts, waits = case.facts, case.waits
    if not (facts.caught and facts.handler_waits) or waits.looked or case.waits_now:
        return None
    if waits.any_last_ns < case.deaths.first_ns or waits.any_empty_ns >= case.deaths.first_ns:
        return None
    return Verdict(
        "handler_waits_once",
        evidence,
        f"{_handler(facts)} waits once a signal, but one SIGCHLD stands for several deaths: wait in a loop, with "
        f"WNOHANG, until nothing is left",
    )


_RULES: tuple[Callable[[Case, dict[str, Any]], Verdict | None], ...] = (
    _held,
    _stuck,
    _not_seen,
    _clone_signal,
    _blocked,
    _busy_reader,
    _never,
    _for_others,
    _too_early,
    _handler_once,
)


# --- words ----------------------------------------------------------------------------------------------------------

_STUCK = {
    "T": "is stopped",
    "t": "is stopped by a tracer",
    "D": "hangs in the kernel (state D)",
}
_ADVICE_TO_ADOPTERS = {
    "namespace": "PID 1 of the container ({comm}) does not reap what it adopts: run it with an init (docker run "
    "--init, tini)",
    "host": "PID 1 of the host ({comm}) does not reap what it adopts: an init must wait in a loop",
    "": "they were adopted by {comm}, a subreaper (PR_SET_CHILD_SUBREAPER), which does not reap them: it must wait for "
    "any child, in a loop with WNOHANG at SIGCHLD",
}
_SHELL = "wait, the shell's builtin, and do not exec another program over a shell that has children"
_CALLS = {
    "ruby": "Process.wait(pid) for each child, or Process.detach(pid) where it is spawned",
    "python": "wait() of each Popen (or a with block around it); os.waitpid after an os.fork",
    "javascript": "waitpid in the addon that forks: Node reaps only what child_process spawned",
    "bash": _SHELL,
    "shell": _SHELL,
}
_NATIVE_CALLS = "waitpid for each child, or in a loop with WNOHANG at SIGCHLD"


def _unknown(case: Case, evidence: dict[str, Any]) -> Verdict:
    return Verdict("unknown", evidence, _advice(case))


def _advice(case: Case, more: str = "") -> str:
    words = f"call {_CALLS.get(case.language, _NATIVE_CALLS)}{more}"
    if case.alive:
        return f"{words}; {AN_INIT_WILL_NOT_HELP}"
    if case.facts.seen:
        return f"{words}; the zombies went when their parent ended, and come back with the next one"
    return words


def _evidence(case: Case) -> dict[str, Any]:
    facts, waits = case.facts, case.facts.waits
    evidence: dict[str, Any] = {"children_it_did_reap": case.reaped}
    if facts.seen:
        evidence = {"parent_alive": case.alive, **evidence}
    if waits is not None:
        evidence["waits_for_any"] = waits.any_calls
        evidence["waits_for_named"] = waits.some_calls
    if facts.waiting_for:
        evidence["waiting_now_for"] = ", ".join(map(target_in_words, facts.waiting_for[:4]))
    if case.waits.looked or any(wait is not None and wait.result > 0 for _, wait in case.children()):
        evidence["left_by_wnowait"] = True
    if any(wait is not None and wait.result == -ECHILD for _, wait in case.children()):
        evidence["echild"] = True
    if facts.caught:
        evidence["sigchld_handler"] = facts.handler or True
    evidence["observed_s"] = round(max(case.end_ns - case.deaths.first_ns, 0) / 1e9, 1)
    return evidence


def _handler(facts: ParentFacts) -> str:
    return f"its handler {facts.handler}" if facts.handler else "its handler"


def target_in_words(target: int) -> str:
    """Whom a wait call is for."""
    if target == WAIT_ANY:
        return "any child"
    if target == WAIT_OTHER:
        return "its own process group, or a pidfd"
    return f"pid {target}" if target > 0 else f"process group {-target}"
