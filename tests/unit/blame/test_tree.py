"""What is seen of a root, and how much of it at most."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.blame import tree as tree_module
from tracer.blame.tree import Tree, parents

from .roots import make_texts, root_at


def test_names_and_contents(tmp_path: Path) -> None:
    make_texts(tmp_path, {"/a/b": "text", "/a/c": ""})
    tree = Tree(root_at(tmp_path))
    assert tree.names("/a") == {"b", "c"}
    assert tree.names("/a/b") == tree.names("/none") == frozenset()
    assert (tree.read("/a/b"), tree.text("/a/b"), tree.text("/a/none")) == (b"text", "text", "")
    assert tree.read("/a/b", 3) is None
    assert (Tree(None).names("/"), Tree(None).read("/a/b")) == (frozenset(), None)


def test_no_more_than_so_much_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "MAX_READ", 2 * tree_module.READ_COST + 150)
    make_texts(tmp_path, {"/large": "x" * 100, "/small": "y"})
    tree = Tree(root_at(tmp_path))
    assert tree.read("/large") == b"x" * 100
    assert tree.read("/large") is None
    assert tree.read("/small") is None


def test_listings_are_kept_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "MAX_LISTINGS", 3)
    tree = Tree(root_at(tmp_path))
    for number in range(9):
        make_texts(tmp_path, {f"/{number}/x": ""})
        assert tree.names(f"/{number}") == {"x"}
    assert len(tree._listings) == 3


def test_parents() -> None:
    assert list(parents("/a/b/c.py")) == ["/a/b", "/a"]
    assert list(parents("/c.py")) == list(parents("c.py")) == list(parents("")) == []
    assert len(list(parents("/x" * 500))) == tree_module.MAX_DEPTH
