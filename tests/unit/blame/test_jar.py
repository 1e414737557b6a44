"""Archives of Java code, and the ZIP reader below: made with the standard library, some of them broken on purpose."""

from __future__ import annotations

import random
import struct
import zipfile
from pathlib import Path

import pytest

from tracer.blame.jar import Jar, class_of, owner_of_class
from tracer.blame.owner import Owner, standard_library
from tracer.blame.tree import Tree
from tracer.blame.zips import MAX_MEMBER, ZipFile
from tracer.trace import Library

from .roots import root_at


def make_jar(root: Path, path: str, members: dict[str, str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return file


def pom(artifact: str, version: str) -> dict[str, str]:
    name = f"META-INF/maven/org.example/{artifact}/pom.properties"
    return {name: f"#Generated\nversion={version}\ngroupId=org.example\nartifactId={artifact}\n"}


MANIFEST = "Manifest-Version: 1.0\r\nImplementation-Title: The Tool\r\nImplementation-Version: 4.5\r\n"


@pytest.mark.parametrize(
    ("path", "members", "name", "version"),
    [
        ("/m2/commons-exec-1.3.jar", pom("commons-exec", "1.3.1"), "commons-exec", "1.3.1"),
        ("/m2/shaded-2.0.jar", {**pom("a", "1"), **pom("shaded", "2.0")}, "shaded", "2.0"),
        ("/m2/several.jar", {**pom("a", "1"), **pom("b", "2")}, "several", None),
        ("/lib/tool.jar", {"META-INF/MANIFEST.MF": MANIFEST}, "tool", "4.5"),
        ("/lib/plain-name-1.2.3-SNAPSHOT.jar", {}, "plain-name", "1.2.3-SNAPSHOT"),
    ],
)
def test_archives(tmp_path: Path, path: str, members: dict[str, str], name: str, version: str | None) -> None:
    make_jar(tmp_path, path, members)
    jar = Jar(Tree(root_at(tmp_path)))
    expected = Owner(Library("jar", name, version))
    for place in (path, f"{path}!/com/x/Y.class", f"jar:file:{path}!/com/x/Y.class", f"file:{path}"):
        assert jar.owner(place) == expected, place


def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken-1.0.jar").write_bytes(b"PK\5\6" + bytes(18))
    jar = Jar(Tree(root_at(tmp_path)))
    assert jar.owner("/broken-1.0.jar") == Owner(Library("jar", "broken", "1.0"))
    assert jar.owner("/gone-2.0.jar!/x") == Owner(Library("jar", "gone", "2.0"))
    nested = "/app/app.jar!/BOOT-INF/lib/commons-exec-1.3.jar!/org/x.class"
    assert jar.owner(nested) == Owner(Library("jar", "commons-exec", "1.3"))
    assert jar.owner("jrt:/java.base/java/lang/ProcessImpl.class") == standard_library("java")
    for path in ("/srv/X.java", "X.java", "", "/x.jarred"):
        assert jar.owner(path) is None


@pytest.mark.parametrize(
    ("function", "name", "owner"),
    [
        (
            "int java.lang.ProcessImpl.forkAndExec(int, byte[])",
            "java.lang.ProcessImpl",
            standard_library("java"),
        ),
        ("Ljava/lang/ProcessImpl;::forkAndExec", "java.lang.ProcessImpl", standard_library("java")),
        ("com.x.Y::run", "com.x.Y", Owner(Library("unknown", "com.x"))),
        ("void com.x.Y$1.run()", "com.x.Y$1", Owner(Library("unknown", "com.x"))),
        ("Main.main(java.lang.String[])", "Main", Owner(Library("unknown", "Main"))),
        ("Interpreter", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_classes(function: str | None, name: str | None, owner: Owner | None) -> None:
    assert class_of(function) == name
    assert owner_of_class(function) == owner


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("before", [b"", b"#!/usr/bin/env python3\n"])
def test_members_as_the_standard_library_reads_them(tmp_path: Path, method: int, before: bytes) -> None:
    members = {"a": "", "dir/b": "text" * 1000, "ü": "x"}
    file = make_jar(tmp_path, "x.zip", members, method)
    file.write_bytes(before + file.read_bytes())
    archive = ZipFile.at(root_at(tmp_path), "/x.zip")
    assert archive is not None
    with zipfile.ZipFile(file) as reference:
        assert archive.names == reference.namelist()
        for name in members:
            assert archive.read(name) == reference.read(name)
    assert archive.read("c") is None


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    make_jar(tmp_path, "bomb.zip", {"bomb": "0" * (MAX_MEMBER + 1), "fits": "0" * MAX_MEMBER})
    archive = ZipFile.at(root_at(tmp_path), "/bomb.zip")
    assert archive is not None
    assert archive.read("bomb") is None
    assert archive.read("fits") == b"0" * MAX_MEMBER


def test_broken_archives_are_survived(tmp_path: Path) -> None:
    """Any byte may be anything; only what is read of it counts."""
    good = make_jar(tmp_path, "good.zip", {"a": "a" * 100, "b/c": "b"}).read_bytes()
    rng = random.Random(3)
    root = root_at(tmp_path)
    for number in range(400):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.choice((0, 0xFF, rng.randrange(256)))
        (tmp_path / "bad.zip").write_bytes(data[: rng.randint(0, len(data))] if number % 3 == 0 else data)
        archive = ZipFile.at(root, "/bad.zip")
        assert archive is not None
        for name in archive.names:
            content = archive.read(name)
            assert content is None or len(content) <= MAX_MEMBER


def test_a_directory_that_claims_too_much(tmp_path: Path) -> None:
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "x.zip").write_bytes(end)
    archive = ZipFile.at(root_at(tmp_path), "/x.zip")
    assert archive is not None
    assert archive.names == []
