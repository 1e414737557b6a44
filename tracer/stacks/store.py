"""Stack samples in, stack ids out: unwinds what the kernel did not know, tells it what to recognise next time, and
gives the finished stacks when a report or a capture asks for them.

Frames are stored as (module, address), so one stack of a program is one id however often the program was started.
Names, lines and libraries are looked up when they are asked for; the modules keep their files open until then.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from tracer import procfs, records, trace
from tracer.blame.attribute import Blamer
from tracer.blame.rules import Rules
from tracer.lifecycle.task import pid_of
from tracer.records import CodeRecord, StackSample, Walk
from tracer.stacks import maps, registers
from tracer.stacks.elf import BadElf
from tracer.stacks.interpreters.base import Found
from tracer.stacks.interpreters.late import Memory
from tracer.stacks.interpreters.merge import ScriptFrame, merge
from tracer.stacks.interpreters.scripts import COMPILED, LANGUAGES, MISSED, Scripts, is_loop
from tracer.stacks.maps import AddressSpace, Mapping
from tracer.stacks.modules import Module, Modules
from tracer.stacks.perfmap import PerfMaps, explain, runtime_of
from tracer.stacks.symbolize import symbolize
from tracer.stacks.unwind import RawFrame, Unwound, frame_at, unwind

MAX_SPACES = 1024  # address spaces kept, the longest unused goes first
MAX_STACKS = 100_000  # different stacks; further ones are counted under "no stack"
MAX_WAYS = 50_000
MAX_NOTES = 16
NO_JAVA_NAMES = (
    "the Java frames of process {pid} have no names: "
    "`jcmd {pid} Compiler.perfmap` writes them (Java 17 or newer)"
)
SIGNAL_RETURNS = ("__restore_rt", "__restore")
GONE = "the process was gone before its memory map could be read"


class Kernel(Protocol):
    """What the store wants of the probe."""

    def image_of(self, identity: int) -> int | None: ...
    def remember_stack(self, key: bytes, value: bytes) -> None: ...
    def remember_space(self, image: int, exec_vm: int) -> None: ...
    def walk_interpreter(self, image: int, language: records.Language, value: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class _Raw:
    """A stack as it was taken.  found: the interpreter whose frames ``script`` are.  late: which were read after the
    fork.
    """

    frames: tuple[RawFrame, ...]
    cut: str | None
    script: tuple[ScriptFrame, ...] = ()
    found: Found | None = None
    late: bool = False


class StackStore:
    """Ids start at 1; 0 is "no stack".  dropped: samples beyond ``MAX_STACKS`` different stacks."""

    def __init__(self, kernel: Kernel, rules: Rules | None = None) -> None:
        self._kernel = kernel
        self._modules = Modules()
        self._blamer = Blamer(rules)
        self._scripts = Scripts(kernel)
        self._perf_maps = PerfMaps()
        self._notes: dict[str, None] = {}
        self._spaces: OrderedDict[tuple[int, int], AddressSpace] = OrderedDict()
        self._latest: OrderedDict[int, AddressSpace] = OrderedDict()  # by image, whatever its mappings were
        self._ids: dict[tuple[object, ...], int] = {}
        self._raw: list[_Raw] = []
        self._ways: dict[tuple[int, ...], list[int]] = {}  # hashes of what each way holds
        self._finished: dict[int, trace.Stack] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._raw)

    def add(self, sample: StackSample) -> int:
        """The id of this sample's stack.  Never raises for what the target did."""
        regs = registers.decode(sample.regs)
        sp = regs[registers.SP]
        space, exact = self._space(sample)
        if space is None:
            return self._intern(_Raw((), GONE))
        modules = partial(self._module, sample)
        unwound = unwind(space, modules, regs, sp, sample.stack, sample.holes, sample.gap)
        frames = self._named(sample, space, unwound.frames)
        found = (
            self._scripts.recognise(sample.image, self._alive(sample), space, modules)
            if sample.image
            else None
        )
        ident = self._intern(self._with_script(sample, space, frames, unwound.cut, found))
        # Cut at a page that was not in memory, or at a file that could not be opened: next time it may be.
        kept = (sample.image, sample.exec_vm) in self._spaces
        whole = unwound.frames and kept and not (unwound.cut and sample.holes)
        if ident and exact and sample.image and whole and self._is_settled(sample, found):
            self._tell_kernel(sample, regs, sp, ident, unwound)
        return ident

    def add_code(self, record: CodeRecord) -> None:
        """What a script frame of the samples to come executes."""
        self._scripts.add_code(record)

    def recognise(self, identity: int, image: int) -> None:
        """A process has started or exec'd: look for an interpreter in it before it forks."""
        pid = pid_of(identity)
        space = _read_maps(pid)
        if space is not None and self._kernel.image_of(identity) == image:
            self._scripts.recognise(image, pid, space, partial(self._modules.of, pid))

    def _with_script(
        self,
        sample: StackSample,
        space: AddressSpace,
        frames: tuple[RawFrame, ...],
        cut: str | None,
        found: Found | None,
    ) -> _Raw:
        if found is not None and self._scripts.is_missed(sample, found):
            memory = self._open_memory(sample, space)
            if memory is not None:
                with memory:
                    native = [symbolize(frame) for frame in frames]
                    late = self._scripts.late(sample, found, memory, native, cut is None)
                if late:
                    return _Raw(frames, cut, late, found, late=True)
        script = self._scripts.frames(sample)
        if cut and script and found is not None and sample.walk == Walk.DONE:
            cut = f"{cut}; the {LANGUAGES[found.language].name} frames are all here"
        return _Raw(frames, self._scripts.cut(sample) or cut, script, found)

    @staticmethod
    def _is_settled(sample: StackSample, found: Found | None) -> bool:
        """Whether the next fork of this stack would be told from another: not while a walker is still missing."""
        return found is None or not found.value or sample.walk not in MISSED

    def stack(self, ident: int) -> trace.Stack:
        """Symbolized and attributed; remembered."""
        finished = self._finished.get(ident)
        if finished is None:
            raw = self._raw[ident - 1]
            modules = {frame.module.path: frame.module for frame in raw.frames if frame.module}
            frames = tuple(symbolize(frame) for frame in raw.frames)
            if raw.found is not None:
                found, path = raw.found, raw.found.module.path
                language = LANGUAGES[found.language].name
                compiled = found.language in COMPILED
                frames = merge(
                    frames,
                    raw.script,
                    language,
                    # in anonymous memory: what was compiled, or what the perf map calls a script's function
                    lambda f: f.module == path or (f.module is None and (compiled or f.language == language)),
                    lambda frame: frame.module is None or is_loop(found, frame),
                )
            finished = self._finished[ident] = self._blamer.attribute(
                trace.Stack(ident, frames, raw.cut, read_late=raw.late), modules
            )
        return finished

    def in_signal_handler(self, ident: int) -> bool:
        """The stack goes through the trampoline that a signal handler returns to."""
        return any(map(_is_signal_frame, self._raw[ident - 1].frames)) if ident > 0 else False

    def function_at(self, pid: int, address: int) -> str | None:
        """The code at an address of a living process: "function (library)" or "library+0x1234"; None where none is."""
        space = _read_maps(pid)
        mapping = space.find(address) if space is not None else None
        if space is None or mapping is None:
            return None
        raw = frame_at(space, partial(self._modules.of, pid), address)
        frame = symbolize(raw)
        stack = trace.Stack(0, (frame,))
        if raw.module is not None:
            stack = self._blamer.attribute(stack, {raw.module.path: raw.module})
        library = stack.frames[0].library
        name = library.name if library else mapping.path or "no file"
        return f"{frame.function} ({name})" if frame.function else f"{name}+{frame.offset or 0:#x}"

    def notes(self) -> tuple[str, ...]:
        """What could not be read of the mapped files, a sentence each."""
        return (*self._scripts.notes, *self._notes, *self._modules.notes())

    def close(self) -> None:
        self._spaces.clear()
        self._latest.clear()
        self._perf_maps.close()
        self._modules.close()

    # --- address spaces ------------------------------------------------------------------------------------

    def _space(self, sample: StackSample) -> tuple[AddressSpace | None, bool]:
        """The sample's address space, and whether its mappings are those of the moment of the fork."""
        key = sample.image, sample.exec_vm
        space = self._spaces.get(key) if sample.image else None
        if space is not None:
            self._spaces.move_to_end(key)
            return space, True
        space = self._read(sample)
        if space is None:
            return self._latest.get(sample.image), False
        exact = space.code_pages == sample.exec_vm
        if sample.image and exact:
            _keep(self._spaces, key, space)
            _keep(self._latest, sample.image, space)
            self._kernel.remember_space(*key)
        return space, exact

    def _read(self, sample: StackSample) -> AddressSpace | None:
        """/proc/PID/maps of the forker, or of the child, which has a copy of it until it execs.

        Code that was mapped or unmapped since the fork shows in the number of its pages; then it is the best there is.
        """
        since_changed = None
        for pid in (pid_of(sample.task), sample.child):
            stat = procfs.read_stat(pid) if pid else None
            if stat is None:
                continue
            identity = procfs.identity(stat)
            if pid != sample.child and identity != sample.task:
                continue  # the pid is another process's by now
            space = _read_maps(pid)
            if space is None or (sample.image and self._kernel.image_of(identity) != sample.image):
                continue  # it is gone, or has run another program since
            if space.code_pages == sample.exec_vm:
                return space
            if space.mappings:
                since_changed = space
        return since_changed

    def _open_memory(self, sample: StackSample, space: AddressSpace) -> Memory | None:
        """Of the forker while its thread is there, or of the child, which has a copy of it until it execs."""
        forker = pid_of(sample.task)
        for pid, tid in ((forker, sample.tid), (sample.child, sample.child)):
            with suppress(OSError):
                memory = Memory(pid, space)
                stat = procfs.read_stat(pid)
                identity = procfs.identity(stat) if stat is not None else 0
                same = pid == sample.child or identity == sample.task
                same_image = bool(sample.image) and self._kernel.image_of(identity) == sample.image
                if same and same_image and Path(f"/proc/{pid}/task/{tid}").is_dir():
                    return memory
                memory.close()
        return None

    def _module(self, sample: StackSample, mapping: Mapping) -> Module | None:
        """Files are opened through a process that has them mapped; either may be gone before that is done."""
        module = None
        for pid in (pid_of(sample.task), sample.child):
            module = self._modules.of(pid, mapping) if pid else module
            if module is None or module.elf is not None:
                return module
        self._spaces.pop((sample.image, sample.exec_vm), None)  # the next of this image may do better
        return module

    @staticmethod
    def _alive(sample: StackSample) -> int:
        """Whoever of the forker and the child is still there."""
        pids = [pid_of(sample.task), sample.child]
        there = (pid for pid in pids if pid and os.path.exists(f"/proc/{pid}/root"))  # noqa: PTH110 - a hot path
        return next(there, pids[0])

    def _named(
        self, sample: StackSample, space: AddressSpace, frames: tuple[RawFrame, ...]
    ) -> tuple[RawFrame, ...]:
        """The frames, those in anonymous memory with what the process's perf map calls them."""
        if all(frame.module is not None for frame in frames):
            return frames
        runtime = runtime_of(space)
        pid = self._alive(sample)
        perf_map = self._perf_maps.of(sample.image or pid, pid)
        if perf_map is None:
            if runtime == "java" and len(self._notes) < MAX_NOTES:
                self._notes[NO_JAVA_NAMES.format(pid=pid_of(sample.task))] = None
            return frames
        named = []
        for frame in frames:
            name = perf_map.find(frame.vaddr) if frame.module is None else None
            named.append(frame if name is None else frame._replace(name=explain(name, runtime)))
        return tuple(named)

    # --- ids -----------------------------------------------------------------------------------------------

    def _intern(self, raw: _Raw) -> int:
        found = raw.found.module if raw.found and raw.script else None
        places = ((frame.module, frame.name or frame.vaddr) for frame in raw.frames)
        key = (raw.cut, found, raw.script, raw.late, *places)
        ident = self._ids.get(key)
        if ident is None:
            if len(self._raw) >= MAX_STACKS:
                self.dropped += 1
                return 0
            self._raw.append(raw)
            ident = self._ids[key] = len(self._raw)
        return ident

    def _tell_kernel(
        self, sample: StackSample, regs: dict[int, int], sp: int, ident: int, unwound: Unwound
    ) -> None:
        words, used = unwound.words, sorted(unwound.registers)
        if len(words) > records.KNOWN_WORDS or len(used) > records.KNOWN_REGS:
            return
        key = sample.image, regs[registers.RA], sp, sample.fingerprint, sample.exec_vm & 0xFFFFFFFF
        unused_regs, unused_words = records.KNOWN_REGS - len(used), records.KNOWN_WORDS - len(words)
        value = records.KNOWN_STACK.pack(
            ident,
            len(words),
            len(used),
            *(registers.pt_regs_index(number) for number in used),
            *(0,) * unused_regs,
            0,
            *(regs[number] for number in used),
            *(0,) * unused_regs,
            *(offset for offset, _ in words),
            *(0,) * unused_words,
            *(word for _, word in words),
            *(0,) * unused_words,
        )
        self._kernel.remember_stack(records.STACK_KEY.pack(*key, self._way(key, value)), value)

    def _way(self, key: tuple[int, ...], value: bytes) -> int:
        """Where it was before (many samples of one stack may be in the ring already), a free way, or any."""
        if len(self._ways) >= MAX_WAYS:
            self._ways.clear()
        ways = self._ways.setdefault(key, [])
        mark = hash(value)
        if mark in ways:
            return ways.index(mark)
        if len(ways) < records.KNOWN_WAYS:
            ways.append(mark)
            return len(ways) - 1
        way = mark % records.KNOWN_WAYS
        ways[way] = mark
        return way


def _is_signal_frame(frame: RawFrame) -> bool:
    """By its unwind table, or by its name, which libraries without a table give it."""
    if frame.module is None:
        return False
    row = None
    if frame.module.cfi is not None:
        with suppress(BadElf):
            row = frame.module.cfi.row(frame.vaddr)
    return row.signal if row is not None else symbolize(frame).function in SIGNAL_RETURNS


def _read_maps(pid: int) -> AddressSpace | None:
    """None for a process that is gone, or has no memory any more."""
    try:
        with open(f"/proc/{pid}/maps", "rb", buffering=0) as file:
            text = file.read().decode("utf-8", "surrogateescape")
    except OSError:
        return None
    return maps.parse(text) if text else None


def _keep(cache: OrderedDict, key: object, space: AddressSpace) -> None:  # type: ignore[type-arg]
    cache[key] = space
    cache.move_to_end(key)
    if len(cache) > MAX_SPACES:
        cache.popitem(last=False)
