"""Compiled programs into the running kernel, by the bpf() system call itself: create maps, load, attach.

Everything lives in file descriptors: when the process ends, however it ends, the kernel takes all of it back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from tracer.errors import BpfRefused, NoPermission, Unavailable
from tracer.probe import syscalls
from tracer.probe.programs import Compiled, MapShape, Program

# enum bpf_cmd
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY, _PROG_LOAD, _RAW_TRACEPOINT_OPEN = (
    0, 1, 2, 3, 4, 5, 17,
)  # fmt: skip
_TYPE_TRACEPOINT, _TYPE_RAW_TRACEPOINT, _TYPE_TRACING = 5, 17, 26  # enum bpf_prog_type
_ATTACH_FENTRY = 24  # enum bpf_attach_type
_NAME_LENGTH = 15
RETURN_0: Final = bytes.fromhex("b700000000000000 9500000000000000")
_LOG_SIZE: Final = 1 << 20


class Map:
    """One BPF map.  Keys and values are bytes of the declared sizes."""

    def __init__(self, name: str, fd: int, shape: MapShape) -> None:
        self.name, self.fd, self.shape = name, fd, shape
        self._key = ctypes.create_string_buffer(max(shape.key_size, 1))
        self._value = ctypes.create_string_buffer(max(shape.value_size, 1))
        self._attributes = struct.pack(
            "=IIQQQ", fd, 0, ctypes.addressof(self._key), ctypes.addressof(self._value), 0
        )

    def lookup(self, key: bytes) -> bytes | None:
        self._key.raw = key
        try:
            syscalls.bpf(_MAP_LOOKUP, self._attributes)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._value.raw[: self.shape.value_size]

    def update(self, key: bytes, value: bytes) -> None:
        """Raises OSError: E2BIG when the map is full."""
        self._key.raw = key
        self._value.raw = value
        syscalls.bpf(_MAP_UPDATE, self._attributes)

    def delete(self, key: bytes) -> None:
        """Of a key that may be gone already."""
        self._key.raw = key
        with contextlib.suppress(FileNotFoundError):
            syscalls.bpf(_MAP_DELETE, self._attributes)

    def keys(self) -> Iterator[bytes]:
        """Those present while one walks; a map that changes meanwhile may show some twice or not at all."""
        following = ctypes.create_string_buffer(self.shape.key_size)
        key: bytes | None = None
        while True:
            if key is not None:
                self._key.raw = key
            attributes = struct.pack(
                "=IIQQQ",
                self.fd,
                0,
                0 if key is None else ctypes.addressof(self._key),
                ctypes.addressof(following),
                0,
            )
            try:
                syscalls.bpf(_MAP_NEXT_KEY, attributes)
            except FileNotFoundError:
                return
            key = following.raw
            yield key


class BpfObject:
    """Maps and programs of one ``Compiled``; a context manager that closes all of them."""

    def __init__(self) -> None:
        self.maps: dict[str, Map] = {}
        self._programs: dict[str, int] = {}
        self._links: list[int] = []

    @classmethod
    def load(cls, compiled: Compiled, max_entries: Mapping[str, int]) -> BpfObject:
        """``max_entries`` overrides the sizes that the sources declare.

        Raises ``NoPermission``, ``Unavailable`` (a map type or helper that this kernel lacks) or ``BpfRefused``.
        """
        self = cls()
        try:
            self.add(compiled, max_entries)
        except BaseException:
            self.close()
            raise
        return self

    def add(self, compiled: Compiled, max_entries: Mapping[str, int]) -> None:
        """More programs; maps that are there already, by name, are shared.  Raises what ``load`` raises."""
        for name, shape in compiled.maps.items():
            if name not in self.maps:
                sized = replace(shape, max_entries=max_entries.get(name, shape.max_entries))
                self.maps[name] = Map(name, _create_map(name, sized), sized)
        for name, program in compiled.programs.items():
            self._programs[name] = self._load(name, program)

    def enter(self, prog_array: str, place: int, program: str) -> None:
        """Make a program the target of tail calls to this place."""
        fd = self._programs[program]
        self.maps[prog_array].update(struct.pack("=I", place), struct.pack("=i", fd))

    def _load(self, name: str, program: Program) -> int:
        code = bytearray(program.instructions)
        for offset, target in program.map_loads:
            struct.pack_into("=i", code, offset + 4, self.maps[target].fd)
        kind = _TYPE_TRACEPOINT if name.endswith("_return") else _TYPE_RAW_TRACEPOINT
        try:
            return _load_program(name, kind, bytes(code))
        except OSError as error:
            raise _refused(f"the BPF program {name}", error, _verifier_log(name, kind, bytes(code))) from None

    def attach_raw_tracepoint(self, program: str, tracepoint: str) -> None:
        name = ctypes.create_string_buffer(tracepoint.encode())
        attributes = struct.pack("=QII", ctypes.addressof(name), self._programs[program], 0)
        try:
            self._links.append(syscalls.bpf(_RAW_TRACEPOINT_OPEN, attributes))
        except OSError as error:
            raise _refused(f"attaching to the raw tracepoint {tracepoint}", error) from None

    def attach_tracepoint(self, program: str, event_id: int) -> None:
        try:
            event = syscalls.perf_event_open_tracepoint(event_id)
            self._links.append(event)
            fcntl.ioctl(event, syscalls.PERF_EVENT_IOC_SET_BPF, self._programs[program])
            fcntl.ioctl(event, syscalls.PERF_EVENT_IOC_ENABLE, 0)
        except OSError as error:
            raise _refused(f"attaching {program} to its syscall tracepoint", error) from None

    def detach(self) -> None:
        """No program runs after this; the maps stay readable."""
        while self._links:
            os.close(self._links.pop())

    def close(self) -> None:
        self.detach()
        for fd in self._programs.values():
            os.close(fd)
        for each in self.maps.values():
            os.close(each.fd)
        self._programs, self.maps = {}, {}

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_bpf() -> None:
    """Load (and drop) a program that does nothing.  Raises ``NoPermission``, ``Unavailable`` or ``BpfRefused``."""
    with contextlib.suppress(
        OSError, ValueError
    ):  # before 5.11 maps count against it; later it does not matter
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    BpfObject.load(Compiled({}, {"try_load": Program(RETURN_0, ())}), {}).close()


def try_fentry(code: bytes, function: int) -> None:
    """Load (and drop) a program for the entry of a kernel function, given by its BTF id.  Raises as ``load``."""
    try:
        os.close(_load_program("try_fentry", _TYPE_TRACING, code, function=function))
    except OSError as error:
        raise _refused("a program of type BPF_PROG_TYPE_TRACING", error) from None


def _create_map(name: str, shape: MapShape) -> int:
    # map_type, key_size, value_size, max_entries, map_flags, inner_map_fd, numa_node, map_name[16]
    attributes = struct.pack(
        "=7I16s",
        shape.type,
        shape.key_size,
        shape.value_size,
        shape.max_entries,
        shape.flags,
        0,
        0,
        name.encode()[:_NAME_LENGTH],
    )
    try:
        return syscalls.bpf(_MAP_CREATE, attributes)
    except OSError as error:
        raise _refused(f"the BPF map {name}", error) from None


def _load_program(
    name: str, kind: int, code: bytes, log: ctypes.Array[ctypes.c_char] | None = None, function: int = 0
) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name[16],
    # prog_ifindex, expected_attach_type, (36 bytes that describe its own BTF), attach_btf_id
    attributes = struct.pack(
        "=IIQQIIQII16sII36xI",
        kind,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        1 if log else 0,
        len(log) if log else 0,
        ctypes.addressof(log) if log else 0,
        0,
        0,
        name.encode()[:_NAME_LENGTH],
        0,
        _ATTACH_FENTRY if function else 0,
        function,
    )
    return syscalls.bpf(_PROG_LOAD, attributes)


def _verifier_log(name: str, kind: int, code: bytes) -> str:
    log = ctypes.create_string_buffer(_LOG_SIZE)
    with contextlib.suppress(OSError):
        os.close(_load_program(name, kind, code, log))
    lines = log.value.decode(errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if line and not line.startswith("processed ")), "")


def _refused(what: str, error: OSError, log: str = "") -> NoPermission | Unavailable | BpfRefused:
    detail = f" ({log})" if log else ""
    if error.errno in (errno.EPERM, errno.EACCES) and not log:
        if os.geteuid() != 0:
            return NoPermission("tracing needs root", "run it again as: sudo forktrace …")
        return BpfRefused(
            f"the kernel refused {what}: {error.strerror}",
            "in a container give it CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN (--privileged); under kernel lockdown "
            "'confidentiality' no BPF tracing is possible (cat /sys/kernel/security/lockdown)",
        )
    if error.errno == errno.ENOSYS:
        return Unavailable("this kernel has no bpf() system call", "a kernel from 5.10 on is needed")
    if error.errno in (errno.ENOMEM, errno.E2BIG):
        return BpfRefused(
            f"the kernel refused {what}: {error.strerror}{detail}", "free some memory and try again"
        )
    return BpfRefused(
        f"the kernel refused {what}: {error.strerror}{detail}",
        "`forktrace doctor` shows what this kernel allows; docs/kernel-support.md has the kernels that were tried",
    )
