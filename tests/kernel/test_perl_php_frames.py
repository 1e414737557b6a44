"""The functions and lines of Perl and PHP in the stacks of their forks, against what the scripts say themselves."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from interpreted import PROGRAMS, Forked, running, trace_script

pytestmark = pytest.mark.kernel

PERL = PROGRAMS / "perl_forks.pl"
PHP = PROGRAMS / "php_forks.php"
CLOSURE = re.compile(r"\{closure:.*\}")  # PHP 8.4 says where it is


def check(forked: list[Forked], ways: int) -> None:
    """The functions are the script's own account; so is the line of the innermost frame that has a file."""
    assert len(forked) == ways
    for fork in forked:
        [places] = fork.seen
        functions = [CLOSURE.sub("{closure}", function or "-") for function, _, _ in places]
        assert functions == fork.said["functions"].split(), fork
        assert next(line for _, file, line in places if file) == fork.said["line"], fork
        assert all(line for _, file, line in places if file), fork


def test_perl_in_every_way_to_fork() -> None:
    with running(["/usr/bin/perl", PERL]) as program:
        forked = trace_script(program, "perl")
    check(forked, ways=8)
    files = {fork.said["way"]: [file for _, file, _ in fork.seen[0]] for fork in forked}
    assert files["required"] == [str(PROGRAMS / "perl_required.pm"), str(PERL)]
    assert files["eval"][1] == str(PERL)
    assert files["fork in a method"] == [str(PERL)] * 3


def test_perl_by_a_relative_path_and_from_an_argument() -> None:
    with running(["/usr/bin/perl", PERL.name], cwd=PERL.parent) as program:
        forked = trace_script(program, "perl")
    assert forked[0].seen[0][0][1] == str(PERL)
    said = '$| = 1; print qq({"pid": $$}\\n); <STDIN>; print "{}\\n"; system "/bin/true"; '
    said += 'print qq({"ready": 1}\\n); <STDIN>'
    with running(["/usr/bin/perl", "-w", "-e", said]) as program:
        [fork] = trace_script(program, "perl")
    assert fork.seen == [[(None, "-e", 1)]]


def test_php_in_every_way_to_fork() -> None:
    if shutil.which("php") is None:
        pytest.skip("no PHP is installed")
    with running(["php", PHP]) as program:
        forked = trace_script(program, "php")
    check(forked, ways=6 + sum(fork.said["way"] in {"fork", "fiber"} for fork in forked))
    assert forked[-1].seen[0][1][1] == str(PROGRAMS / "php_included.php")
    assert Path(str(forked[0].seen[0][1][1])) == PHP
