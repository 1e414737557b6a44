// SPDX-License-Identifier: GPL-2.0
/*
 * The frames of Perl, built with threads: the op that runs (PL_curcop), then the sub and eval contexts of each stack
 * (PL_curstackinfo) with the op that each was entered from.  Offsets come from tracer/stacks/interpreters/perl.py.
 */

enum perl_layout {
	CURRENT_INTERPRETER, /* PL_curinterp, PL_thr_key: from the base */
	THREAD_KEY,
	INTERPRETER_COP, /* struct interpreter */
	INTERPRETER_STACK,
	STACK_CONTEXTS, /* struct stackinfo */
	STACK_INDEX,
	STACK_PREVIOUS,
	CONTEXT_SIZE, /* struct context */
	CONTEXT_COP,
	CONTEXT_SUB,
	KIND_SUB,
	KIND_EVAL,
	COP_LINE,
	COP_FILE,
	SV_ARRAY,
	SUB_FLAGS, /* XPVCV, behind sv_any */
	SUB_GLOB,
	SUB_STASH,
	GLOB_NAME, /* XPVGV */
	GLOB_STASH,
	HASH_MAX, /* XPVHV */
	HASH_AUX, /* 0: struct xpvhv_aux is behind the array */
	AUX_NAME_COUNT,
	HEK_CHARS,
};

#define KIND 15 /* CXTYPEMASK */
#define NAMED 0x8000 /* CVf_NAMED */
#define TURN 8
#define MAX_TURNS 30
#define FIRST_BLOCK 784 /* offsetof(struct pthread, specific_1stblock) of glibc: {u64 seq; void *data} by key */
#define FIRST_KEYS 32

struct perl_walk {
	u64 stack; /* struct stackinfo */
	u64 context;
	u64 cop;
	s32 left; /* contexts of this stack below this one */
	u32 turns;
};

BPF_PERCPU_ARRAY(perl_walk, struct perl_walk, 1);

static inline u64 find_interpreter(struct stack_sample *s, struct interpreter *in)
{
	u64 found = 0;
	u32 key = 0;

	if ((u32)(s->task >> 32) == s->tid) { /* the main thread's is the first */
		READ_USER(found, in->base + in->layout[CURRENT_INTERPRETER]);
		return found;
	}
	if (READ_USER(key, in->base + in->layout[THREAD_KEY]) || key >= FIRST_KEYS)
		return 0;
	READ_USER(found, s->thread + FIRST_BLOCK + (u64)key * 16 + 8);
	return found;
}

static inline u64 name_of_package(struct interpreter *in, u64 stash)
{
	u64 body = 0, aux = 0, max = 0, name = 0;
	s32 count = 0;

	if (!stash || READ_USER(body, stash))
		return 0;
	if (in->layout[HASH_AUX]) {
		aux = body + in->layout[HASH_AUX];
	} else {
		READ_USER(aux, stash + in->layout[SV_ARRAY]);
		READ_USER(max, body + in->layout[HASH_MAX]);
		aux += (max + 1) * 8;
	}
	READ_USER(name, aux);
	READ_USER(count, aux + in->layout[AUX_NAME_COUNT]);
	if (count) /* several: the first of an array */
		READ_USER(name, name);
	return name ? name + in->layout[HEK_CHARS] : 0;
}

/* Each op may have a copy of its file's name. */
static inline u32 is_same_file(u64 one, u64 other)
{
	int zero = 0;
	struct code_record *c = code_scratch.lookup(&zero);

	if (!c || one == other)
		return 1;
	u64 *words = (u64 *)c->table;

	__builtin_memset(words, 0, 2 * sizeof(c->file));
	bpf_probe_read_user_str(words, sizeof(c->file), (void *)one);
	bpf_probe_read_user_str(words + sizeof(c->file) / 8, sizeof(c->file), (void *)other);
	for (u32 i = 0; i < sizeof(c->file) / 8; i++)
		if (words[i] != words[i + sizeof(c->file) / 8])
			return 0;
	return 1;
}

static inline u32 add_cop(struct stack_sample *s, struct interpreter *in, u64 cop, u64 name, u64 package)
{
	u64 file = 0;
	u32 line = 0;

	if (READ_USER(file, cop + in->layout[COP_FILE]) || READ_USER(line, cop + in->layout[COP_LINE]))
		return 0;
	if (add_frame(s, named_code(s->image, LANG_PERL, file, name, package), line, 0))
		return 1;
	s->walk = WALK_TOO_DEEP;
	return 0;
}

static inline u32 add_sub(struct stack_sample *s, struct interpreter *in, u64 cop, u64 sub)
{
	u64 body = 0, glob = 0, glob_body = 0, stash = 0, name = 0;
	u32 flags = 0;

	if (READ_USER(body, sub) || READ_USER(flags, body + in->layout[SUB_FLAGS]))
		return 0;
	READ_USER(glob, body + in->layout[SUB_GLOB]);
	if (flags & NAMED) { /* not a glob, but the name itself */
		name = glob;
		READ_USER(stash, body + in->layout[SUB_STASH]);
	} else if (glob) {
		READ_USER(glob_body, glob);
		READ_USER(name, glob_body + in->layout[GLOB_NAME]);
		READ_USER(stash, glob_body + in->layout[GLOB_STASH]);
	}
	return add_cop(s, in, cop, name ? name + in->layout[HEK_CHARS] : 0, name_of_package(in, stash));
}

static inline u32 enter_stack(struct interpreter *in, struct perl_walk *w)
{
	s32 index = 0;
	u64 contexts = 0;

	if (READ_USER(index, w->stack + in->layout[STACK_INDEX]) ||
	    READ_USER(contexts, w->stack + in->layout[STACK_CONTEXTS]))
		return 0;
	w->left = index + 1;
	w->context = contexts + (s64)index * in->layout[CONTEXT_SIZE];
	return 1;
}

/* The next context; returns whether there may be more, else s->walk says how it ended. */
static inline u32 next_context(struct stack_sample *s, struct interpreter *in, struct perl_walk *w)
{
	u64 context = w->context, cop = w->cop, caller = 0, sub = 0, file = 0, outer = 0;
	u8 kind = 0;

	if (w->left <= 0) {
		if (READ_USER(w->stack, w->stack + in->layout[STACK_PREVIOUS]))
			return 0;
		if (w->stack)
			return enter_stack(in, w);
		if (add_cop(s, in, cop, 0, 0)) {
			mark_entry(s);
			s->walk = WALK_DONE;
		}
		return 0;
	}
	w->left--;
	w->context = context - in->layout[CONTEXT_SIZE];
	if (READ_USER(kind, context) || READ_USER(caller, context + in->layout[CONTEXT_COP]))
		return 0;
	kind &= KIND;
	if (kind == in->layout[KIND_SUB]) {
		if (READ_USER(sub, context + in->layout[CONTEXT_SUB]) || !add_sub(s, in, cop, sub))
			return 0;
		w->cop = caller;
	} else if (kind == in->layout[KIND_EVAL]) {
		/* A block is within its sub.  A string and a required file have a file of their own. */
		READ_USER(file, cop + in->layout[COP_FILE]);
		READ_USER(outer, caller + in->layout[COP_FILE]);
		if (!is_same_file(file, outer)) {
			if (!add_cop(s, in, cop, 0, 0))
				return 0;
			w->cop = caller;
		}
	}
	return 1;
}

/* One turn; returns the language whose walker to call next, this one again or LANG_NONE. */
static inline u32 walk_perl_frames(void)
{
	int zero = 0;
	struct stack_sample *s = scratch.lookup(&zero);
	struct perl_walk *w = perl_walk.lookup(&zero);

	if (!s || !w)
		return LANG_NONE;
	struct interpreter *in = interpreters.lookup(&s->image);
	if (!in)
		return LANG_NONE;
	if (s->walk == WALK_NONE) {
		u64 perl = find_interpreter(s, in);

		s->walk = perl ? WALK_UNREADABLE : WALK_NO_THREAD;
		w->turns = 0;
		if (!perl || READ_USER(w->cop, perl + in->layout[INTERPRETER_COP]) ||
		    READ_USER(w->stack, perl + in->layout[INTERPRETER_STACK]) || !enter_stack(in, w))
			return LANG_NONE;
	}
	for (int i = 0; i < TURN; i++)
		if (!next_context(s, in, w))
			return LANG_NONE;
	if (++w->turns < MAX_TURNS)
		return LANG_PERL;
	s->walk = WALK_TOO_DEEP;
	return LANG_NONE;
}

int walk_perl(struct bpf_raw_tracepoint_args *ctx)
{
	walkers.call((struct pt_regs *)ctx, walk_perl_frames());
	return 0;
}

int walk_perl_return(struct pt_regs *ctx)
{
	call_walkers.call(ctx, walk_perl_frames());
	return 0;
}
