"""Alpine's database: made as apk-tools writes it."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tracer.blame import apk
from tracer.blame.languages import Languages
from tracer.blame.library import Libraries
from tracer.blame.listing import Package
from tracer.blame.owner import Owner
from tracer.blame.packages import Packages
from tracer.blame.rules import Role, Rules
from tracer.trace import Frame, Library

from .roots import make_texts, root_at
from .test_library import FakeModule

MUSL = """C:Q1abcdefghijklmnopqrstuvwxyz0=
P:musl
V:1.2.5-r0
A:x86_64
S:407278
I:667648
T:the musl c library (libc) implementation
o:musl
p:so:libc.musl-x86_64.so.1=1
F:lib
R:ld-musl-x86_64.so.1
a:0:0:755
Z:Q1WlV8Mg6DCIVEJbSDt9gZBZoBmPk=
R:libc.musl-x86_64.so.1
a:0:0:777
F:
R:rootfile
"""
OTHER = "P:python3\nV:3.12.3-r1\nF:usr/bin\nF:usr/lib\nF:usr/lib/python3.12\nR:os.py\nR:subprocess.py\n"


def test_owners(tmp_path: Path) -> None:
    make_texts(
        tmp_path,
        {apk.INSTALLED: f"{MUSL}\n{OTHER}\nP:../evil\nV:1\nF:usr\nR:evil\n\nP:odd\nV:\x1b\nF:o\nR:o\n"},
    )
    databases, root = apk.databases(), root_at(tmp_path)
    for path, package in {
        "/lib/ld-musl-x86_64.so.1": Package("musl", "1.2.5-r0"),
        "/rootfile": Package("musl", "1.2.5-r0"),
        "/usr/lib/python3.12/os.py": Package("python3", "3.12.3-r1"),
        "/o/o": Package("odd", None),
        "/usr/evil": None,
        "/lib/ld-musl": None,
        "/usr/bin": None,
        "": None,
    }.items():
        assert databases.owner(root, path) == package, path


def test_native_files_and_the_standard_library(tmp_path: Path) -> None:
    make_texts(tmp_path, {apk.INSTALLED: f"{MUSL}\n{OTHER}", "/usr/lib/python3.12/os.py": ""})
    packages, rules = Packages(), Rules.shipped()
    languages = Languages(packages)
    root = root_at(tmp_path)
    musl = Libraries(rules, packages, languages).of(FakeModule("/lib/ld-musl-x86_64.so.1", None, root))
    assert musl == Library("apk", "musl", "1.2.5-r0")
    assert rules.role(Frame("fork", None, None, "/lib/ld-musl-x86_64.so.1"), Owner(musl)) is Role.RUNTIME
    owner = languages.owner(Frame("f", "/usr/lib/python3.12/subprocess.py", 1, None, "python"), root)
    assert owner == Owner(Library("stdlib", "python", "3.12.3"), standard=True)


def test_an_upgrade_during_the_trace(tmp_path: Path) -> None:
    make_texts(tmp_path, {apk.INSTALLED: MUSL})
    databases, root = apk.databases(), root_at(tmp_path)
    assert databases.owner(root, "/rootfile") == Package("musl", "1.2.5-r0")
    make_texts(tmp_path, {"/new": MUSL.replace("r0", "r1")})
    (tmp_path / "new").rename(tmp_path / apk.INSTALLED[1:])
    assert databases.owner(root, "/rootfile") == Package("musl", "1.2.5-r1")


@pytest.mark.parametrize("what", ["fifo", "noise", "hole", "link"])
def test_hostile_databases(tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"
    file = root / apk.INSTALLED[1:]
    file.parent.mkdir(parents=True)
    if what == "fifo":
        os.mkfifo(file)
    elif what == "noise":
        file.write_bytes(random.Random(2).randbytes(1 << 20))
    elif what == "hole":
        with file.open("wb") as hole:
            hole.truncate(apk.MAX_INSTALLED + 1)
    else:
        (tmp_path / "outside").write_text(MUSL)
        file.symlink_to("../" * 30 + str(tmp_path / "outside"))
    assert apk.databases().owner(root_at(root), "/rootfile") is None
    shutil.rmtree(root)
