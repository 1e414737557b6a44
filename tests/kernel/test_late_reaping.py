"""Children that are waited for long after their death, against the program's own log of when they died and went."""

from __future__ import annotations

import io
import json
import statistics
import subprocess
from dataclasses import replace

import pytest
from rich.console import Console
from tracing import options_for, while_stepping

from tracer.report.text import render
from tracer.session import Session
from tracer.trace import Trace

pytestmark = pytest.mark.kernel

MIN_AGE_S = 0.1
TOLERANCE_S = 0.05  # of a loaded machine, between two looks at a clock; and 6 % for the histogram's buckets

# Each says how long each child stood, in seconds, and how many at once at most.
COMMON = """
import json, os, select, subprocess, sys, time
input()
stood, died = [], {}
def death(pid):
    select.select([pidfd := os.pidfd_open(pid)], [], [])
    os.close(pidfd)
    died[pid] = time.monotonic()
def gone(pid):
    stood.append(time.monotonic() - died.pop(pid))
"""
END = """
print(json.dumps({"stood": stood, "peak": peak}), flush=True)
input()
"""
POPEN = f"""{COMMON}
peak, before = 1, None
for _ in range(4):
    child = subprocess.Popen(["sleep", "0.1"])  # looks after those that nobody holds any more
    if before:
        gone(before)
    before = child.pid
    del child  # while it lives
    death(before)
    time.sleep(0.3)
subprocess.run(["true"])
gone(before)
{END}"""
POLL_LOOP = f"""{COMMON}
peak = 3
for _ in range(peak):
    if not (pid := os.fork()):
        os._exit(0)
    death(pid)
while died:
    time.sleep(0.25)
    try:
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            gone(pid)
    except ChildProcessError:
        pass
for _ in range(5):  # and these are waited for in time
    subprocess.run(["true"])
{END}"""


def traced(script: str) -> tuple[Trace, dict[str, object]]:
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        with Session(replace(options_for(program.pid), min_age_s=MIN_AGE_S)) as session:
            session.start()
            program.stdin.write("go\n")
            program.stdin.flush()
            said = json.loads(while_stepping(session, program.stdout.readline))
            trace = session.finish()
        program.communicate("end\n")
        return trace, said


@pytest.mark.parametrize("script", [POPEN, POLL_LOOP], ids=["python's next Popen", "a poll loop"])
def test_late(script: str) -> None:
    trace, said = traced(script)
    stood = said["stood"]
    assert isinstance(stood, list)
    assert all(each > MIN_AGE_S for each in stood)
    (late,) = trace.late
    assert late.count == len(stood)
    assert late.latency.p50 == pytest.approx(statistics.median_low(stood), rel=0.07, abs=TOLERANCE_S)
    assert late.latency.max == pytest.approx(max(stood), abs=TOLERANCE_S)
    assert trace.totals.zombies_peak == said["peak"]
    assert trace.leaks == ()
    assert trace.totals.zombies == 0
    text = io.StringIO()
    render(trace, Console(file=text, width=100))
    assert f"{len(stood)} children, half within" in text.getvalue()
    assert "Reaped late" in text.getvalue()
