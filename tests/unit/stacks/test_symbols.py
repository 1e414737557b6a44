"""Function names against readelf's symbol tables, and where they may hide."""

from __future__ import annotations

import lzma
import os
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tracer.stacks.elf import ElfFile
from tracer.stacks.files import Root
from tracer.stacks.modules import Module

from .conftest import build


def reference(path: Path, table: str) -> dict[int, tuple[int, set[str]]]:
    """Start address -> (size, names) of the functions in one table, as readelf prints them."""
    found: dict[int, tuple[int, set[str]]] = {}
    names = defaultdict(set)
    text = subprocess.run(
        ["readelf", "-W", "--debug-dump=no-follow-links", table, path],
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[3] in {"FUNC", "IFUNC"} and fields[6].isdigit() and int(fields[2], 0):
            start = int(fields[1], 16)
            names[start].add(fields[7].partition("@")[0])
            found[start] = (max(int(fields[2], 0), found.get(start, (0,))[0]), names[start])
    return found


def module(path: Path, root: Root | None = None, seen_as: str | None = None) -> Module:
    return Module(seen_as or str(path), ElfFile.from_fd(os.open(path, os.O_RDONLY), path.name), "", root)


@pytest.mark.parametrize(
    "path",
    [
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
        "/usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1",
        "/usr/bin/python3",
    ],
)
def test_names_are_those_of_readelf(path: str) -> None:
    symbols = module(Path(path)).symbols
    wanted = reference(Path(path), "--dyn-syms")
    assert len(wanted) > 1000
    for start, (size, names) in wanted.items():
        assert symbols.name(start) in names
        assert symbols.name(start + size - 1) is not None


def test_the_name_that_people_know() -> None:
    libc = Path("/usr/lib/x86_64-linux-gnu/libc.so.6")
    addresses = {n: start for start, (_, names) in reference(libc, "--dyn-syms").items() for n in names}
    symbols = module(libc).symbols
    for name in ("fork", "vfork", "clone", "posix_spawn", "system", "popen", "read"):
        assert symbols.name(addresses[name]) == name


def test_local_functions_and_gaps(library: Path) -> None:
    symbols = module(library).symbols
    for start, (size, names) in reference(library, "--syms").items():
        assert {symbols.name(start), symbols.name(start + size - 1)} <= names
    assert symbols.name(0) is symbols.name(1 << 40) is None


@pytest.mark.parametrize("how", ["build id", "link beside", "link in .debug", "link in the debug directory"])
def test_a_separate_debug_file(tmp_path: Path, how: str) -> None:
    flags = ["-g", "-fvisibility=hidden"] + ([] if how == "build id" else ["-Wl,--build-id=none"])
    root = tmp_path / "root"
    whole = build(tmp_path / "whole.so", *flags)
    identity = module(whole).build_id
    if identity:
        debug = root / f"usr/lib/debug/.build-id/{identity[:2]}/{identity[2:]}.debug"
    else:
        directory = {"beside": "opt", ".debug": "opt/.debug", "directory": "usr/lib/debug/opt"}[
            how.rpartition(" ")[2]
        ]
        debug = root / directory / "lib.so.debug"
    debug.parent.mkdir(parents=True)
    (root / "opt").mkdir(exist_ok=True)
    stripped = root / "opt" / "lib.so"
    subprocess.run(["objcopy", "--only-keep-debug", whole, debug], check=True)
    subprocess.run(["objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", whole, stripped], check=True)
    here = Root(os.open(root, os.O_PATH))
    found = module(stripped, here, "/opt/lib.so")
    assert not reference(stripped, "--syms") | reference(stripped, "--dyn-syms")
    for start, (_, names) in reference(whole, "--syms").items():
        assert found.symbols.name(start) in names
        if names & {"deep_plain", "deep_variable", "deep_aligned"}:
            file, line = found.lines.position(start) or (None, None)
            assert file is not None and file.endswith("deep_stack/library.c") and line
    assert not found.notes
    if not identity:  # another build of the same name
        debug.write_bytes(debug.read_bytes() + b"\0")
        other = module(stripped, here, "/opt/lib.so")
        assert other.debug_elf is None
        assert list(other.notes) == [f"/{debug.relative_to(root)} belongs to another build"]


def test_symbols_in_gnu_debugdata(tmp_path: Path) -> None:
    whole = build(tmp_path / "whole.so")
    (tmp_path / "mini.xz").write_bytes(lzma.compress(whole.read_bytes()))
    stripped = tmp_path / "stripped.so"
    subprocess.run(["objcopy", "--strip-all", "-R", ".dynsym", whole, stripped], check=True)
    add = ["objcopy", "--add-section", f".gnu_debugdata={tmp_path / 'mini.xz'}", stripped]
    subprocess.run(add, check=True)
    symbols = module(stripped).symbols
    for start, (_, names) in reference(whole, "--syms").items():
        assert symbols.name(start) in names


def test_a_bomb_in_gnu_debugdata_costs_a_note(tmp_path: Path) -> None:
    whole = build(tmp_path / "whole.so")
    (tmp_path / "bomb.xz").write_bytes(lzma.compress(bytes(200 << 20), preset=0))
    bomb = tmp_path / "bomb.so"
    add = ["objcopy", "--add-section", f".gnu_debugdata={tmp_path / 'bomb.xz'}", whole, bomb]
    subprocess.run(add, check=True)
    found = module(bomb)
    assert found.symbols.name(1 << 40) is None
    assert list(found.notes) == ["bomb.so has a .gnu_debugdata that is too large or ends early"]
