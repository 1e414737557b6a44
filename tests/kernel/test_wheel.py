"""A wheel, built and installed elsewhere: it must hold all that runs, and run without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ("pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps")

pytestmark = pytest.mark.kernel


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a directory outside of the checkout, which PYTHONPATH must not bring back."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, f"{words}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as the README says; pip fetches the build backend."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", *BUILD, "-w", out, ROOT, cwd=out)
    (built,) = out.glob("forktrace-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in an environment of its own, made from the distribution's Python, which has bcc."""
    place = tmp_path_factory.mktemp("elsewhere") / "venv"
    run("/usr/bin/python3", "-m", "venv", "--system-site-packages", place, cwd=place.parent)
    run(place / "bin/pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=place.parent)
    return place / "bin/forktrace"


def test_it_holds_every_file_that_the_package_has(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "tracer", "bpf"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    wanted = {
        name if name.startswith("tracer/") else f"tracer/{name}" for name in tracked.split("\0") if name
    }
    assert wanted - held == set()


def test_it_traces_a_command_and_keeps_a_capture(installed: Path, tmp_path: Path) -> None:
    capture, report = tmp_path / "true.forktrace", tmp_path / "report.json"
    options = ("--json", "--report", report, "-o", capture)
    run(installed, "run", *options, "--", "sh", "-c", "true & wait", cwd=tmp_path)
    said = json.loads(report.read_text(encoding="utf-8"))
    assert (said["totals"]["forks"], said["totals"]["waited"], said["trace"]["complete"]) == (1, 1, True)
    again = run(installed, "report", "--json", capture, cwd=tmp_path)
    assert json.loads(again.stdout) == said
    assert "<svg" in run(installed, "export", capture, "-f", "svg", "--all-forks", cwd=tmp_path).stdout


def test_ps_and_doctor_work_from_it(installed: Path, tmp_path: Path) -> None:
    assert json.loads(run(installed, "ps", "--json", cwd=tmp_path).stdout)["schema"] == "forktrace.ps/1"
    assert json.loads(run(installed, "doctor", "--json", cwd=tmp_path).stdout)["can_trace"] is True
