"""Ruby's frames read from user space: what bpf/ruby.c does in the kernel, step by step, for ``late``.

Constants without a comment are Ruby's own names, as there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from tracer.records import FRAME_ENTRY, MAX_FILE, MAX_FRAMES, MAX_NAME, CodeRecord, Language, Walk
from tracer.stacks.interpreters.late import Memory, Unreadable, Walked

KIND_C_METHOD, KIND_SINGLETON, KIND_BITS, MAX_CLASS = (
    1,
    2,
    8,
    256,
)  # code_record.kinds, and bytes of its table

_MAX_THREADS = 4096
_MAX_LOOKED_AT = 4 * MAX_FRAMES  # control frames, of all fibers
_MAX_ENV, _MAX_EVAL, _MAX_VARIABLES = 16, 4, 12
_MAX_STACK_WORDS = 1 << 26
_JMPBUF_MORE = 160
_CLASS, _MODULE, _STRING, _ARRAY, _IMEMO, _TYPE_MASK = 2, 3, 5, 7, 0x1A, 0x1F
_IMEMO_MASK, _SVAR, _MENT, _ISEQ = 0xF01F, 2 << 12 | _IMEMO, 6 << 12 | _IMEMO, 7 << 12 | _IMEMO
_NOEMBED = 1 << 13
_METHOD, _EVAL = 1, 6  # enum iseq_type
_FRAME_MAGIC_MASK, _FRAME_MAGIC_CFUNC, _FRAME_FLAG_FINISH = 0x7FFF0001, 0x55550001, 0x20
_ENV_FLAG_LOCAL = 2
_MAX_OPERATOR, _ID_SCOPE_SHIFT, _ID_ENTRY_UNIT, _ID_ENTRY_SIZE = 1000, 4, 512, 2
_IMMEDIATE_TABLE_SIZE = 54
_MASK = (1 << 64) - 1

Layout = Mapping[str, int]
Taken = tuple[CodeRecord, int, int]


class _Broken(Exception):
    """What is there is no frame."""


def walk(memory: Memory, layout: Layout, base: int, thread: int) -> Walked:
    """layout: by the names of enum ruby_layout.  base: what is added to the file's addresses.  thread: its pointer."""
    frames: list[Taken] = []
    reader = _Frames(memory, layout, base)
    try:
        context = reader.context(thread)
        if not context:
            return Walked((), Walk.NO_THREAD)
        for looked, control_frame in enumerate(reader.control_frames(context)):
            taken = reader.take(control_frame)
            if looked >= _MAX_LOOKED_AT or (taken and len(frames) >= MAX_FRAMES):
                return Walked(tuple(frames), Walk.TOO_DEEP)
            frames += [taken] if taken else []
    except Unreadable:
        return Walked(tuple(frames), Walk.UNREADABLE)
    except _Broken:
        return Walked(tuple(frames), Walk.BROKEN)
    return Walked(tuple(frames), Walk.DONE)


class _Lenient:
    """Memory in which what cannot be read is zero: for names and lines, without which a frame is one all the same."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def read(self, address: int, size: int) -> bytes:
        try:
            return self._memory.read(address, size)
        except Unreadable:
            return bytes(size)

    def word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")


class _Reader:
    def __init__(self, memory: Memory | _Lenient, layout: Layout, base: int) -> None:
        self._memory, self._layout, self._base = memory, layout, base

    def _words(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", self._memory.read(address, 8 * count))

    def _field(self, address: int, name: str) -> int:
        return self._memory.word(address + self._layout[name])

    def _number(self, address: int) -> int:
        return int.from_bytes(self._memory.read(address, 4), "little")


class _Frames(_Reader):
    def __init__(self, memory: Memory, layout: Layout, base: int) -> None:
        super().__init__(memory, layout, base)
        self._names = _Names(_Lenient(memory), layout, base)

    # --- whose frames ----------------------------------------------------------------------------------------

    def context(self, thread: int) -> int:
        """The thread's execution context, 0 if it has none."""
        broken = False
        for context in self._listed(thread) if self._layout["CURRENT_VM"] else self._local(thread):
            try:
                self._span(context)
            except _Broken:
                broken = True
            else:
                return context
        if broken:
            raise _Broken
        return 0

    def _listed(self, thread: int) -> Iterator[int]:
        head = self._memory.word(self._base + self._layout["CURRENT_VM"]) + self._layout["VM_THREADS"]
        node = self._memory.word(head)
        for _ in range(_MAX_THREADS):
            if node in (0, head):
                return
            if self._field(node, "THREAD_ID") == thread:
                yield self._field(node, "THREAD_CONTEXT")
                return
            node = self._memory.word(node)

    def _local(self, thread: int) -> Iterator[int]:
        layout = self._layout
        module = self._memory.word(self._base + layout["TLS_MODULE"]) if layout["TLS_MODULE"] else 1
        table = self._memory.word(thread + 8)
        block = self._memory.word(table + module * layout["DTV_SIZE"] & _MASK)
        for index in range(layout["TLS_WORDS"]):
            context = self._memory.word(block + layout["TLS_CONTEXT"] + 8 * index & _MASK)
            try:
                if (
                    context
                    and self._field(self._field(context, "CONTEXT_THREAD"), "THREAD_CONTEXT") == context
                ):
                    yield context
            except Unreadable:
                continue

    def _span(self, context: int) -> tuple[int, int]:
        """The innermost control frame, and the end of them."""
        stack, words, frame = self._words(context, 3)
        size = self._layout["CONTROL_FRAME"]
        end = stack + words * 8 - size
        if (
            words > _MAX_STACK_WORDS
            or (stack | frame) & 7
            or not stack <= frame <= end
            or (end - frame) % size
        ):
            raise _Broken
        return frame, end

    def control_frames(self, context: int) -> Iterator[int]:
        """Those of the context's fiber, then of who resumed it, and so on."""
        for _ in range(_MAX_LOOKED_AT):  # a circle of fibers that have no frames
            frame, end = self._span(context)
            yield from range(frame, end, self._layout["CONTROL_FRAME"])
            fiber = self._field(context, "CONTEXT_FIBER")
            inside = context - fiber
            previous = next((p for p in self._previous(fiber) if self._is_fiber(p, inside)), 0)
            if not previous:
                return
            context = previous + inside
        raise _Broken

    def _previous(self, fiber: int) -> Iterator[int]:
        for more in (0, _JMPBUF_MORE) if fiber else ():
            yield self._memory.word(fiber + self._layout["FIBER_PREVIOUS"] + more)

    def _is_fiber(self, fiber: int, context: int) -> bool:
        try:
            return bool(fiber) and self._field(fiber + context & _MASK, "CONTEXT_FIBER") == fiber
        except Unreadable:
            return False

    # --- frames ----------------------------------------------------------------------------------------------

    def take(self, control_frame: int) -> Taken | None:
        """None for what is in no backtrace."""
        pc, _, iseq, _, ep = self._words(control_frame, 5)
        method, _, flags = self._words(ep - 16 & _MASK, 3)
        kind = flags & _FRAME_MAGIC_MASK
        if not kind & 1 or kind == 1:
            raise _Broken
        entry = FRAME_ENTRY if flags & _FRAME_FLAG_FINISH else 0
        if iseq and pc:
            return (*self._iseq(iseq, pc, ep), entry)
        if not iseq and kind == _FRAME_MAGIC_CFUNC:
            return self._method(method), 0, entry
        return None

    def _method(self, method: int) -> CodeRecord:
        flags, _, definition, _, owner = self._words(method, 5)
        if flags & _IMEMO_MASK != _MENT:
            raise _Broken
        return self._names.of_method(definition, owner)

    def _iseq(self, iseq: int, pc: int, ep: int) -> tuple[CodeRecord, int]:
        flags, _, body = self._words(iseq, 3)
        if flags & _IMEMO_MASK != _ISEQ:
            raise _Broken
        head, encoded = self._words(body, 2)
        self._words(body + 64, 3)  # the names are there
        position = (pc - encoded) // 8
        if not 0 <= position <= head >> 32:
            raise _Broken
        return self._names.of_iseq(body, ep), self._names.line(body, max(position - 1, 0))


class _Names(_Reader):
    def of_method(self, definition: int, owner: int) -> CodeRecord:
        length, name = self._string(self._name_of(self._memory.word(definition + 32)), MAX_NAME)
        return self._record(b"", 0, name, length, KIND_C_METHOD, length, owner)

    def of_iseq(self, body: int, ep: int) -> CodeRecord:
        path, base_label, label = self._words(body + 64, 3)
        owner = self._owner_of(body, ep)
        if not self._is(path, _STRING):
            real = self._element(path, 1)
            path = real if self._is(real, _STRING) else self._element(path, 0)
        for _ in range(_MAX_EVAL if self._layout["BODY_PARENT"] else 0):
            if self._number(body) != _EVAL:
                break
            body = self._memory.word(self._field(body, "BODY_PARENT") + 16)
            _, base_label, label = self._words(body + 64, 3)
        file_length, file = self._string(path, MAX_FILE, tail=True)
        length, name = self._string(label, MAX_NAME)
        method = self._string(base_label, MAX_NAME)[0]
        return self._record(file, file_length, name, length, 0, method, owner)

    def _record(
        self, file: bytes, file_length: int, name: bytes, length: int, kinds: int, method: int, owner: int
    ) -> CodeRecord:
        singleton, class_length, class_name = self._class(owner)
        return CodeRecord(
            code=0,
            image=0,
            language=Language.RUBY,
            first_line=0,
            file_length=file_length,
            name_length=length,
            table_length=class_length,
            kinds=kinds | singleton | (method if method < MAX_NAME else 0) << KIND_BITS,
            file=file,
            name=name,
            table=class_name,
        )

    def line(self, body: int, position: int) -> int:
        entries, _, size, table = self._words(body + self._layout["BODY_INFO"], 4)
        size &= 0xFFFFFFFF
        if size == 1:
            index = 1
        elif position < _IMMEDIATE_TABLE_SIZE:
            index = self._memory.word(table + position // 9 * 8) >> position % 9 * 7 & 0x7F
        else:
            block, bit = divmod(position - _IMMEDIATE_TABLE_SIZE, 512)
            rank, ranks, *bits = self._words(table + 48 + block * 80, 10)
            small = bit // 64
            index = rank & 0xFFFFFFFF
            index += ranks >> (small - 1) * 9 & 0x1FF if small else 0
            index += (bits[small] << (63 - bit % 64) & _MASK).bit_count()
        return self._number(entries + (index - 1) * self._layout["INFO_SIZE"]) if 0 < index <= size else 0

    def _is(self, value: int, *types: int) -> bool:
        return bool(value) and not value & 7 and self._memory.word(value) & _TYPE_MASK in types

    def _string(self, value: int, size: int, tail: bool = False) -> tuple[int, bytes]:
        """Bytes of the whole, and as many as there is room for; (0, b"") for what is none."""
        if not self._is(value, _STRING):
            return 0, b""
        flags, _, length, pointer = self._words(value, 4)
        embedded = self._layout["STRING_DATA"]
        if not flags & _NOEMBED:
            pointer = value + embedded
            length = flags >> 14 & 31 if embedded == 16 else length
        kept = min(length, size - 1)
        return length, self._memory.read(pointer + (length - kept if tail else 0), kept)

    def _element(self, array: int, index: int) -> int:
        if not self._is(array, _ARRAY):
            return 0
        flags, _, length, _, pointer = self._words(array, 5)
        if flags & _NOEMBED:
            pointer = array + 16
        elif index >= length:
            return 0
        return self._memory.word(pointer + index * 8 & _MASK)

    def _name_of(self, identifier: int) -> int:
        if not self._layout["GLOBAL_SYMBOLS"]:
            return 0
        serial = identifier >> _ID_SCOPE_SHIFT if identifier > _MAX_OPERATOR else identifier
        ids = self._memory.word(self._base + self._layout["GLOBAL_SYMBOLS"] + 16)
        unit, place = divmod(serial, _ID_ENTRY_UNIT)
        return self._element(self._element(ids, unit), place * _ID_ENTRY_SIZE)

    def _owner_of(self, body: int, ep: int) -> int:
        """The class of the method that a frame is in, or in a block of; 0 outside of methods."""
        method = self._memory.word(self._field(body, "BODY_METHOD") + 16)
        if self._number(method) != _METHOD:
            return 0
        for _ in range(_MAX_ENV):
            entry, around, flags = self._words(ep - 16 & _MASK, 3)
            local = flags & _ENV_FLAG_LOCAL
            kind = self._memory.word(entry) & _IMEMO_MASK if self._is(entry, _IMEMO) else 0
            if local and kind == _SVAR:
                entry = self._memory.word(entry + 8)
                kind = self._memory.word(entry) & _IMEMO_MASK if self._is(entry, _IMEMO) else 0
            if kind == _MENT:
                return self._memory.word(entry + 32)
            if local:
                return 0
            ep = around & ~3
        return 0

    def _class(self, owner: int) -> tuple[int, int, bytes]:
        """(KIND_SINGLETON or 0, bytes of its name, the start of them)."""
        layout, singleton = self._layout, 0
        if not self._is(owner, _CLASS, _MODULE):
            return 0, 0, b""
        if self._memory.word(owner) & (layout["SINGLETON"] | _TYPE_MASK) == layout["SINGLETON"] | _CLASS:
            if not layout["CLASS_EXTENSION"] and not layout["CLASS_ATTACHED"]:
                return 0, 0, b""
            singleton = KIND_SINGLETON
            by_variable = layout["CLASS_EXTENSION"]
            owner = self._attached(owner) if by_variable else self._field(owner, "CLASS_ATTACHED")
            if not self._is(owner, _CLASS, _MODULE):
                return 0, 0, b""
        name = 0
        if layout["CLASS_EXTENSION"]:
            name = next((v for k, v in self._variables(owner) if self._is_classpath(k, v)), 0)
        elif layout["CLASS_PATH"]:
            name = self._field(owner, "CLASS_PATH")
        length, text = self._string(name, MAX_CLASS)
        return singleton, length, text

    def _variables(self, owner: int) -> Iterator[tuple[int, int]]:
        table = self._memory.word(self._field(owner, "CLASS_EXTENSION") + 8)
        if not table:
            return
        count, entries = self._words(table + 40, 2)
        for index in range(min(count, _MAX_VARIABLES)):
            _, key, value = self._words(entries + 24 * index, 3)
            yield key, value

    def _attached(self, owner: int) -> int:
        for _, value in self._variables(owner):
            if self._is(value, _CLASS, _MODULE) and self._memory.word(value + 8) == owner:
                return value
        return 0

    def _is_classpath(self, key: int, value: int) -> bool:
        return self._is(value, _STRING) and self._string(self._name_of(key), MAX_NAME)[1] == b"__classpath__"
