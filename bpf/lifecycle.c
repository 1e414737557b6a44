// SPDX-License-Identifier: GPL-2.0
/*
 * Fork, exec, exit and release: one fixed-size record each, for traced processes only.
 * Raw tracepoints hand over the task itself: they cost other processes nothing, and their arguments did not change
 * between 6.12 and 6.16 as the formatted ones did.
 *
 * Trap numbers are those of docs/lifecycle.md.
 */

/* include/linux/sched.h, unchanged since 5.12 (PF_USER_WORKER: 6.4); not in BTF because they are macros. */
#define PF_IO_WORKER 0x00000010
#define PF_USER_WORKER 0x00004000
#define PF_KTHREAD 0x00200000
#define SIGNAL_GROUP_EXIT 0x00000004
#define CLONE_PARENT 0x00008000
#define CLONE_THREAD 0x00010000
#define SIGCHLD 17
#define SIG_IGN 1
#define SA_NOCLDWAIT 2

BPF_TABLE("lru_hash", u64, struct waits, waits, 16384); /* filled by calls.c */

/* A thread that the kernel runs in the process for io_uring or vhost, or one of the kernel's own (trap 20). */
static inline u32 is_worker(char *task)
{
	u32 flags = 0;

	READ(flags, task, TASK_FLAGS);
	return flags & (PF_KTHREAD | PF_IO_WORKER | PF_USER_WORKER);
}

/* BPF_HASH's update in one place, so that a full map is counted. */
static inline void follow(u64 id, u64 image)
{
	struct traced t = { .image = image };

	if (traced.update(&id, &t))
		count_lost(LOST_TRACED);
}

static inline u32 pid_in_own_ns(char *task, u32 *level)
{
	char *pid = 0;
	u32 nr = 0;

	READ(pid, task, TASK_THREAD_PID);
	READ(*level, pid, PID_LEVEL);
	READ(nr, pid, PID_NUMBERS + UPID_NR + (u64)(*level & 31) * SIZEOF_UPID);
	return nr;
}

static inline u32 pid_at_level(char *task, u32 level)
{
	char *pid = 0;
	u32 nr = 0;

	READ(pid, task, TASK_THREAD_PID);
	READ(nr, pid, PID_NUMBERS + UPID_NR + (u64)(level & 31) * SIZEOF_UPID);
	return nr;
}

/* task_newtask(task, clone_flags): in the forking thread, before the child is woken (trap 6). */
int on_newtask(struct bpf_raw_tracepoint_args *ctx)
{
	char *child = (char *)ctx->args[0];
	u64 clone_flags = ctx->args[1]; /* the kernel's own: clone3's arguments may have changed since (trap 18) */
	char *self = (char *)bpf_get_current_task();
	struct event e = {};
	u32 level = 0;
	u32 m = mode();

	if (is_worker(child))
		return 0;

	e.forker = identity(self);
	struct traced *t = traced.lookup(&e.forker);

	if (clone_flags & CLONE_THREAD) {
		if (!t && !(m & MODE_ALL))
			return 0;
		e.type = EV_THREAD;
		e.task = e.forker;
		e.tid = bpf_get_current_pid_tgid();
		send(&e);
		return 0;
	}

	e.parent = e.forker;
	if (clone_flags & CLONE_PARENT) { /* trap 7 */
		e.parent = parent_identity(child);
		if (!t)
			t = traced.lookup(&e.parent);
	}
	if (!t && !(m & MODE_ALL))
		return 0;

	u64 image = t ? t->image : 0;
	e.type = EV_FORK;
	e.task = identity(child);
	e.tid = bpf_get_current_pid_tgid();
	READ(e.value, child, TASK_EXIT_SIGNAL);
	e.ns_pid = pid_in_own_ns(child, &level);
	pid_in_own_ns(self, &level);
	e.forker_ns_pid = level ? pid_at_level(child, level) : e.task >> 32;
	bpf_get_current_comm(e.comm, sizeof(e.comm));
	if (t)
		follow(e.task, image);
	/* No stacks of strangers, while the tracer starts: they would fill the ring. */
	u32 language = t && m & MODE_STACKS ? begin_stack(&e, e.forker, image, e.task >> 32) : LANG_MAX;
	if (language == LANG_MAX) {
		send(&e);
		return 0;
	}
	if (language)
		walkers.call((struct pt_regs *)ctx, language);
	return finish_stack(); /* no interpreter, or its walker is not loaded yet */
}

/* sched_process_exec(task, old_pid, bprm).  The leader's start time moves to a thread that execs (trap 5). */
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	char *self = (char *)ctx->args[0];
	struct event e = {};

	e.task = identity(self);
	struct traced *t = traced.lookup(&e.task);
	if (!t && !(mode() & MODE_ALL))
		return 0;
	e.type = EV_EXEC;
	READ(e.tid, self, TASK_PID);
	bpf_get_current_comm(e.comm, sizeof(e.comm));
	if (t)
		t->image = bpf_ktime_get_boot_ns();
	waits.delete(&e.task); /* it is another program's children now, and another program that must wait */
	send(&e);
	return 0;
}

/*
 * What the parent of this leader does at its death: the address of the SIGCHLD handler, 0 if there is none.
 * autoreap: the child will be reaped by nobody's wait, but by itself (trap 3).
 */
static inline u64 at_sigchld(char *leader, u32 *autoreap)
{
	s32 exit_signal = 0;
	char *parent = 0, *sighand = 0;
	u64 handler = 0, flags = 0;

	READ(exit_signal, leader, TASK_EXIT_SIGNAL);
	READ(parent, leader, TASK_REAL_PARENT);
	READ(sighand, parent, TASK_SIGHAND);
	char *action = sighand + SIGHAND_ACTION + (SIGCHLD - 1) * SIZEOF_K_SIGACTION;
	READ(handler, action, SIGACTION_HANDLER);
	READ(flags, action, SIGACTION_FLAGS);
	*autoreap = exit_signal == SIGCHLD && (handler == SIG_IGN || (flags & SA_NOCLDWAIT));
	return handler == SIG_IGN ? 0 : handler;
}

/* sched_process_exit(task[, group_dead]): before the parent is told. */
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	char *self = (char *)ctx->args[0];
	char *leader = 0, *signal = 0;
	struct event e = {};

	e.task = identity(self);
	struct traced *t = traced.lookup(&e.task);
	if (!t && !(mode() & MODE_ALL))
		return 0;
	READ(e.tid, self, TASK_PID);
	READ(signal, self, TASK_SIGNAL);
#ifdef HAVE_GROUP_DEAD /* since 6.16 */
	u32 dead = ctx->args[1] & 1;
#else
	/* Two threads that exit at once may both read 0: the graph takes the second EV_EXIT for what it is. */
	s32 live = 1;
	READ(live, signal, SIGNAL_LIVE);
	u32 dead = live == 0;
#endif
	if (!dead) { /* also a leader that goes before its threads (trap 4) */
		if (is_worker(self))
			return 0;
		e.type = EV_THREAD_EXIT;
		send(&e);
		return 0;
	}
	u32 signal_flags = 0, autoreap = 0;

	READ(leader, self, TASK_GROUP_LEADER);
	READ(signal_flags, signal, SIGNAL_FLAGS);
	if (signal_flags & SIGNAL_GROUP_EXIT)
		READ(e.value, signal, SIGNAL_GROUP_EXIT_CODE);
	else
		READ(e.value, leader, TASK_EXIT_CODE);
	e.type = EV_EXIT;
	e.parent = parent_identity(leader);
	if (t) {
		READ(t->parent_task, leader, TASK_REAL_PARENT);
		t->parent = e.parent;
	}
	e.forker = at_sigchld(leader, &autoreap);
	e.flags = autoreap ? EXIT_AUTOREAP : 0;
	READ(e.comm, leader, TASK_COMM);
	send(&e);
	return 0;
}

/*
 * sched_process_free(task): from an RCU callback, some milliseconds after the release and in any task's context, but
 * it comes for every release, also where no wait call was made (trap 1).  The real parent is still the one under whom
 * the task was released, but it may be freed by now, and its memory another process's: where the address is still that of
 * the exit, the identity is, too.
 */
int on_free(struct bpf_raw_tracepoint_args *ctx)
{
	char *task = (char *)ctx->args[0];
	u32 pid = 0, tgid = 0;
	u64 start = 0, parent = 0;
	struct event e = {};

	READ(pid, task, TASK_PID);
	READ(tgid, task, TASK_TGID);
	if (pid != tgid)
		return 0;
	READ(start, task, TASK_START_BOOTTIME);
	e.task = make_identity(tgid, start);
	struct traced *t = traced.lookup(&e.task);
	if (!t && !(mode() & MODE_ALL))
		return 0;
	READ(parent, task, TASK_REAL_PARENT);
	e.parent = t && t->parent_task == parent ? t->parent : parent_identity(task);
	traced.delete(&e.task);
	e.type = EV_RELEASE;
	e.tid = pid;
	send(&e);
	return 0;
}
