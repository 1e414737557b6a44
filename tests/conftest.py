"""What all tests share: the programs that know the truth, built once, and the rule that nothing skips silently.

With CI=true a skipped test fails unless its reason stands in allowed_skips.txt (one a line, ``*`` matches anything),
and a kernel test fails without root; elsewhere both are skipped, with their reasons in the summary.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from support import Program

HERE = Path(__file__).parent
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that tests/programs was built into.  A user other than root can reach it, too."""
    out = tmp_path_factory.mktemp("programs")
    for directory in (out, out.parent, out.parent.parent):
        directory.chmod(0o755)
    subprocess.run(
        ["make", "--silent", "-j2", "-C", str(HERE / "programs"), f"BUILD={out}"], check=True, timeout=120
    )
    return out


@pytest.fixture
def start(programs: Path) -> Iterator[Callable[..., Program]]:
    """``start("fates", "wait4", wait=True)``: a running Program, which is gone when the test ends."""
    running: list[Program] = []

    def start_one(name: str, *arguments: str | int, wait: bool = False) -> Program:
        running.append(Program.start(programs / name, *arguments, wait=wait))
        return running[-1]

    yield start_one
    for program in running:
        program.close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") and os.geteuid() != 0:
        if IN_CI:
            pytest.fail("a kernel test needs root; in CI that is no reason to skip it", pytrace=False)
        pytest.skip("a kernel test needs root")


def _allowed(reason: str) -> bool:
    lines = (HERE / "allowed_skips.txt").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return any(fnmatchcase(reason, pattern) for pattern in patterns)


def _fail_silent_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not IN_CI or not report.skipped or hasattr(report, "wasxfail"):
        return
    # pytest gives a skip's place and reason as (path, line, "Skipped: reason")
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not _allowed(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, and its reason is not in allowed_skips.txt: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_silent_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_silent_skip(report)
    return report
