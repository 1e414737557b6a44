// SPDX-License-Identifier: GPL-2.0
/*
 * What wait calls returned, and the clones that failed: programs on syscall tracepoints, which every process of the host
 * pays for, and which --light leaves out.
 *
 * A wait that reaped is a record.  All others are counts for their process, for the question why its zombies stand:
 * did it wait at all, for whom, and when last?  The stack of a wait is taken once a place, and only in processes that
 * user space suspects: those with zombies.
 */

#define CLD_TRAPPED 4
#define P_ALL 0
#define P_PGID 2
#define P_PIDFD 3
#define EFAULT 14
#define ERESTART 512 /* errors from here on never reach user space: the call is restarted */

BPF_TABLE("lru_hash", u64, struct waits, waits, 16384);
BPF_HASH(suspects, u64, u8, 4096);
BPF_TABLE("lru_hash", struct wait_site, u8, wait_sites, 4096);

/* The id of the current process if its calls are of interest, else 0. */
static inline u64 followed_self(void)
{
	u64 id = identity((char *)bpf_get_current_task());

	return (mode() & MODE_ALL) || traced.lookup(&id) ? id : 0;
}

#ifdef SYSCALL_RET /* offset of the return value in the sys_exit tracepoints' records, from tracefs */

struct syscall_return {
	char head[SYSCALL_RET];
	long ret;
};

/* The call's arguments are in the registers that it was entered with. */
static inline u64 argument(int index)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (char *)user_regs() + index * 8);
	return value;
}

/* target: WAIT_ANY, a pid, the negated id of a process group, or WAIT_OTHER (pidfd, own group). */
static inline void count_wait(u64 self, s32 target, u32 options, long reaped)
{
	struct waits none = {}, *w;

	w = waits.lookup_or_try_init(&self, &none);
	if (!w)
		return;
	u64 now = bpf_ktime_get_boot_ns();
	/* One thread's count may be lost to another's: what matters is whether there are any, and when. */
	if (target == WAIT_ANY) {
		w->any_calls++;
		w->any_last_ns = now;
		w->any_options |= options;
		if (!reaped)
			w->any_empty_ns = now;
	} else {
		w->some_calls++;
		w->some_last_ns = now;
		w->some_options |= options;
		w->some_target = target;
		if (!reaped)
			w->some_empty_ns = now;
	}
}

/* The stack of a wait call, if its process is suspected and this place was not seen yet. */
static inline int wait_place(void *ctx, u64 self, s32 target, u32 options)
{
	struct event e = {};
	struct traced *t = traced.lookup(&self);
	struct wait_site site = {};
	u8 one = 1;

	if (!t || !(mode() & MODE_STACKS) || !suspects.lookup(&self))
		return 0;
	site.image = t->image;
	site.ip = argument(REG_IP);
	site.sp = argument(REG_SP);
	if (wait_sites.lookup(&site))
		return 0;
	wait_sites.update(&site, &one);
	e.type = EV_WAIT_PLACE;
	e.task = self;
	e.value = target;
	e.flags = options;
	e.tid = bpf_get_current_pid_tgid();
	u32 language = begin_stack(&e, self, t->image, 0);
	if (language == LANG_MAX)
		return 0;
	if (language)
		call_walkers.call((struct pt_regs *)ctx, language);
	return finish_stack();
}

int on_wait4_return(struct syscall_return *ctx)
{
	long pid = ctx->ret;
	struct event e = {};

	if (pid <= -ERESTART)
		return 0;
	e.task = followed_self();
	if (!e.task)
		return 0;
	s32 target = argument(REG_ARG1);
	u32 options = argument(REG_ARG3);

	if (target == 0)
		target = WAIT_OTHER;
	count_wait(e.task, target, options, pid);
	if (pid == -EFAULT) /* it reaped a child, and could not say so */
		pid = 0;
	else if (pid <= 0)
		return wait_place(ctx, e.task, target, options);
	u32 status = 0;
	u64 status_at = argument(REG_ARG2);

	/* A stop or a continuation was reported: no reaping. */
	if (status_at && READ_USER(status, status_at) == 0 && ((status & 0xff) == 0x7f || status == 0xffff))
		return 0;
	e.type = EV_WAIT4;
	e.value = pid;
	e.flags = options;
	e.tid = bpf_get_current_pid_tgid();
	send(&e);
	return wait_place(ctx, e.task, target, options);
}

/* siginfo_t as waitid fills it. */
struct wait_info {
	s32 signo, error, code, pad, pid, uid, status;
};

int on_waitid_return(struct syscall_return *ctx)
{
	struct event e = {};
	long ret = ctx->ret;

	if (ret <= -ERESTART)
		return 0;
	e.task = followed_self();
	if (!e.task)
		return 0;
	u64 info_at = argument(REG_ARG3);
	u32 idtype = argument(REG_ARG1), options = argument(REG_ARG4);
	s32 target = idtype == P_ALL ? WAIT_ANY : idtype == P_PIDFD ? WAIT_OTHER : argument(REG_ARG2);
	struct wait_info info = {};
	u32 ended = !ret || ret == -EFAULT; /* it may have */

	if (idtype == P_PGID)
		target = -target;
	if (ended && info_at && READ_USER(info, info_at) == 0) {
		/* WNOHANG, and nothing there; or a child was trapped, stopped or continued */
		if (info.signo != SIGCHLD || !info.pid || info.code >= CLD_TRAPPED)
			ended = 0;
		else
			e.value = info.pid;
	}
	count_wait(e.task, target, options, ended);
	if (ended) {
		e.type = EV_WAITID;
		e.flags = options;
		e.tid = bpf_get_current_pid_tgid();
		send(&e);
	}
	return wait_place(ctx, e.task, target, options);
}

static inline int failed(void *ctx, long ret, u32 flags)
{
	struct event e = {};

	if (ret >= 0 || ret <= -ERESTART)
		return 0;
	e.task = followed_self();
	if (!e.task)
		return 0;
	struct traced *t = traced.lookup(&e.task);

	e.type = EV_FAIL;
	e.value = -ret;
	e.flags = flags;
	e.tid = bpf_get_current_pid_tgid();
	bpf_get_current_comm(e.comm, sizeof(e.comm));
	u32 language = mode() & MODE_STACKS ? begin_stack(&e, e.task, t ? t->image : 0, 0) : LANG_MAX;
	if (language == LANG_MAX) {
		send(&e);
		return 0;
	}
	if (language)
		call_walkers.call((struct pt_regs *)ctx, language);
	return finish_stack();
}

int on_clone_return(struct syscall_return *ctx)
{
	if (ctx->ret >= 0)
		return 0;
	return failed(ctx, ctx->ret, argument(REG_ARG1) & CLONE_THREAD ? FAIL_THREAD : 0);
}

int on_clone3_return(struct syscall_return *ctx)
{
	u64 flags = 0;

	if (ctx->ret >= 0)
		return 0;
	READ_USER(flags, argument(REG_ARG1)); /* struct clone_args begins with its flags */
	return failed(ctx, ctx->ret, FAIL_CLONE3 | (flags & CLONE_THREAD ? FAIL_THREAD : 0));
}

int on_fork_return(struct syscall_return *ctx)
{
	return failed(ctx, ctx->ret, 0);
}

#endif
