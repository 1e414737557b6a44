"""JavaScript's functions and lines in the stacks of Node's forks, against what the script says of itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from interpreted import PROGRAMS, Forked, running, trace_script

pytestmark = pytest.mark.kernel

SCRIPT = PROGRAMS / "node_forks.js"


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("no Node.js is installed")
    return found


def own_frames(fork: Forked, script: Path) -> list[tuple[str | None, int | None]]:
    [places] = fork.seen
    return [(function, line) for function, file, line in places if file == str(script)]


def check(forked: list[Forked], script: Path = SCRIPT) -> None:
    assert len(forked) == 9
    for fork in forked:
        frames = own_frames(fork, script)
        functions = [function.partition(" (begins at line ")[0] for function, _ in frames if function]
        assert functions == fork.said["functions"].split(), fork
        if fork.said["way"] != "compiled":
            assert frames[0][1] == fork.said["line"], fork
            assert None not in [line for _, line in frames]


def test_every_way_to_start_a_child(node: str) -> None:
    with running([node, SCRIPT]) as program:
        forked = trace_script(program, "node", language="javascript")
    check(forked)
    library = [place[:2] for place in forked[0].seen[0][:3]]
    assert library == [
        ("spawnSync", "node:internal/child_process"),
        ("spawnSync", "node:child_process"),
        ("execSync", "node:child_process"),
    ]
