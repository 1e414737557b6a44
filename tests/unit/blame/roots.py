"""Small roots with a dpkg database in them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tracer.stacks.files import Root


def root_at(directory: Path) -> Root:
    return Root(os.open(directory, os.O_PATH | os.O_DIRECTORY))


def stanza(
    name: str, version: str, architecture: str = "amd64", multi_arch: str = "", state: str = "installed"
) -> str:
    same = f"Multi-Arch: {multi_arch}\n" if multi_arch else ""
    return (
        f"Package: {name}\nStatus: install ok {state}\nPriority: optional\nArchitecture: {architecture}\n{same}"
        f"Version: {version}\nDescription: about {name}\n Version: 0 is part of the description\n"
    )


def make_database(directory: Path, stanzas: Iterable[str], lists: dict[str, list[str]]) -> None:
    """lists: name of the list file, without its suffix, to paths."""
    info = directory / "var/lib/dpkg/info"
    info.mkdir(parents=True, exist_ok=True)
    (info.parent / "status").write_text("\n".join(stanzas))
    for name, paths in lists.items():
        (info / f"{name}.list").write_text("".join(f"{path}\n" for path in ["/.", *paths]))


def make_files(directory: Path, *paths: str) -> None:
    for path in paths:
        file = directory / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def make_texts(directory: Path, *files: dict[str, str]) -> None:
    """Files by their paths in the root."""
    for path, text in ((path, text) for some in files for path, text in some.items()):
        file = directory / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
