"""Runs the tests of Python's and Ruby's frames under every interpreter there is, and prints one line for each.

For scripts/interpreter-matrix, which sets FORKTRACE_ROOTS.  Ends with 1 if any of them differs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent
TESTS = (
    f"{HERE}/kernel/test_python_frames.py::test_every_way_to_fork",
    f"{HERE}/kernel/test_ruby_frames.py",
)


def verdicts(report: Path) -> dict[str, Counter[str]]:
    """By interpreter, the parameter of each test: how many tests passed, failed, were skipped."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "")
        kinds = {child.tag for child in case}
        verdict = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[name.partition("[")[2].rstrip("]") or name][verdict] += 1
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "junit.xml"
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junit-xml={report}",
            *TESTS,
        ]
        done = subprocess.run(pytest, stdout=sys.stderr, check=False, cwd=HERE.parent)
        found = verdicts(report)
    width = max(map(len, found), default=0)
    for interpreter, counts in found.items():
        print(
            f"{interpreter:{width}}  {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}"
        )
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
