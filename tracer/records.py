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


EXIT_AUTOREAP: Final = 1
FAIL_THREAD: Final = 1
FAIL_CLONE3: Final = 2
STACK_SAMPLE: Final = 1 << 63

MODE_ALL: Final = 1
MODE_STACKS: Final = 2
LOST: Final = ("events", "stacks", "traced")  # enum loss

REGS_WORDS: Final = 21
KNOWN_WORDS: Final = 64
KNOWN_REGS: Final = 4
KNOWN_WAYS: Final = 4
STACK_MAX: Final = 4 * 4096

SAMPLE_HEAD: Final = struct.Struct("=QQQQIIII")
STACK_KEY: Final = struct.Struct("=QQQII")
SPACE_KEY: Final = struct.Struct("=QQ")
KNOWN_STACK: Final = struct.Struct(f"=III{KNOWN_REGS}II{KNOWN_REGS}Q{KNOWN_WORDS}I{KNOWN_WORDS}Q")
TRACED_KEY: Final = struct.Struct("=Q")
TRACED: Final = struct.Struct("=QQQ")
CONFIG: Final = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class StackSample:
    """A stack that the kernel did not know.

    regs: struct pt_regs.  stack: bytes from the stack pointer upwards.  holes: bit n is set when the n-th page, counted
    from the stack pointer's, could not be read; its bytes are 0.
    """

    number: int
    image: int
    exec_vm: int
    task: int
    tid: int
    child: int
    holes: int
    regs: bytes
    stack: bytes

    @classmethod
    def decode(cls, payload: memoryview) -> StackSample:
        number, image, exec_vm, task, tid, child, length, holes = SAMPLE_HEAD.unpack_from(payload)
        start = SAMPLE_HEAD.size + REGS_WORDS * 8
        regs = bytes(payload[SAMPLE_HEAD.size : start])
        stack = bytes(payload[start : start + length])
        return cls(number, image, exec_vm, task, tid, child, holes, regs, stack)
