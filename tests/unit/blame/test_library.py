"""From a mapped file to its library."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tracer.blame import library as library_module
from tracer.blame.languages import Languages
from tracer.blame.library import ANONYMOUS, Libraries
from tracer.blame.packages import Packages
from tracer.blame.rules import Rules
from tracer.stacks import maps
from tracer.stacks.files import Root
from tracer.stacks.modules import VDSO, Modules
from tracer.trace import Library

from .roots import make_database, root_at, stanza


@dataclass(frozen=True)
class FakeModule:
    path: str
    build_id: str | None = None
    root: Root | None = None


@pytest.fixture
def libraries() -> Libraries:
    packages = Packages()
    return Libraries(Rules.shipped(), packages, Languages(packages))


@pytest.mark.parametrize(
    ("path", "kind", "name", "version"),
    [
        ("/opt/foo/lib/libfoo.so.1.2", "elf", "libfoo", "1.2"),
        ("/opt/foo/lib/libfoo.so.1.2.33", "elf", "libfoo", "1.2.33"),
        ("/opt/foo/lib/libfoo.so.1", "elf", "libfoo.so.1", None),  # the ABI's number, not the library's
        ("/opt/foo/lib/libfoo.so", "elf", "libfoo.so", None),
        ("/opt/foo/lib/libfoo-2.3.so", "elf", "libfoo-2.3.so", None),
        ("/opt/foo/lib/libfoo.so.1.x", "elf", "libfoo.so.1.x", None),
        ("/opt/foo/lib/libfoo.so.1.٢", "elf", "libfoo.so.1.٢", None),
        ("/srv/x/_ext.cpython-311-x86_64-linux-gnu.so", "elf", "_ext.cpython-311-x86_64-linux-gnu.so", None),
        ("/srv/x/addon.node", "elf", "addon.node", None),
        ("/srv/app/bin/server", "app", "server", None),
        ("/srv/app/bin/server-1.2", "app", "server-1.2", None),
        ("/usr/local/bin/python3.12", "elf", "python3.12", None),
        ("/opt/ruby/bin/ruby", "elf", "ruby", None),
        ("[vdso]", "elf", "[vdso]", None),
        ("/srv/new\nline", "app", "new\nline", None),
    ],
)
def test_files_without_a_package(
    libraries: Libraries, path: str, kind: str, name: str, version: str | None
) -> None:
    assert libraries.of(FakeModule(path, "ab12")) == Library(kind, name, version, build_id="ab12")


@pytest.mark.parametrize(
    "path", ["", "//anon", "[heap]", "[stack]", "[anon:jit]", "/memfd:jit", "/dev/zero", "/SYSV00000000"]
)
def test_memory_without_a_file(libraries: Libraries, path: str) -> None:
    assert libraries.of(FakeModule(path)) == ANONYMOUS


def test_a_package_of_the_modules_own_root(libraries: Libraries, tmp_path: Path) -> None:
    for name in "ab":
        make_database(
            tmp_path / name, [stanza(f"lib{name}", "1.2-3")], {f"lib{name}": ["/usr/lib/libx.so.1"]}
        )
    roots = {name: root_at(tmp_path / name) for name in "ab"}
    for name, root in roots.items():
        assert libraries.of(FakeModule("/usr/lib/libx.so.1", None, root)) == Library(
            "deb", f"lib{name}", "1.2-3"
        )
        assert libraries.of(FakeModule("/opt/libx.so.1", "ff", root)) == Library(
            "elf", "libx.so.1", build_id="ff"
        )


def test_an_upgraded_library_that_is_still_mapped_has_no_known_version(
    libraries: Libraries, tmp_path: Path
) -> None:
    libc = next(Path("/usr/lib").glob(f"{platform.machine()}-linux-gnu/libc.so.6"))
    with libc.open("rb") as file:
        (note,) = ELFFile(file).get_section_by_name(".note.gnu.build-id").iter_notes()
    build_id = note["n_desc"]
    path = "/usr/lib/libc.so.6"
    make_database(tmp_path, [stanza("libc6", "2.36")], {"libc6": [path]})
    (tmp_path / "usr/lib").mkdir(parents=True)
    shutil.copy(libc, tmp_path / path.lstrip("/"))
    root = root_at(tmp_path)
    assert libraries.of(FakeModule(path, build_id, root)) == Library(
        "deb", "libc6", "2.36", build_id=build_id
    )
    assert libraries.of(FakeModule(path, "0" * 40, root)) == Library("deb", "libc6", None, build_id="0" * 40)
    (tmp_path / path.lstrip("/")).unlink()
    assert libraries.of(FakeModule(path, "1" * 40, root)) == Library("deb", "libc6", None, build_id="1" * 40)


def test_answers_are_kept_and_bounded(
    libraries: Libraries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "MAX_ANSWERS", 3)
    make_database(tmp_path, [stanza("it", "1")], {"it": ["/usr/bin/it"]})
    module = FakeModule("/usr/bin/it", None, root_at(tmp_path))
    first = libraries.of(module)
    assert libraries.of(module) is first
    for n in range(10):
        libraries.of(FakeModule(f"/srv/{n}"))
        assert len(libraries._answers) <= 3
    assert libraries.of(module) == first


def test_the_modules_of_this_process(libraries: Libraries) -> None:
    """From /proc/PID/maps to libraries, as the tracer goes."""
    space = maps.parse(Path("/proc/self/maps").read_text())
    modules = Modules()
    found = {
        m.path: libraries.of(modules.of(os.getpid(), m))
        for m in space.mappings
        if m.path.startswith(("/", VDSO))
    }
    libc = next(library for path, library in found.items() if path.endswith("/libc.so.6"))
    version = subprocess.check_output(["dpkg-query", "-W", "-f", "${Version}\n", "libc6"], text=True).split()[
        0
    ]
    assert (libc.kind, libc.name, libc.version) == ("deb", "libc6", version)
    assert libc.build_id is not None
    assert found[VDSO].kind == "elf"
    for path, library in found.items():
        if "/site-packages/" in path:
            assert library.kind == "python"
            assert importlib.metadata.version(library.name) == library.version
            assert library.build_id is not None
