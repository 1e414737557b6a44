"""The peer: fork with its stack, exit and wait of some processes and their descendants, as BCC tools are written.

    [BCC_KERNEL_SOURCE=bpf] python3 bcc_callback.py PID...      the variable where kernel headers are missing

A ring buffer of BCC's usual size, its poll loop, and a callback for each record that decodes it by BCC's own cast.
At Ctrl-C it prints what it got as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from bcc import BPF

MAX_S = 300  # it ends by itself where nobody is left to end it

SOURCE = """
struct event {
    u64 ts;
    u32 type;
    u32 pid;
    u32 ppid;
    int stack;
    char comm[16];
};
BPF_RINGBUF_OUTPUT(events, 256);
BPF_STACK_TRACE(stacks, 16384);
BPF_HASH(traced, u32, u8, 65536);
BPF_ARRAY(lost, u64, 1);

static inline void count_lost(void)
{
    int zero = 0;
    u64 *n = lost.lookup(&zero);
    if (n)
        __sync_fetch_and_add(n, 1);
}

static inline int report(u32 type, u32 pid, u32 ppid, int stack)
{
    struct event *e = events.ringbuf_reserve(sizeof(*e));
    if (!e) {
        count_lost();
        return 0;
    }
    e->ts = bpf_ktime_get_ns();
    e->type = type;
    e->pid = pid;
    e->ppid = ppid;
    e->stack = stack;
    bpf_get_current_comm(e->comm, sizeof(e->comm));
    events.ringbuf_submit(e, 0);
    return 0;
}

TRACEPOINT_PROBE(task, task_newtask)
{
    u32 ppid = bpf_get_current_pid_tgid() >> 32, pid = args->pid;
    u8 one = 1;
    if (args->clone_flags & 0x10000 || !traced.lookup(&ppid)) /* CLONE_THREAD */
        return 0;
    traced.update(&pid, &one);
    return report(1, pid, ppid, stacks.get_stackid(args, BPF_F_USER_STACK));
}

TRACEPOINT_PROBE(sched, sched_process_exit)
{
    u64 id = bpf_get_current_pid_tgid();
    u32 pid = id >> 32;
    if (pid != (u32)id || !traced.lookup(&pid))
        return 0;
    traced.delete(&pid);
    return report(2, pid, 0, 0);
}

TRACEPOINT_PROBE(syscalls, sys_exit_wait4)
{
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    if (args->ret <= 0 || !traced.lookup(&pid))
        return 0;
    return report(3, args->ret, pid, 0);
}
"""


def main() -> None:
    # pid_t stands in the tracepoints' formats, and not in the few kernel headers of bpf/
    b = BPF(text=SOURCE, cflags=["-Dpid_t=int"] if "BCC_KERNEL_SOURCE" in os.environ else [])
    alive: dict[int, tuple[int, int, int]] = {}
    counts = {1: 0, 2: 0, 3: 0}

    def on_event(ctx: object, data: int, size: int) -> None:
        event: Any = b["events"].event(data)
        counts[event.type] += 1
        if event.type == 1:
            alive[event.pid] = event.ts, event.ppid, event.stack
        elif event.type == 3:
            alive.pop(event.pid, None)

    b["events"].open_ring_buffer(on_event)
    traced = b["traced"]
    for pid in sys.argv[1:]:
        traced[traced.Key(int(pid))] = traced.Leaf(1)
    stopped: list[int] = []  # a KeyboardInterrupt would be lost when it comes within a callback
    signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    signal.alarm(MAX_S)
    print("tracing", file=sys.stderr, flush=True)
    while not stopped:
        b.ring_buffer_poll(1000)
    b.ring_buffer_consume()
    print(json.dumps({"forks": counts[1], "events": sum(counts.values()), "lost": b["lost"][0].value}))


if __name__ == "__main__":
    main()
