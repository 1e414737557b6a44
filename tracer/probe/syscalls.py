"""The few system calls that Python lacks: bpf, perf_event_open and the mount calls that give a private tracefs.

The one place with system call numbers.  All raise OSError.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

_NUMBERS: Final = {
    #            bpf  perf_event_open
    "x86_64": (321, 298),
    "aarch64": (280, 241),
}
# The same on every architecture, as all calls since 5.1.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_CMD_CREATE = 6

PERF_TYPE_TRACEPOINT = 2
PERF_SAMPLE_RAW = 1 << 10
PERF_FLAG_FD_CLOEXEC = 8
PERF_EVENT_IOC_ENABLE = 0x2400
PERF_EVENT_IOC_SET_BPF = 0x40042408

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def supported() -> bool:
    return platform.machine() in _NUMBERS


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def bpf(command: int, attributes: bytes | bytearray) -> int:
    """bpf(2).  ``attributes`` is union bpf_attr as far as the command reads it; a bytearray is written back to."""
    data = attributes if isinstance(attributes, bytearray) else bytearray(attributes)
    buffer = (ctypes.c_char * len(data)).from_buffer(data)
    number = _NUMBERS[platform.machine()][0]
    return _call(number, ctypes.c_long(command), ctypes.byref(buffer), ctypes.c_long(len(data)))


def perf_event_open_tracepoint(event_id: int) -> int:
    """A perf event on a tracepoint, good for attaching one BPF program to it for the whole host."""
    # struct perf_event_attr, version 5 (112 bytes): type, size, config, sample_period, sample_type, ..., wakeup_events
    attributes = bytearray(112)
    struct.pack_into(
        "=IIQQQ", attributes, 0, PERF_TYPE_TRACEPOINT, len(attributes), event_id, 1, PERF_SAMPLE_RAW
    )
    struct.pack_into("=I", attributes, 48, 1)
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    number = _NUMBERS[platform.machine()][1]
    pid, cpu, group = ctypes.c_long(-1), ctypes.c_long(0), ctypes.c_long(-1)
    return _call(number, ctypes.byref(buffer), pid, cpu, group, ctypes.c_long(PERF_FLAG_FD_CLOEXEC))


def private_mount(filesystem: str) -> int:
    """A directory descriptor on a fresh mount of ``filesystem`` that appears nowhere and goes with the descriptor."""
    context = _call(_FSOPEN, ctypes.c_char_p(filesystem.encode()), ctypes.c_long(1))
    try:
        _call(
            _FSCONFIG,
            ctypes.c_long(context),
            ctypes.c_long(_FSCONFIG_CMD_CREATE),
            ctypes.c_void_p(None),
            ctypes.c_void_p(None),
            ctypes.c_long(0),
        )
        return _call(_FSMOUNT, ctypes.c_long(context), ctypes.c_long(1), ctypes.c_long(0))
    finally:
        os.close(context)
