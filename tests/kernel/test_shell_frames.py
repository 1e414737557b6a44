"""The script's lines and functions in a shell's stacks, against what the shell itself says where it forks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from interpreted import PROGRAMS, Forked, running, trace_script

from tracer.records import MAX_FRAMES

pytestmark = pytest.mark.kernel

SCRIPT = PROGRAMS / "shell_forks.sh"
SOURCED = PROGRAMS / "shell_sourced.sh"
TALK = "printf '{\"pid\": %d}\\n' $$; read -r _"
END = "printf '{\"ready\": true}\\n'; read -r _"


def expected(said: dict[str, str], script: str, sourced: str) -> tuple[list[str], str, int]:
    """The functions, the file and the line of the innermost one, by the script's own account."""
    functions = said["functions"].split()
    return functions, sourced if functions[0] == "source" else script, int(said["line"])


def check(forked: list[Forked], script: str = str(SCRIPT), sourced: str = str(SOURCED)) -> None:
    for fork in forked:
        assert len(fork.seen) == fork.said["forks"]
        functions, file, line = expected(fork.said, script, sourced)
        for places in fork.seen:
            assert [place[0] for place in places] == functions, fork
            assert places[0][1:] == (file, line), fork
            assert {place[1] for place in places[1:]} <= {script}, fork
    ways = {fork.said["way"] for fork in forked}
    assert len(ways) == 13, ways


def test_bash_in_every_way_to_fork() -> None:
    with running(["/bin/bash", SCRIPT]) as program:
        forked = trace_script(program, "bash")
    check(forked)
    called = next(fork.seen[0] for fork in forked if fork.said["functions"] == "inner outer main")
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    assert [lines[line - 1].strip() for _, _, line in called if line] == ["/bin/true", "inner", "outer"]


def test_a_script_named_by_a_relative_path(tmp_path: Path) -> None:
    """The main file is found where the shell started; what it sourced is as the script named it."""
    for script in (SCRIPT, SOURCED):
        shutil.copy(script, tmp_path / script.name)
    with running(["/bin/bash", f"./{SCRIPT.name}"], cwd=tmp_path) as program:
        check(trace_script(program, "bash"), str(tmp_path / SCRIPT.name), f"./{SOURCED.name}")


def test_the_argument_of_c() -> None:
    script = f"{TALK}\nf() {{\n/bin/true\n}}\necho '{{\"forks\": 2}}'\nf\n/bin/true\n{END}"
    with running(["/bin/bash", "-c", script]) as program:
        [fork] = trace_script(program, "bash")
    assert fork.seen == [[("f", "environment", 3), (None, "-c", 6)], [(None, "-c", 7)]]


@pytest.mark.parametrize("named", ["dash_forks.sh", "./dash_forks.sh"])
def test_dash_by_its_script(named: str) -> None:
    with running(["/bin/dash", "-e", named], cwd=PROGRAMS) as program:
        forked = trace_script(program, None, language="shell")
    for fork in forked:
        assert fork.seen == [[(None, str(PROGRAMS / "dash_forks.sh"), None)]] * fork.said["forks"]
    assert len(forked) == 4


def test_what_only_looks_like_bash(tmp_path: Path) -> None:
    """Each fork is seen with its native stack; what is no bash gives no functions, or says where it stops."""
    fake = tmp_path / "bash"
    subprocess.run(
        ["gcc", "-O1", "-rdynamic", "-o", fake, PROGRAMS / "hostile_bash.c"], check=True, timeout=60
    )
    with running([fake]) as program:
        forked = trace_script(program, "bash")
    seen = {fork.said["way"]: fork.seen[0] for fork in forked}
    endless = seen.pop("functions without an end")
    assert len(endless) == MAX_FRAMES
    assert {place[:2] for place in endless} == {("\udcff\x1b[31m\n", "\udcff\x1b[31m\n")}
    assert len(seen.pop("names without memory")) == MAX_FRAMES
    assert len(seen) == 5
    assert all(len(places) <= 1 for places in seen.values()), seen
