"""From a raw stack (registers, a copy of the stack, the memory map) to frames with names: no BPF, no probe.

Bottom-up: ``registers`` (the machine), ``files`` and ``source`` (target files, opened safely), ``maps`` (the address
space), ``elf``, ``expression`` and ``cfi`` (what a file says), ``modules`` (mapped files, cached), ``unwind``
(raw frames), ``debugfile``, ``symbols``, ``demangle``, ``lines`` and ``symbolize`` (names), and ``store``, which
joins them for a trace.

    space = maps.parse(text of /proc/PID/maps)
    unwound = unwind(space, partial(modules.of, pid), registers.decode(pt_regs), sp, stack)  # while PID lives
    frames = [symbolize(raw) for raw in unwound.frames]  # at any time
"""
