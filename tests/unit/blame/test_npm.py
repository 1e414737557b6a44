"""JavaScript files to npm packages: layouts of npm, pnpm, Yarn and Debian, and npm's own tree against npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tracer.blame.npm import Npm
from tracer.blame.owner import Owner, standard_library
from tracer.blame.tree import Tree
from tracer.trace import Library

from .roots import make_texts, root_at

APP = "/srv/app"


def package(directory: str, name: str, version: str) -> dict[str, str]:
    return {f"{directory}/package.json": json.dumps({"name": name, "version": version})}


@pytest.fixture
def npm(tmp_path: Path) -> Npm:
    modules = f"{APP}/node_modules"
    make_texts(
        tmp_path,
        package(APP, "my-app", "2.0.0"),
        {f"{APP}/dist/package.json": '{"type": "module"}'},
        package(f"{modules}/execa", "execa", "5.1.1"),
        {f"{modules}/execa/dist/cjs/package.json": '{"type": "commonjs"}'},
        package(f"{modules}/@npmcli/promise-spawn", "@npmcli/promise-spawn", "9.0.2"),
        package(f"{modules}/execa/node_modules/cross-spawn", "cross-spawn", "6.0.5"),
        package(f"{modules}/alias", "real-name", "1.0.0"),
        package(f"{modules}/.pnpm/tinyexec@1.0.1/node_modules/tinyexec", "tinyexec", "1.0.1"),
        package("/usr/share/nodejs/shelljs", "shelljs", "0.8.5"),
        {f"{modules}/broken/package.json": "{"},
        {f"{modules}/nested/package.json": "[" * 100_000},
        {f"{modules}/odd/package.json": '{"name": ["x"], "version": {"y": 1}}'},
        {f"{modules}/escape/package.json": '{"name": "\\u001b[2J", "version": "1"}'},
    )
    return Npm(Tree(root_at(tmp_path)))


@pytest.mark.parametrize(
    ("path", "name", "version"),
    [
        (f"{APP}/node_modules/execa/index.js", "execa", "5.1.1"),
        (f"file://{APP}/node_modules/execa/lib/a%20b.js", "execa", "5.1.1"),
        (f"{APP}/node_modules/execa/dist/cjs/x.js", "execa", "5.1.1"),
        (f"{APP}/node_modules/@npmcli/promise-spawn/lib/index.js", "@npmcli/promise-spawn", "9.0.2"),
        (f"{APP}/node_modules/execa/node_modules/cross-spawn/index.js", "cross-spawn", "6.0.5"),
        (f"{APP}/node_modules/alias/x.js", "real-name", "1.0.0"),
        (f"{APP}/node_modules/.pnpm/tinyexec@1.0.1/node_modules/tinyexec/m.js", "tinyexec", "1.0.1"),
        (f"{APP}/node_modules/.pnpm/@a+b@2.1.0(c@1)/node_modules/@a/b/m.js", "@a/b", "2.1.0"),
        ("/h/.yarn/cache/zx-npm-7.2.3-4fb6f2a7b8-eb835a2e51.zip/node_modules/zx/index.js", "zx", "7.2.3"),
        ("/usr/share/nodejs/shelljs/shell.js", "shelljs", "0.8.5"),
        (f"{APP}/node_modules/broken/x.js", "broken", None),
        (f"{APP}/node_modules/nested/x.js", "nested", None),
        (f"{APP}/node_modules/odd/x.js", "odd", None),
    ],
)
def test_packages(npm: Npm, path: str, name: str, version: str | None) -> None:
    assert npm.owner(path) == Owner(Library("npm", name, version))


@pytest.mark.parametrize(
    "path",
    [
        "node:child_process",
        "node:internal/child_process",
        "internal/child_process.js",
        "child_process.js",
        "events.js",
    ],
)
def test_node_s_own(npm: Npm, path: str) -> None:
    assert npm.owner(path) == standard_library("node")


def test_the_application(npm: Npm) -> None:
    app = Owner(Library("app", "my-app", "2.0.0"))
    assert npm.owner(f"{APP}/dist/server.js") == npm.owner(f"file://{APP}/a/b.mjs") == app
    for path in (
        "/srv/other/x.js",
        "[eval]",
        "evalmachine.<anonymous>",
        "",
        f"{APP}/node_modules/escape/x.js",
    ):
        owner = npm.owner(path)
        assert owner is None or owner == app


def test_add_ons(npm: Npm) -> None:
    path = f"{APP}/node_modules/execa/build/Release/pty.node"
    assert npm.owner_of_native(path) == Owner(Library("npm", "execa", "5.1.1"))
    assert npm.owner_of_native("/usr/lib/libx.so.1") is None
    assert npm.owner_of_native(f"{APP}/build/x.node") is None


def test_against_npm() -> None:
    """npm's own dependencies, as npm lists them."""
    program = shutil.which("npm")
    assert program, "this test needs npm"
    home = Path(program).resolve().parents[1]
    listed = subprocess.run(
        [program, "ls", "--all", "--json", "--long", "--prefix", str(home)],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    expected: dict[str, tuple[str, str]] = {}
    pending = list(json.loads(listed).get("dependencies", {}).values())
    while pending:
        found = pending.pop()
        pending += found.get("dependencies", {}).values()
        if {"path", "name", "version"} <= found.keys():
            expected[str(Path(found["path"]).resolve())] = found["name"], found["version"]
    npm = Npm(Tree(root_at(Path("/"))))
    for directory, (name, version) in expected.items():
        assert npm.owner(f"{directory}/lib/x.js") == Owner(Library("npm", name, version)), directory
    assert len(expected) > 50
