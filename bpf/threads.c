// SPDX-License-Identifier: GPL-2.0
/*
 * The C library's thread calls, seen at their entry by uprobes in traced processes (tracer/probe/uprobes.py), for the
 * question which threads end and are joined by nobody (trap 13).
 *
 * Entries alone: a return probe would put its own address on the caller's stack, where unwinding at the clone, and the
 * library's own at a cancellation, would stumble over it.  So a join counts as it begins, and one with a time limit
 * says how long it will wait at most.
 */

#define CLOCK_REALTIME 0
#define CLOCK_MONOTONIC 1
#define GLIBC_ATTR_FLAGS 8 /* struct pthread_attr: a priority, a policy, then its flags */
#define GLIBC_ATTR_DETACHED 1
#define MUSL_ATTR_DETACHED 24 /* pthread_attr_t of a 64-bit machine */

/* bpf_get_attach_cookie, by number: BCC before 0.22 does not declare it.  Since 5.15. */
static u64 (*attach_cookie)(void *ctx) = (void *)174;

/* struct pt_regs */
struct call {
	u64 word[REGS_WORDS];
};

/* The identity of the current process if it is traced, else 0: a vfork child runs its parent's code. */
static inline u64 traced_self(void)
{
	u64 id = identity((char *)bpf_get_current_task());

	return traced.lookup(&id) ? id : 0;
}

static inline void will_create(u64 attributes, u32 offset)
{
	u64 self = bpf_get_current_pid_tgid();
	u32 how = THREAD_PTHREAD, detached = 0;

	if (!traced_self())
		return;
	/* Without attributes, or with those that C11's thrd_create passes (-1), a thread is joinable. */
	if (attributes && READ_USER(detached, attributes + offset) == 0 && detached & GLIBC_ATTR_DETACHED)
		how |= THREAD_DETACHED;
	creating.update(&self, &how);
}

static inline void released(u32 type, u64 thread, u64 until)
{
	struct event e = {};

	e.task = traced_self();
	if (!e.task)
		return;
	e.type = type;
	e.tid = bpf_get_current_pid_tgid();
	e.parent = thread;
	e.forker = until;
	send(&e);
}

/* Until when a call waits that was given a struct timespec of this clock. */
static inline u64 deadline(u64 clock, u64 timespec)
{
	int zero = 0;
	struct config *c = config.lookup(&zero);
	u64 time[2] = {};

	if (!timespec)
		return JOIN_FOREVER;
	if (!c || READ_USER(time, timespec))
		return 0;
	u64 ns = time[0] * 1000000000 + time[1];

	if (clock == CLOCK_MONOTONIC) /* it does not count suspension, as CLOCK_BOOTTIME does */
		return ns + bpf_ktime_get_boot_ns() - bpf_ktime_get_ns();
	return ns > c->realtime ? ns - c->realtime : 0;
}

/* One program for all: its cookie tells which function begins. */
int on_thread_call(struct call *ctx)
{
	u64 first = ctx->word[CALL_ARG1], second = ctx->word[CALL_ARG2], third = ctx->word[CALL_ARG3];
	u64 self = bpf_get_current_pid_tgid();
	u32 nothing = 0;

	switch (attach_cookie(ctx)) {
	case THREAD_CREATE: /* pthread_create(pthread_t *, const pthread_attr_t *, start, argument) */
		will_create(second, GLIBC_ATTR_FLAGS);
		break;
	case THREAD_CREATE_MUSL:
		will_create(second, MUSL_ATTR_DETACHED);
		break;
	case THREAD_JOIN: /* pthread_join(pthread_t, void **) */
		released(EV_JOIN, first, JOIN_FOREVER);
		break;
	case THREAD_TRY_JOIN: /* pthread_tryjoin_np(pthread_t, void **) */
		released(EV_JOIN, first, bpf_ktime_get_boot_ns());
		break;
	case THREAD_TIMED_JOIN: /* pthread_timedjoin_np(pthread_t, void **, const struct timespec *) */
		released(EV_JOIN, first, deadline(CLOCK_REALTIME, third));
		break;
	case THREAD_CLOCK_JOIN: /* pthread_clockjoin_np(pthread_t, void **, clockid_t, const struct timespec *) */
		released(EV_JOIN, first, deadline((u32)third, ctx->word[CALL_ARG4]));
		break;
	case THREAD_DETACH: /* pthread_detach(pthread_t) */
		released(EV_DETACH, first, 0);
		break;
	case THREAD_TRIAL: /* the tracer's own: did the program run? */
		creating.update(&self, &nothing);
		break;
	}
	return 0;
}
