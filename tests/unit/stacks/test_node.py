"""What a record of a JavaScript function means, by records that nobody sane would send among others."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tracer.records import MAX_FILE, MAX_NAME, CodeRecord
from tracer.stacks.files import Root
from tracer.stacks.interpreters.node import NO_POSITION, Sources, decode_in
from tracer.stacks.modules import Module

SMI = 1 << 32
POINTER = 0x12345678_9ABCDEF1


def record(file: bytes, name: bytes, source: bytes, kinds: int = 3) -> CodeRecord:
    return CodeRecord(
        1,
        1,
        3,
        0,
        len(file),
        len(name),
        0,
        kinds,
        file.ljust(MAX_FILE, b"\0"),
        name.ljust(MAX_NAME, b"\0"),
        source,
    )


def source(
    length: int, *scope: int, data: int = 0, place: tuple[int, int] = (0, 0), table: bytes = b""
) -> bytes:
    words = (*scope, *(0,) * (6 - len(scope)))
    return struct.pack("<QII8Q", data, length, 8, *place, *words) + table


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(Module("/usr/bin/node", None, "", Root(os.open(tmp_path, os.O_PATH))), 0)


@pytest.mark.parametrize(
    ("scope", "place"),
    [
        ((POINTER, 0, 12 * SMI, 20 * SMI, POINTER), (0, 0)),  # name and its slot, then the place
        ((12 * SMI, 20 * SMI, POINTER, POINTER), (0, 0)),
        ((POINTER, POINTER), (12 * SMI, 20 * SMI)),
    ],
)
def test_where_a_function_begins(
    sources: Sources, tmp_path: Path, scope: tuple[int, ...], place: tuple[int, int]
) -> None:
    (tmp_path / "app.js").write_text("// comment\nfunction leak() {}\n")
    code = decode_in(sources, record(b"/app.js", b"leak", source(30, *scope, place=place)))
    assert (code.file, code.function, code.begins, code.line(5)) == ("/app.js", "leak", 2, None)


def test_a_line_of_the_file_that_v8_compiled_alone(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "a b.mjs").write_text("\ufeffx\nleak()\n")
    table = bytes([0, 12])  # at offset 0, character 2
    code = decode_in(sources, record(b"file:///a%20b.mjs", b"", source(9, table=table)))
    assert (code.file, code.function, code.line(0), code.line(NO_POSITION)) == (
        "/a b.mjs",
        "(anonymous)",
        2,
        None,
    )
    changed = decode_in(sources, record(b"file:///a%20b.mjs", b"", source(10, table=table)))
    assert changed.line(0) is None


@pytest.mark.parametrize(
    "raw", [b"", b"x", source(0xFFFFFFFF, *[SMI - 1] * 6), source(5, data=1 << 63, table=b"\xff" * 9)]
)
def test_records_of_nonsense(sources: Sources, raw: bytes) -> None:
    code = decode_in(sources, record(b"\xff" * 300, b"\xff" * 200, raw, kinds=0xFFFF))
    assert code.line(0) is None and code.begins is None


def test_names_in_two_bytes_a_character(sources: Sources) -> None:
    code = decode_in(
        sources, record("/ж.js".encode("utf-16-le"), "лист".encode("utf-16-le"), source(0), kinds=0)
    )
    assert (code.file, code.function) == ("/ж.js", "лист")
