"""The bytes of bpf/forktrace.h with names: how each record is laid out, and its numbers.

``EVENT`` unpacks ring header and event in one go; a drained slice of the ring is decoded by ``EVENT.iter_unpack``.
tests/unit/test_records.py compares sizes and offsets with what the compiler says of the C structs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

RING_HEADER: Final = "II"
# ts, task, parent, forker, stack, type, flags, value, tid, ns_pid, forker_ns_pid, comm
EVENT: Final = struct.Struct("=" + RING_HEADER + "QQQQQIIiIII16s")
EVENT_FIELDS: Final = (
    "ts", "task", "parent", "forker", "stack", "type", "flags", "value", "tid", "ns_pid", "forker_ns_pid", "comm",
)  # fmt: skip

# (ring header length, ring page offset, then EVENT_FIELDS)
RawEvent = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, bytes]


class EventType(IntEnum):
    FORK = 1
    EXEC = 2
    EXIT = 3
    RELEASE = 4
    WAIT4 = 5
    WAITID = 6
    THREAD = 7
    THREAD_EXIT = 8
    FAIL = 9
    WAIT_PLACE = 10


EXIT_AUTOREAP: Final = 1
FAIL_THREAD: Final = 1
FAIL_CLONE3: Final = 2
PIDNS_ADDING: Final = 1 << 31
STACK_SAMPLE: Final = 1 << 63
CODE_RECORD: Final = 1 << 62

WAIT_ANY: Final = -1
WAIT_OTHER: Final = -(1 << 31)  # the caller's own process group, or a pidfd
WAITS: Final = struct.Struct("=QQQQQQQIIiI")
WAITS_GROUP: Final = 1
WAITS_PIDFD: Final = 2
WAITS_LOOKED: Final = 4
NAMED_KEY: Final = struct.Struct("=QiI")
NAMED_WAIT: Final = struct.Struct("=QIi")

MODE_ALL: Final = 1
MODE_STACKS: Final = 2
LOST: Final = ("events", "stacks", "traced")  # enum loss

REGS_WORDS: Final = 21
KNOWN_WORDS: Final = 64
KNOWN_REGS: Final = 4
KNOWN_WAYS: Final = 4
STACK_MAX: Final = 6 * 4096

MAX_FRAMES: Final = 96
MAX_LAYOUT: Final = 48
FRAME_ENTRY: Final = 1
MAX_FILE: Final = 256  # bytes of a code record's file, the end of it, and of its name, the start
MAX_NAME: Final = 128
MAX_TABLE: Final = 4 * 4096

SAMPLE_HEAD: Final = struct.Struct("=QQQQIIIIIIIIQQQ")
FRAME: Final = struct.Struct("=QII")
CODE_HEAD: Final = struct.Struct(f"=QQQIIIIII{MAX_FILE}s{MAX_NAME}s")
INTERPRETER: Final = struct.Struct(f"=IIQQ{MAX_LAYOUT}I")
STACK_KEY: Final = struct.Struct("=QQQQII")
SPACE_KEY: Final = struct.Struct("=QQ")
KNOWN_STACK: Final = struct.Struct(f"=III{KNOWN_REGS}II{KNOWN_REGS}Q{KNOWN_WORDS}I{KNOWN_WORDS}Q")
TRACED_KEY: Final = struct.Struct("=Q")
TRACED: Final = struct.Struct("=QQQ")
CONFIG: Final = struct.Struct("=I")


class Language(IntEnum):
    NONE = 0
    PYTHON = 1
    RUBY = 2
    NODE = 3
    BASH = 4
    PHP = 5
    PERL = 6
    SHELL = 7


class Walk(IntEnum):
    """How the walk over an interpreter's frames ended (enum walk)."""

    NONE = 0
    DONE = 1
    TOO_DEEP = 2
    NO_THREAD = 3
    UNREADABLE = 4
    BROKEN = 5


@dataclass(frozen=True, slots=True)
class StackSample:
    """A stack that the kernel did not know.

    regs: struct pt_regs.  stack: bytes from the stack pointer upwards.  thread: the thread pointer, which is
    pthread_self().  gap: where in ``stack`` so many bytes were left out; (0, 0) for nowhere.  holes: bit n is set when
    the n-th page, counted from the stack pointer's or the gap's end, could not be read; its bytes are 0.

    frames: the interpreter's, innermost first, as (code, position, flags); ``code`` names a ``CodeRecord``.
    """

    number: int
    image: int
    exec_vm: int
    task: int
    tid: int
    child: int
    holes: int
    language: int
    walk: int
    fingerprint: int
    thread: int
    regs: bytes
    frames: tuple[tuple[int, int, int], ...]
    stack: bytes
    gap: tuple[int, int] = (0, 0)

    @classmethod
    def decode(cls, payload: memoryview) -> StackSample:
        head = SAMPLE_HEAD.unpack_from(payload)
        number, image, exec_vm, task, tid, child, length, holes, language, walk, frames, gap, *rest = head
        fingerprint, thread, gap_size = rest
        at = SAMPLE_HEAD.size + REGS_WORDS * 8
        regs = bytes(payload[SAMPLE_HEAD.size : at])
        walked = tuple(FRAME.iter_unpack(payload[at : at + min(frames, MAX_FRAMES) * FRAME.size]))
        at += MAX_FRAMES * FRAME.size
        stack = bytes(payload[at : at + length])
        return cls(
            number,
            image,
            exec_vm,
            task,
            tid,
            child,
            holes,
            language,
            walk,
            fingerprint,
            thread,
            regs,
            walked,
            stack,
            (gap, gap_size) if gap else (0, 0),
        )


@dataclass(frozen=True, slots=True)
class CodeRecord:
    """What an interpreter's frame executes.  file, name: raw bytes in the encoding that ``kinds`` tells.

    table: the line table, cut to MAX_TABLE bytes of ``table_length``.
    """

    code: int
    image: int
    language: int
    first_line: int
    file_length: int
    name_length: int
    table_length: int
    kinds: int
    file: bytes
    name: bytes
    table: bytes

    @classmethod
    def decode(cls, payload: memoryview) -> CodeRecord:
        _, code, image, language, first, file_length, name_length, table_length, kinds, file, name = (
            CODE_HEAD.unpack_from(payload)
        )
        table = bytes(payload[CODE_HEAD.size :])
        return cls(
            code, image, language, first, file_length, name_length, table_length, kinds, file, name, table
        )


def decode_sample(payload: memoryview) -> StackSample | CodeRecord:
    """A record of the samples ring, whichever it is."""
    number = int.from_bytes(payload[:8], "little")
    return StackSample.decode(payload) if number & STACK_SAMPLE else CodeRecord.decode(payload)
