"""Headroom against a process that is known to fill a limit of its own."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator

import pytest

from tracer.headroom import Headroom

pytestmark = pytest.mark.kernel

UIDS = itertools.count(61234)  # nobody's, and each test's own: all tasks of it are the test's
FORKER = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NPROC, (101, 101))
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        if not os.fork():
            os.execvp("sleep", ["sleep", "60"])
    print("forked", flush=True)
os.killpg(0, 9)
"""


@pytest.fixture
def uid() -> int:
    return next(UIDS)


@pytest.fixture
def forker(uid: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["/usr/bin/python3", "-c", FORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        user=uid,
        group=uid,
        start_new_session=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    yield process
    process.communicate()


def fork(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdin and process.stdout
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "forked\n"


def test_growth_and_forecast(forker: subprocess.Popen[str], uid: int) -> None:
    headroom = Headroom()
    headroom.sample([forker.pid], 1000.0, tasks={"processes": 1, "zombies": 0, "threads": 0})
    fork(forker, 5)
    headroom.sample([forker.pid], 1030.0, tasks={"processes": 6, "zombies": 0, "threads": 0})
    (limit,) = [each for each in headroom.report() if each["name"] == "RLIMIT_NPROC"]
    # 1 task, then 6 of 101; ten a minute, so the other 95 take 9.5 minutes
    assert limit == {
        "name": "RLIMIT_NPROC",
        "where": f"uid {uid}",
        "value": 101,
        "current": 6,
        "growth_per_min": 10.0,
        "growth_by_kind": {"processes": 10.0, "zombies": 0.0, "threads": 0.0},
        "full_in_s": 570.0,
    }


def test_no_forecast_from_one_look_nor_without_growth(forker: subprocess.Popen[str]) -> None:
    headroom = Headroom()
    headroom.sample([forker.pid], 1000.0)
    (limit,) = [each for each in headroom.report() if each["name"] == "RLIMIT_NPROC"]
    assert (limit["growth_per_min"], limit["full_in_s"]) == (None, None)
    assert set(limit["growth_by_kind"].values()) == {None}
    headroom.sample([forker.pid], 1060.0)
    (limit,) = [each for each in headroom.report() if each["name"] == "RLIMIT_NPROC"]
    assert (limit["growth_per_min"], limit["full_in_s"]) == (0.0, None)


def test_a_process_that_is_gone_keeps_its_last_sample(forker: subprocess.Popen[str]) -> None:
    headroom = Headroom()
    headroom.sample([forker.pid], 1000.0)
    forker.communicate()
    headroom.sample([forker.pid], 1030.0)
    assert [each["current"] for each in headroom.report() if each["name"] == "RLIMIT_NPROC"] == [1]
