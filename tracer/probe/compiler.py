"""Compile bpf/*.c with BCC, in a process of its own: ``python -m tracer.probe.compiler``.

The one module that imports bcc.  It reads a request (JSON) from stdin and writes the compiled programs (JSON) to
stdout; clang's words go to stderr.  LLVM's 100 MB stay in this process, which ends at once: the tracer loads the
result itself (``kernel``), from the cache if it was compiled before.

BCC gets bpf/ as its "kernel source" (BCC_KERNEL_SOURCE): the few headers in bpf/include are all that its prelude needs.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any

from tracer.probe.programs import Compiled, MapShape, Program

EXIT_NO_BCC = 3
EXIT_REFUSED = 4  # bcc creates the maps while it compiles: the kernel said no
_LOAD_64 = 0x18
_PSEUDO_MAP_FD = 1


def compile_programs(source: str, flags: list[str], maps: list[str], programs: list[str]) -> Compiled:
    """Instructions of each function in ``programs``; every map of ``maps`` must be declared in ``source``."""
    from bcc import BPF, lib  # noqa: PLC0415 - only here, only now

    module = BPF(text=source, cflags=flags)
    shapes, names = {}, {}
    for name in maps:
        index = lib.bpf_table_id(module.module, name.encode())
        shapes[name] = MapShape(
            lib.bpf_table_type_id(module.module, index),
            lib.bpf_table_key_size_id(module.module, index),
            lib.bpf_table_leaf_size_id(module.module, index),
            lib.bpf_table_max_entries_id(module.module, index),
            lib.bpf_table_flags_id(module.module, index),
        )
        names[lib.bpf_table_fd_id(module.module, index)] = name
    return Compiled(shapes, {name: _program(module.dump_func(name), names) for name in programs})


def _program(code: bytes, names: dict[int, str]) -> Program:
    loads = []
    for offset in range(0, len(code), 8):
        opcode, registers, _, descriptor = struct.unpack_from("<BBhi", code, offset)
        if opcode == _LOAD_64 and registers >> 4 == _PSEUDO_MAP_FD:
            loads.append((offset, names[descriptor]))
    return Program(bytes(code), tuple(loads))


def main() -> int:
    request: dict[str, Any] = json.load(sys.stdin)
    os.environ["BCC_KERNEL_SOURCE"] = request["headers"]
    # bcc prints to stdout now and then; the result must stand there alone.
    result = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    try:
        import bcc  # noqa: F401, PLC0415
    except ImportError as error:
        print(error, file=sys.stderr)
        return EXIT_NO_BCC
    try:
        compiled = compile_programs(request["source"], request["flags"], request["maps"], request["programs"])
    except Exception as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    with result:
        json.dump(compiled.to_dict(), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
