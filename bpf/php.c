// SPDX-License-Identifier: GPL-2.0
/*
 * The frames of PHP 7.4 to 8.4, built without thread safety: from executor_globals.current_execute_data outward.  Offsets
 * come from tracer/stacks/interpreters/php.py.
 */

enum php_layout {
	CURRENT, /* executor_globals.current_execute_data: from the base */
	DATA_OPLINE, /* zend_execute_data */
	DATA_FUNCTION,
	DATA_PREVIOUS,
	FUNCTION_NAME, /* zend_function.common, op_array */
	FUNCTION_CLASS,
	FUNCTION_FILE,
	CLASS_NAME,
	STRING_CHARS,
	OPLINE_LINE,
};

#define INTERNAL_FUNCTION 1 /* ZEND_INTERNAL_FUNCTION; the others are code of scripts */
#define LAST_KIND 4 /* ZEND_EVAL_CODE */
#define TURN 16
#define MAX_TURNS 12

struct php_walk {
	u64 data;
	u32 turns;
	u32 pad;
};

BPF_PERCPU_ARRAY(php_walk, struct php_walk, 1);

/* The characters of a zend_string that a field points to, 0 without one. */
static inline u64 characters(struct interpreter *in, u64 field)
{
	u64 string = 0;

	READ_USER(string, field);
	return string ? string + in->layout[STRING_CHARS] : 0;
}

/* The next frame; returns whether there may be more, else s->walk says how it ended. */
static inline u32 next_frame(struct stack_sample *s, struct interpreter *in, struct php_walk *w)
{
	u64 data = w->data, function = 0, class = 0, owner = 0, name, file = 0, opline = 0, code;
	u32 line = 0;
	u8 kind = 0;

	if (READ_USER(function, data + in->layout[DATA_FUNCTION]) || READ_USER(w->data, data + in->layout[DATA_PREVIOUS]))
		return 0;
	if (function) { /* else between a call and what it calls */
		if (READ_USER(kind, function))
			return 0;
		if (!kind || kind > LAST_KIND) {
			s->walk = WALK_BROKEN;
			return 0;
		}
		READ_USER(class, function + in->layout[FUNCTION_CLASS]);
		if (class)
			owner = characters(in, class + in->layout[CLASS_NAME]);
		if (kind != INTERNAL_FUNCTION) {
			file = characters(in, function + in->layout[FUNCTION_FILE]);
			READ_USER(opline, data + in->layout[DATA_OPLINE]);
			READ_USER(line, opline + in->layout[OPLINE_LINE]);
		}
		name = characters(in, function + in->layout[FUNCTION_NAME]);
		if (name || file) { /* else the bottom of a fiber's stack, which a frame of nothing is */
			code = named_code(s->image, LANG_PHP, file, name, owner);
			if (!add_frame(s, code, line, 0)) {
				s->walk = WALK_TOO_DEEP;
				return 0;
			}
		}
	}
	if (w->data)
		return 1;
	mark_entry(s);
	s->walk = WALK_DONE;
	return 0;
}

/* One turn; returns the language whose walker to call next, this one again or LANG_NONE. */
static inline u32 walk_php_frames(void)
{
	int zero = 0;
	struct stack_sample *s = scratch.lookup(&zero);
	struct php_walk *w = php_walk.lookup(&zero);

	if (!s || !w)
		return LANG_NONE;
	struct interpreter *in = interpreters.lookup(&s->image);
	if (!in)
		return LANG_NONE;
	if (s->walk == WALK_NONE) {
		s->walk = WALK_UNREADABLE;
		w->turns = 0;
		if (READ_USER(w->data, in->base + in->layout[CURRENT]))
			return LANG_NONE;
		if (!w->data) {
			s->walk = WALK_DONE; /* PHP runs no script now: a server between two requests */
			return LANG_NONE;
		}
	}
	for (int i = 0; i < TURN; i++)
		if (!next_frame(s, in, w))
			return LANG_NONE;
	if (++w->turns < MAX_TURNS)
		return LANG_PHP;
	s->walk = WALK_TOO_DEEP;
	return LANG_NONE;
}

int walk_php(struct bpf_raw_tracepoint_args *ctx)
{
	walkers.call((struct pt_regs *)ctx, walk_php_frames());
	return 0;
}

int walk_php_return(struct pt_regs *ctx)
{
	call_walkers.call(ctx, walk_php_frames());
	return 0;
}
