"""Code records of walkers that send C strings (bpf/walker.h, named_code): bash, PHP, Perl."""

from __future__ import annotations

import os

from tracer import records
from tracer.records import CodeRecord
from tracer.stacks.interpreters.base import Code


def read(record: CodeRecord, separator: str = "") -> Code:
    """separator: between the class or package, where there is one, and the function.  A file "" is given as it is."""
    file = _string(record.file, records.MAX_FILE)
    function = _string(record.name, records.MAX_NAME)
    owner = _string(record.table, len(record.table)) if record.table else ""
    return Code(
        file, f"{owner}{separator}{function}" if owner and function else function, lambda line: line or None
    )


def _string(raw: bytes, size: int) -> str:
    text, _, _ = raw.partition(b"\0")
    return os.fsdecode(text) + ("…" if len(text) >= size - 1 else "")
