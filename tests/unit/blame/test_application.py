"""Applications and their git revisions, those of real repositories against git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tracer.blame.application import REVISION_DIGITS, Applications
from tracer.blame.tree import Tree
from tracer.trace import Library

from .roots import make_texts, root_at

SHA = "0123456789abcdef0123456789abcdef01234567"


def app(directory: Path, path: str) -> Library:
    return Applications(Tree(root_at(directory))).owner(path).library


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.check_output(["git", *identity, *arguments], cwd=directory, text=True).strip()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/srv/shop/app/models/cart.rb", "shop"),
        ("/srv/shop/config.ru", "shop"),
        ("/srv/worker.py", "worker.py"),
        ("/worker.py", "worker.py"),
        ("/srv/tool.pyz/pkg/mod.py", "tool.pyz"),
        ("worker.py", "worker.py"),
        ("", ""),
    ],
)
def test_names(tmp_path: Path, path: str, name: str) -> None:
    make_texts(tmp_path, {"/srv/shop/Gemfile": "", "/srv/worker.py": "", "/worker.py": ""})
    assert app(tmp_path, path) == Library("app", name)


def test_revisions_of_real_repositories(tmp_path: Path) -> None:
    work = tmp_path / "srv" / "shop"
    (work / "lib").mkdir(parents=True)
    (work / "lib" / "a.py").touch()
    git(work, "init", "-q")
    git(work, "add", ".")
    git(work, "commit", "-qm", "one")
    revision = git(work, "rev-parse", "HEAD")[:REVISION_DIGITS]
    expected = Library("app", "shop", revision)
    assert app(tmp_path, "/srv/shop/lib/a.py") == expected  # a loose ref
    git(work, "pack-refs", "--all")
    assert app(tmp_path, "/srv/shop/lib/a.py") == expected
    git(work, "worktree", "add", "-q", "../tree", "-b", "other")
    (work.parent / "tree" / "setup.py").touch()
    # git wrote the path that this machine has; in the root it is another
    pointer = work.parent / "tree" / ".git"
    pointer.write_text(pointer.read_text().replace(str(tmp_path), ""))
    assert app(tmp_path, "/srv/tree/x.py") == Library("app", "tree", revision)
    git(work, "checkout", "-q", "--detach")
    assert app(tmp_path, "/srv/shop/lib/a.py") == expected
    empty = tmp_path / "srv" / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    assert app(tmp_path, "/srv/empty/x.py") == Library("app", "empty")


@pytest.mark.parametrize(
    "files",
    [
        {".git/HEAD": "ref: refs/../../secret\n"},
        {".git/HEAD": "ref: /etc/shadow\n"},
        {".git/HEAD": "password\n"},
        {".git/HEAD": "ref: refs/heads/main\n", ".git/refs/heads/main": "not a revision\n"},
        {".git/HEAD": "ref: refs/heads/main\n", ".git/packed-refs": f"{SHA[:20]} refs/heads/main\n"},
        {".git": "gitdir: ../../../../../outside\n"},
    ],
)
def test_nothing_else_is_taken_for_a_revision(tmp_path: Path, files: dict[str, str]) -> None:
    root = tmp_path / "root"
    make_texts(tmp_path, {"/outside/HEAD": SHA, "/secret": SHA})
    make_texts(root, {f"/srv/x/{name}": text for name, text in files.items()})
    assert app(root, "/srv/x/a.py") == Library("app", "x")
