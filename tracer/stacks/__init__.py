"""From a raw stack (registers, a copy of the stack, the memory map) to frames with names: no BPF, no probe.

Bottom-up: ``registers`` (the machine), ``files`` and ``source`` (target files, opened safely), ``maps`` (the address
space), ``elf``, ``expression`` and ``cfi`` (what a file says), ``modules`` (mapped files, cached), ``unwind``
(raw frames), and ``symbols``, ``demangle``, ``lines``, ``symbolize`` (names).
"""
