"""A user's rules beside the shipped ones, and what a file that is no rules file is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tracer.blame.attribute import Blamer
from tracer.blame.owner import Owner
from tracer.blame.rules import BadRules, Role, Rules
from tracer.trace import Frame, Library, Stack


def rules_of(directory: Path, data: Any) -> Rules:
    file = directory / "rules.json"
    file.write_text(json.dumps(data) if not isinstance(data, str) else data)
    return Rules.with_file(str(file))


def script(library: Library, file: str, language: str) -> Frame:
    return Frame("f", file, 1, None, language, library)


OURS = Library("gem", "our-spawner", "1.0")
THEIRS = Library("gem", "leaky", "2.0")
STACK = Stack(
    1,
    (
        script(OURS, "/g/our.rb", "ruby"),
        script(THEIRS, "/g/leaky.rb", "ruby"),
        Frame("main", None, None, "/srv/x"),
    ),
)


def test_one_more_wrapper(tmp_path: Path) -> None:
    assert Blamer().attribute(STACK, {}).responsible == OURS
    rules = rules_of(tmp_path, {"//": "ours", "wrapper": {"libraries": {"gem": ["our-spawner"]}}})
    answer = Blamer(rules).attribute(STACK, {})
    assert (answer.forked_by, answer.responsible) == (OURS, THEIRS)
    shipped = Owner(Library("python", "Easy_Process"))
    for each in (rules, Rules.shipped()):  # the shipped ones stay
        assert (
            each.role(Frame("f", "/x.py", 1, None, "python"), Owner(Library("npm", "execa"))) is Role.WRAPPER
        )
        assert each.role(Frame("f", "/x.py", 1, None, "python"), shipped) is Role.OTHER
        assert each.role_of_file("/usr/lib/libffi.so.8") is Role.WRAPPER


def test_patterns_of_files_and_scripts(tmp_path: Path) -> None:
    rules = rules_of(
        tmp_path,
        {
            "runtime": {"packages": ["our-libc"]},
            "wrapper": {
                "files": ["libours.so.*"],
                "scripts": {"php": ["*/src/Spawner.php"]},
                "standard": {"python": ["*/wsgiref/*"]},
            },
        },
    )
    assert rules.role_of_file("/opt/libours.so.1") is Role.WRAPPER
    native = Frame("f", None, None, "/lib/x.so")
    for kind in ("deb", "apk", "rpm"):
        assert rules.role(native, Owner(Library(kind, "our-libc"))) is Role.RUNTIME
    app = Owner(Library("app", "x"))
    assert rules.role(Frame("f", "/srv/src/Spawner.php", 1, None, "php"), app) is Role.WRAPPER
    assert rules.role(Frame("f", "/srv/src/Spawner.php", 1, None, "ruby"), app) is Role.OTHER
    stdlib = Owner(Library("stdlib", "python"), standard=True)
    assert rules.role(Frame("f", "/l/wsgiref/x.py", 1, None, "python"), stdlib) is Role.WRAPPER
    assert rules.role(Frame("f", "/l/subprocess.py", 1, None, "python"), stdlib) is Role.WRAPPER
    assert rules.role(Frame("f", "/l/json.py", 1, None, "python"), stdlib) is Role.STANDARD
    assert rules.role(Frame("f", "/srv/subprocess.py", 1, None, "python"), app) is Role.OTHER


def test_owners_are_renamed(tmp_path: Path) -> None:
    rules = rules_of(
        tmp_path,
        {
            "owners": {
                "/srv/shop/plugins/*": {"kind": "gem", "name": "shop-plugins", "version": "7"},
                "/srv/x": {"kind": "app", "name": "our server"},
                "/g/our.rb": {"kind": "stdlib", "name": "ruby"},
            }
        },
    )
    frames = (script(THEIRS, "/srv/shop/plugins/a/b.rb", "ruby"), *STACK.frames)
    answer = Blamer(rules).attribute(Stack(1, frames), {})
    assert answer.responsible == Library("gem", "shop-plugins", "7", "/srv/shop/plugins/a/b.rb", 1, "f")
    assert [library.name for library in answer.chain] == ["shop-plugins", "ruby", "leaky", "our server"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("{", "is no JSON: "),
        ("[" * 100_000, "is no JSON: "),
        ("\x00", "is no JSON: "),
        ([], "the file is no JSON object"),
        ({"wrappers": {}}, "the file has 'wrappers', which is none of runtime, interpreter, wrapper, owners"),
        ({"wrapper": []}, "wrapper is no JSON object"),
        ({"wrapper": {"gem": ["x"]}}, "wrapper has 'gem', which is none of files, packages, libraries, "),
        ({"wrapper": {"files": "x"}}, "wrapper.files is no list of strings"),
        ({"wrapper": {"files": [1]}}, "wrapper.files is no list of strings"),
        ({"wrapper": {"libraries": {"gems": []}}}, "wrapper.libraries has 'gems', which is none of gem, "),
        ({"wrapper": {"scripts": {"php": {}}}}, "wrapper.scripts.php is no list of strings"),
        ({"owners": {"/x": {"name": "x"}}}, "owners['/x'] needs a kind: one of gem, "),
        ({"owners": {"/x": {"kind": "gem"}}}, "owners['/x'] needs a name"),
        (
            {"owners": {"/x": {"kind": "gem", "name": "x", "version": 1}}},
            "the version of owners['/x'] is no string",
        ),
        ({"owners": {"/x": "y"}}, "owners['/x'] is no JSON object"),
    ],
)
def test_what_is_no_rules_file(tmp_path: Path, data: Any, problem: str) -> None:
    with pytest.raises(BadRules) as error:
        rules_of(tmp_path, data)
    assert problem in error.value.message
    assert error.value.message.startswith(f"{tmp_path}/rules.json: ")
    assert "docs/rules.md" in error.value.help


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadRules, match="cannot be read: No such file or directory"):
        Rules.with_file(str(tmp_path / "none"))
    with pytest.raises(BadRules, match="cannot be read: Is a directory"):
        Rules.with_file(str(tmp_path))
    with pytest.raises(BadRules, match="has more than"):
        Rules.with_file("/dev/zero")
