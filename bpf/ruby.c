// SPDX-License-Identifier: GPL-2.0
/*
 * The frames of Ruby 2.6 to 3.4 (YARV).  Addresses and offsets come from tracer/stacks/interpreters/ruby.py.
 *
 * Whose frames: those of the thread that forks, not of the one that Ruby calls the running one, which is another where
 * a C extension has released the lock.  From 3.0 on its execution context is a thread-local variable; before, the
 * thread is looked for in the list of all.
 *
 * A frame's position is its line.  Constants without a comment are Ruby's own names, the same in all these versions.
 */

enum ruby_layout {
	/* addresses of the file's variables, from the base; 0: there is none */
	CURRENT_VM,	/* ruby_current_vm_ptr, where threads are in a list (up to 2.7) */
	TLS_MODULE,	/* where the number of the file's TLS block is kept; 0: the program itself, number 1 */
	GLOBAL_SYMBOLS, /* ruby_global_symbols */
	TLS_CONTEXT,	/* offset in the TLS block of ruby_current_ec, or the first word that may be it */
	TLS_WORDS,	/* so many words may be it */
	DTV_SIZE,	/* bytes of an entry in the C library's list of TLS blocks */
	/* offsets */
	VM_THREADS, /* rb_vm_t.living_threads */
	THREAD_ID,
	THREAD_CONTEXT, /* rb_thread_t.ec */
	CONTEXT_THREAD, /* rb_execution_context_t.thread_ptr */
	CONTEXT_FIBER,
	FIBER_PREVIOUS, /* rb_fiber_t.prev: who resumed it; see JMPBUF_MORE */
	CONTROL_FRAME,	/* sizeof(rb_control_frame_t) */
	BODY_INFO,	/* rb_iseq_constant_body.insns_info */
	BODY_METHOD,	/* .local_iseq: of the method that a block is in */
	BODY_PARENT,	/* .parent_iseq, whose name evaluated code goes by (3.4); 0: it has its own */
	INFO_SIZE,	/* sizeof(struct iseq_insn_info_entry) */
	STRING_DATA,	/* of an embedded string; 16: its length is in the flags */
	CLASS_EXTENSION, /* RClass.ptr (up to 3.1); 0: the name is in the class itself */
	CLASS_PATH,	/* .classpath, where it is no variable of the class; 0: the name is not looked for */
	CLASS_ATTACHED, /* .attached_object, where it is no variable of the class; 0: it is not looked for */
	SINGLETON,	/* the flag of a singleton class */
};

#define TURN 8	     /* frames a program: see python.c */
#define MAX_TURNS 28 /* of the 33 tail calls that the kernel allows */
#define MAX_THREADS 1024
#define MAX_TLS_WORDS 16
#define MAX_ENV 16	 /* blocks in blocks, from a frame out to its method */
#define MAX_EVAL 4	 /* evaluated code that evaluates code */
#define MAX_VARIABLES 12 /* of a class, looked through for its name */
#define MAX_STACK_WORDS (1 << 26)
#define JMPBUF_MORE 160 /* rb_jmpbuf_t, in every fiber, is of 40 bytes or of 200, as Ruby was configured */

#define T_CLASS 2
#define T_MODULE 3
#define T_STRING 5
#define T_ARRAY 7
#define T_IMEMO 0x1a
#define T_MASK 0x1f
#define IMEMO_MASK 0xf01f
#define IMEMO_SVAR (2 << 12 | T_IMEMO)
#define IMEMO_MENT (6 << 12 | T_IMEMO)
#define IMEMO_ISEQ (7 << 12 | T_IMEMO)
#define NOEMBED (1 << 13) /* RSTRING_NOEMBED; of an array the contrary */
#define ISEQ_TYPE_METHOD 1
#define ISEQ_TYPE_EVAL 6
#define VM_FRAME_MAGIC_MASK 0x7fff0001
#define VM_FRAME_MAGIC_CFUNC 0x55550001
#define VM_FRAME_FLAG_FINISH 0x20
#define VM_ENV_FLAG_LOCAL 2
#define ID_SCOPE_SHIFT 4
#define MAX_OPERATOR 1000 /* tLAST_OP_ID is about 170; the smallest other identifier is 16 times that */
#define ID_ENTRY_UNIT 512
#define ID_ENTRY_SIZE 2
#define IMMEDIATE_TABLE_SIZE 54

/* code_record.kinds; above it the bytes of the label's end that are the method's name */
#define KIND_C_METHOD 1
#define KIND_SINGLETON 2
#define KIND_BITS 8
#define MAX_CLASS 256

struct control_frame {
	u64 pc;
	u64 sp;
	u64 iseq;
	u64 self;
	u64 ep;
};

/* What an environment pointer points behind of. */
struct environment {
	u64 method; /* or cref, or svar */
	u64 specval; /* the environment around a block's */
	u64 flags;
};

struct method_entry {
	u64 flags;
	u64 defined_class;
	u64 definition;
	u64 called_id;
	u64 owner;
};

struct iseq {
	u64 flags;
	u64 wrapper;
	u64 body;
};

struct iseq_body {
	u32 type;
	u32 size;
	u64 encoded;
};

struct location {
	u64 path; /* a string, or an array of path and real path */
	u64 base_label;
	u64 label;
};

/* Where the walk stands. */
struct ruby_walk {
	u64 context; /* rb_execution_context_t */
	u64 frame;
	u64 end; /* of its frames */
	u32 turns;
	u32 pad;
};

BPF_PERCPU_ARRAY(ruby_walk, struct ruby_walk, 1);

static inline u32 type_of(u64 object)
{
	u64 flags = 0;

	if (!object || object & 7)
		return 0;
	READ_USER(flags, object);
	return flags & T_MASK;
}

/* Where a string's bytes are, and how many; 0 for what is none. */
static inline u64 string_data(struct interpreter *in, u64 string, u64 *length)
{
	u64 head[4] = { }; /* flags, class, length, pointer */

	*length = 0;
	if (string & 7 || READ_USER(head, string) || (head[0] & T_MASK) != T_STRING)
		return 0;
	*length = in->layout[STRING_DATA] == 16 && !(head[0] & NOEMBED) ? head[0] >> 14 & 31 : head[2];
	return head[0] & NOEMBED ? head[3] : string + in->layout[STRING_DATA];
}

static inline u64 element(u64 array, u64 index)
{
	u64 head[5] = { }, value = 0; /* flags, class, length, capacity, pointer */

	if (!array || array & 7 || READ_USER(head, array) || (head[0] & T_MASK) != T_ARRAY)
		return 0;
	if (head[0] & NOEMBED)
		head[4] = array + 16;
	else if (index >= head[2])
		return 0;
	READ_USER(value, head[4] + index * 8);
	return value;
}

/* The string of an identifier. */
static inline u64 name_of(struct interpreter *in, u64 id)
{
	u64 serial = id > MAX_OPERATOR ? id >> ID_SCOPE_SHIFT : id, ids = 0;

	if (!in->layout[GLOBAL_SYMBOLS] || READ_USER(ids, in->base + in->layout[GLOBAL_SYMBOLS] + 16))
		return 0;
	return element(element(ids, serial / ID_ENTRY_UNIT), serial % ID_ENTRY_UNIT * ID_ENTRY_SIZE);
}

static inline u32 is_classpath(struct interpreter *in, u64 id)
{
	u64 length = 0, data = string_data(in, name_of(in, id), &length), words[2] = { };

	return length == 13 && !bpf_probe_read_user(words, 13, (void *)data) && words[0] == 0x707373616c635f5f &&
	       words[1] == 0x5f5f687461; /* "__classpath__" */
}

/*
 * A hidden variable of a class (up to 3.1 all of them are in one st_table): what it is a singleton of when attached,
 * else the string of its name.  0 if it has none.
 */
static inline u64 class_variable(struct interpreter *in, u64 class, u32 attached)
{
	u64 extension = 0, table = 0, entries = 0, count = 0, back = 0;
	u64 entry[3] = { }; /* hash, key, value */

	READ_USER(extension, class + in->layout[CLASS_EXTENSION]);
	READ_USER(table, extension + 8); /* .iv_tbl */
	READ_USER(count, table + 40);	 /* .entries_bound */
	READ_USER(entries, table + 48);	 /* .entries */
	for (int i = 0; i < MAX_VARIABLES; i++) {
		if (i >= count || READ_USER(entry, entries + i * sizeof(entry)))
			return 0;
		u32 type = type_of(entry[2]);
		if (attached) {
			if ((type == T_CLASS || type == T_MODULE) && !READ_USER(back, entry[2] + 8) && back == class)
				return entry[2];
		} else if (type == T_STRING && is_classpath(in, entry[1])) {
			return entry[2];
		}
	}
	return 0;
}

/* The name of a method's class, into the record; KIND_SINGLETON for a method of the class itself. */
static inline u32 copy_owner(struct interpreter *in, struct code_record *c, u64 class)
{
	u64 flags = 0, name = 0, length = 0;
	u32 singleton = 0;

	if (class & 7 || READ_USER(flags, class))
		return 0;
	if (flags & in->layout[SINGLETON] && (flags & T_MASK) == T_CLASS) {
		if (in->layout[CLASS_EXTENSION])
			class = class_variable(in, class, 1);
		else if (!in->layout[CLASS_ATTACHED] || READ_USER(class, class + in->layout[CLASS_ATTACHED]))
			return 0;
		singleton = KIND_SINGLETON;
	}
	u32 type = type_of(class);
	if (type != T_CLASS && type != T_MODULE)
		return 0;
	if (in->layout[CLASS_EXTENSION])
		name = class_variable(in, class, 0);
	else if (in->layout[CLASS_PATH])
		READ_USER(name, class + in->layout[CLASS_PATH]);
	u64 data = string_data(in, name, &length);
	if (!data)
		return 0;
	copy_head(c->table, MAX_CLASS, data, length);
	c->table_length = length > 0xffffffff ? 0xffffffff : length;
	return singleton;
}

static inline u32 copy_string(struct interpreter *in, u64 string, u8 *to, u32 size, u32 tail)
{
	u64 length = 0, data = string_data(in, string, &length);

	if (tail)
		copy_tail(to, size, data, length);
	else
		copy_head(to, size, data, length);
	return length > 0xffffffff ? 0xffffffff : length;
}

static inline void send_ruby_code(struct code_record *c)
{
	send_code(c, c->table_length < MAX_CLASS ? c->table_length : MAX_CLASS - 1);
}

static inline struct code_record *new_code(u64 image, u64 code)
{
	int zero = 0;
	struct code_record *c = code_scratch.lookup(&zero);

	if (!c)
		return 0;
	c->code = code;
	c->image = image;
	c->language = LANG_RUBY;
	c->first_line = c->file_length = c->name_length = c->table_length = c->kinds = 0;
	return c;
}

static inline void send_method(struct interpreter *in, u64 image, u64 code, u64 owner, u64 id)
{
	struct code_record *c = new_code(image, code);

	if (!c)
		return;
	c->name_length = copy_string(in, name_of(in, id), c->name, sizeof(c->name), 0);
	c->kinds = KIND_C_METHOD | copy_owner(in, c, owner) | c->name_length << KIND_BITS;
	send_ruby_code(c);
}

/* The class of the method that a frame is in, or in a block of; 0 outside of methods. */
static inline u64 owner_of(struct interpreter *in, u64 body, u64 ep)
{
	u64 iseq = 0, method = 0;
	struct environment env = { };
	struct method_entry entry = { };
	u32 type = 0;

	READ_USER(iseq, body + in->layout[BODY_METHOD]);
	READ_USER(method, iseq + offsetof(struct iseq, body));
	if (READ_USER(type, method) || type != ISEQ_TYPE_METHOD)
		return 0;
	for (int i = 0; i < MAX_ENV; i++) {
		if (READ_USER(env, ep - 16))
			return 0;
		u32 local = env.flags & VM_ENV_FLAG_LOCAL;

		READ_USER(entry.flags, env.method);
		if (local && (entry.flags & IMEMO_MASK) == IMEMO_SVAR)
			READ_USER(env.method, env.method + 8); /* .cref_or_me */
		if (!READ_USER(entry, env.method) && (entry.flags & IMEMO_MASK) == IMEMO_MENT)
			return entry.owner; /* of define_method it is in the block's own */
		if (local)
			return 0;
		ep = env.specval & ~3ULL;
	}
	return 0;
}

static inline void send_iseq(struct interpreter *in, u64 image, u64 code, u64 body, struct location *l, u64 ep)
{
	struct code_record *c = new_code(image, code);
	u64 length = 0, real = element(l->path, 1), owner = owner_of(in, body, ep);
	u64 path = type_of(l->path) == T_STRING ? l->path : type_of(real) == T_STRING ? real : element(l->path, 0);

	if (!c)
		return;
	c->file_length = copy_string(in, path, c->file, sizeof(c->file), 1);
	for (int i = 0; i < MAX_EVAL; i++) {
		u64 parent = 0;
		u32 type = 0;

		READ_USER(type, body);
		if (type != ISEQ_TYPE_EVAL || !in->layout[BODY_PARENT])
			break;
		READ_USER(parent, body + in->layout[BODY_PARENT]);
		READ_USER(body, parent + offsetof(struct iseq, body));
		READ_USER(*l, body + 64);
	}
	c->name_length = copy_string(in, l->label, c->name, sizeof(c->name), 0);
	string_data(in, l->base_label, &length);
	c->kinds = (owner ? copy_owner(in, c, owner) : 0) | (length < sizeof(c->name) ? length << KIND_BITS : 0);
	send_ruby_code(c);
}

static inline u32 ones(u64 x)
{
	x -= x >> 1 & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + (x >> 2 & 0x3333333333333333ULL);
	return ((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL) * 0x0101010101010101ULL >> 56;
}

/*
 * The line of an instruction: the entry of insns_info that the succinct bit vector succ_index_table (iseq.c) tells.
 * 0 if it is not known.
 */
static inline u32 line_of(struct interpreter *in, u64 body, u64 position)
{
	u64 info = body + in->layout[BODY_INFO], entries = 0, table = 0, word = 0;
	u32 size = 0, index = 0, line = 0;

	READ_USER(entries, info);
	READ_USER(size, info + 16);
	READ_USER(table, info + 24);
	if (size == 1) {
		index = 1;
	} else if (position < IMMEDIATE_TABLE_SIZE) { /* nine of 7 bits a word */
		READ_USER(word, table + position / 9 * 8);
		index = word >> position % 9 * 7 & 0x7f;
	} else {
		u64 block = table + 48 + (position - IMMEDIATE_TABLE_SIZE) / 512 * 80, ranks = 0;
		u32 bit = (position - IMMEDIATE_TABLE_SIZE) % 512, small = bit / 64;

		READ_USER(index, block);
		READ_USER(ranks, block + 8);
		READ_USER(word, block + 16 + small * 8);
		index += (small ? ranks >> (small - 1) * 9 & 0x1ff : 0) + ones(word << (63 - bit % 64));
	}
	if (!index || index > size)
		return 0;
	READ_USER(line, entries + (u64)(index - 1) * in->layout[INFO_SIZE]);
	return line;
}

/* Begin with the frames of a context; returns whether it is one. */
static inline u32 enter_context(struct stack_sample *s, struct interpreter *in, struct ruby_walk *w, u64 context)
{
	u64 head[3] = { }; /* vm_stack, vm_stack_size, cfp */
	u32 size = in->layout[CONTROL_FRAME];

	if (READ_USER(head, context)) {
		s->walk = WALK_UNREADABLE;
		return 0;
	}
	w->context = context;
	w->frame = head[2];
	w->end = head[0] + head[1] * 8 - size; /* the outermost one is a dummy */
	if (!size || head[1] > MAX_STACK_WORDS || (head[0] | head[2]) & 7 || head[2] < head[0] || head[2] > w->end ||
	    (w->end - head[2]) % size) {
		s->walk = WALK_BROKEN;
		return 0;
	}
	s->walk = WALK_UNREADABLE;
	return 1;
}

/* A thread's control frames lie on its C stack, between its first C frames and all others (alloca, since 2.7). */
static inline void step_over(struct stack_sample *s, u64 context)
{
	u64 stack[2] = { }; /* vm_stack, vm_stack_size */

	if (READ_USER(stack, context) || stack[0] <= s->regs[19] || stack[0] - s->regs[19] >= STACK_MAX)
		return;
	s->gap = stack[0] - s->regs[19];
	s->gap_size = stack[1] * 8;
}

/* Up to 2.7: the thread is looked for among all. */
static inline u32 enter_listed(struct stack_sample *s, struct interpreter *in, struct ruby_walk *w)
{
	u64 vm = 0, head, node = 0, id = 0, context = 0;

	READ_USER(vm, in->base + in->layout[CURRENT_VM]);
	head = vm + in->layout[VM_THREADS];
	READ_USER(node, head);
	for (int i = 0; i < MAX_THREADS; i++) {
		if (!node || node == head || READ_USER(id, node + in->layout[THREAD_ID]))
			return 0;
		if (id == s->thread)
			break;
		if (READ_USER(node, node))
			return 0;
	}
	if (id != s->thread)
		return 0;
	READ_USER(context, node + in->layout[THREAD_CONTEXT]);
	return enter_context(s, in, w, context);
}

/* From 3.0 on: thread-local.  Of the words that may be it, the one whose thread knows it as its own. */
static inline u32 enter_local(struct stack_sample *s, struct interpreter *in, struct ruby_walk *w)
{
	u64 module = 1, dtv = 0, block = 0, context = 0, thread = 0, back = 0;

	if (in->layout[TLS_MODULE])
		READ_USER(module, in->base + in->layout[TLS_MODULE]);
	READ_USER(dtv, s->thread + 8);
	READ_USER(block, dtv + module * in->layout[DTV_SIZE]);
	for (int i = 0; i < MAX_TLS_WORDS; i++) {
		if (i >= in->layout[TLS_WORDS] || READ_USER(context, block + in->layout[TLS_CONTEXT] + i * 8))
			return 0;
		if (context && !READ_USER(thread, context + in->layout[CONTEXT_THREAD]) &&
		    !READ_USER(back, thread + in->layout[THREAD_CONTEXT]) && back == context &&
		    enter_context(s, in, w, context)) /* a thread and its context know each other both ways */
			return 1;
	}
	return 0;
}

/* The frames of who resumed the fiber.  Contexts are fields of their fibers, which they name. */
static inline u32 next_fiber(struct stack_sample *s, struct interpreter *in, struct ruby_walk *w)
{
	u64 fiber = 0, previous = 0, back = 0;

	READ_USER(fiber, w->context + in->layout[CONTEXT_FIBER]);
	u64 context = w->context - fiber;

	for (u32 more = 0; fiber && more <= JMPBUF_MORE; more += JMPBUF_MORE) {
		if (!READ_USER(previous, fiber + in->layout[FIBER_PREVIOUS] + more) && previous &&
		    !READ_USER(back, previous + context + in->layout[CONTEXT_FIBER]) && back == previous)
			return enter_context(s, in, w, previous + context);
	}
	s->walk = WALK_DONE;
	return 0;
}

static inline u32 take_method(struct stack_sample *s, struct interpreter *in, u64 method, u32 flags)
{
	struct method_entry entry = { };
	u64 id = 0;

	if (READ_USER(entry, method))
		return 0;
	if ((entry.flags & IMEMO_MASK) != IMEMO_MENT) {
		s->walk = WALK_BROKEN;
		return 0;
	}
	READ_USER(id, entry.definition + 32); /* .original_id */
	u64 code = mix(mix(mix(mix(s->image, method), entry.definition), entry.owner), id);

	if (!sent_code.lookup(&code))
		send_method(in, s->image, code, entry.owner, id);
	if (add_frame(s, code, 0, flags))
		return 1;
	s->walk = WALK_TOO_DEEP;
	return 0;
}

static inline u32 take_iseq(struct stack_sample *s, struct interpreter *in, struct control_frame *f, u32 flags)
{
	struct iseq iseq = { };
	struct iseq_body body = { };
	struct location l = { };

	if (READ_USER(iseq, f->iseq))
		return 0;
	if ((iseq.flags & IMEMO_MASK) != IMEMO_ISEQ) {
		s->walk = WALK_BROKEN;
		return 0;
	}
	if (READ_USER(body, iseq.body) || READ_USER(l, iseq.body + 64))
		return 0;
	u64 position = (f->pc - body.encoded) / 8;

	if (f->pc < body.encoded || position > body.size) {
		s->walk = WALK_BROKEN;
		return 0;
	}
	if (position)
		position--; /* it is the next one's */
	u64 code = mix(mix(mix(mix(s->image, f->iseq), iseq.body), l.path), l.label);

	if (!sent_code.lookup(&code))
		send_iseq(in, s->image, code, iseq.body, &l, f->ep);
	if (add_frame(s, code, line_of(in, iseq.body, position), flags))
		return 1;
	s->walk = WALK_TOO_DEEP;
	return 0;
}

/* Returns whether there may be more, else s->walk says how it ended. */
static inline u32 next_frame(struct stack_sample *s, struct interpreter *in, struct ruby_walk *w)
{
	struct control_frame f = { };
	struct environment env = { };

	if (w->frame == w->end)
		return next_fiber(s, in, w);
	if (READ_USER(f, w->frame) || READ_USER(env, f.ep - 16))
		return 0;
	w->frame += in->layout[CONTROL_FRAME];
	u32 kind = env.flags & VM_FRAME_MAGIC_MASK;
	u32 flags = env.flags & VM_FRAME_FLAG_FINISH ? FRAME_ENTRY : 0;

	if (!(kind & 1) || kind <= 1) {
		s->walk = WALK_BROKEN;
		return 0;
	}
	if (f.iseq && f.pc)
		return take_iseq(s, in, &f, flags);
	if (!f.iseq && kind == VM_FRAME_MAGIC_CFUNC)
		return take_method(s, in, env.method, flags);
	return 1; /* a C function in a block's place, or a thread's first frame */
}

/* One turn; returns the language whose walker to call next, this one again or LANG_NONE. */
static inline u32 walk_ruby_frames(void)
{
	int zero = 0;
	struct stack_sample *s = scratch.lookup(&zero);
	struct ruby_walk *w = ruby_walk.lookup(&zero);

	if (!s || !w)
		return LANG_NONE;
	struct interpreter *in = interpreters.lookup(&s->image);
	if (!in)
		return LANG_NONE;
	if (s->walk == WALK_NONE) {
		w->turns = 0;
		s->walk = WALK_NO_THREAD;
		if (!(in->layout[CURRENT_VM] ? enter_listed(s, in, w) : enter_local(s, in, w)))
			return LANG_NONE;
		step_over(s, w->context);
	}
	for (int i = 0; i < TURN; i++)
		if (!next_frame(s, in, w))
			return LANG_NONE;
	if (++w->turns < MAX_TURNS)
		return LANG_RUBY;
	s->walk = WALK_TOO_DEEP;
	return LANG_NONE;
}

int walk_ruby(struct bpf_raw_tracepoint_args *ctx)
{
	walkers.call((struct pt_regs *)ctx, walk_ruby_frames());
	return 0;
}

int walk_ruby_return(struct pt_regs *ctx)
{
	call_walkers.call(ctx, walk_ruby_frames());
	return 0;
}
