"""How a Ruby is recognised by its file, what its code records say, and its index of lines against a plain search."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from bisect import bisect_right
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer import records
from tracer.probe.build import bpf_directory
from tracer.records import MAX_FILE, MAX_NAME, CodeRecord, Language
from tracer.stacks import maps
from tracer.stacks.elf import ElfFile
from tracer.stacks.interpreters import ruby, ruby_walk
from tracer.stacks.interpreters.base import Found
from tracer.stacks.interpreters.late import Memory, Unreadable
from tracer.stacks.modules import Module

LIBRARY = """
const char ruby_version[] = "3.3.8";
struct symbols { unsigned last_id; void *str, *ids, *dsymbols; };
__attribute__((visibility("hidden"))) struct symbols ruby_global_symbols = { 241 };
__attribute__((visibility("hidden"))) unsigned others[16] = { 5, 241 };
__attribute__((visibility("hidden"))) __thread struct { void *thread, *context; } native;
__attribute__((visibility("hidden"))) __thread void *ruby_current_ec;
void *rb_current(void) { return native.thread ? ruby_current_ec : native.context; }
long rb_sym_all_symbols(void) { return ruby_global_symbols.str != 0 && others[0] ? others[1] : 0; }
"""
BASE = 0x7F0000000000


def find(library: Path) -> Found | None:
    """What ``find`` says of a process that has the file mapped at BASE."""
    elf = ElfFile.from_fd(os.open(library, os.O_RDONLY), library.name)
    code = next(segment for segment in elf.segments if segment.kind == "PT_LOAD" and segment.executable)
    offset = code.offset & -4096
    start = BASE + (code.address & -4096)
    end = start + (code.size + 8191 & -4096)
    text = f"{start:x}-{end:x} r-xp {offset:08x} 00:01 5 {library}\n"
    module = Module(str(library), elf)
    return ruby.find(maps.parse(text), lambda _: module)


def build(out: Path, source: str, *flags: str) -> Path:
    command = ["gcc", "-O2", "-fPIC", "-shared", "-x", "c", "-", "-o", out, *flags]
    subprocess.run(command, input=source, text=True, check=True)
    return out


def symbols(library: Path) -> dict[str, int]:
    text = subprocess.run(["readelf", "-Ws", library], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in text.splitlines() if re.match(r"\s+\d+:", line)]
    return {row[7].partition("@")[0]: int(row[1], 16) for row in rows if len(row) > 7}


def layout_of(found: Found | None) -> dict[str, int]:
    assert found is not None
    assert found.problem == ""
    language, version, base, _, *numbers = records.INTERPRETER.unpack(found.value)
    assert (language, version, base) == (Language.RUBY, 0x0303, BASE)
    return dict(zip(layout_fields(), numbers, strict=False))


def layout_fields() -> list[str]:
    """Of enum ruby_layout in bpf/ruby.c."""
    text = (bpf_directory() / "ruby.c").read_text()
    body = re.sub(r"/\*.*?\*/", "", text.split("enum ruby_layout {")[1].split("}")[0], flags=re.DOTALL)
    return re.findall(r"\w+", body)


def test_both_sides_mean_the_same_offsets() -> None:
    data = ruby._data()
    assert [*ruby._ADDRESSES, *data["fields"]] == layout_fields()
    assert len(layout_fields()) <= records.MAX_LAYOUT
    assert set(data["sources"]) == set(data["layouts"])
    assert {len(layout) for layout in data["layouts"].values()} == {len(data["fields"])}


def test_a_stripped_library_shows_what_it_hides(tmp_path: Path) -> None:
    whole = build(tmp_path / "libruby-3.3.so.3.3", LIBRARY)
    named = symbols(whole)
    seen = layout_of(find(whole))
    assert seen["GLOBAL_SYMBOLS"] == named["ruby_global_symbols"]
    at = named["ruby_current_ec"]  # no symbol has the value 0: then it is looked for as in a stripped one
    assert (seen["TLS_CONTEXT"], seen["TLS_WORDS"]) == ((at, 1) if at else (0, 3))
    stripped = tmp_path / "stripped"
    stripped.mkdir()
    stripped /= whole.name
    subprocess.run(["strip", "-o", stripped, whole], check=True)
    hidden = layout_of(find(stripped))
    assert hidden["GLOBAL_SYMBOLS"] == named["ruby_global_symbols"]
    assert (hidden["TLS_CONTEXT"], hidden["TLS_WORDS"]) == (0, 3)
    assert hidden["TLS_MODULE"] == seen["TLS_MODULE"]
    assert f"{seen['TLS_MODULE']:016x}" in tls_slots(whole)


def tls_slots(library: Path) -> str:
    text = subprocess.run(["readelf", "-Wr", library], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in text.splitlines() if "R_X86_64_DTPMOD64" in line)


def test_versions_that_are_not_supported_are_said(tmp_path: Path) -> None:
    for version in ("1.9.3", "4.0.0", "nonsense"):
        library = build(tmp_path / "libruby.so.9", f'const char ruby_version[] = "{version}";')
        found = find(library)
        assert found is not None
        assert found.value == b""
        assert "Ruby 2.6 to 3.4 are supported" in found.problem


@pytest.mark.parametrize("name", ["ruby", "ruby2.7", "libruby.so.3.3", "libruby-3.1.so.3.1.2"])
def test_names_of_rubies(name: str) -> None:
    assert ruby._FILE.fullmatch(name)


@pytest.mark.parametrize("name", ["truffleruby", "rubyfmt", "libruby_parser.so", "ruby-build", "jruby"])
def test_names_of_others(name: str) -> None:
    assert not ruby._FILE.fullmatch(name)


# --- records ----------------------------------------------------------------------------------------------------


def record(file: bytes, label: bytes, method: bytes = b"", owner: bytes = b"", kinds: int = 0) -> CodeRecord:
    """As bpf/ruby.c sends it: the end of the file, the start of the label."""
    return CodeRecord(
        1,
        1,
        Language.RUBY,
        0,
        len(file),
        len(label),
        len(owner),
        kinds | (len(method) if len(method) < MAX_NAME else 0) << 8,
        file[-(MAX_FILE - 1) :].ljust(MAX_FILE, b"\0"),
        label[: MAX_NAME - 1].ljust(MAX_NAME, b"\0"),
        owner[:255],
    )


@pytest.mark.parametrize(
    ("given_record", "file", "function"),
    [
        (record(b"/a.rb", b"start", b"start", b"A::B"), "/a.rb", "A::B#start"),
        (record(b"/a.rb", b"block (2 levels) in go", b"go", b"A"), "/a.rb", "block (2 levels) in A#go"),
        (record(b"/a.rb", b"rescue in make", b"make", b"A", 2), "/a.rb", "rescue in A.make"),
        (record(b"/a.rb", b"<main>", b"<main>"), "/a.rb", "<main>"),
        (record(b"/a.rb", b"go", b"go", b"#<Class:0x00007f>"), "/a.rb", "go"),
        (record(b"", b"spawn", b"spawn", b"Process", 3), None, "Process.spawn"),
        (record(b"", b"`", b"`", b"Kernel", 1), None, "Kernel#`"),
        (record(b"", b"fork", b"fork", b"", 1), None, "fork"),
        (record(b"", b"", b"", b"Kernel", 1), None, ""),
        (record(b"/\xc3\xa4.rb", "größe".encode(), "größe".encode(), b"A"), "/ä.rb", "A#größe"),
        (record(b"/" + b"x" * 300, b"y" * 200, b"y" * 200, b"A"), "…" + "x" * 255, "y" * 127 + "…"),
        (record(b"/a.rb", b"a", b"longer than the label", b"A"), "/a.rb", "a"),
    ],
)
def test_what_a_record_says(given_record: CodeRecord, file: str | None, function: str) -> None:
    code = ruby.decode(given_record, "3.3.8")
    assert (code.file, code.function) == (file, function)
    assert code.line(7) == 7
    assert code.line(0) is None


@given(st.binary(max_size=MAX_FILE), st.binary(max_size=MAX_NAME), st.binary(max_size=300), st.data())
def test_any_record_is_decoded(file: bytes, name: bytes, table: bytes, data: st.DataObject) -> None:
    numbers = [data.draw(st.integers(0, (1 << 32) - 1)) for _ in range(4)]
    code = ruby.decode(CodeRecord(1, 1, 2, 0, *numbers, file, name, table), "3.3.8")
    assert len(code.function) <= MAX_NAME + 300
    assert code.file is None or len(code.file) <= MAX_FILE


# --- lines ------------------------------------------------------------------------------------------------------


class Image:
    """Memory that holds one thing at an address."""

    def __init__(self, **parts: bytes) -> None:
        self.places: dict[str, int] = {}
        self._parts: dict[int, bytes] = {}
        for number, (name, data) in enumerate(parts.items(), 1):
            self.put(name, number << 20, data)

    def put(self, name: str, address: int, data: bytes) -> None:
        self.places[name] = address
        self._parts[address] = data

    def read(self, address: int, size: int) -> bytes:
        for start, data in self._parts.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        raise Unreadable

    def word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")


def index_of(positions: list[int], length: int) -> bytes:
    """succ_index_table: for each position, how many entries begin at it or before."""

    def rank(position: int) -> int:
        return bisect_right(positions, position)

    words = []
    for first in range(0, 54, 9):
        words.append(sum(min(rank(first + bit), 127) << 7 * bit for bit in range(9)))
    table = struct.pack("<6Q", *words)
    for start in range(54, max(length, 55), 512):
        before = rank(start - 1)
        ranks = sum((rank(start + 64 * small - 1) - before) << 9 * (small - 1) for small in range(1, 8))
        bits = [
            sum(1 << bit for bit in range(64) if start + 64 * small + bit in set(positions))
            for small in range(8)
        ]
        table += struct.pack("<IIQ8Q", before, 0, ranks, *bits)
    return table


@given(st.integers(2, 1500), st.data())
def test_lines_are_those_of_a_plain_search(length: int, data: st.DataObject) -> None:
    inside = data.draw(st.sets(st.integers(1, length - 1), max_size=120))
    positions = [0, *sorted(inside)]
    lines = [data.draw(st.integers(1, 5000)) for _ in positions]
    layout = {"BODY_INFO": 8, "INFO_SIZE": 12}
    image = Image(
        table=index_of(positions, length),
        entries=b"".join(struct.pack("<III", line, 0xAAAA, 0xBBBB) for line in lines),
    )
    info = struct.pack("<QQIIQ", image.places["entries"], 0, len(lines), 0xCCCC, image.places["table"])
    image.put("body", 0x5000_0000, b"\0" * 8 + info)
    names = ruby_walk._Names(cast("Memory", image), layout, 0)
    for position in data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20)):
        wanted = lines[bisect_right(positions, position) - 1]
        assert names.line(image.places["body"], position) == wanted
