"""Which interpreter runs in which image, and what the walkers' frames mean: the store's part that knows languages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import ModuleType
from typing import Final, Protocol

from tracer.records import FRAME_ENTRY, CodeRecord, Language, StackSample, Walk
from tracer.stacks.interpreters import python
from tracer.stacks.interpreters.base import Code, Found, ModuleOf
from tracer.stacks.interpreters.merge import ScriptFrame
from tracer.stacks.maps import AddressSpace

LANGUAGES: Final[Mapping[Language, ModuleType]] = {Language.PYTHON: python}
MAX_CODES = 65_536  # as many as the kernel's side remembers to have sent
MAX_IMAGES = 4096
WALKS: Final = {
    Walk.TOO_DEEP: "is deeper than the frames that are taken",
    Walk.NO_THREAD: "does not know the thread that forked",
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

    def recognise(self, image: int, space: AddressSpace, modules: ModuleOf) -> Found | None:
        """Look for an interpreter in the mappings of an image, and have its frames walked from now on."""
        known = self._found.get(image)
        if known is not None:
            return known
        found = next((f for f in (lang.find(space, modules) for lang in LANGUAGES.values()) if f), None)
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
        if found is None or sample.language != found.language:
            return ()
        return tuple(self._place(found, *frame) for frame in sample.frames)

    def cut(self, sample: StackSample) -> str | None:
        """Why the script frames end early, None when they do not."""
        found = self._found.get(sample.image)
        why = WALKS.get(Walk(sample.walk)) if sample.walk in set(Walk) else None
        if found is None or why is None:
            return None
        return f"{LANGUAGES[found.language].name} {why}"

    def _place(self, found: Found, code: int, position: int, flags: int) -> ScriptFrame:
        key = code, position, flags
        place = self._places.get(key)
        if place is None:
            decoded = self._decoded.get(code)
            if decoded is None:
                record = self._codes.get(code)
                if record is None:  # the ring was full when it was to be sent
                    return ScriptFrame(None, None, None, bool(flags & FRAME_ENTRY))
                decoded = self._decoded[code] = LANGUAGES[found.language].decode(record, found.version)
            place = ScriptFrame(
                decoded.function, decoded.file, decoded.line(position), bool(flags & FRAME_ENTRY)
            )
            if len(self._places) > MAX_CODES:
                self._places.clear()
            self._places[key] = place
        return place
