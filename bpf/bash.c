// SPDX-License-Identifier: GPL-2.0
/*
 * The functions that bash is in: its own arrays FUNCNAME, BASH_SOURCE and BASH_LINENO, found in the hash table of global
 * variables, and the global line_number.  Addresses come from the file's symbols, offsets within bash's structs
 * (variables.h, hashlib.h, array.h; the same since 4.0 but for ARRAY_HEAD) from tracer/stacks/interpreters/bash.py.
 */

enum bash_layout {
	LINE_NUMBER, /* global variables: from the base */
	COMMAND_STRING,
	GLOBAL_VARIABLES,
	CONTEXT_TABLE, /* VAR_CONTEXT.table */
	VARIABLE_VALUE, /* SHELL_VAR.value */
	ARRAY_HEAD, /* ARRAY.head */
	FUNCNAME, /* hashes of the names */
	BASH_SOURCE,
	BASH_LINENO,
};

#define MAX_BUCKET 32 /* entries of one hash bucket looked at */

struct hash_table { /* HASH_TABLE */
	u64 buckets;
	s32 count;
	s32 entries;
};

struct bucket { /* BUCKET_CONTENTS */
	u64 next;
	u64 key;
	u64 data;
	u32 hash;
	u32 times_found;
};

struct element { /* ARRAY_ELEMENT, of a ring */
	s64 index; /* -1: the head, which holds nothing */
	u64 value;
	u64 next;
	u64 previous;
};

/* The head of an array, 0 without one (FUNCNAME can be unset).  The head's neighbour is the innermost function's. */
static inline u64 find_array(struct interpreter *in, struct hash_table *table, u32 name)
{
	struct bucket b = { };
	u64 array = 0, head = 0;
	u32 hash = in->layout[name];

	READ_USER(b.next, table->buckets + (u64)(hash & (table->count - 1)) * 8);
	for (int i = 0; i < MAX_BUCKET; i++) {
		if (!b.next || READ_USER(b, b.next))
			return 0;
		if (b.hash == hash)
			break;
	}
	if (b.hash != hash || READ_USER(array, b.data + in->layout[VARIABLE_VALUE]))
		return 0;
	READ_USER(head, array + in->layout[ARRAY_HEAD]);
	return head;
}

static inline u32 parse_number(u64 string)
{
	char digits[12] = { };
	u32 number = 0;

	bpf_probe_read_user_str(digits, sizeof(digits), (void *)string);
	for (int i = 0; i < 10; i++) {
		if (digits[i] < '0' || digits[i] > '9')
			break;
		number = number * 10 + digits[i] - '0';
	}
	return number;
}

static inline void walk_bash_frames(void)
{
	int zero = 0;
	struct stack_sample *s = scratch.lookup(&zero);

	if (!s)
		return;
	u64 image = s->image;
	struct interpreter *in = interpreters.lookup(&image);
	if (!in)
		return;
	u64 base = in->base, context = 0, table_at = 0, command = 0, code;
	struct hash_table table = { };
	u32 line = 0;

	s->walk = WALK_UNREADABLE;
	READ_USER(command, base + in->layout[COMMAND_STRING]);
	if (READ_USER(line, base + in->layout[LINE_NUMBER]) || READ_USER(context, base + in->layout[GLOBAL_VARIABLES]) ||
	    READ_USER(table_at, context + in->layout[CONTEXT_TABLE]) || READ_USER(table, table_at))
		return;
	struct element name = { .next = find_array(in, &table, FUNCNAME) };
	struct element source = { .next = find_array(in, &table, BASH_SOURCE) };
	struct element from = { .next = find_array(in, &table, BASH_LINENO) };

	if (!name.next || READ_USER(name, name.next))
		name.next = 0;
	if (!source.next || READ_USER(source, source.next) || !from.next || READ_USER(from, from.next))
		return;
	for (int i = 0; i < MAX_FRAMES; i++) {
		if (READ_USER(source, source.next) || READ_USER(from, from.next))
			return;
		if (source.index < 0 || from.index < 0) {
			/* A script's outermost is called "main"; with -c or from stdin there is none of that kind. */
			if (command || !s->frames) {
				code = named_code(image, LANG_BASH, 0, 0, 0);
				if (!add_frame(s, code, line, 0))
					return;
			}
			mark_entry(s);
			s->walk = WALK_DONE;
			return;
		}
		if (name.next && READ_USER(name, name.next))
			name.next = 0;
		code = named_code(image, LANG_BASH, source.value, name.next && name.index >= 0 ? name.value : 0, 0);
		if (!add_frame(s, code, line, 0))
			break;
		line = parse_number(from.value);
	}
	s->walk = WALK_TOO_DEEP;
}

int walk_bash(struct bpf_raw_tracepoint_args *ctx)
{
	walk_bash_frames();
	walkers.call((struct pt_regs *)ctx, LANG_NONE);
	return 0;
}

int walk_bash_return(struct pt_regs *ctx)
{
	walk_bash_frames();
	call_walkers.call(ctx, LANG_NONE);
	return 0;
}
