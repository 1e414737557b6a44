"""Stack samples in, stack ids out: unwinds what the kernel did not know, tells it what to recognise next time, and
gives the finished stacks when a report or a capture asks for them.

Frames are stored as (module, address), so one stack of a program is one id however often the program was started.
Names, lines and libraries are looked up when they are asked for; the modules keep their files open until then.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from functools import partial
from typing import Protocol

from tracer import procfs, records, trace
from tracer.blame.attribute import Blamer
from tracer.lifecycle.task import pid_of
from tracer.records import StackSample
from tracer.stacks import maps, registers
from tracer.stacks.maps import AddressSpace, Mapping
from tracer.stacks.modules import Module, Modules
from tracer.stacks.symbolize import symbolize
from tracer.stacks.unwind import RawFrame, Unwound, unwind

MAX_SPACES = 1024  # address spaces kept, the longest unused goes first
MAX_STACKS = 100_000  # different stacks; further ones are counted under "no stack"
MAX_WAYS = 50_000
GONE = "the process was gone before its memory map could be read"


class Kernel(Protocol):
    """What the store wants of the probe."""

    def image_of(self, identity: int) -> int | None: ...
    def remember_stack(self, key: bytes, value: bytes) -> None: ...
    def remember_space(self, image: int, exec_vm: int) -> None: ...


class StackStore:
    """Ids start at 1; 0 is "no stack".  dropped: samples beyond ``MAX_STACKS`` different stacks."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._modules = Modules()
        self._blamer = Blamer()
        self._spaces: OrderedDict[tuple[int, int], AddressSpace] = OrderedDict()
        self._latest: OrderedDict[int, AddressSpace] = OrderedDict()  # by image, whatever its mappings were
        self._ids: dict[tuple[object, ...], int] = {}
        self._raw: list[tuple[tuple[RawFrame, ...], str | None]] = []
        self._ways: dict[tuple[int, int, int, int], list[int]] = {}  # hashes of what each way holds
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
            return self._intern((), GONE)
        unwound = unwind(space, partial(self._module, sample), regs, sp, sample.stack, sample.holes)
        ident = self._intern(unwound.frames, unwound.cut)
        # Cut at a page that was not in memory: next time it may be.
        if ident and exact and sample.image and unwound.frames and not (unwound.cut and sample.holes):
            self._tell_kernel(sample, regs, sp, ident, unwound)
        return ident

    def stack(self, ident: int) -> trace.Stack:
        """Symbolized and attributed; remembered."""
        finished = self._finished.get(ident)
        if finished is None:
            frames, cut = self._raw[ident - 1]
            modules = {frame.module.path: frame.module for frame in frames if frame.module}
            stack = trace.Stack(ident, tuple(symbolize(frame) for frame in frames), cut)
            finished = self._finished[ident] = self._blamer.attribute(stack, modules)
        return finished

    def notes(self) -> tuple[str, ...]:
        """What could not be read of the mapped files, a sentence each."""
        return self._modules.notes()

    def close(self) -> None:
        self._spaces.clear()
        self._latest.clear()
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
            try:
                with open(f"/proc/{pid}/maps", "rb", buffering=0) as file:
                    text = file.read().decode("utf-8", "surrogateescape")
            except OSError:
                continue
            if sample.image and self._kernel.image_of(identity) != sample.image:
                continue  # it has run another program since
            space = maps.parse(text)
            if space.code_pages == sample.exec_vm:
                return space
            if space.mappings:
                since_changed = space
        return since_changed

    def _module(self, sample: StackSample, mapping: Mapping) -> Module | None:
        """Files are opened through a process that has them mapped: whoever of the two is still there."""
        pids = [pid_of(sample.task), sample.child]
        alive = next((pid for pid in pids if pid and os.path.exists(f"/proc/{pid}/root")), pids[0])  # noqa: PTH110
        return self._modules.of(alive, mapping)

    # --- ids -----------------------------------------------------------------------------------------------

    def _intern(self, frames: tuple[RawFrame, ...], cut: str | None) -> int:
        key = (cut, *((frame.module, frame.vaddr) for frame in frames))
        ident = self._ids.get(key)
        if ident is None:
            if len(self._raw) >= MAX_STACKS:
                self.dropped += 1
                return 0
            self._raw.append((frames, cut))
            ident = self._ids[key] = len(self._raw)
        return ident

    def _tell_kernel(
        self, sample: StackSample, regs: dict[int, int], sp: int, ident: int, unwound: Unwound
    ) -> None:
        words, used = unwound.words, sorted(unwound.registers)
        if len(words) > records.KNOWN_WORDS or len(used) > records.KNOWN_REGS:
            return
        key = sample.image, regs[registers.RA], sp, sample.exec_vm
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

    def _way(self, key: tuple[int, int, int, int], value: bytes) -> int:
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


def _keep(cache: OrderedDict, key: object, space: AddressSpace) -> None:  # type: ignore[type-arg]
    cache[key] = space
    cache.move_to_end(key)
    if len(cache) > MAX_SPACES:
        cache.popitem(last=False)
