"""``forktrace report --rules``: a capture judged anew, by the command itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from graphs import LIBFOO, STACK, meta, snapshot, task

from tracer.capture.writer import CaptureWriter
from tracer.cli.report import report
from tracer.errors import ForktraceError
from tracer.lifecycle.task import Fate


def judged(capture: Path, *arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(report, [str(capture), "--json", *arguments], catch_exceptions=False)
    leak = json.loads(result.output)["leaks"][0]
    return {key: leak[key] and leak[key]["name"] for key in ("forked_by", "responsible")}


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "a.forktrace"
    tasks = [task(200, Fate.ZOMBIE)]
    with CaptureWriter(path, meta()) as writer:
        assert writer.flush(snapshot(tasks), tasks, [STACK], final=True, extra={"lost_events": 0})
    return path


def test_a_library_that_is_a_wrapper_after_all(capture: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"wrapper": {"libraries": {LIBFOO.kind: [LIBFOO.name]}}}))
    before, after = judged(capture), judged(capture, "--rules", str(rules))
    assert before == {"forked_by": LIBFOO.name, "responsible": LIBFOO.name}
    assert after["forked_by"] == LIBFOO.name
    assert after["responsible"] not in (LIBFOO.name, None)


def test_rules_that_are_none_are_said(capture: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text('{"wrapper": []}')
    with pytest.raises(ForktraceError, match="wrapper is no JSON object"):
        judged(capture, "--rules", str(rules))
