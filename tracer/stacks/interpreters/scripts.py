"""Which interpreter runs in which image, and what the walkers' frames mean: the store's part that knows languages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Final, Protocol

from tracer.records import FRAME_ENTRY, CodeRecord, Language, StackSample, Walk
from tracer.stacks.interpreters import bash, node, perl, php, python, ruby, shell
from tracer.stacks.interpreters.base import Code, Found, ModuleOf
from tracer.stacks.interpreters.command import Script, Syntax, read_script
from tracer.stacks.interpreters.late import Memory
from tracer.stacks.interpreters.merge import ScriptFrame
from tracer.stacks.maps import AddressSpace
from tracer.trace import Frame

LANGUAGES: Final[Mapping[Language, ModuleType]] = {
    Language.PYTHON: python,
    Language.RUBY: ruby,
    Language.NODE: node,
    Language.BASH: bash,
    Language.PHP: php,
    Language.PERL: perl,
    Language.SHELL: shell,
}
# Whose frames name the script as it was started, relative to where that was.
COMMANDS: Final[Mapping[Language, Syntax]] = {
    Language.BASH: bash.syntax,
    Language.PERL: perl.syntax,
    Language.SHELL: shell.syntax,
}
COMPILED: Final = frozenset({Language.NODE})  # whose frames are in anonymous memory, too, once they are hot
MAX_CODES = 65_536  # as many as the kernel's side remembers to have sent
MAX_IMAGES = 4096
LATE: Final = {
    Language.PYTHON: python.walk,
    Language.RUBY: ruby.walk,
}  # whose frames can be read from user space
MISSED: Final = frozenset({Walk.NONE, Walk.UNREADABLE})  # the walks after which that is tried
WALKS: Final = {
    Walk.TOO_DEEP: "is deeper than the frames that are taken",
    Walk.NO_THREAD: "does not know the thread that forked",
    Walk.NONE: "was not read at the fork: its walker was not loaded yet",
    Walk.UNREADABLE: "could not be read at the fork: its memory was not there",
    Walk.BROKEN: "has something else where a frame should be",
}


class Kernel(Protocol):
    def walk_interpreter(self, image: int, language: Language, value: bytes) -> None: ...


class Scripts:
    """notes: sentences on interpreters that cannot be walked."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._found: OrderedDict[int, Found | None] = OrderedDict()
        self._codes: OrderedDict[int, CodeRecord] = OrderedDict()
        self._decoded: dict[int, Code] = {}
        self._places: dict[tuple[int, int, int], ScriptFrame] = {}
        self.notes: dict[str, None] = {}

    def recognise(self, image: int, pid: int, space: AddressSpace, modules: ModuleOf) -> Found | None:
        """Look for an interpreter in the mappings of an image, and have its frames walked from now on.

        pid: of a process that runs it.
        """
        known = self._found.get(image)
        if known is not None:
            return known
        found = next((f for f in (lang.find(space, modules) for lang in LANGUAGES.values()) if f), None)
        if found is not None and found.language in COMMANDS:
            found = replace(found, script=read_script(pid, COMMANDS[found.language]))
        self._found[image] = found
        if len(self._found) > MAX_IMAGES:
            self._found.popitem(last=False)
        if found is not None and found.problem:
            self.notes[found.problem] = None
        if found is not None and found.value and image:
            self._kernel.walk_interpreter(image, found.language, found.value)
        return found

    def found(self, image: int) -> Found | None:
        return self._found.get(image)

    def add_code(self, record: CodeRecord) -> None:
        self._codes[record.code] = record
        self._decoded.pop(record.code, None)
        if len(self._codes) > MAX_CODES:
            oldest, _ = self._codes.popitem(last=False)
            self._decoded.pop(oldest, None)

    def frames(self, sample: StackSample) -> tuple[ScriptFrame, ...]:
        """The script frames of a sample, innermost first."""
        found = self._found.get(sample.image)
        if found is None:
            return ()
        if sample.frames and sample.language == found.language:
            return tuple(self._place(found, *frame) for frame in sample.frames)
        return () if found.script is None else (ScriptFrame(None, found.script.path, None, True),)

    def cut(self, sample: StackSample) -> str | None:
        """Why the script frames end early, None when they do not."""
        found = self._found.get(sample.image)
        why = WALKS.get(Walk(sample.walk)) if sample.walk in set(Walk) else None
        if found is None or not found.value or why is None:
            return None
        tried = ", and soon after it the process had gone on" if self.is_missed(sample, found) else ""
        return f"{LANGUAGES[found.language].name} {why}{tried}"

    def is_missed(self, sample: StackSample, found: Found | None) -> bool:
        """The kernel did not read the script frames, and ``late`` can try to."""
        return bool(found and found.value and found.language in LATE and sample.walk in MISSED)

    @staticmethod
    def late(
        sample: StackSample, found: Found, memory: Memory, native: Sequence[Frame], whole: bool
    ) -> tuple[ScriptFrame, ...]:
        """The script frames of the thread as they are now, if they fit the fork's native ones; else none.

        whole: ``native`` reaches the thread's start.
        """
        walked = LATE[found.language](memory, found.value, sample.thread)
        loops = sum(1 for frame in native if frame.module == found.module.path and is_loop(found, frame))
        groups = sum(bool(flags & FRAME_ENTRY) for _, _, flags in walked.frames)
        if walked.walk != Walk.DONE or (loops != groups if whole else loops > groups):
            return ()
        frames = []
        for record, position, flags in walked.frames:
            code = LANGUAGES[found.language].decode(record, found.version)
            frames.append(
                ScriptFrame(code.function, code.file, code.line(position), bool(flags & FRAME_ENTRY))
            )
        return tuple(frames)

    def _place(self, found: Found, code: int, position: int, flags: int) -> ScriptFrame:
        key = code, position, flags
        place = self._places.get(key)
        if place is None:
            decoded = self._decoded.get(code)
            if decoded is None:
                record = self._codes.get(code)
                if record is None:  # the ring was full when it was to be sent
                    return ScriptFrame(None, None, None, bool(flags & FRAME_ENTRY))
                decode = found.decoder or partial(LANGUAGES[found.language].decode, version=found.version)
                decoded = self._decoded[code] = decode(record)
            file = _resolved(decoded.file, found.script)
            entry = bool(flags & FRAME_ENTRY)
            function, line = decoded.function or None, decoded.line(position)
            if line is None and function and decoded.begins:
                function += f" (begins at line {decoded.begins})"
            place = ScriptFrame(function, file, line, entry)
            if len(self._places) > MAX_CODES:
                self._places.clear()
            self._places[key] = place
        return place


def is_loop(found: Found, frame: Frame) -> bool:
    """Whether a native frame of the interpreter executes the language's."""
    if frame.function:
        return bool(LANGUAGES[found.language].is_loop(frame.function))
    return bool(found.is_loop_at and frame.offset is not None and found.is_loop_at(frame.offset))


def _resolved(file: str | None, script: Script | None) -> str | None:
    """What a frame calls its file -> the path; "" is the outermost code of -c, or of standard input."""
    if script is None:
        return file
    return script.path if file == script.said else file
