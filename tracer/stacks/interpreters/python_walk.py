"""CPython's frames read from user space: what bpf/python.c does in the kernel, step by step, for ``late``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tracer.records import FRAME_ENTRY, MAX_FILE, MAX_FRAMES, MAX_NAME, MAX_TABLE, CodeRecord, Language, Walk
from tracer.stacks.interpreters.late import Memory, Unreadable, Walked

MAX_THREADS = 4096  # states looked at, of all interpreters
_COMPACT_ASCII = 16  # bits of the string's state, counted from its field "kind"

Layout = Mapping[str, int]


class _Broken(Exception):
    """What is there is no frame."""


def walk(memory: Memory, layout: Layout, runtime: int, code_type: int, thread: int) -> Walked:
    """layout: offsets by the names of enum python_layout.  runtime, code_type: addresses of _PyRuntime and PyCode_Type.
    thread: its thread pointer.
    """
    frames: list[tuple[CodeRecord, int, int]] = []
    found = False
    try:
        for state in _states(memory, layout, runtime, thread):
            found = True
            frame = memory.word(state + layout["THREAD_FRAME"])
            if layout["CFRAME_FRAME"]:
                frame = memory.word(frame + layout["CFRAME_FRAME"] - 1)
            if not _take(memory, layout, code_type, frame, frames):
                return Walked(tuple(frames), Walk.TOO_DEEP)
    except Unreadable:
        return Walked(tuple(frames), Walk.UNREADABLE)
    except _Broken:
        return Walked(tuple(frames), Walk.BROKEN)
    return Walked(tuple(frames), Walk.DONE if found else Walk.NO_THREAD)


def _states(memory: Memory, layout: Layout, runtime: int, thread: int) -> Iterator[int]:
    """The PyThreadStates of a thread, one an interpreter at most.  The first interpreter is the youngest."""
    interp = memory.word(runtime + layout["RUNTIME_INTERPRETERS"])
    looked = 0
    while interp and looked < MAX_THREADS:
        state = memory.word(interp + layout["INTERP_THREADS"])
        while state and looked < MAX_THREADS:
            looked += 1
            if memory.word(state + layout["THREAD_ID"]) == thread:
                yield state
                break
            state = memory.word(state + layout["THREAD_NEXT"])
        looked += 1
        interp = memory.word(interp + layout["INTERP_NEXT"])


def _take(
    memory: Memory, layout: Layout, code_type: int, frame: int, frames: list[tuple[CodeRecord, int, int]]
) -> bool:
    """Append the frames of one state.  False when there are too many."""
    first = len(frames)
    size = max(layout[field] for field in ("FRAME_CODE", "FRAME_BACK", "FRAME_INSTR", "FRAME_OWNER")) + 8
    for _ in range(2 * MAX_FRAMES):
        if not frame:
            _mark_entry(frames, first)
            return True
        data = memory.read(frame, size)
        code = _word(data, layout["FRAME_CODE"]) & ~layout["CODE_TAG"]
        frame = _word(data, layout["FRAME_BACK"])
        owner = data[layout["FRAME_OWNER"]] if layout["FRAME_OWNER"] else 0
        if layout["SHIM_OWNER"] and owner >= layout["SHIM_OWNER"]:
            _mark_entry(frames, first)
            continue
        entry = data[layout["FRAME_IS_ENTRY"]] if layout["FRAME_IS_ENTRY"] else 0
        position = _word(data, layout["FRAME_INSTR"])
        if layout["CODE_INSTRUCTIONS"]:
            position -= code + layout["CODE_INSTRUCTIONS"]
        else:
            entry = 1
        record = _code(memory, layout, code_type, code)
        if record is None:
            continue
        if len(frames) >= MAX_FRAMES:
            return False
        frames.append((record, position & 0xFFFFFFFF, FRAME_ENTRY if entry else 0))
    return False


def _mark_entry(frames: list[tuple[CodeRecord, int, int]], first: int) -> None:
    if len(frames) > first:
        record, position, flags = frames[-1]
        frames[-1] = record, position, flags | FRAME_ENTRY


def _code(memory: Memory, layout: Layout, code_type: int, code: int) -> CodeRecord | None:
    """None for _Py_InitCleanup."""
    if memory.word(code + layout["OBJECT_TYPE"]) != code_type:
        raise _Broken
    data = memory.read(code, layout["CODE_TABLE"] + 8)
    file, name = _word(data, layout["CODE_FILENAME"]), _word(data, layout["CODE_NAME"])
    first_line = _word(data, layout["CODE_FIRSTLINENO"]) & 0xFFFFFFFF
    if file == name and not first_line:
        return None
    file_length, file_kind, file_text = _string(memory, layout, file, MAX_FILE, tail=True)
    name_length, name_kind, name_text = _string(memory, layout, name, MAX_NAME, tail=False)
    table = _word(data, layout["CODE_TABLE"])
    table_length = memory.word(table + layout["BYTES_SIZE"])
    return CodeRecord(
        code=0,
        image=0,
        language=Language.PYTHON,
        first_line=first_line,
        file_length=file_length,
        name_length=name_length,
        table_length=table_length,
        kinds=file_kind | name_kind << 8,
        file=file_text,
        name=name_text,
        table=memory.read(table + layout["BYTES_DATA"], min(table_length, MAX_TABLE)),
    )


def _string(memory: Memory, layout: Layout, at: int, size: int, tail: bool) -> tuple[int, int, bytes]:
    """(bytes of the whole, bytes a character, its end or start)."""
    state = memory.word(at + layout["STRING_STATE"]) >> layout["STRING_STATE_SHIFT"]
    kind = state & 7
    data = at + layout["STRING_ASCII" if state & _COMPACT_ASCII else "STRING_COMPACT"]
    length = memory.word(at + layout["STRING_LENGTH"]) * (kind or 1)
    kept = min(length, size - 1)
    return length, kind, memory.read(data + (length - kept if tail else 0), kept)


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")
