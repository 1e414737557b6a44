"""A real cgroup that is full."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tracer.limits import Limit, limits


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A new cgroup with the pids controller, of whichever version."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a cgroup")
    version_1, version_2 = Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")
    base = version_1 if version_1.is_dir() else version_2
    if base is version_2:
        (base / "cgroup.subtree_control").write_text("+pids")
    outer = base / f"forktrace-test-{os.getpid()}"
    inner = outer / "inner"
    outer.mkdir()
    try:
        if base is version_2:
            (outer / "cgroup.subtree_control").write_text("+pids")
        inner.mkdir()
        yield inner
    finally:
        for directory in (inner, outer):
            if directory.is_dir():
                directory.rmdir()


def test_which_ancestor_is_full(cgroup: Path) -> None:
    (cgroup.parent / "pids.max").write_text("2")
    (cgroup / "pids.max").write_text("40")
    ready, report = os.pipe()
    pid = os.fork()
    if not pid:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        try:
            os.fork()
            os.write(report, b"0")
        except OSError as error:
            os.write(report, str(error.errno).encode())
        signal.pause()
        os._exit(0)
    try:
        assert int(os.read(ready, 10)) == errno.EAGAIN  # the zombie keeps its charge
        found = limits(pid)
        base = f"/{cgroup.parent.name}"
        assert any(limit.refusals for limit in found)  # which of the two counts it depends on the kernel
        found = tuple(replace(limit, refusals=None) for limit in found)
        assert found[0] == Limit("pids.max", base, 2, 2)
        assert Limit("pids.max", f"{base}/inner", 40, 2) in found
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(report)
