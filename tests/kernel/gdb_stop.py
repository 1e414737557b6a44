"""Runs inside gdb: says as JSON how gdb sees the stopped thread, then holds it until a line comes on stdin.

Environment: GDB_STOP_SIZE, bytes of stack to copy.
"""

import json
import os
import sys

import gdb  # type: ignore[import-not-found]

# by DWARF number
NAMES = ["rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip"]

gdb.execute("set backtrace past-main on")
gdb.execute("set backtrace past-entry on")
gdb.execute("set print frame-arguments none")
gdb.execute("set print symbol off")

newest = gdb.newest_frame()
registers = {number: int(newest.read_register(name)) & (1 << 64) - 1 for number, name in enumerate(NAMES)}
memory = b""
for size in range(int(os.environ["GDB_STOP_SIZE"]), 0, -1024):  # the stack's end may come earlier
    try:
        memory = bytes(gdb.selected_inferior().read_memory(registers[7], size))
        break
    except gdb.MemoryError:
        continue
frames = []
frame = newest
while frame is not None and len(frames) < 200:
    # inlined functions have no frame, and those that ended in a jump have none any more
    if frame.type() not in {gdb.INLINE_FRAME, gdb.TAILCALL_FRAME}:
        frames.append({"pc": frame.pc(), "name": frame.name()})
    frame = frame.older()
thread = gdb.selected_thread().ptid
with open(f"/proc/{thread[0]}/maps", encoding="utf-8", errors="surrogateescape") as file:
    maps = file.read()
seen = {
    "pid": thread[0],
    "registers": registers,
    "stack": memory.hex(),
    "maps": maps,
    "frames": frames,
}
print("SEEN " + json.dumps(seen), flush=True)
sys.stdin.readline()
