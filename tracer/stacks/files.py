"""Opens files that an untrusted process chose, for ELF files, package databases and the like.

Nothing is opened for reading before an O_PATH descriptor of the same inode was seen to be a regular file: opening
a FIFO would block, opening a device can act.  Paths are resolved inside the target's root (openat2 with
RESOLVE_IN_ROOT, Linux 5.6), so that no link leads out of its mount namespace or chroot.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.stacks.maps import Mapping

MAX_FILE = 4 << 30  # bytes; the largest ELF files with debugging data are about 2 GiB

_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class FileRefused(OSError):
    """The file cannot be had, or is not one to read.  ``str()`` is one sentence without a final stop."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Root:
    """A process's root directory, held open: paths go on to be found after the process is gone.

    key: (st_dev, st_ino), equal for processes that share the root.  Closed by ``close`` or with its last user.
    """

    def __init__(self, fd: int) -> None:
        """Takes the descriptor over."""
        self._fd = fd
        info = os.fstat(fd)
        self.key = (info.st_dev, info.st_ino)

    @classmethod
    def of(cls, pid: int) -> Root:
        return cls(_open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY))

    def open(self, path: str, max_size: int = MAX_FILE, follow: bool = True) -> int:
        """A descriptor for reading the regular file at a path as the process sees it.  Raises FileRefused.

        follow: also where the path itself is a symbolic link.
        """
        return _reopen(self._openat2(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW)), path, max_size)

    def read(self, path: str, limit: int) -> bytes:
        """The file's whole content.  Refuses more than ``limit`` bytes.

        Never reads beyond the size that the inode gives: a file of procfs says 0, and reading those can block or
        consume (/proc/kmsg).
        """
        fd = self.open(path, limit)
        try:
            return os.pread(fd, os.fstat(fd).st_size, 0)
        except OSError as error:
            raise FileRefused(f"cannot read {path}: {error.strerror}") from error
        finally:
            os.close(fd)

    def listdir(self, path: str, limit: int) -> list[str]:
        """The names in a directory, in no order.  Refuses more than ``limit`` names, and what is no directory."""
        fd = self._openat2(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                names = [entry.name for entry in islice(entries, limit + 1)]
        except OSError as error:
            raise FileRefused(f"cannot list {path}: {error.strerror}") from error
        finally:
            os.close(fd)
        if len(names) > limit:
            raise FileRefused(f"{path} has more names than the limit of {limit}")
        return names

    def _locate(self, path: str) -> int:
        return self._openat2(path, os.O_PATH)

    def _openat2(self, path: str, flags: int) -> int:
        if self._fd < 0:
            raise FileRefused(f"cannot open {path}: the root directory was closed")
        if "\0" in path:
            raise FileRefused("cannot open a path that holds a NUL")
        how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        for _ in range(
            8
        ):  # EAGAIN: a rename elsewhere raced with "..", and the kernel could not vouch for the walk
            fd: int = _syscall(
                ctypes.c_long(_SYS_OPENAT2),
                ctypes.c_int(self._fd),
                ctypes.c_char_p(os.fsencode(path)),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
            if fd >= 0:
                return fd
            if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
                break
        raise FileRefused(f"cannot open {path}: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


def locate_mapped(pid: int, mapping: Mapping, root: Root | None = None) -> int:
    """An O_PATH descriptor of the regular file behind a mapping.  Raises FileRefused.

    /proc/PID/map_files names the very file, also when it was deleted or replaced.  Where that is gone (the process
    ended, the range was split), the path in the process's root will do if it still is the mapped inode.
    """
    try:
        fd = _open(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", os.O_PATH)
    except FileRefused:
        own = root or Root.of(pid)
        fd = own._locate(mapping.path.removesuffix(" (deleted)"))
        if os.fstat(fd).st_ino != mapping.inode:
            os.close(fd)
            raise FileRefused(f"{mapping.path} is no longer the file that is mapped") from None
    else:
        # Other numbers than in maps: an overlay file system (which gives its own), or an exec in between.
        if (
            os.fstat(fd).st_ino != mapping.inode
            and str(Path(f"/proc/self/fd/{fd}").readlink()) != mapping.path
        ):
            os.close(fd)
            raise FileRefused(f"{mapping.path} is no longer mapped")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileRefused(f"{mapping.path} is not a regular file")
    return fd


def open_located(fd: int, path: str, max_size: int = MAX_FILE) -> int:
    """Open for reading what ``locate_mapped`` found.  Takes the O_PATH descriptor over.  Raises FileRefused."""
    return _reopen(fd, path, max_size)


def open_mapped(pid: int, mapping: Mapping, root: Root | None = None) -> int:
    """A descriptor for reading the file behind a mapping (see ``locate_mapped``).  Raises FileRefused."""
    return _reopen(locate_mapped(pid, mapping, root), mapping.path, MAX_FILE)


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise FileRefused(f"cannot open {path}: {error.strerror}") from error


def _reopen(located: int, path: str, max_size: int) -> int:
    """O_PATH descriptor -> one for reading, if it is a regular file of bearable size.  Closes the first one."""
    try:
        info = os.fstat(located)
        if not stat.S_ISREG(info.st_mode):
            raise FileRefused(f"{path} is not a regular file")
        if info.st_size > max_size:
            raise FileRefused(f"{path} has {info.st_size} bytes, more than the limit of {max_size}")
        return _open(f"/proc/self/fd/{located}", os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(located)
