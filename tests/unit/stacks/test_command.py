from __future__ import annotations

import os

import pytest

from tracer.stacks.interpreters.command import SHELL, STDIN, Script, find_script, read_script


@pytest.mark.parametrize(
    ("arguments", "script"),
    [
        (["bash", "/a/b.sh", "-c"], Script("/a/b.sh", "/a/b.sh")),
        (["bash", "./b.sh"], Script("./b.sh", "/dir/b.sh")),
        (["sh", "../b.sh"], Script("../b.sh", "/b.sh")),
        (["bash", "-eu", "-o", "pipefail", "b.sh"], Script("b.sh", "/dir/b.sh")),
        (["bash", "-euo", "pipefail", "b.sh"], Script("b.sh", "/dir/b.sh")),
        (["bash", "+o", "posix", "b.sh"], Script("b.sh", "/dir/b.sh")),
        (["bash", "--norc", "--rcfile", "x", "b.sh"], Script("b.sh", "/dir/b.sh")),
        (["bash", "-ec", "true", "b.sh"], Script("", "-c")),
        (["bash", "--", "-c"], Script("-c", "/dir/-c")),
        (["-bash"], Script("", STDIN)),
        (["bash", "-s", "x"], Script("", STDIN)),
        (["bash", "-o"], Script("", STDIN)),
        (["bash", "-"], Script("", STDIN)),
        (["bash", ""], Script("", STDIN)),
    ],
)
def test_a_shells_script(arguments: list[str], script: Script) -> None:
    assert find_script(arguments, "/dir", SHELL) == script


def test_a_directory_that_is_not_known() -> None:
    assert find_script(["sh", "b.sh"], "(unreachable)/x", SHELL) == Script("b.sh", "b.sh")


def test_a_process_that_is_gone() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert read_script(pid, SHELL) is None
