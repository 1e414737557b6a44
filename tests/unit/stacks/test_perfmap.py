"""Perf maps: what they say of an address, as they grow; and whose are not believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.stacks.perfmap import PerfMap, PerfMaps, PerfName, explain

V8 = "javascript"


@pytest.fixture
def own_map() -> Iterator[Path]:
    path = Path(f"/tmp/perf-{os.getpid()}.map")
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


def find(maps: PerfMaps, address: int) -> str | None:
    found = maps.of(1, os.getpid())
    return None if found is None else found.find(address)


def test_a_map_that_grows_and_is_written_anew(own_map: Path) -> None:
    maps = PerfMaps()
    assert find(maps, 0x1008) is None
    own_map.write_text("1000 10 one\n2000 10 two words\n30")
    assert [find(maps, a) for a in (0xFFF, 0x1000, 0x100F, 0x1010, 0x2001, 0x3000)] == [
        None, "one", "one", None, "two words", None,
    ]  # fmt: skip
    with own_map.open("a") as file:
        file.write("00 8 three\n1008 8 newer\n")
    assert [find(maps, a) for a in (0x3007, 0x1007, 0x1008)] == ["three", "one", "newer"]
    own_map.write_text("1000 10 other\n" + "5000 10 far\n" * 20)
    assert [find(maps, a) for a in (0x1000, 0x3007, 0x5000)] == ["other", None, "far"]
    own_map.unlink()
    assert find(maps, 0x1000) == "other"
    own_map.write_text("1000 10 again\n")
    assert find(maps, 0x1000) == "again"
    maps.close()


def test_lines_that_say_nothing(own_map: Path) -> None:
    own_map.write_bytes(
        b"x y z\n1000\n-5 10 minus\n1000 0 empty\nffffffffffffffff 10 beyond\n\n0x1000 0x10 prefixed\n2000 10 \xff\n"
    )
    maps = PerfMaps()
    assert [find(maps, a) for a in (0x1000, 0x2000, 0)] == ["prefixed", "\ufffd", None]
    maps.close()


def test_a_map_that_is_not_to_be_believed(own_map: Path, tmp_path: Path) -> None:
    other = tmp_path / "map"
    other.write_text("1000 10 one\n")
    own_map.symlink_to(other)
    assert PerfMaps().of(1, os.getpid()) is None
    own_map.unlink()
    os.mkfifo(own_map)
    assert PerfMaps().of(1, os.getpid()) is None
    own_map.unlink()
    own_map.write_text("1000 10 one\n")
    if os.geteuid() == 0:
        os.chown(own_map, 12345, 12345)
        assert PerfMaps().of(1, os.getpid()) is None
        os.chown(own_map, 0, 0)
    with own_map.open("r+") as file:
        file.truncate(33 << 20)
    assert PerfMaps().of(1, os.getpid()) is None


def test_a_process_that_is_gone() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert PerfMaps().of(1, pid) is None


def test_many_entries_over_one_address(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_text("".join(f"1000 10 {n}\n" for n in range(200)))
    found = PerfMap(os.open(path, os.O_RDONLY))
    found.read_on()
    assert found.find(0x1000) == "199"
    found.close()


@pytest.mark.parametrize(
    ("language", "name", "function", "file"),
    [
        (V8, "JS:*leak /srv/a b/app.js:2:14", "leak (begins at line 2)", "/srv/a b/app.js"),
        (V8, "JS:^ node:child_process:58:3", "(anonymous) (begins at line 58)", "node:child_process"),
        (V8, "JS:+get size /srv/app.js:3:9", "get size (begins at line 3)", "/srv/app.js"),
        (V8, "Eval:~ /srv/app.js:1:1", "(module) (begins at line 1)", "/srv/app.js"),
        (V8, "LazyCompile:~f file:///srv/app.mjs:7:1", "f (begins at line 7)", "/srv/app.mjs"),
        (V8, "Builtin:ArrayForEach", "ArrayForEach", None),
        ("python", "py::f:/srv/app.py", "f", "/srv/app.py"),
        ("java", "void com.acme.Leak.run(java.lang.String[], int)", "com.acme.Leak.run", None),
        ("java", "com.acme.Leak.<init>(int)", "com.acme.Leak.<init>", None),
        ("java", "Lcom/acme/Leak$Inner;::run", "com.acme.Leak$Inner.run", None),
        ("java", "Interpreter", "Interpreter", None),
        ("dotnet", "void [app] Acme.Leak::Run(class System.String[])[Tier0]", "Acme.Leak.Run", None),
        ("native", "TRACE_1::app.lua:12", "TRACE_1::app.lua:12", None),
    ],
)  # fmt: skip
def test_what_a_name_means(language: str, name: str, function: str, file: str | None) -> None:
    assert explain(name, language if language == "java" else None) == PerfName(function, file, language)
