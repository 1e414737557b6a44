// SPDX-License-Identifier: GPL-2.0
/*
 * What wait calls returned, and the clones that failed: programs on syscall tracepoints, which every process of the host
 * pays for, and which --light leaves out.
 *
 * A wait that reaped is a record.  All others are counts for their process, for the question why its zombies stand:
 * did it wait at all, for whom, and when last?  The stack of a wait is taken once a place, and only in processes that
 * user space suspects: those with zombies.
 */

#define ECHILD 10
#define EFAULT 14
#define EINTR 4
#define ERESTART 512 /* errors from here on never reach user space: the call is restarted */
#define WEXITED 4
#define WNOWAIT 0x01000000
#define CLD_TRAPPED 4
#define P_ALL 0
#define P_PGID 2
#define P_PIDFD 3

BPF_TABLE("lru_hash", struct named_key, struct named_wait, named_waits, 16384);
BPF_HASH(suspects, u64, u8, 4096);
BPF_TABLE("lru_hash", struct wait_site, u8, wait_sites, 4096);

/* The id of the current process if its calls are of interest, else 0. */
static inline u64 followed_self(void)
{
	u64 id = identity((char *)bpf_get_current_task());

	return (mode() & MODE_ALL) || traced.lookup(&id) ? id : 0;
}

/* Whose waits are counted: also those of suspects that are not traced, such as the init that adopted an orphan. */
static inline u64 watched_self(void)
{
	u64 id = identity((char *)bpf_get_current_task());

	return (mode() & MODE_ALL) || traced.lookup(&id) || suspects.lookup(&id) ? id : 0;
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

/* How a wait call ended. */
enum found {
	FOUND_NOTHING, /* nobody had ended yet */
	FOUND_NOBODY,  /* ECHILD: there is no child that it could see */
	FOUND_ONE,     /* a child that ended, and is left (WNOWAIT), or that only stopped or went on */
	REAPED,
	INTERRUPTED,
};

struct wait_call {
	s32 target;  /* WAIT_ANY, a pid, the negated id of a process group, or WAIT_OTHER */
	u32 options;
	u32 by;	     /* WAITS_GROUP, WAITS_PIDFD, or 0 */
	u32 found;   /* enum found */
	s32 reaped;  /* the pid, 0 where it is not known */
};

static inline void count_named(u64 self, struct wait_call *call, u64 now)
{
	struct named_key key = { .waiter = self, .pid = call->reaped ? call->reaped : call->target };

	if (call->found == REAPED) { /* the next child of that pid is another */
		named_waits.delete(&key);
		return;
	}
	if (call->target <= 0 || call->found == INTERRUPTED)
		return;
	struct named_wait none = {}, *n = named_waits.lookup_or_try_init(&key, &none);

	if (!n)
		return;
	n->calls++;
	n->last_ns = now;
	n->result = call->found == FOUND_ONE ? 1 : call->found == FOUND_NOBODY ? -ECHILD : 0;
}

static inline void count_wait(u64 self, struct wait_call *call)
{
	struct waits none = {}, *w = waits.lookup_or_try_init(&self, &none);
	u64 now = bpf_ktime_get_boot_ns();
	u32 empty = call->found == FOUND_NOTHING || call->found == FOUND_NOBODY;

	count_named(self, call, now);
	if (!w)
		return;
	if (call->found == REAPED)
		__sync_fetch_and_add(&w->reaped, 1);
	if (call->by == WAITS_GROUP || (call->by == WAITS_PIDFD && (empty || call->found == FOUND_ONE)))
		w->kinds |= call->by;
	if (call->target == WAIT_ANY) {
		__sync_fetch_and_add(&w->any_calls, 1);
		w->any_last_ns = now;
		w->any_options |= call->options;
		if (call->found == FOUND_ONE)
			w->kinds |= WAITS_LOOKED;
		if (empty)
			w->any_empty_ns = now;
	} else {
		__sync_fetch_and_add(&w->some_calls, 1);
		w->some_last_ns = now;
		w->some_options |= call->options;
		w->some_target = call->target;
		if (empty)
			w->some_empty_ns = now;
	}
}

/* The stack of a wait call, if its process is suspected and this place was not seen yet. */
static inline int wait_place(void *ctx, u64 self, struct wait_call *call)
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
	e.value = call->target;
	e.flags = call->options;
	e.tid = bpf_get_current_pid_tgid();
	u32 language = begin_stack(&e, self, t->image, 0);
	if (language == LANG_MAX)
		return 0;
	if (language)
		call_walkers.call((struct pt_regs *)ctx, language);
	return finish_stack();
}

static inline int waited(void *ctx, u32 type, u64 self, struct wait_call *call)
{
	count_wait(self, call);
	if (call->found == REAPED) {
		struct event e = {};

		e.task = self;
		e.type = type;
		e.value = call->reaped;
		e.flags = call->options;
		e.tid = bpf_get_current_pid_tgid();
		send(&e);
	}
	return wait_place(ctx, self, call);
}

int on_wait4_return(struct syscall_return *ctx)
{
	long pid = ctx->ret;

	if (pid < 0 && pid != -ECHILD && pid != -EINTR && pid != -EFAULT)
		return 0; /* it was no wait, or is made again */
	u64 self = watched_self();

	if (!self)
		return 0;
	s32 target = argument(REG_ARG1);
	u32 status = 0;
	u64 status_at = argument(REG_ARG2);
	struct wait_call call = {};

	call.target = target == 0 ? WAIT_OTHER : target;
	call.by = target == 0 || target < -1 ? WAITS_GROUP : 0;
	call.options = argument(REG_ARG3);
	call.reaped = pid > 0 ? pid : 0;
	if (pid == -EFAULT) /* it reaped a child, and could not say so */
		call.found = REAPED;
	else if (pid <= 0)
		call.found = pid == 0 ? FOUND_NOTHING : pid == -ECHILD ? FOUND_NOBODY : INTERRUPTED;
	else if (status_at && READ_USER(status, status_at) == 0 && ((status & 0xff) == 0x7f || status == 0xffff))
		call.found = FOUND_ONE; /* a stop or a continuation */
	else
		call.found = REAPED;
	return waited(ctx, EV_WAIT4, self, &call);
}

/* siginfo_t as waitid fills it. */
struct wait_info {
	s32 signo, error, code, pad, pid, uid, status;
};

int on_waitid_return(struct syscall_return *ctx)
{
	long ret = ctx->ret;

	if (ret && ret != -ECHILD && ret != -EINTR && ret != -EFAULT)
		return 0;
	u64 self = watched_self();
	struct wait_call call = {};

	call.options = argument(REG_ARG4);
	if (!self || !(call.options & WEXITED)) /* for stops alone */
		return 0;
	u32 idtype = argument(REG_ARG1);
	s32 target = argument(REG_ARG2);
	u64 info_at = argument(REG_ARG3);
	struct wait_info info = {};

	call.by = idtype == P_PIDFD ? WAITS_PIDFD : idtype == P_PGID ? WAITS_GROUP : 0;
	call.target = idtype == P_ALL ? WAIT_ANY : idtype == P_PIDFD || !target ? WAIT_OTHER : target;
	if (idtype == P_PGID && target)
		call.target = -target;
	call.found = ret == -ECHILD ? FOUND_NOBODY : ret == -EINTR ? INTERRUPTED : REAPED;
	if (call.found == REAPED && info_at && READ_USER(info, info_at) == 0) {
		/* WNOHANG, and nothing there; or a child was trapped, stopped or continued */
		if (info.signo != SIGCHLD || !info.pid)
			call.found = FOUND_NOTHING;
		else if (info.code >= CLD_TRAPPED)
			call.found = FOUND_ONE;
		else
			call.reaped = info.pid;
	}
	if (call.found == REAPED && call.options & WNOWAIT) {
		call.found = FOUND_ONE;
		call.reaped = 0;
	}
	return waited(ctx, EV_WAITID, self, &call);
}

/* The pid namespace in which the clone failed. */
static inline void in_pid_namespace(struct event *e)
{
	char *proxy = 0, *ns = 0;
	u32 inum = 0, max = 0;

	READ(proxy, bpf_get_current_task(), TASK_NSPROXY);
	READ(ns, proxy, NSPROXY_PID_NS);
	READ(inum, ns, PID_NS_INUM);
	READ(e->ns_pid, ns, PID_NS_ALLOCATED);
#ifdef PID_NS_MAX
	READ(max, ns, PID_NS_MAX);
#endif
	e->forker = inum;
	e->parent = max;
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
	in_pid_namespace(&e);
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
