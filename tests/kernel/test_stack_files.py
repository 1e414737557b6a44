"""Files behind mappings, as the kernel gives them: deleted, replaced, in another root, the vdso."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tracer.stacks.elf import ElfFile
from tracer.stacks.files import FileRefused, Root, open_mapped
from tracer.stacks.maps import AddressSpace, Mapping, parse
from tracer.stacks.modules import Modules, own_vdso
from tracer.stacks.symbolize import symbolize
from tracer.stacks.unwind import RawFrame

pytestmark = pytest.mark.kernel

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"


@contextmanager
def mapped(path: Path) -> Iterator[Mapping]:
    """The file's first page, executable, in this process."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC),
    ):
        yield next(m for m in own_space().mappings if m.path.removesuffix(" (deleted)") == str(path))


def own_space() -> AddressSpace:
    return parse(Path("/proc/self/maps").read_text(errors="surrogateescape"))


def content(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def test_a_deleted_and_a_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    shutil.copy(LIBC, path)
    build_id = ElfFile.from_fd(os.open(path, os.O_RDONLY), "lib.so").build_id
    with mapped(path) as before:
        path.unlink()
        path.write_bytes(b"another one, as an upgrade puts it there")
        now = next(m for m in own_space().mappings if m.start == before.start)
        assert now.path == f"{path} (deleted)"
        assert content(open_mapped(os.getpid(), now)) == Path(LIBC).read_bytes()
        module = Modules().of(os.getpid(), now)
        assert module is not None and module.build_id == build_id
        assert module.path == str(path)
        # map_files does not have this range: the path is another file now
        with pytest.raises(FileRefused, match="no longer the file that is mapped"):
            open_mapped(os.getpid(), replace(now, end=now.end + 4096))
    # unmapped: still readable through the module, while the file is gone from the disk
    assert module.elf is not None and module.elf.sections


def test_a_range_that_was_split_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(b"x" * 4096)
    with mapped(path) as mapping:
        assert content(open_mapped(os.getpid(), replace(mapping, end=mapping.end + 4096))) == b"x" * 4096


def test_another_file_than_the_maps_said(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(b"x" * 4096)
    with mapped(path) as mapping, pytest.raises(FileRefused, match="is no longer mapped"):
        open_mapped(os.getpid(), replace(mapping, inode=mapping.inode + 1, path="/bin/before-exec"))


def test_a_mapped_device_is_not_opened() -> None:
    with (
        Path("/dev/zero").open("rb") as zero,
        mmap.mmap(zero.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ),
    ):
        mapping = Mapping(*own_range("/dev/zero"), 0, 0, Path("/dev/zero").stat().st_ino, "/dev/zero")
        with pytest.raises(FileRefused, match="/dev/zero is not a regular file"):
            open_mapped(os.getpid(), mapping)


def own_range(path: str) -> tuple[int, int]:
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        if line.endswith(path):
            start, _, end = line.split()[0].partition("-")
            return int(start, 16), int(end, 16)
    raise AssertionError(path)


def test_a_process_in_another_root(tmp_path: Path) -> None:
    """Its files are found by its own paths, and links do not lead to the tracer's."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "name").write_text("inside")
    (tmp_path / "link").symlink_to("/etc/hostname")
    pid = os.fork()
    if pid == 0:
        os.chroot(tmp_path)
        os.kill(os.getpid(), 19)  # SIGSTOP
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        root = Root.of(pid)
        assert root.read("/etc/name", 100) == b"inside"
        with pytest.raises(FileRefused):
            root.read("/link", 100)
        assert root.key == (tmp_path.stat().st_dev, tmp_path.stat().st_ino)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert root.read("/etc/name", 100) == b"inside"  # held open


def test_modules_are_opened_once_and_bounded() -> None:
    space, modules, pid = own_space(), Modules(limit=3), os.getpid()
    libc = next(m for m in space.mappings if m.path == LIBC)
    first = modules.of(pid, libc)
    assert first is not None and first.elf is not None
    assert modules.of(pid, libc) is first
    others = [modules.of(pid, m) for m in space.mappings if m.path.startswith("/") and m is not libc]
    assert len({id(o) for o in others}) > 3
    again = modules.of(pid, libc)
    assert again is not first and again is not None and again.build_id == first.build_id
    assert first.elf.section(".dynsym")  # who holds it can go on using it
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    modules.close()
    del first, again, others
    assert len(list(Path("/proc/self/fd").iterdir())) < descriptors


def test_the_vdso_is_this_programs_own() -> None:
    mapping = next(m for m in own_space().mappings if m.path == "[vdso]")
    assert own_vdso()[:4] == b"\x7fELF"
    module = Modules().of(os.getpid(), mapping)
    assert module is not None and module.elf is not None and module.cfi is not None
    names = {symbolize(RawFrame(module, address, 0)).function for address in range(0x400, 0x2000)}
    assert names & {"clock_gettime", "__vdso_clock_gettime"}
    assert any(module.cfi.row(address) for address in range(0x400, 0x2000))
    odd = Modules().of(os.getpid(), replace(mapping, end=mapping.end + 4096))
    assert odd is not None and odd.elf is None and odd.problem == "is not the vdso of this program"


def test_memory_without_a_file_has_no_module() -> None:
    assert Modules().of(os.getpid(), Mapping(0x1000, 0x2000, 0, 0, 0, "")) is None


def test_a_mapped_file_that_is_no_elf_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 4096)
    with mapped(path) as mapping:
        module = Modules().of(os.getpid(), mapping)
        assert module is not None and module.elf is None
        assert module.problem == "is malformed: Magic number does not match"
