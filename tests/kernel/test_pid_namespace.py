"""forktrace itself in a pid namespace of its own: its /proc and the kernel's records name processes differently."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.kernel


def test_it_says_where_to_run_instead() -> None:
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        sys.executable,
        "-m",
        "tracer",
        "run",
        "--",
        "true",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 69
    assert done.stdout == ""
    assert done.stderr == (
        "forktrace: this is a pid namespace of its own: its pids are not those that the kernel records\n"
        "  run forktrace on the host, or in a container that was started with --pid=host\n"
    )
