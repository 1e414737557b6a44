"""pprof's profile.proto, gzipped: samples of children and of nanoseconds as a zombie.

https://github.com/google/pprof/blob/main/proto/profile.proto; the numbers of its fields are the constants here.
"""

from __future__ import annotations

import gzip
from typing import BinaryIO

from tracer.export.attribution import COUNT, LEAKED, Selection, counts, label, labels, short, zombie_ns
from tracer.export.protobuf import block, number, packed
from tracer.report.wording import version_of
from tracer.trace import Frame, Stack, Trace

_SAMPLE_TYPE, _SAMPLE, _MAPPING, _LOCATION, _FUNCTION, _STRING = range(1, 7)
_TIME_NANOS, _DURATION_NANOS, _COMMENT, _DEFAULT_SAMPLE_TYPE = 9, 10, 13, 14


def write(trace: Trace, stream: BinaryIO, selection: Selection = LEAKED) -> None:
    """Both values where the single processes are known; the selection's weight is the one that pprof shows first.

    A sample carries its responsible library as the label ``responsible`` (pprof -tagfocus).
    """
    profile = _Profile(
        ", ".join(f"{target.pid} {short(target.comm)}" for target in trace.targets) or "the host"
    )
    with_time = trace.processes is not None or selection.weight != COUNT
    types = (("children", "count"), ("zombie", "nanoseconds"))[: 1 + with_time]
    for name, unit in types:
        profile.out += block(_SAMPLE_TYPE, number(1, profile.string(name)) + number(2, profile.string(unit)))
    values: dict[int, tuple[Stack, list[int]]] = {}
    for stack, count in counts(trace, selection):
        values.setdefault(stack.id, (stack, [0] * len(types)))[1][0] += count
    for stack, ns in zombie_ns(trace, selection) if with_time else ():
        values.setdefault(stack.id, (stack, [0] * len(types)))[1][1] += ns
    for stack, of_stack in values.values():
        profile.add_sample(stack, of_stack)
    profile.out += number(_TIME_NANOS, round(trace.started_at * 1e9))
    profile.out += number(_DURATION_NANOS, round(trace.duration_s * 1e9))
    preferred = types[0 if selection.weight == COUNT else 1][0]
    profile.out += number(_DEFAULT_SAMPLE_TYPE, profile.string(preferred))
    remarks = [f"forktrace {trace.version}", *trace.incomplete_because]
    profile.out += packed(_COMMENT, [profile.string(short(remark)) for remark in remarks])
    for text in profile.strings:
        profile.out += block(_STRING, text.encode("utf-8", "backslashreplace"))
    stream.write(gzip.compress(bytes(profile.out), mtime=0))


class _Profile:
    """The message so far, and the tables whose entries it refers to by number."""

    def __init__(self, traced: str) -> None:
        self.out = bytearray()
        self.strings: dict[str, int] = {"": 0}
        self._mappings: dict[tuple[object, ...], int] = {}
        self._functions: dict[tuple[str, str, str], int] = {}
        self._locations: dict[tuple[object, ...], int] = {}
        self._main = self._mapping(traced, None)  # pprof names a profile after its first mapping

    def string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))

    def add_sample(self, stack: Stack, values: list[int]) -> None:
        leaf_first = [self._location(name, frame) for name, frame in reversed(labels(stack))]
        out = packed(1, leaf_first) + packed(2, values)
        if stack.responsible is not None:
            library = self.string(version_of(stack.responsible))
            out += block(3, number(1, self.string("responsible")) + number(2, library))
        self.out += block(_SAMPLE, out)

    def _location(self, name: str, frame: Frame | None) -> int:
        offset = (frame.offset or 0) if frame is not None else 0
        line = (frame.line or 0) if frame is not None else 0
        mapping = self._mapping_of(frame)
        function = self._function(name, frame)
        key = mapping, offset, function, line
        if key not in self._locations:
            ident = self._locations[key] = len(self._locations) + 1
            of_line = block(4, number(1, function) + number(2, line))
            self.out += block(_LOCATION, number(1, ident) + number(2, mapping) + number(3, offset) + of_line)
        return self._locations[key]

    def _mapping_of(self, frame: Frame | None) -> int:
        if frame is None or not frame.module:
            return self._main
        return self._mapping(short(frame.module), frame.library.build_id if frame.library else None)

    def _mapping(self, file: str, build_id: str | None) -> int:
        """All of memory is said to be the file's, for it lies elsewhere in each process."""
        key = file, build_id
        if key not in self._mappings:
            ident = self._mappings[key] = len(self._mappings) + 1
            names = number(5, self.string(file)) + number(6, self.string(short(build_id or "")))
            symbolized = b"".join(number(field, 1) for field in (7, 8, 9))  # or pprof would look for the file
            self.out += block(_MAPPING, number(1, ident) + number(3, (1 << 64) - 1) + names + symbolized)
        return self._mappings[key]

    def _function(self, name: str, frame: Frame | None) -> int:
        file = short(frame.file or frame.module or "") if frame is not None else ""
        raw = short(frame.function or label(frame)) if frame is not None else name
        key = name, raw, file
        if key not in self._functions:
            ident = self._functions[key] = len(self._functions) + 1
            names = number(2, self.string(name)) + number(3, self.string(raw)) + number(4, self.string(file))
            self.out += block(_FUNCTION, number(1, ident) + names)
        return self._functions[key]
