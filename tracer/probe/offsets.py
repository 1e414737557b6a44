"""Where the kernel keeps things: member offsets from the running kernel's BTF, handed to the programs as -D flags.

BTF is described in the kernel's Documentation/bpf/btf.rst.  Only what is needed is decoded: the type section is walked
once to index it, and names are resolved for structs and unions alone.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tracer.errors import Unavailable

BTF_PATH: Final = "/sys/kernel/btf/vmlinux"

# flag: (struct, member path).  What the programs read (bpf/*.c).
MEMBERS: Final[dict[str, tuple[str, str]]] = {
    "TASK_PID": ("task_struct", "pid"),
    "TASK_TGID": ("task_struct", "tgid"),
    "TASK_FLAGS": ("task_struct", "flags"),
    "TASK_COMM": ("task_struct", "comm"),
    "TASK_STACK": ("task_struct", "stack"),
    "TASK_MM": ("task_struct", "mm"),
    "TASK_REAL_PARENT": ("task_struct", "real_parent"),
    "TASK_GROUP_LEADER": ("task_struct", "group_leader"),
    "TASK_START_BOOTTIME": ("task_struct", "start_boottime"),
    "TASK_EXIT_CODE": ("task_struct", "exit_code"),
    "TASK_EXIT_SIGNAL": ("task_struct", "exit_signal"),
    "TASK_THREAD_PID": ("task_struct", "thread_pid"),
    "TASK_FSBASE": ("task_struct", "thread.fsbase"),  # x86-64: the user's thread pointer
    "TASK_SIGNAL": ("task_struct", "signal"),
    "TASK_SIGHAND": ("task_struct", "sighand"),
    "MM_EXEC_VM": ("mm_struct", "exec_vm"),
    "SIGNAL_LIVE": ("signal_struct", "live"),
    "SIGNAL_FLAGS": ("signal_struct", "flags"),
    "SIGNAL_GROUP_EXIT_CODE": ("signal_struct", "group_exit_code"),
    "SIGHAND_ACTION": ("sighand_struct", "action"),
    "SIGACTION_HANDLER": ("sigaction", "sa_handler"),
    "SIGACTION_FLAGS": ("sigaction", "sa_flags"),
    "PID_LEVEL": ("pid", "level"),
    "PID_NUMBERS": ("pid", "numbers"),
    "UPID_NR": ("upid", "nr"),
    "TASK_NSPROXY": ("task_struct", "nsproxy"),
    "NSPROXY_PID_NS": ("nsproxy", "pid_ns_for_children"),
    "PID_NS_ALLOCATED": ("pid_namespace", "pid_allocated"),
    "PID_NS_INUM": ("pid_namespace", "ns.inum"),
}
OPTIONAL: Final[dict[str, tuple[str, str]]] = {
    "PID_NS_MAX": ("pid_namespace", "pid_max"),  # since 6.14 each namespace has its own
}
SIZES: Final[dict[str, str]] = {"SIZEOF_UPID": "upid", "SIZEOF_K_SIGACTION": "k_sigaction"}

_MAGIC = 0xEB9F
_PTR, _STRUCT, _UNION, _ENUM, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = 2, 4, 5, 6, 8, 9, 10, 11
_FUNC, _FUNC_PROTO, _DATASEC, _TYPE_TAG, _ENUM64 = 12, 13, 15, 18, 19
_MODIFIERS = frozenset((_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG))
# Bytes that follow the 12-byte type: a fixed number, or so many for each of vlen.
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}  # INT, ARRAY, VAR, DECL_TAG
_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}


class Btf:
    """The type section of one BTF blob.  Raises ``ValueError`` if it is not BTF, ``KeyError`` for what it lacks."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 24 or struct.unpack_from("<H", data)[0] != _MAGIC:
            raise ValueError("not BTF")
        header, types, types_length, strings = struct.unpack_from("<IIII", data, 4)
        self._data = data
        self._strings = header + strings
        self._offsets = [0]  # type id -> position of its struct btf_type
        self._named: dict[tuple[int, int], int] = {}  # (kind, name offset) -> type id
        position, end = header + types, header + types + types_length
        unpack = struct.Struct("<III").unpack_from
        while position < end:
            name, info, _ = unpack(data, position)
            kind = info >> 24 & 31
            if name and kind in (_STRUCT, _UNION, _TYPEDEF):
                self._named.setdefault((kind, name), len(self._offsets))
            self._offsets.append(position)
            position += 12 + (_FIXED.get(kind, 0) or _EACH.get(kind, 0) * (info & 0xFFFF))

    def _type(self, type_id: int) -> tuple[int, int, int, int]:
        """kind, vlen, size or referenced type, kind flag."""
        _, info, size = struct.unpack_from("<III", self._data, self._offsets[type_id])
        return info >> 24 & 31, info & 0xFFFF, size, info >> 31

    def _name(self, offset: int) -> str:
        start = self._strings + offset
        return self._data[start : self._data.index(b"\0", start)].decode()

    def _find(self, kind: int, name: str) -> int:
        wanted = b"\0" + name.encode() + b"\0"
        start = self._strings
        while (start := self._data.find(wanted, start)) >= 0:
            type_id = self._named.get((kind, start + 1 - self._strings))
            if type_id is not None:
                return type_id
            start += 1
        raise KeyError(name)

    def _resolve(self, type_id: int) -> int:
        while True:
            kind, _, target, _ = self._type(type_id)
            if kind not in _MODIFIERS:
                return type_id
            type_id = target

    def _member(self, type_id: int, name: str) -> tuple[int, int] | None:
        """Bit offset and type of a member, looked for in anonymous members as well."""
        type_id = self._resolve(type_id)
        kind, count, _, bitfields = self._type(type_id)
        if kind not in (_STRUCT, _UNION):
            return None
        for index in range(count):
            position = self._offsets[type_id] + 12 + 12 * index
            member, member_type, offset = struct.unpack_from("<III", self._data, position)
            if bitfields:
                offset &= 0xFFFFFF
            if not member:
                inner = self._member(member_type, name)
                if inner:
                    return offset + inner[0], inner[1]
            elif self._name(member) == name:
                return offset, member_type
        return None

    def offset(self, struct_name: str, path: str) -> int:
        """Byte offset of a member, ``a.b`` for a member of a member."""
        type_id, bits = self._find(_STRUCT, struct_name), 0
        for part in path.split("."):
            found = self._member(type_id, part)
            if not found:
                raise KeyError(f"{struct_name}.{path}")
            bits, type_id = bits + found[0], found[1]
        return bits // 8

    def size(self, struct_name: str) -> int:
        return self._type(self._find(_STRUCT, struct_name))[2]

    def function(self, name: str) -> int:
        """The type id of a kernel function, as fentry programs name it.  Slow: looks at every type."""
        wanted = name.encode() + b"\0"
        for type_id, position in enumerate(self._offsets[1:], 1):
            text, info, _ = struct.unpack_from("<III", self._data, position)
            if info >> 24 & 31 == _FUNC and self._data.startswith(wanted, self._strings + text):
                return type_id
        raise KeyError(name)

    def tracepoint_arguments(self, name: str) -> int | None:
        """How many arguments a raw tracepoint passes; None if BTF does not tell."""
        try:
            pointer = self._type(self._find(_TYPEDEF, f"btf_trace_{name}"))[2]
            prototype = self._type(pointer)[2]
        except KeyError:
            return None
        kind, count, _, _ = self._type(prototype)
        return count - 1 if kind == _FUNC_PROTO else None  # the first is the tracepoint's own data pointer


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """-D flags for the compiler: offsets and sizes in bytes."""

    defines: tuple[tuple[str, int], ...]


def kernel_layout(path: str = BTF_PATH) -> KernelLayout:
    """Read the running kernel's layout.  Raises ``Unavailable`` where BTF is absent or lacks a member."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise Unavailable(
            f"this kernel has no BTF ({path}: {error.strerror})",
            "a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed: every distribution kernel since 5.10 is",
        ) from None
    try:
        btf = Btf(data)
        defines = {flag: btf.offset(*member) for flag, member in MEMBERS.items()}
        for flag, member in OPTIONAL.items():
            with suppress(KeyError):
                defines[flag] = btf.offset(*member)
        defines.update({flag: btf.size(name) for flag, name in SIZES.items()})
    except (KeyError, ValueError, struct.error, IndexError) as error:
        raise Unavailable(
            f"this kernel's BTF ({path}) lacks what forktrace reads: {error}",
            "`forktrace doctor` shows what works here; the kernels that were tried are in docs/kernel-support.md",
        ) from None
    if (btf.tracepoint_arguments("sched_process_exit") or 0) >= 2:
        defines["HAVE_GROUP_DEAD"] = 1  # since 6.16
    return KernelLayout(tuple(sorted(defines.items())))
