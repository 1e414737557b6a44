"""Files that are there, that are wrong, that cannot be written, and a tracer that is killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from graphs import STACK, meta, plain, snapshot, task

from tracer.capture import reader
from tracer.capture.errors import CaptureError, CaptureExists
from tracer.capture.reader import load
from tracer.capture.schema import TABLES
from tracer.capture.writer import CaptureWriter
from tracer.lifecycle.task import Fate

HERE = Path(__file__).parent
NOBODY = 65534


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "good.forktrace"
    tasks = [task(200, Fate.ZOMBIE)]
    with CaptureWriter(path, meta()) as writer:
        writer.flush(snapshot(tasks), tasks, [STACK], final=True)
    return path


def said(error: CaptureError) -> str:
    text = f"{error.message}: {error.help}"
    assert error.help
    assert "\n" not in text
    return text


# Writing


def test_never_over_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    path.write_text("precious")
    with pytest.raises(CaptureExists) as caught:
        CaptureWriter(path, meta())
    assert "--force" in said(caught.value)
    assert path.read_text() == "precious"


def test_force_replaces_a_regular_file_and_its_old_journal(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    path.write_text("old")
    journal = tmp_path / "a.forktrace-journal"
    journal.write_text("left by a killed tracer")
    with CaptureWriter(path, meta(), force=True) as writer:
        writer.flush(snapshot([]), [], [], final=True)
    assert load(path).meta.finished
    assert [each.name for each in tmp_path.iterdir()] == ["a.forktrace"]


@pytest.mark.parametrize("force", [False, True])
def test_links_and_directories_are_not_touched(tmp_path: Path, force: bool) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    link, dangling, directory, fifo = (tmp_path / name for name in ("link", "dangling", "directory", "fifo"))
    link.symlink_to(precious)
    dangling.symlink_to(tmp_path / "nowhere")
    directory.mkdir()
    os.mkfifo(fifo)
    for path in (link, dangling, directory, fifo):
        with pytest.raises(CaptureExists) as caught:
            CaptureWriter(path, meta(), force=force)
        assert "-o" in said(caught.value)
    assert precious.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_the_file_is_private_and_the_invoking_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.forktrace"
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    monkeypatch.setenv("SUDO_GID", str(NOBODY))
    CaptureWriter(path, meta()).close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_uid == (NOBODY if os.geteuid() == 0 else os.getuid())


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(CaptureError) as caught:
        CaptureWriter(tmp_path / "missing" / "a.forktrace", meta())
    assert "No such file or directory" in said(caught.value)


def limit_file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


WRITE_UNTIL_FULL = """
import sys; sys.path.insert(0, sys.argv[2])
from graphs import *
from tracer.capture.writer import CaptureWriter, CaptureError
from tracer.lifecycle.task import Fate
tasks = []
with CaptureWriter(sys.argv[1], meta()) as writer:
    for number in range(100):
        new = [task(1000 * number + n, Fate.ZOMBIE) for n in range(1, 100)]
        tasks += new
        try:
            writer.flush(snapshot(tasks), new, [STACK])
        except CaptureError as error:
            print(number, error.message, error.help, sep="|")
            break
"""


def test_no_room_left_keeps_what_was_flushed(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    command = [sys.executable, "-c", WRITE_UNTIL_FULL, str(path), str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_file_size, check=True)
    number, message, help_ = done.stdout.strip().split("|")
    assert message.startswith(f"cannot write the capture {path}: ")
    assert help_.endswith("-o")
    assert load(path).snapshot.totals["forks"] == 99 * int(number)


def test_full_disk_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    writer = CaptureWriter(path, meta())
    assert writer._db is not None
    writer._db.execute("PRAGMA max_page_count=1")
    tasks = [task(pid) for pid in range(1, 5000)]
    with pytest.raises(CaptureError) as caught:
        writer.flush(snapshot(tasks), tasks, [])
    assert "free some space" in said(caught.value)
    with pytest.raises(CaptureError, match="closed"):
        writer.flush(snapshot([]), [], [])
    assert load(path).snapshot.totals == {}


def test_a_reader_in_the_way_puts_a_flush_off(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    first, second = task(200, Fate.ZOMBIE), task(201, Fate.ZOMBIE)
    with CaptureWriter(path, meta()) as writer:
        assert writer.flush(snapshot([first]), [first], [])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM tasks").fetchall()
            assert not writer.flush(snapshot([first, second]), [second], [STACK])
        assert plain(load(path).snapshot) == plain(snapshot([first]))
        assert writer.flush(snapshot([first, second]), [], [], final=True)
    assert plain(load(path).snapshot) == plain(snapshot([first, second]))
    assert load(path).stacks == {1: STACK}


# Reading


def test_what_is_no_capture(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello\n" * 100)
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE t (a)")
    os.mkfifo(tmp_path / "fifo")
    for name, words in (
        ("missing", "No such file"),
        ("empty", "is empty"),
        ("text", "is not a forktrace capture"),
        ("other.db", "is an SQLite file, but no capture"),
        ("fifo", "is no regular file"),
        ("", "is a directory"),
    ):
        with pytest.raises(CaptureError) as caught:
            load(tmp_path / name)
        assert words in said(caught.value)


def test_older_format_is_upgraded(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE sums RENAME TO totals")
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'totals'", (TABLES["totals"],))

    with closing(sqlite3.connect(capture)) as db:
        db.execute("ALTER TABLE totals RENAME TO sums")
        db.execute("PRAGMA user_version=0")
    before = capture.read_bytes()
    with pytest.raises(CaptureError, match="there was never a format 0"):
        load(capture)
    monkeypatch.setattr(reader, "UPGRADES", {0: rename})
    assert load(capture).snapshot.totals["forks"] == 1
    assert capture.read_bytes() == before


def test_newer_format(capture: Path) -> None:
    with closing(sqlite3.connect(capture)) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(CaptureError) as caught:
        load(capture)
    assert "update forktrace" in said(caught.value)


@pytest.mark.parametrize("where", range(0, 40_000, 1_931))
def test_damage_is_an_error_or_harmless(capture: Path, where: int) -> None:
    content = bytearray(capture.read_bytes())
    where %= len(content) - 300
    content[where : where + 300] = b"\xff" * 300
    capture.write_bytes(content)
    try:
        load(capture)
    except CaptureError as error:
        said(error)


def test_truncated(capture: Path) -> None:
    content = capture.read_bytes()
    capture.write_bytes(content[: len(content) // 2])
    with pytest.raises(CaptureError, match="damaged"):
        load(capture)


HOSTILE = {
    "a text for a number": "UPDATE tasks SET exited_ns = 'x'",
    "a huge value": "UPDATE tasks SET comm = zeroblob(20000000)",
    "an unknown fate": "UPDATE tasks SET fate = 'zombie' || char(0)",
    "a missing frame": "DELETE FROM frames",
    "a number for a text": "UPDATE frames SET function = x'ff'",
    "a bucket without end": "INSERT INTO latency VALUES (1 << 40, 1)",
    "no meta": "DELETE FROM meta",
    "meta of another type": "UPDATE meta SET value = '[]' WHERE key = 'version'",
    "meta too deep": "UPDATE meta SET value = replace(hex(zeroblob(50000)), '00', '[') WHERE key = 'notes'",
    "meta not a number": "UPDATE meta SET value = 'NaN' WHERE key = 'started_at'",
}


@pytest.mark.parametrize("statement", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_values(capture: Path, statement: str) -> None:
    with closing(sqlite3.connect(capture)) as db:
        db.execute(statement)
        db.commit()
    if "zombie" in statement:  # such a task belongs to no group: nothing to refuse
        assert load(capture).snapshot.groups == {}
        return
    with pytest.raises(CaptureError) as caught:
        load(capture)
    assert "damaged" in said(caught.value)


GOOD_FACTS = {"waits": None, "named": [], "waiting_for": []}


@pytest.mark.parametrize(
    "facts",
    [
        [],
        1,
        {},
        {**GOOD_FACTS, "nope": 1},
        {**GOOD_FACTS, "seen": 1},
        {**GOOD_FACTS, "state": ["T"]},
        {**GOOD_FACTS, "comm": None},
        {**GOOD_FACTS, "held": 1.5},
        {**GOOD_FACTS, "waits": []},
        {**GOOD_FACTS, "waits": {"any_calls": "9"}},
        {**GOOD_FACTS, "waits": {"calls": 9}},
        {**GOOD_FACTS, "named": {}},
        {**GOOD_FACTS, "named": [{"pid": True}]},
        {**GOOD_FACTS, "waiting_for": [None]},
        {**GOOD_FACTS, "__class__": "x"},
    ],
    ids=repr,
)
def test_hostile_facts(capture: Path, facts: object) -> None:
    with closing(sqlite3.connect(capture)) as db:
        db.execute("INSERT INTO facts VALUES (1, ?)", [json.dumps(facts)])
        db.commit()
    with pytest.raises(CaptureError, match="is damaged: "):
        load(capture)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO facts VALUES (1, 'no JSON')",
        "INSERT INTO facts VALUES (1, X'ff')",
        "INSERT INTO facts VALUES (1, 'null')",
        "INSERT INTO facts VALUES (1, printf('%.*c', 200000, '['))",
        "INSERT INTO wait_places VALUES (1, 'x', 1, 1)",
        "INSERT INTO wait_places VALUES (1, 1, NULL, 1)",
        "UPDATE failed_forks SET \"limit\" = 'no JSON'",
        "UPDATE failed_forks SET \"limit\" = '[]'",
        """UPDATE failed_forks SET "limit" = '{"name": 1, "where": "", "value": 1, "current": 1}'""",
        """UPDATE failed_forks SET "limit" = '{"name": "x"}'""",
    ],
)
def test_hostile_verdicts_and_limits(capture: Path, statement: str) -> None:
    with closing(sqlite3.connect(capture)) as db, suppress(sqlite3.IntegrityError):
        db.execute(statement)
        db.commit()
        with pytest.raises(CaptureError, match="is damaged: "):
            load(capture)


def test_hostile_schema(capture: Path) -> None:
    """A view in a table's place would run its author's SQL."""
    with closing(sqlite3.connect(capture)) as db:
        db.execute("DROP TABLE totals")
        db.execute("CREATE VIEW totals AS SELECT 'forks' AS name, 1 AS count")
    with pytest.raises(CaptureError, match="table totals is not as forktrace makes it"):
        load(capture)


LOAD = """
import sys
from tracer.capture import reader
from tracer.capture.errors import CaptureError
from tracer.capture.reader import load
try:
    print(load(sys.argv[1]).snapshot.totals["forks"])
except CaptureError as error:
    print(error.message, error.help, sep="; ")
"""


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """Loads a capture in another process: as another user when we are root."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.owner() == tmp_path.owner() and parent != Path("/") and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o055)

    def run(path: Path) -> str:
        user: dict[str, Any] = (
            {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        )
        command = [sys.executable, "-c", LOAD, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True, **user).stdout.strip()

    yield run


def test_no_permission(capture: Path, as_nobody: Callable[[Path], str]) -> None:
    capture.chmod(0)
    assert as_nobody(capture) == f"cannot read {capture}: Permission denied; run it as the file's owner"


def test_read_by_another_user_in_a_directory_he_cannot_write(
    capture: Path, as_nobody: Callable[[Path], str]
) -> None:
    capture.chmod(0o444)
    capture.parent.chmod(0o555)
    assert as_nobody(capture) == "1"
    capture.parent.chmod(0o755)


WRITE_FOREVER = """
import sys; sys.path.insert(0, sys.argv[2])
from graphs import *
from tracer.capture.schema import TABLES
from tracer.capture.writer import CaptureWriter
from tracer.lifecycle.task import Fate
pids = range(1, 3000)
writer = CaptureWriter(sys.argv[1], meta())
number = 0
while True:  # every flush rewrites all tasks: their comm and the forks in totals say which flush it was
    number += 1
    tasks = [task(pid, Fate.ZOMBIE, comm=str(number)) for pid in pids]
    shot = snapshot(tasks)
    shot.totals["forks"] = number
    writer.flush(shot, tasks, [Stack(number, STACK.frames)])
    print(number, flush=True)
"""


def test_killed_in_the_middle_of_a_commit(tmp_path: Path, as_nobody: Callable[[Path], str]) -> None:
    """SIGKILL while the journal is there, until some of them have left a journal that must be rolled back.

    What is read, by a user who can write nowhere, is one whole flush: the last one reported or the next.
    """
    hot = 0
    deadline = time.monotonic() + 60
    for attempt in range(40):
        directory = tmp_path / str(attempt)
        directory.mkdir(mode=0o755)
        path = directory / "a.forktrace"
        journal = directory / "a.forktrace-journal"
        command = [sys.executable, "-c", WRITE_FOREVER, str(path), str(HERE)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(2):
                assert writer.stdout.readline()
            size = path.stat().st_size
            while (
                time.monotonic() < deadline
            ):  # the journal has been filled: the file itself is being written
                try:
                    if journal.stat().st_size > size // 2:
                        break
                except FileNotFoundError:
                    pass
            time.sleep(attempt % 5 * 0.001)
            writer.kill()
            reported = 2 + len(writer.stdout.read().split())
        for each in directory.iterdir():
            each.chmod(0o444)
        directory.chmod(0o555)
        hot += journal.exists() and journal.read_bytes()[:8] != bytes(8)
        read = int(as_nobody(path))
        assert reported <= read <= reported + 1
        loaded = load(path) if os.geteuid() != 0 else None
        directory.chmod(0o755)
        loaded = loaded or load(path)
        assert loaded.snapshot.groups[1, "zombie"].comms == {str(read): 2999}
        assert set(loaded.stacks) == set(range(1, read + 1))
        assert loaded.meta.incomplete_because
        if hot >= 3:
            break
    assert hot >= 3


def test_a_foreign_journal_is_refused(capture: Path) -> None:
    """A super-journal's name in it would make SQLite open that file, and delete it."""
    victim = capture.parent / "victim"
    victim.write_text("precious")
    header = bytes.fromhex("d9d505f920a163d7") + (0).to_bytes(4, "big") + bytes(16)
    tail = str(victim).encode() + len(str(victim)).to_bytes(4, "big")
    tail += sum(str(victim).encode()).to_bytes(4, "big") + bytes.fromhex("d9d505f920a163d7")
    capture.with_name(capture.name + "-journal").write_bytes(header.ljust(512, b"\0") + tail)
    with pytest.raises(CaptureError, match="journal belongs to another program"):
        load(capture)
    assert victim.read_text() == "precious"
