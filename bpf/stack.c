// SPDX-License-Identifier: GPL-2.0
/*
 * The forking thread's user stack: recognised if it was seen before, else copied with its registers for user space to
 * unwind.  Unwinding is a function of few words (return addresses, saved registers that a frame's address came from):
 * user space hands those back in known_stacks, and when all of them are the same again, so is the stack.
 *
 * Where an interpreter runs, its walker (python.c, ruby.c) is called first, by a tail call: it writes the frames of the
 * script into the sample and a fingerprint of them into the key.  Last comes finish_stack, in any case.
 */

BPF_PERCPU_ARRAY(scratch, struct stack_sample, 1);
BPF_PERCPU_ARRAY(pending, struct event, 1); /* the fork or the failure that the sample belongs to */
BPF_PERCPU_ARRAY(sample_count, u64, 1);
BPF_TABLE("lru_hash", struct stack_key, struct known_stack, known_stacks, 8192);
BPF_TABLE("lru_hash", struct space_key, u32, known_spaces, 8192);
BPF_TABLE("lru_hash", u64, struct interpreter, interpreters, 8192);

/* By enum language; place 0 is finish_stack.  One map a program type: a tail call stays within its type. */
BPF_PROG_ARRAY(walkers, LANG_MAX);
BPF_PROG_ARRAY(call_walkers, LANG_MAX);

#ifdef HAVE_TASK_PT_REGS
/* By number: BCC before 0.22 does not declare them.  Since 5.11 and 5.15. */
static void *(*current_task_btf)(void) = (void *)158;
static long (*task_pt_regs)(void *task) = (void *)175;
#endif

static inline void *user_regs(void)
{
#ifdef HAVE_TASK_PT_REGS
	return (void *)task_pt_regs(current_task_btf());
#else
	/* THREAD_SIZE is 16 KB on x86-64 without KASAN. */
	char *stack = 0;

	READ(stack, bpf_get_current_task(), TASK_STACK);
	return stack + 16384 - REGS_WORDS * 8;
#endif
}

static inline u32 known_stack(struct stack_sample *s, u64 sp)
{
	struct stack_key key = {
		.image = s->image, .ip = s->regs[16], .sp = sp, .fingerprint = s->fingerprint, .exec_vm = s->exec_vm
	};

	for (u32 way = 0; way < KNOWN_WAYS; way++) {
		key.way = way;
		struct known_stack *k = known_stacks.lookup(&key);
		if (!k)
			return 0;
		u32 same = 1;
		for (u32 i = 0; i < KNOWN_REGS; i++) {
			if (i >= k->regs)
				break;
			u32 r = k->reg[i];
			if (r >= REGS_WORDS || s->regs[r] != k->reg_value[i]) {
				same = 0;
				break;
			}
		}
		if (!same)
			continue;
		for (u32 i = 0; i < KNOWN_WORDS; i++) {
			if (i >= k->words)
				break;
			u64 word = 0;
			if (READ_USER(word, sp + k->offset[i]) || word != k->value[i]) {
				same = 0;
				break;
			}
		}
		if (same)
			return k->id;
	}
	return 0;
}

/*
 * A copy fails as a whole where its range touches a page that is not in memory: to the end of the first page, then page
 * by page.  In the middle of a stack such a page was never touched, as in a large array, or is swapped out.
 */
static inline void copy_stack(struct stack_sample *s, u64 sp)
{
	u64 n = s->gap;

	asm volatile("" : "+r"(n)); /* as in walker.h */
	if (n > STACK_MAX - STACK_PAGE || bpf_probe_read_user(s->stack, n, (void *)sp))
		n = s->gap = 0;
	if (n)
		sp += n + s->gap_size;
	s->length = n;
	s->holes = 0;
	u64 first = STACK_PAGE - (sp & (STACK_PAGE - 1));

	asm volatile("" : "+r"(n), "+r"(first));
	if (n > STACK_MAX - STACK_PAGE || first > STACK_PAGE ||
	    bpf_probe_read_user(s->stack + n, first, (void *)sp))
		return;
	n += first;
	sp += first;
	s->length = n;
#pragma unroll
	for (int i = 0; i < STACK_MAX / STACK_PAGE; i++) {
		asm volatile("" : "+r"(n));
		if (n > STACK_MAX - STACK_PAGE)
			break;
		u32 hole = bpf_probe_read_user(s->stack + n, STACK_PAGE, (void *)sp) != 0;
		n += STACK_PAGE;
		sp += STACK_PAGE;
		s->holes |= hole << (i + 1);
		if (!hole)
			s->length = n;
	}
}

/* The id of a known stack, or the number of the sample that is sent now. */
static inline u64 take_stack(struct stack_sample *s, u32 type)
{
	int zero = 0;
	u64 *count = sample_count.lookup(&zero);
	u64 sp = s->regs[19];

	s->fingerprint += s->walk; /* the same frames, and why there are no more of them */
	u32 id = s->image ? known_stack(s, sp) : 0;

	if (id || !count)
		return id;
	*count += 1;
	s->number = STACK_SAMPLE | (u64)bpf_get_smp_processor_id() << 48 | (*count & 0xffffffffffff);
	copy_stack(s, sp);

	struct space_key space = { .image = s->image, .exec_vm = s->exec_vm };
	/* User space must read /proc/PID/maps before the process is gone: hurry only when it never did. */
	u64 wake = known_spaces.lookup(&space) ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP;
	u64 length = s->length;

	asm volatile("" : "+r"(length)); /* else LLVM checks a 32-bit copy of it, and the verifier sees no bound */
	if (length > STACK_MAX)
		return 0;
	if (samples.ringbuf_output(s, offsetof(struct stack_sample, stack) + length, wake))
		if (type != EV_WAIT_PLACE) /* a wait's place is taken again, and no fork is without a stack */
			count_lost(LOST_STACKS);
	return s->number;
}

/* The stack of the pending event, then the event itself: its sample is in the other ring by then. */
static inline int finish_stack(void)
{
	int zero = 0;
	struct stack_sample *s = scratch.lookup(&zero);
	struct event *e = pending.lookup(&zero);

	if (!s || !e)
		return 0;
	e->stack = take_stack(s, e->type);
	send(e);
	return 0;
}

/*
 * Begin with the stack of an event.  Called in the forking thread, before the child runs.  Returns the language whose
 * walker shall be called next, LANG_NONE for none: then, or if there is no such walker, finish_stack follows.
 * LANG_MAX: there is no stack to be had.
 */
static inline u32 begin_stack(struct event *event, u64 task, u64 image, u32 child)
{
	int zero = 0;
	struct stack_sample *s = scratch.lookup(&zero);
	struct event *e = pending.lookup(&zero);
	void *regs = user_regs();
	char *mm = 0;

	if (!s || !e || !regs || bpf_probe_read_kernel(s->regs, sizeof(s->regs), regs))
		return LANG_MAX;
	*e = *event;
	s->image = image;
	READ(mm, bpf_get_current_task(), TASK_MM);
	READ(s->exec_vm, mm, MM_EXEC_VM);
	s->task = task;
	s->tid = bpf_get_current_pid_tgid();
	READ(s->thread, bpf_get_current_task(), TASK_FSBASE);
	s->child = child;
	s->frames = 0;
	s->gap = 0;
	s->fingerprint = 0;
	s->walk = WALK_NONE;
	struct interpreter *in = image ? interpreters.lookup(&image) : 0;
	s->language = in ? in->language : LANG_NONE;
	return s->language;
}

int on_stack(struct bpf_raw_tracepoint_args *ctx)
{
	return finish_stack();
}

int on_stack_return(void *ctx)
{
	return finish_stack();
}
