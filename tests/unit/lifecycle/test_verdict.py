"""Each rule of the verdicts by itself: the proof that it needs, and what is nearly it but proves nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tracer.lifecycle.facts import ECHILD, NamedWait, ParentFacts, Waits
from tracer.lifecycle.snapshot import Death, Deaths
from tracer.lifecycle.verdict import AN_INIT_WILL_NOT_HELP, WALL, Case, why, why_orphans
from tracer.records import WAIT_ANY, WAIT_OTHER

SECOND = 1_000_000_000
START = 1000 * SECOND
FORKED, DIED, END = START + SECOND, START + 10 * SECOND, START + 60 * SECOND
BEFORE, AFTER = FORKED + 1000, DIED + 1000
PID, OTHER = 200, 201

DEATHS = Deaths(1, DIED, DIED, Counter({17: 1}), [Death(PID, PID, FORKED, DIED, standing=True)])
IDLE = ParentFacts(seen=True, comm="app", state="S", waits=Waits(), named=(NamedWait(PID),), asked=1)
NAMES_OTHERS = replace(IDLE, waits=Waits(some_calls=3, some_last_ns=AFTER, some_target=OTHER, reaped=3))
POLLED = replace(
    IDLE,
    waits=Waits(some_calls=1, some_last_ns=BEFORE, some_empty_ns=BEFORE, some_target=PID),
    named=(NamedWait(PID, BEFORE, 1, 0),),
)
POLLED_ANY = replace(IDLE, waits=Waits(any_calls=1, any_last_ns=BEFORE, any_empty_ns=BEFORE))
HANDLER = replace(
    IDLE, caught=True, handler="on_sigchld (app)", handler_waits=True,
    waits=Waits(any_calls=1, any_last_ns=AFTER, reaped=1),
)  # fmt: skip
BLOCKED = replace(IDLE, caught=True, blocked_since_ns=DIED + SECOND)
STOPPED = replace(IDLE, state="T", stuck_since_ns=DIED + SECOND)


def case(
    facts: ParentFacts, deaths: Deaths = DEATHS, reaped: int | None = None, language: str = "native"
) -> Case:
    if reaped is None:
        reaped = facts.waits.reaped if facts.waits else 0
    return Case(facts, deaths, reaped, language, START, END)


def waits(facts: ParentFacts, **changes: object) -> ParentFacts:
    return replace(facts, waits=replace(facts.waits, **changes))  # type: ignore[type-var, arg-type]


ODD = replace(DEATHS, exit_signals=Counter({0: 1}))
PLAIN_WAIT = waits(IDLE, any_calls=1, any_last_ns=AFTER, any_empty_ns=AFTER)


@pytest.mark.parametrize(
    ("code", "facts", "deaths"),
    [
        ("never_waits", IDLE, DEATHS),
        ("never_waits", replace(IDLE, state=None), DEATHS),
        ("never_waits", replace(IDLE, caught=True), DEATHS),  # a handler that does not wait
        ("never_waits", replace(IDLE, blocked_since_ns=DIED), DEATHS),  # blocked, but nothing would run
        ("never_waits", IDLE, ODD),
        ("waits_for_others", NAMES_OTHERS, DEATHS),
        ("waits_for_others", replace(IDLE, waiting_for=(OTHER,)), DEATHS),
        ("waits_for_others", replace(NAMES_OTHERS, caught=True), DEATHS),
        ("polled_too_early", POLLED, DEATHS),
        ("polled_too_early", POLLED_ANY, DEATHS),
        ("handler_waits_once", HANDLER, DEATHS),
        ("handler_waits_once", waits(HANDLER, any_empty_ns=BEFORE), DEATHS),
        ("sigchld_blocked", BLOCKED, DEATHS),
        ("sigchld_blocked", waits(BLOCKED, any_calls=2, any_last_ns=BEFORE, any_empty_ns=BEFORE), DEATHS),
        ("clone_signal", PLAIN_WAIT, ODD),
        ("clone_signal", replace(IDLE, waiting_for=(WAIT_ANY,)), ODD),
        ("clone_signal", replace(POLLED, named=(NamedWait(PID, AFTER, 1, -ECHILD),)), ODD),
        ("parent_stuck", STOPPED, DEATHS),
        ("parent_stuck", replace(STOPPED, state="D"), DEATHS),
        ("parent_stuck", replace(STOPPED, state="t", waits=None), DEATHS),
        ("held_by_tracer", replace(IDLE, held=1, held_by=99), DEATHS),
    ],
)  # fmt: skip
def test_proven(code: str, facts: ParentFacts, deaths: Deaths) -> None:
    verdict = why(case(facts, deaths))
    assert verdict.code == code
    assert verdict.advice
    assert verdict.evidence["observed_s"] == 50.0


TWO = replace(DEATHS, count=2, examples=[*DEATHS.examples, Death(202, 202, FORKED, DIED, standing=True)])


@pytest.mark.parametrize(
    ("why_not", "facts", "deaths"),
    [
        ("wait calls are not seen (--light)", replace(IDLE, waits=None), DEATHS),
        ("it was never looked at", replace(IDLE, seen=False), DEATHS),
        ("its wait began before the trace", replace(IDLE, waiting_for=(WAIT_ANY,)), DEATHS),
        ("it waits for its process group", replace(NAMES_OTHERS, waiting_for=(WAIT_OTHER,)), DEATHS),
        ("some waits were for a process group", waits(NAMES_OTHERS, by_group=True), DEATHS),
        ("a pidfd may have been this child's", waits(NAMES_OTHERS, by_pidfd=True), DEATHS),
        ("it waits for this one right now", replace(NAMES_OTHERS, waiting_for=(PID,)), DEATHS),
        ("it asked for this one, too", replace(NAMES_OTHERS, named=(NamedWait(PID, AFTER, 1, 1),)), DEATHS),
        ("the other one was polled", replace(POLLED, named=(*POLLED.named, NamedWait(202))), TWO),
        ("one was not looked up", NAMES_OTHERS, TWO),
        ("its loop hangs since the death", waits(replace(NAMES_OTHERS, caught=True), some_last_ns=BEFORE), DEATHS),
        ("it polled again after the death", replace(POLLED, named=(NamedWait(PID, AFTER, 2, 0),)), DEATHS),
        ("it polled any child after the death", waits(POLLED_ANY, any_last_ns=AFTER), DEATHS),
        ("it polls each 20 s: a third is due", waits(POLLED_ANY, any_calls=1, any_last_ns=START + 30 * SECOND,
                                                     any_empty_ns=START + 30 * SECOND),
         replace(DEATHS, first_ns=START + 40 * SECOND,
                 examples=[Death(PID, PID, FORKED, START + 40 * SECOND, standing=True)])),
        ("its last poll took another child", waits(POLLED_ANY, any_last_ns=BEFORE + 1), DEATHS),
        ("a handler ran at the death", replace(POLLED, caught=True), DEATHS),
        ("a handler that loops", waits(HANDLER, any_empty_ns=AFTER), DEATHS),
        ("waits outside of the handler, too", replace(HANDLER, handler_waits=False), DEATHS),
        ("it looks by WNOWAIT", waits(HANDLER, looked=True), DEATHS),
        ("blocked long after the death", replace(BLOCKED, blocked_since_ns=DIED + 5 * SECOND), DEATHS),
        ("blocked while system() waits", replace(BLOCKED, waiting_for=(OTHER,)), DEATHS),
        ("blocked, and waits for others", replace(NAMES_OTHERS, caught=True, blocked_since_ns=DIED), DEATHS),
        ("a signalfd that was not read yet", replace(IDLE, by_signalfd=True), DEATHS),
        ("__WALL sees them", waits(PLAIN_WAIT, any_options=WALL), ODD),
        ("no wait since the death", POLLED_ANY, ODD),
        ("one of them has SIGCHLD", PLAIN_WAIT, replace(DEATHS, exit_signals=Counter({0: 1, 17: 1}))),
        ("stopped long after the death", replace(STOPPED, stuck_since_ns=DIED + 30 * SECOND), DEATHS),
        ("only one of them is held", replace(IDLE, held=1, held_by=99, asked=2), TWO),
        ("reaped by io_uring", replace(NAMES_OTHERS, waits=Waits()), DEATHS),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
def test_unproven(why_not: str, facts: ParentFacts, deaths: Deaths) -> None:
    reaped = 1 if why_not == "reaped by io_uring" else None
    assert why(case(facts, deaths, reaped)).code == "unknown"


def test_pids_that_were_used_before_do_not_count() -> None:
    """The poll was for another child that had this pid."""
    old = replace(NAMES_OTHERS, named=(NamedWait(PID, FORKED - 1, 7, 0),))
    assert why(case(old)).code == "waits_for_others"


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("ruby", "Process.detach(pid)"),
        ("python", "wait() of each Popen"),
        ("javascript", "waitpid in the addon"),
        ("bash", "the shell's builtin"),
        ("shell", "the shell's builtin"),
        ("native", "waitpid for each child, or in a loop with WNOHANG at SIGCHLD"),
        ("perl", "waitpid for each child"),
    ],
)
def test_the_advice_speaks_the_language(language: str, words: str) -> None:
    advice = why(case(IDLE, language=language)).advice
    assert words in advice
    assert AN_INIT_WILL_NOT_HELP in advice


def test_an_init_is_not_spoken_of_where_the_parent_has_ended() -> None:
    assert "init" not in why(case(replace(IDLE, state=None))).advice
    assert "init" not in why(case(replace(IDLE, state=None, seen=False))).advice


def test_evidence() -> None:
    facts = replace(HANDLER, waiting_for=(OTHER, WAIT_OTHER), waits=replace(HANDLER.waits, some_calls=2))  # type: ignore[type-var]
    assert why(case(facts)).evidence == {
        "parent_alive": True,
        "children_it_did_reap": 1,
        "waits_for_any": 1,
        "waits_for_named": 2,
        "waiting_now_for": "pid 201, its own process group, or a pidfd",
        "sigchld_handler": "on_sigchld (app)",
        "observed_s": 50.0,
    }


# --- orphans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("namespace", "run it with an init"),
        ("host", "an init must wait"),
        ("", "PR_SET_CHILD_SUBREAPER"),
    ],
)
def test_who_adopted_them_does_not_wait(init: str, words: str) -> None:
    for facts in (replace(IDLE, init=init), replace(NAMES_OTHERS, init=init)):
        verdict = why_orphans(case(facts), 5)
        assert verdict.code == "pid1_not_reaping"
        assert words in verdict.advice
        assert (verdict.evidence["standing"], verdict.evidence["of"], verdict.evidence["adopted_by"]) == (
            1,
            5,
            "app",
        )


@pytest.mark.parametrize(
    "facts",
    [
        POLLED_ANY,  # an init that reaps late
        PLAIN_WAIT,
        POLLED,
        STOPPED,
        replace(IDLE, waiting_for=(WAIT_ANY,)),
        replace(IDLE, state=None),
        replace(IDLE, waits=None),
        replace(IDLE, held=1, held_by=9),
        waits(NAMES_OTHERS, by_group=True),
    ],
)
def test_who_adopted_them_may_wait(facts: ParentFacts) -> None:
    verdict = why_orphans(case(replace(facts, init="namespace")), 5)
    assert verdict.code == "unknown"
    assert "double fork" in verdict.advice
