"""Opening files of an untrusted root: only regular files, nothing outside, nothing huge."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tracer.stacks.files import FileRefused, Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    inside = tmp_path / "root"
    (inside / "dir").mkdir(parents=True)
    (inside / "file").write_bytes(b"content")
    (tmp_path / "secret").write_bytes(b"secret")
    return Root(os.open(inside, os.O_PATH | os.O_DIRECTORY))


def test_a_regular_file(root: Root) -> None:
    assert root.read("/file", 100) == root.read("file", 7) == root.read("/dir/../file", 7) == b"content"
    fd = root.open("/file")
    assert os.read(fd, 100) == b"content"
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_the_key_is_the_directory(root: Root, tmp_path: Path) -> None:
    info = (tmp_path / "root").stat()
    assert root.key == (info.st_dev, info.st_ino)


@pytest.mark.parametrize("target", ["../../secret", "/../secret", "/dir/../../secret", "{tmp}/secret"])
def test_links_do_not_lead_out(root: Root, tmp_path: Path, target: str) -> None:
    (tmp_path / "root" / "link").symlink_to(target.format(tmp=tmp_path))
    with pytest.raises(FileRefused, match="No such file"):
        root.read("/link", 100)


def test_links_within_the_root_are_followed(root: Root, tmp_path: Path) -> None:
    (tmp_path / "root" / "link").symlink_to("/file")  # the root's own /file
    assert root.read("/link", 100) == b"content"


def test_magic_links_are_not_followed(tmp_path: Path) -> None:
    with pytest.raises(FileRefused):
        Root(os.open("/", os.O_PATH)).read("/proc/self/exe", 1 << 30)


def test_what_is_no_regular_file_is_not_opened(root: Root, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root" / "fifo")  # to open it would block for ever
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "root" / "socket"))
    for name in ("fifo", "socket", "dir"):
        with pytest.raises(FileRefused, match="is not a regular file"):
            root.open(name)
    with pytest.raises(FileRefused, match="/dev/null is not a regular file"):
        Root(os.open("/", os.O_PATH)).open("/dev/null")


def test_size_limits(root: Root, tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="/file has 7 bytes, more than the limit of 6"):
        root.read("/file", 6)
    with (tmp_path / "root" / "huge").open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(FileRefused, match="more than the limit"):
        root.open("/huge")


def test_files_of_procfs_are_not_read() -> None:
    """Their inode says 0 bytes, and reading some of them blocks or consumes."""
    assert Root(os.open("/", os.O_PATH)).read("/proc/self/status", 100) == b""


def test_a_directory_s_names(root: Root, tmp_path: Path) -> None:
    assert sorted(root.listdir("/", 2)) == ["dir", "file"]
    assert root.listdir("/dir", 0) == []
    (tmp_path / "root" / "dir" / os.fsdecode(b"\xff")).touch()
    assert root.listdir("/dir/../dir", 10) == [os.fsdecode(b"\xff")]


def test_what_is_not_listed(root: Root, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root" / "fifo")
    for link, target in {"link": "../..", "absolute": str(tmp_path)}.items():
        (tmp_path / "root" / link).symlink_to(target)
    with pytest.raises(FileRefused, match="/ has more names than the limit of 4"):
        root.listdir("/", 4)
    for name in ("/file", "/fifo"):
        with pytest.raises(FileRefused, match="Not a directory"):
            root.listdir(name, 10)
    with pytest.raises(FileRefused, match="No such file"):
        root.listdir("/absolute", 10)
    assert len(root.listdir("/link", 10)) == 5  # ".." of the root is the root


def test_what_is_not_there(root: Root) -> None:
    with pytest.raises(FileRefused, match="cannot open /nothing: No such file or directory"):
        root.open("/nothing")
    with pytest.raises(FileRefused, match="NUL"):
        root.open("a\0b")
    with pytest.raises(FileRefused, match="cannot open /proc/4194305/root"):
        Root.of(4194305)
    root.close()
    with pytest.raises(FileRefused, match="closed"):
        root.open("/file")
