"""The probe: programs loaded and attached, rings drained.  What the session sees of the kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, replace
from typing import Final

from tracer import records
from tracer.errors import BpfRefused, ForktraceError, Unavailable
from tracer.lifecycle.facts import NamedWait, Waits
from tracer.probe import build
from tracer.probe.loader import BpfObject, require_bpf
from tracer.probe.programs import Compiled
from tracer.probe.ring import Ring
from tracer.probe.tracefs import open_tracefs

EVENT_RING: Final = 4 << 20  # bytes: 47,000 events
SAMPLE_RING: Final = 16 << 20  # at least 500 whole stacks
CACHED_S: Final = 0.05  # a walker that was compiled before is there in this time
MAX_TRACED: Final = 65_536  # processes that live (or stand as zombies) at once


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """Sizes are powers of two.  light: no syscall tracepoints, which every process of the host pays for."""

    light: bool = False
    stacks: bool = True
    event_ring: int = EVENT_RING
    sample_ring: int = SAMPLE_RING
    max_traced: int = MAX_TRACED
    cache: str | None = build.CACHE


class Probe:
    """Attached programs.  A context manager; ``detach`` ends the tracing and keeps what is in the rings readable."""

    def __init__(self, options: ProbeOptions) -> None:
        """Load; attach nothing yet.  Raises ``Unavailable``, ``BpfRefused`` or ``NoPermission``."""
        self.options = options
        self._object, self._build_options = _load(options)
        self._walkers: dict[str, Future[Compiled] | None] = {}  # by language; None: loaded
        self._walker_problems: list[str] = []
        self._compiler: ThreadPoolExecutor | None = None
        maps = self._object.maps
        self.events = Ring(maps["events"].fd, options.event_ring)
        self.samples = Ring(maps["samples"].fd, options.sample_ring)
        self._traced, self._config, self._lost = maps["traced"], maps["config"], maps["lost"]
        self._known_stacks, self._known_spaces = maps["known_stacks"], maps["known_spaces"]
        self._interpreters = maps["interpreters"]
        self._waits, self._named_waits = maps["waits"], maps["named_waits"]
        self._suspects = maps["suspects"]
        for prog_array, program in (("walkers", "on_stack"), ("call_walkers", "on_stack_return")):
            if not options.light or prog_array == "walkers":
                self._object.enter(prog_array, 0, program)
        self.follow_everything(False)

    def attach(self) -> None:
        for program, tracepoint in build.RAW_TRACEPOINTS.items():
            self._object.attach_raw_tracepoint(program, tracepoint)
        if self.options.light:
            return
        with open_tracefs() as tracefs:
            for program, event in build.SYSCALL_TRACEPOINTS.items():
                event_id = tracefs.event_id("syscalls", event)
                if event_id is not None:  # arm64 has neither fork nor vfork
                    self._object.attach_tracepoint(program.replace("vfork", "fork"), event_id)

    def detach(self) -> None:
        self._object.detach()

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.shutdown(wait=True, cancel_futures=True)
        self.events.close()
        self.samples.close()
        self._object.close()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- which processes -------------------------------------------------------------------------------------

    def follow_everything(self, everything: bool) -> None:
        """Record every process of the host: while the session looks for the targets' descendants."""
        mode = (records.MODE_ALL if everything else 0) | (records.MODE_STACKS if self.options.stacks else 0)
        self._config.update(b"\0\0\0\0", records.CONFIG.pack(mode))

    def follow(self, identity: int) -> bool:
        """From now on, this process and whatever it forks.  False when the map of traced processes is full."""
        key = records.TRACED_KEY.pack(identity)
        if self._traced.lookup(key) is not None:
            return True
        try:
            self._traced.update(
                key, records.TRACED.pack(identity, 0, 0)
            )  # its own identity names its first image
        except OSError:
            return False
        return True

    def image_of(self, identity: int) -> int | None:
        """The address space that the process runs in now; None when it is not (or no more) traced."""
        value = self._traced.lookup(records.TRACED_KEY.pack(identity))
        return None if value is None else int(records.TRACED.unpack(value)[0])

    # --- stacks ----------------------------------------------------------------------------------------------

    def remember_stack(self, key: bytes, value: bytes) -> None:
        """``records.STACK_KEY`` and ``records.KNOWN_STACK``: the kernel sends this stack's id from now on."""
        self._known_stacks.update(key, value)

    def remember_space(self, image: int, exec_vm: int) -> None:
        """The mappings of this address space were read: its next stacks need no hurry."""
        self._known_spaces.update(records.SPACE_KEY.pack(image, exec_vm), b"\0\0\0\0")

    def take_samples(self) -> Iterator[records.StackSample | records.CodeRecord]:
        for payload in self.samples.records():
            yield records.decode_sample(payload)

    # --- interpreters ----------------------------------------------------------------------------------------

    def walk_interpreter(self, image: int, language: records.Language, value: bytes) -> None:
        """``records.INTERPRETER``: in this image the language's frames are walked from now on.

        The first call for a language loads its walker; where that must be compiled first (a second), it is done
        beside, and stacks are native until then.
        """
        self._interpreters.update(records.TRACED_KEY.pack(image), value)
        name = language.name.lower()
        if name not in self._walkers:
            if self._compiler is None:
                self._compiler = ThreadPoolExecutor(1, "compiler")
            cache = _cache(self.options)
            future = self._compiler.submit(build.build_walker, name, self._build_options, cache)
            self._walkers[name] = future
            with contextlib.suppress(NotYet, ForktraceError):
                future.result(CACHED_S)
        self._load_compiled()

    def load_walkers(self) -> list[str]:
        """Load the walkers whose compilation is done; returns sentences about those that cannot be."""
        self._load_compiled()
        problems, self._walker_problems = self._walker_problems, []
        return problems

    def _load_compiled(self) -> None:
        for name, future in self._walkers.items():
            if future is None or not future.done():
                continue
            self._walkers[name] = None
            try:
                self._object.add(future.result(), {})
                place = records.Language[name.upper()]
                self._object.enter("walkers", place, f"walk_{name}")
                if not self.options.light:
                    self._object.enter("call_walkers", place, f"walk_{name}_return")
            except ForktraceError as error:
                self._walker_problems.append(f"no {name} frames: {error.message}")

    # --- waits -----------------------------------------------------------------------------------------------

    def suspect(self, identity: int) -> None:
        """It has zombies: count its wait calls even if it is not traced, and take their stacks, once a place.

        A full map leaves further ones out.
        """
        with contextlib.suppress(OSError):
            self._suspects.update(records.TRACED_KEY.pack(identity), b"\1")

    def clear(self, identity: int) -> None:
        """It is no suspect any more."""
        with contextlib.suppress(OSError):
            self._suspects.delete(records.TRACED_KEY.pack(identity))

    def waits(self, identity: int) -> Waits | None:
        """What its wait calls did since its last exec; None where they are not seen (``--light``, a stranger)."""
        key = records.TRACED_KEY.pack(identity)
        if self.options.light or not (self._traced.lookup(key) or self._suspects.lookup(key)):
            return None
        value = self._waits.lookup(key)
        if value is None:
            return Waits()
        fields: tuple[int, ...] = records.WAITS.unpack(value)
        target, kinds = fields[9:]
        return Waits(
            any_calls=fields[0],
            any_last_ns=fields[1],
            any_empty_ns=fields[2],
            some_calls=fields[3],
            some_last_ns=fields[4],
            some_empty_ns=fields[5],
            reaped=fields[6],
            any_options=fields[7],
            some_options=fields[8],
            some_target=None if target == records.WAIT_OTHER else target,
            by_group=bool(kinds & records.WAITS_GROUP),
            by_pidfd=bool(kinds & records.WAITS_PIDFD),
            looked=bool(kinds & records.WAITS_LOOKED),
        )

    def named_wait(self, identity: int, pid: int, ns_pid: int) -> NamedWait:
        """The last wait call of a process for one of its children that did not reap it.

        ns_pid: the child's pid as the waiter's namespace has it; pid: as the host has it.
        """
        value = self._named_waits.lookup(records.NAMED_KEY.pack(identity, ns_pid, 0))
        if value is None:
            return NamedWait(pid)
        last_ns, calls, result = records.NAMED_WAIT.unpack(value)
        return NamedWait(pid, last_ns, calls, result)

    # --- losses ----------------------------------------------------------------------------------------------

    def lost(self) -> dict[str, int]:
        """So many records were lost since the start, by ``records.LOST``."""
        counts = {}
        for index, name in enumerate(records.LOST):
            value = self._lost.lookup(index.to_bytes(4, "little"))
            counts[name] = int.from_bytes(value or b"", "little")
        return counts


def _load(options: ProbeOptions) -> tuple[BpfObject, build.Options]:
    """The first set of programs that this kernel takes: features are tried, not guessed."""
    sizes = {
        "events": options.event_ring,
        "samples": options.sample_ring,
        "traced": options.max_traced,
    }
    wanted = build.Options(syscalls=not options.light)
    require_bpf()
    try:
        return BpfObject.load(build.build(wanted, _cache(options)), sizes), wanted
    except BpfRefused as refused:
        before_5_15 = replace(wanted, task_pt_regs=False)
        with contextlib.suppress(BpfRefused, Unavailable):
            return BpfObject.load(build.build(before_5_15, _cache(options)), sizes), before_5_15
        raise refused


def _cache(options: ProbeOptions) -> str | None:
    return options.cache if os.geteuid() == 0 else None
