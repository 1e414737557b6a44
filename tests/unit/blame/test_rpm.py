"""The rpm database: made by SQLite with rpm's tables and headers, and SQLite itself as the witness of the reader."""

from __future__ import annotations

import os
import random
import sqlite3
import struct
import time
from contextlib import closing
from pathlib import Path

import pytest

from tracer.blame import rpm, sqlitefile
from tracer.blame.listing import Package
from tracer.blame.packages import Packages
from tracer.blame.sqlitefile import BadDatabase, SqliteFile
from tracer.trace import Library

from .roots import root_at

TABLES = (
    "CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT,blob BLOB NOT NULL)",
    "CREATE TABLE 'Basenames' (key 'TEXT' NOT NULL, hnum INTEGER NOT NULL, idx INTEGER NOT NULL, "
    "FOREIGN KEY (hnum) REFERENCES 'Packages'(hnum))",
    "CREATE INDEX 'Basenames_key_idx' ON 'Basenames'(key ASC)",
)
STRING, STRINGS, INT32 = 6, 8, 4


def header(name: str, version: str, release: str, paths: list[str], epoch: int | None = None) -> bytes:
    """As rpm stores it: the entries, then their data."""
    directories = sorted({path.rpartition("/")[0] + "/" for path in paths})
    indices = [directories.index(path.rpartition("/")[0] + "/") for path in paths]
    values: list[tuple[int, int, int, bytes]] = [
        (tag, STRING, 1, text.encode() + b"\0")
        for tag, text in ((1000, name), (1001, version), (1002, release))
    ]
    if epoch is not None:
        values.append((1003, INT32, 1, struct.pack(">I", epoch)))
    values.append((1116, INT32, len(paths), struct.pack(f">{len(paths)}I", *indices)))
    for tag, texts in ((1117, [path.rpartition("/")[2] for path in paths]), (1118, directories)):
        values.append((tag, STRINGS, len(texts), b"".join(text.encode() + b"\0" for text in texts)))
    entries, data = b"", b""
    for tag, kind, count, value in values:
        data += b"\0" * (-len(data) % 4)
        entries += struct.pack(">IIiI", tag, kind, len(data), count)
        data += value
    return struct.pack(">II", len(values), len(data)) + entries + data


def make_rpm(directory: Path, packages: dict[str, list[str]], page_size: int = 4096) -> Path:
    """packages: "name version release [epoch]" to paths."""
    file = directory / rpm.DATABASE[1:]
    file.parent.mkdir(parents=True)
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA page_size={page_size}")
        for table in TABLES:
            db.execute(table)
        for words, paths in packages.items():
            name, version, release, *epoch = words.split()
            blob = header(name, version, release, paths, int(epoch[0]) if epoch else None)
            number = db.execute("INSERT INTO Packages (blob) VALUES (?)", (blob,)).lastrowid
            rows = [(path.rpartition("/")[2], number, index) for index, path in enumerate(paths)]
            db.executemany("INSERT INTO Basenames VALUES (?, ?, ?)", rows)
        db.commit()
    return file


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_owners(tmp_path: Path, page_size: int) -> None:
    many = [f"/usr/lib/many/{'x' * (n % 60)}{n}.so" for n in range(3000)]
    make_rpm(
        tmp_path,
        {
            "glibc 2.38 7.fc39": ["/lib64/libc.so.6", "/lib64/common"],
            "many 1.0~rc1 1 3": [*many, "/usr/lib/many/common"],
            "odd 1;rm 1": ["/usr/odd"],
            "../evil 1 1": ["/usr/evil"],
        },
        page_size,
    )
    databases, root = rpm.databases(), root_at(tmp_path)
    assert databases.owner(root, "/lib64/libc.so.6") == Package("glibc", "2.38-7.fc39")
    assert databases.owner(root, "/lib64/common") == Package("glibc", "2.38-7.fc39")
    assert databases.owner(root, "/usr/lib/many/common") == Package("many", "3:1.0~rc1-1")
    for path in many[::100]:
        assert databases.owner(root, path) == Package("many", "3:1.0~rc1-1")
    assert databases.owner(root, "/usr/odd") == Package("odd", None)
    for path in ("/usr/evil", "/usr/lib/common", "/usr/lib/many", "/", "", "libc.so.6", "/lib64/libc.so"):
        assert databases.owner(root, path) is None
    assert Packages().owner(root, "/lib64/libc.so.6") == Library("rpm", "glibc", "2.38-7.fc39")


def test_rows_as_sqlite_reads_them(tmp_path: Path) -> None:
    rng = random.Random(5)
    file = tmp_path / "x.sqlite"
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, key TEXT, a, b, c)")
        db.execute("CREATE INDEX t_key ON t(key)")
        for n in rng.sample(range(-(1 << 40), 1 << 60), 800):
            key = "".join(rng.choices("abcé", k=rng.choice((1, 2, 3, 300))))
            values = rng.choice((None, 0, 1, -1, 1 << 15, -(1 << 23), 1 << 40, -(1 << 62))), rng.random()
            db.execute(
                "INSERT INTO t VALUES (?, ?, ?, ?, ?)",
                (n, key, *values, rng.randbytes(rng.choice((0, 9, 9000)))),
            )
        db.commit()
        reader = SqliteFile(os.open(file, os.O_RDONLY))
        for number, *columns in db.execute("SELECT * FROM t"):
            reader.begin()
            expected = [column.encode() if isinstance(column, str) else column for column in columns]
            assert reader.row("t", number) == (None, *expected)
        assert reader.row("t", 12345) is None
        keys = [key for (key,) in db.execute("SELECT DISTINCT key FROM t")]
        for key in [*keys, "", "zz", "abz"]:
            reader.begin()
            rows = db.execute("SELECT id FROM t WHERE key = ? ORDER BY id", (key,))
            assert sorted(reader.rowids("t_key", key.encode())) == [number for (number,) in rows]
    with pytest.raises(BadDatabase, match="nothing is called none"):
        reader.row("none", 1)


def test_broken_files_are_survived(tmp_path: Path) -> None:
    paths = [f"/usr/lib/{n}.so" for n in range(400)]
    file = make_rpm(tmp_path, {"it 1 1": paths}, 512)
    good = file.read_bytes()
    rng = random.Random(6)
    root = root_at(tmp_path)
    start = time.process_time()
    for number in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 30)):
            data[rng.randrange(100 if number % 4 == 0 else len(data))] = rng.choice(
                (0, 0xFF, rng.randrange(256))
            )
        file.write_bytes(data[: rng.randrange(len(data))] if number % 5 == 0 else data)
        databases = rpm.databases()
        for path in rng.sample(paths, 5):
            owner = databases.owner(root, path)
            assert owner is None or isinstance(owner, Package)
    assert time.process_time() - start < 60


def test_a_tree_that_leads_to_itself_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inner page whose children are itself, many times over."""
    monkeypatch.setattr(sqlitefile, "MAX_WORK", 500)
    file = make_rpm(tmp_path, {"it 1 1": [f"/usr/lib/{n}.so" for n in range(2000)]}, 512)
    with closing(sqlite3.connect(file)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'Basenames_key_idx'").fetchone()
    data = bytearray(file.read_bytes())
    start = (page - 1) * 512
    count = int.from_bytes(data[start + 3 : start + 5], "big")
    assert data[start] == 2
    for n in range(count):
        at = start + int.from_bytes(data[start + 12 + 2 * n : start + 14 + 2 * n], "big")
        data[at : at + 4] = page.to_bytes(4, "big")
    data[start + 8 : start + 12] = page.to_bytes(4, "big")
    file.write_bytes(data)
    databases = rpm.databases()
    for _ in range(rpm.PATIENCE + 2):
        assert databases.owner(root_at(tmp_path), "/usr/lib/5.so") is None


@pytest.mark.parametrize(
    "content", [b"", b"SQLite format 3\0", b"SQLite format 3\0" + bytes(200), b"x" * 9999]
)
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / rpm.DATABASE[1:]
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert rpm.databases().owner(root_at(tmp_path), "/usr/lib/x") is None
