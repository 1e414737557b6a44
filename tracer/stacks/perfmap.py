"""Names for code without a file: perf maps, /tmp/perf-PID.map, which JIT compilers write.

Node (--perf-basic-prof), Java (jcmd PID Compiler.perfmap), CPython (-X perf), .NET and LuaJIT do.  Called by ``store``
when a stack has frames in anonymous memory, while the process is likely to be there.

The target's user writes the map, so it is believed only as far as names go: a regular file of the process's own user in
the process's own root, not behind a link, of bounded size.  Format: START SIZE NAME, hexadecimal (tools/perf/
Documentation/jit-interface.txt of Linux).  A map grows; what was written later about an address holds.
"""

from __future__ import annotations

import os
import re
import stat
from bisect import bisect_right
from collections import OrderedDict
from typing import Final, NamedTuple

from tracer.stacks.files import FileRefused, Root
from tracer.stacks.maps import AddressSpace

MAX_SIZE: Final = 32 << 20  # bytes of a map that are read
MAX_MAPS: Final = 8  # kept open
MAX_NAME: Final = 512  # characters
_TAIL: Final = 256  # bytes that tell whether a map has grown or was written anew
_LOOK_BACK: Final = 64  # entries before an address looked at: code of different times overlaps


class PerfName(NamedTuple):
    """What a map says of an address.  line: None, since maps tell where a function begins at best."""

    function: str
    file: str | None
    language: str


class PerfMap:
    """One process's map, read on as it grows."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor over."""
        self._fd = fd
        self._read = 0
        self._tail = b""  # what stood before: else the map was written anew
        self._entries: list[tuple[int, int, int, bytes]] = []  # start, place in the file, end, name

    @property
    def is_replaced(self) -> bool:
        return os.fstat(self._fd).st_nlink == 0

    def read_on(self) -> None:
        """Raises OSError."""
        size = min(os.fstat(self._fd).st_size, MAX_SIZE)
        if (
            size < self._read
            or os.pread(self._fd, len(self._tail), self._read - len(self._tail)) != self._tail
        ):
            self._entries.clear()
            self._read = 0
        if size == self._read:
            return
        data = os.pread(self._fd, size - self._read, self._read)
        data = data[: data.rfind(b"\n") + 1]
        for line in data.split(b"\n"):
            fields = line.split(b" ", 2)
            if len(fields) == 3:
                try:
                    start, length = int(fields[0], 16), int(fields[1], 16)
                except ValueError:
                    continue
                if start >= 0 and length > 0 and start + length < 1 << 64:
                    self._entries.append((start, len(self._entries), start + length, fields[2]))
        self._entries.sort()
        self._read += len(data)
        self._tail = (self._tail + data)[-_TAIL:] if self._read > len(data) else data[-_TAIL:]

    def find(self, address: int) -> str | None:
        at = bisect_right(self._entries, (address, 1 << 62))
        best: tuple[int, int, int, bytes] | None = None
        for entry in self._entries[max(at - _LOOK_BACK, 0) : at]:
            if address < entry[2] and (best is None or best[1] < entry[1]):
                best = entry
        return None if best is None else best[3].decode("utf-8", "replace")[:MAX_NAME]

    def close(self) -> None:
        os.close(self._fd)


class PerfMaps:
    """The maps of a trace's processes, by image."""

    def __init__(self) -> None:
        self._maps: OrderedDict[int, PerfMap] = OrderedDict()

    def of(self, image: int, pid: int) -> PerfMap | None:
        """The map, read up to now.  pid: a process that runs the image, or did.  None where there is no map that can be
        believed; never raises for what the target did.
        """
        found = self._maps.get(image)
        if found is None or found.is_replaced:
            try:
                newer = PerfMap(_open(pid))
            except OSError:  # FileRefused, too
                if found is None:
                    return None
            else:
                if found is not None:
                    found.close()
                found = self._maps[image] = newer
                if len(self._maps) > MAX_MAPS:
                    self._maps.popitem(last=False)[1].close()
        self._maps.move_to_end(image)
        try:
            found.read_on()
        except OSError:
            return None
        return found

    def close(self) -> None:
        for each in self._maps.values():
            each.close()
        self._maps.clear()


def _open(pid: int) -> int:
    """The map that the process wrote under its own pid.  Raises FileRefused or OSError."""
    own_pid, users = _own_pid_and_users(pid)
    path = f"/tmp/perf-{own_pid}.map"  # noqa: S108 - of the target's root
    fd = Root.of(pid).open(path, MAX_SIZE, follow=False)
    info = os.fstat(fd)
    if info.st_uid not in users or not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise FileRefused(f"{path} is another user's")
    return fd


def _own_pid_and_users(pid: int) -> tuple[int, set[int]]:
    """Its pid in its innermost namespace; its real and effective user.  Raises OSError."""
    own, users = pid, set[int]()
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key == "NSpid":
                own = int(value.split()[-1])
            elif key == "Uid":
                users = {int(each) for each in value.split()[:2]}
    return own, users


# --- what the names mean ---------------------------------------------------------------------------------------

_V8: Final = re.compile(
    r"(?:JS|LazyCompile|Function|Script|Eval|Module):[*~^+]*(?P<function>.*?)"
    r"(?: (?P<place>(?:/|[\w-]+:).*:\d+:\d+))?",
    re.DOTALL,
)
_V8_PART: Final = re.compile(
    r"(?:Builtin|BytecodeHandler|Stub|Handler|RegExp|LoadIC|StoreIC|KeyedLoadIC|CallIC):(?P<function>.*)"
)
_PYTHON: Final = re.compile(r"py::(?P<function>[^:]*):(?P<file>.*)")
_DOTNET: Final = re.compile(r".*\[[^\]]+\] (?P<class>[\w.`+/]+)::(?P<method>[^(]+)\(.*", re.DOTALL)
_JAVA_INTERNAL: Final = re.compile(r"L(?P<class>[\w/$]+);::(?P<method>[\w$<>]+).*")
_JAVA: Final = re.compile(r"(?:[\w.$\[\]]+ )?(?P<name>[\w.$/+]+\.(?:[\w$]+|<init>|<clinit>))\(.*\)")


def explain(name: str, language: str | None) -> PerfName:
    """language: of the runtime that is mapped, where one is known by its files."""
    if match := _PYTHON.fullmatch(name):
        return PerfName(match["function"], match["file"], "python")
    if language == "java":
        return PerfName(_java(name), None, "java")
    if match := _V8.fullmatch(name):
        return _javascript(match["function"], match["place"])
    if match := _V8_PART.fullmatch(name):
        return PerfName(match["function"], None, "javascript")
    if match := _DOTNET.fullmatch(name):
        return PerfName(f"{match['class']}.{match['method']}", None, "dotnet")
    return PerfName(name, None, language or "native")


def _javascript(function: str, place: str | None) -> PerfName:
    """The place is where the function begins, so the line goes with its name."""
    if place is None:
        return PerfName(function or "(anonymous)", None, "javascript")
    file, line, _ = place.rsplit(":", 2)
    file = file.removeprefix("file://")
    named = function or ("(module)" if line == "1" else "(anonymous)")
    return PerfName(f"{named} (begins at line {line})", file or None, "javascript")


def _java(name: str) -> str:
    """Class.method, without types: there are as many signatures as there are tools."""
    if match := _JAVA_INTERNAL.fullmatch(name):
        return f"{match['class'].replace('/', '.')}.{match['method']}"
    match = _JAVA.fullmatch(name)
    return match["name"] if match else name


def runtime_of(space: AddressSpace) -> str | None:
    """The language of a runtime with a JIT compiler among the mapped files."""
    for mapping in space.mappings:
        file = mapping.path.rpartition("/")[2]
        if file == "libjvm.so":
            return "java"
        if file == "libcoreclr.so":
            return "dotnet"
        if file in ("node", "nodejs") or file.startswith("libnode.so"):
            return "javascript"
    return None
