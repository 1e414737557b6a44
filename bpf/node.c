// SPDX-License-Identifier: GPL-2.0
/*
 * The JavaScript frames of V8 (Node): from frame to frame by the frame pointers that V8 and Node's own C++ keep.  Offsets
 * come from the constants that Node's file holds for debuggers (v8dbg_*), read by tracer/stacks/interpreters/node.py.
 *
 * libc keeps no frame pointers, so the chain's beginning is looked for on the stack.  A frame is JavaScript's if the
 * words where V8 keeps context and function lead to objects whose maps say so, and the function to a script; and if it has
 * a bytecode array, or runs code that is not of the file.  An interpreted frame has its place in the bytecode beside it; a
 * compiled one has a function only.
 */

enum node_layout {
	TEXT_START, /* of the code of the file, from the base */
	TEXT_END,
	FP_CONTEXT, /* where a frame keeps things, below its frame pointer */
	FP_FUNCTION,
	FP_BYTECODE,
	FP_OFFSET,
	MAP_TYPE, /* Map.instance_type; this and what follows is from a tagged pointer, one less than from the object */
	FUNCTION_SHARED,
	SHARED_NAME, /* SharedFunctionInfo.name_or_scope_info */
	SHARED_SCRIPT,
	SCRIPT_NAME,
	SCRIPT_SOURCE,
	BYTECODE_POSITIONS, /* BytecodeArray.source_position_table */
	BYTECODE_DATA,
	ARRAY_LENGTH,
	ARRAY_DATA,
	SCOPE_LOCALS, /* ScopeInfo.context_local_count */
	SCOPE_FIRST, /* the scope's variable part, which the locals begin */
	SCOPE_PLACE, /* ScopeInfo.position_info; 0: it is behind the locals */
	STRING_LENGTH,
	STRING_CHARS,
	STRING_ACTUAL, /* ThinString.actual, ConsString.first */
	STRING_SECOND,
	STRING_RESOURCE, /* ExternalString.resource_data */
	TYPE_STRING_END, /* the first type that is no string */
	TYPE_CONTEXT, /* the first, and the last */
	TYPE_CONTEXT_LAST,
	TYPE_SHARED,
	TYPE_SCRIPT,
	TYPE_SCOPE,
	TYPE_BYTECODE,
};

#define HEAP_OBJECT 1 /* the tag of a pointer into V8's heap; that of a number, in the upper 32 bits, is 0 */
#define REPRESENTATION 7 /* of a string's type */
#define CONS 1
#define EXTERNAL 2
#define THIN 5
#define ONE_BYTE 8

#define NO_POSITION 0xffffffff
#define MAX_SCAN 256 /* words that libc's fork has on the stack, and more */
#define MAX_FRAME_SIZE (64 * 1024)
#define MAX_LOCALS 1024 /* of a scope */
#define MAX_NAMED_LOCALS 75 /* whose names the scope has itself; kScopeInfoMaxInlinedLocalNamesSize */
#define MAX_SCOPE 6 /* words behind a scope's locals that may hold the function's name and place */
#define TURN 12 /* frames looked at between two tail calls: the verifier's work grows with it */
#define MAX_TURNS 31

struct node_walk {
	u64 fp;
	u64 pc;
	u32 turns;
	u32 scanned; /* words from the stack pointer, for a chain's beginning */
};

/* What precedes the table of source positions in a code record. */
struct source {
	u64 data; /* of an external string: its characters; else 0 */
	u32 length;
	u32 one_byte;
	u64 place[2];	      /* where the function begins and ends, in characters; 0 where it is */
	u64 scope[MAX_SCOPE]; /* in these words, which are behind the scope's locals */
};

/* A flat string of V8. */
struct characters {
	u64 data; /* 0: it has other characters than those that can be read */
	u32 length;
	u32 one_byte;
	u32 external;
	u32 is_string;
};

BPF_PERCPU_ARRAY(node_walk, struct node_walk, 1);

/* Whether a tagged pointer leads to an object, and its type. */
static inline u32 read_type(struct interpreter *in, u64 object, u32 *type)
{
	u64 map = 0;
	u16 instance = 0;

	if (!(object & HEAP_OBJECT) || READ_USER(map, object - HEAP_OBJECT) || !(map & HEAP_OBJECT))
		return 0;
	if (READ_USER(instance, map + in->layout[MAP_TYPE]))
		return 0;
	*type = instance;
	return 1;
}

static inline u32 is_of_type(struct interpreter *in, u64 object, u32 wanted)
{
	u32 type = 0;

	return read_type(in, object, &type) && type == in->layout[wanted];
}

static inline void find_characters(struct interpreter *in, u64 string, struct characters *c)
{
	u32 type = 0, length = 0, kind = 0;
	u64 second = 0;

	c->data = c->length = c->one_byte = c->external = c->is_string = 0;
	for (int i = 0; i < 3; i++) {
		if (!read_type(in, string, &type) || type >= in->layout[TYPE_STRING_END])
			return;
		kind = type & REPRESENTATION;
		if (kind == CONS) { /* one that was made flat has nothing in its second half */
			READ_USER(second, string + in->layout[STRING_SECOND]);
			if (READ_USER(length, second + in->layout[STRING_LENGTH]) || length)
				return;
		} else if (kind != THIN) {
			break;
		}
		READ_USER(string, string + in->layout[STRING_ACTUAL]);
	}
	READ_USER(c->length, string + in->layout[STRING_LENGTH]);
	c->is_string = 1;
	c->one_byte = type & ONE_BYTE;
	if (kind == 0) {
		c->data = string + in->layout[STRING_CHARS];
	} else if (kind == EXTERNAL) {
		c->external = 1;
		READ_USER(c->data, string + in->layout[STRING_RESOURCE]);
	}
}

static inline u32 bytes_of(struct characters *c)
{
	u64 bytes = (u64)c->length * (c->one_byte ? 1 : 2);

	return bytes > 0xffffffff ? 0xffffffff : bytes;
}

/* The function's name: the first string behind the locals of its scope. */
static inline void send_scope(struct interpreter *in, struct code_record *c, struct source *source, u64 scope)
{
	struct characters name;
	u64 locals = 0, at = scope + in->layout[SCOPE_FIRST];

	if (in->layout[SCOPE_PLACE])
		READ_USER(source->place, scope + in->layout[SCOPE_PLACE]);
	READ_USER(locals, scope + in->layout[SCOPE_LOCALS]);
	locals >>= 32;
	if (locals > MAX_LOCALS)
		return;
	at += locals > MAX_NAMED_LOCALS ? 8 + locals * 8 : locals * 16;
	for (int i = 0; i < MAX_SCOPE; i++) {
		u64 word = 0;

		READ_USER(word, at + i * 8);
		source->scope[i] = word;
		if (c->name_length || !(word & HEAP_OBJECT))
			continue;
		find_characters(in, word, &name);
		if (!name.is_string || !name.length || !name.data)
			continue;
		c->name_length = bytes_of(&name);
		c->kinds |= name.one_byte ? 1 : 0;
		copy_head(c->name, sizeof(c->name), name.data, c->name_length);
	}
}

static inline void send_node_code(struct interpreter *in, u64 image, u64 ident, u64 shared, u64 script, u64 positions)
{
	int zero = 0;
	struct code_record *c = code_scratch.lookup(&zero);
	struct characters string;
	u64 object = 0, length = 0;

	if (!c)
		return;
	struct source *source = (struct source *)c->table;

	c->code = ident;
	c->image = image;
	c->language = LANG_NODE;
	c->first_line = c->kinds = c->file_length = c->name_length = 0;
	__builtin_memset(source, 0, sizeof(*source));
	READ_USER(object, script + in->layout[SCRIPT_NAME]);
	find_characters(in, object, &string);
	if (string.data) {
		c->file_length = bytes_of(&string);
		c->kinds |= string.one_byte ? 2 : 0;
		copy_tail(c->file, sizeof(c->file), string.data, c->file_length);
	}
	READ_USER(object, script + in->layout[SCRIPT_SOURCE]);
	find_characters(in, object, &string);
	source->data = string.external ? string.data : 0;
	source->length = string.length;
	source->one_byte = string.one_byte;
	READ_USER(object, shared + in->layout[SHARED_NAME]);
	if (is_of_type(in, object, TYPE_SCOPE)) {
		send_scope(in, c, source, object);
	} else {
		find_characters(in, object, &string);
		if (string.data) {
			c->name_length = bytes_of(&string);
			c->kinds |= string.one_byte ? 1 : 0;
			copy_head(c->name, sizeof(c->name), string.data, c->name_length);
		}
	}
	if (positions & HEAP_OBJECT)
		READ_USER(length, positions + in->layout[ARRAY_LENGTH]);
	length = length & 0xffffffff ? 0 : length >> 32; /* a number of V8, or this is no array */
	c->table_length = length;
	if (length > MAX_TABLE - sizeof(*source))
		length = 0; /* cut, it would give wrong lines */
	asm volatile("" : "+r"(length));
	length &= MAX_TABLE - 1;
	if (length > MAX_TABLE - sizeof(*source))
		return;
	if (length && bpf_probe_read_user(c->table + sizeof(*source), length, (void *)(positions + in->layout[ARRAY_DATA])))
		length = 0;
	send_code(c, sizeof(*source) + length);
}

static inline u32 in_text(struct interpreter *in, u64 pc)
{
	return pc - in->base - in->layout[TEXT_START] < in->layout[TEXT_END] - in->layout[TEXT_START];
}

/* Whether a frame's caller can have its own at an address. */
static inline u32 is_above(u64 fp, u64 caller)
{
	return caller > fp && caller - fp <= MAX_FRAME_SIZE && !(caller & 7);
}

/*
 * The next saved frame pointer above libc's frames: beside it is a return address to Node, and it leads to three more.
 * What is left of older frames may look like that, too; it leads nowhere then.
 */
static inline u64 find_chain(struct stack_sample *s, struct interpreter *in, struct node_walk *w)
{
	u64 sp = s->regs[19] & ~7ULL, first = 0, link[2] = { };

	for (int i = 0; i < MAX_SCAN; i++) {
		u64 at = sp + w->scanned * 8;

		if (w->scanned++ >= MAX_SCAN || READ_USER(first, at))
			return 0;
		if (!is_above(at, first) || READ_USER(link, first) || !in_text(in, link[1]) || !is_above(first, link[0]))
			continue;
		u64 second = link[0];

		if (READ_USER(link, second) || !is_above(second, link[0]))
			continue;
		u64 third = link[0];

		if (!READ_USER(link, third) && is_above(third, link[0]))
			return first;
	}
	return 0;
}

/* The next frame; returns whether there may be more, else s->walk says how it ended. */
static inline u32 next_frame(struct stack_sample *s, struct interpreter *in, struct node_walk *w)
{
	u64 fp = w->fp, pc = w->pc, link[2] = { }, function = 0, shared = 0, context = 0, script = 0, bytecode = 0;
	u32 context_type = 0;

	if (READ_USER(link, fp))
		return 0;
	w->fp = link[0];
	w->pc = link[1];
	if (READ_USER(function, fp - in->layout[FP_FUNCTION]) || READ_USER(context, fp - in->layout[FP_CONTEXT]))
		return 0;
	READ_USER(bytecode, fp - in->layout[FP_BYTECODE]);
	u32 has_bytecode = is_of_type(in, bytecode, TYPE_BYTECODE);

	if ((has_bytecode || !in_text(in, pc)) && function & HEAP_OBJECT &&
	    !READ_USER(shared, function + in->layout[FUNCTION_SHARED]) &&
	    is_of_type(in, shared, TYPE_SHARED) && !READ_USER(script, shared + in->layout[SHARED_SCRIPT]) &&
	    is_of_type(in, script, TYPE_SCRIPT) && read_type(in, context, &context_type) &&
	    context_type >= in->layout[TYPE_CONTEXT] && context_type <= in->layout[TYPE_CONTEXT_LAST]) {
		u64 offset = 0, positions = 0;
		u32 position = NO_POSITION;

		if (has_bytecode) {
			READ_USER(offset, fp - in->layout[FP_OFFSET]);
			READ_USER(positions, bytecode + in->layout[BYTECODE_POSITIONS]);
			if (!(offset & 0xffffffff)) /* else of baseline code, which keeps something else there */
				position = (offset >> 32) - in->layout[BYTECODE_DATA];
		}
		u64 ident = mix(mix(mix(mix(s->image, shared), script), bytecode), positions);

		if (!sent_code.lookup(&ident))
			send_node_code(in, s->image, ident, shared, script, positions);
		if (!add_frame(s, ident, position, FRAME_ENTRY)) {
			s->walk = WALK_TOO_DEEP;
			return 0;
		}
	}
	/* The C library's start of the thread keeps no frame pointer, so there is no telling it from a chain that broke. */
	if (is_above(fp, w->fp))
		return 1;
	if (s->frames)
		s->walk = WALK_DONE;
	else
		w->fp = 0; /* no chain: look for another */
	return 0;
}

/* One turn; returns the language whose walker to call next, this one again or LANG_NONE. */
static inline u32 walk_node_frames(void)
{
	int zero = 0;
	struct stack_sample *s = scratch.lookup(&zero);
	struct node_walk *w = node_walk.lookup(&zero);

	if (!s || !w)
		return LANG_NONE;
	struct interpreter *in = interpreters.lookup(&s->image);
	if (!in)
		return LANG_NONE;
	if (s->walk == WALK_NONE) {
		s->walk = WALK_UNREADABLE;
		w->turns = w->scanned = 0;
		w->fp = 0;
	}
	if (!w->fp) {
		w->pc = 0;
		w->fp = find_chain(s, in, w);
		if (!w->fp) {
			s->walk = WALK_DONE; /* a thread that runs no JavaScript */
			return LANG_NONE;
		}
	} else {
		for (int i = 0; i < TURN; i++) {
			if (next_frame(s, in, w))
				continue;
			if (w->fp || s->walk != WALK_UNREADABLE)
				return LANG_NONE;
			break;
		}
	}
	if (++w->turns < MAX_TURNS)
		return LANG_NODE;
	s->walk = WALK_TOO_DEEP;
	return LANG_NONE;
}

int walk_node(struct bpf_raw_tracepoint_args *ctx)
{
	walkers.call((struct pt_regs *)ctx, walk_node_frames());
	return 0;
}

int walk_node_return(struct pt_regs *ctx)
{
	call_walkers.call(ctx, walk_node_frames());
	return 0;
}
