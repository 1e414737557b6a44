"""``forktrace doctor`` with all that a trace needs, and with each thing taken away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import AS_NOBODY, Answer, forktrace, hiding

from tracer.probe.build import CACHE, SYSCALL_TRACEPOINTS

pytestmark = pytest.mark.kernel

WITHOUT_BPF = ("setpriv", "--inh-caps=-all", "--bounding-set=-bpf,-perfmon,-sys_admin")
WITHOUT_TRACEFS = hiding(
    "/sys/kernel/tracing",
    "/sys/kernel/debug",
    then='exec setpriv --inh-caps=-all --bounding-set=-sys_admin "$@"',
)
NEEDED = {
    *("permission", "kernel", "BTF", "BPF programs", "BPF maps", "BPF ring buffer", "raw tracepoints"),
    *("tracefs", "BCC", "a trace", *SYSCALL_TRACEPOINTS.values()),
}


def states(answer: Answer) -> dict[str, str]:
    return {check["name"]: check["state"] for check in json.loads(answer.out)["checks"]}


def doctor(prefix: Sequence[str] = (), **options: Any) -> tuple[Answer, dict[str, Any]]:
    answer = forktrace("doctor", "--json", prefix=prefix, **options)
    assert answer.err == ""
    found = json.loads(answer.out)
    assert found["schema"] == "forktrace.doctor/1"
    assert (found["status"], found["can_trace"]) == (answer.status, answer.status == 0)
    for check in found["checks"]:
        assert check["state"] in {"ok", "info", "missing", "untried"}
        assert check["found"]
    return answer, found


def test_where_tracing_works() -> None:
    answer, found = doctor()
    assert answer.status == 0
    assert {name for name, state in states(answer).items() if state == "ok"} >= NEEDED
    assert found["conclusion"] == "forktrace can trace here"
    assert not found["needs_light"]


def test_the_table() -> None:
    answer = forktrace("doctor")
    assert (answer.status, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-2:] == ["", "forktrace can trace here."]
    assert lines[0].startswith("ok       permission         root, with ")
    assert "\x1b" not in answer.out


def test_not_root() -> None:
    answer, found = doctor(AS_NOBODY)
    assert answer.status == 77
    assert found["conclusion"] == "forktrace cannot trace here: tracing needs root"
    assert "sudo forktrace" in found["remedy"]
    for name in ("BPF programs", "BPF maps", "raw tracepoints", "compiled programs", "a trace"):
        assert states(answer)[name] == "untried"
    for name in ("kernel", "BTF", "BCC"):
        assert states(answer)[name] == "ok"


def test_bpf_refused() -> None:
    answer, found = doctor(WITHOUT_BPF)
    assert answer.status == 70
    assert (states(answer)["BPF programs"], states(answer)["BPF maps"]) == ("missing", "untried")
    assert "CAP_BPF" in found["remedy"]


def test_no_btf() -> None:
    answer, found = doctor(hiding(CACHE, "/sys/kernel/btf"))
    assert answer.status == 69
    assert states(answer)["BTF"] == "missing"
    assert "CONFIG_DEBUG_INFO_BTF" in found["remedy"]


def test_no_bcc(tmp_path: Path) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("raise ImportError('gone')\n")
    answer, found = doctor(hiding(CACHE), env={"PYTHONPATH": str(tmp_path)})
    assert answer.status == 69
    assert (states(answer)["BCC"], states(answer)["compiled programs"]) == ("missing", "info")
    assert "apt install python3-bpfcc" in found["remedy"]


def test_no_tracefs() -> None:
    answer, found = doctor(WITHOUT_TRACEFS)
    assert answer.status == 0
    assert states(answer)["tracefs"] == "missing"
    assert found["needs_light"]
    assert found["conclusion"].startswith("forktrace can trace here with --light only")
