"""Raw frames -> frames with names, for ``blame`` and the reports: the last step of ``stacks``.

A function that was inlined has no frame of its own: ``function`` is the one it was inlined into, while ``file`` and
``line`` are those of the innermost code.
"""

from __future__ import annotations

from tracer.stacks.demangle import demangle
from tracer.stacks.unwind import RawFrame
from tracer.trace import Frame

MAX_FRAMES = 1 << 14  # frames kept a module


def symbolize(raw: RawFrame) -> Frame:
    """The frame's function, file and line as far as the module's files tell.  Remembered in the module.

    Does not need the process any more.  What could not be read is in ``Module.notes``.
    """
    module = raw.module
    if module is None:
        if raw.name is not None:
            function, file, language = raw.name
            return Frame(function, file, None, None, language, offset=raw.vaddr)
        return Frame(function=None, file=None, line=None, module=None, offset=raw.vaddr)
    frame = module.frames.get(raw.vaddr)
    if frame is None:
        name = module.symbols.name(raw.vaddr)
        file, line = module.lines.position(raw.vaddr) or (None, None)
        frame = Frame(
            function=demangle(name) if name else None,
            file=file,
            line=line,
            module=module.path,
            offset=raw.vaddr,
        )
        if len(module.frames) >= MAX_FRAMES:
            module.frames.clear()
        module.frames[raw.vaddr] = frame
    return frame
