// SPDX-License-Identifier: GPL-2.0
/*
 * The frames of CPython 3.8 to 3.14.  Offsets come from tracer/stacks/interpreters/python.py: from _Py_DebugOffsets of
 * the target's own file where it has them (3.13), else from a data file.
 *
 * The thread is looked for by its pthread_self: the holder of the GIL is often another one, since Popen (3.11.4),
 * os.system and ctypes release it around the fork.
 */

enum python_layout {
	RUNTIME_INTERPRETERS, /* _PyRuntimeState.interpreters.head */
	INTERP_THREADS,	      /* PyInterpreterState.threads.head */
	INTERP_NEXT,
	THREAD_NEXT, /* PyThreadState.next */
	THREAD_ID,
	THREAD_FRAME, /* .frame (3.10), .cframe (3.12), .current_frame */
	CFRAME_FRAME, /* + 1 of _PyCFrame.current_frame (3.11, 3.12); 0: there is none */
	FRAME_CODE,   /* .f_code, .f_executable */
	FRAME_BACK,   /* .f_back, .previous */
	FRAME_INSTR,  /* .f_lasti, .prev_instr, .instr_ptr */
	FRAME_OWNER,  /* 0: there is none */
	FRAME_IS_ENTRY, /* .is_entry (3.11); 0: there is none */
	CODE_FILENAME,
	CODE_NAME, /* .co_qualname where it is */
	CODE_FIRSTLINENO,
	CODE_TABLE, /* .co_lnotab, .co_linetable */
	CODE_INSTRUCTIONS, /* .co_code_adaptive; 0: FRAME_INSTR holds an index */
	OBJECT_TYPE,
	STRING_LENGTH,
	STRING_STATE,
	STRING_STATE_SHIFT, /* where the bit field "kind" begins */
	STRING_ASCII,	    /* sizeof PyASCIIObject */
	STRING_COMPACT,	    /* sizeof PyCompactUnicodeObject */
	BYTES_SIZE,
	BYTES_DATA,
	SHIM_OWNER, /* FRAME_OWNED_BY_CSTACK or _BY_INTERPRETER (3.12): a frame without code that begins a C loop */
	CODE_TAG,   /* low bits of FRAME_CODE that are no address (3.14) */
};

/*
 * Frames and thread states are looked at in turns of so many, a program each: the verifier follows a loop through all
 * of its rounds, but a program that is called again it has seen.
 */
#define TURN 32
#define MAX_TURNS 28 /* of the 33 tail calls that the kernel allows */

/* Where the walk stands.  A thread has a state in each interpreter of its process that it ever entered. */
struct python_walk {
	u64 interp;
	u64 thread; /* the state to look at next; 0: the next interpreter's */
	u64 frame;  /* the frame to take next; 0: none of the thread looked at */
	u32 turns;
	u32 found; /* the thread has a state */
};

BPF_PERCPU_ARRAY(python_walk, struct python_walk, 1);

static inline void send_string(struct interpreter *in, u64 string, u8 *to, u32 size, u32 tail, u32 *length, u32 *kind)
{
	u64 chars = 0;
	u32 state = 0;

	to[0] = 0;
	READ_USER(chars, string + in->layout[STRING_LENGTH]);
	READ_USER(state, string + in->layout[STRING_STATE]);
	state >>= in->layout[STRING_STATE_SHIFT] & 31; /* kind: 3 bits, compact: 1, ascii: 1 */
	*kind = state & 7;
	u64 bytes = chars * (*kind ? *kind : 1);
	u64 data = string + (state & 16 ? in->layout[STRING_ASCII] : in->layout[STRING_COMPACT]);

	*length = bytes > 0xffffffff ? 0xffffffff : bytes;
	if (tail)
		copy_tail(to, size, data, bytes);
	else
		copy_head(to, size, data, bytes);
}

static inline void send_python_code(struct interpreter *in, u64 image, u64 id, u64 code, u64 file, u64 table, u32 first)
{
	int zero = 0;
	struct code_record *c = code_scratch.lookup(&zero);
	u64 name = 0, length = 0;
	u32 file_kind = 0, name_kind = 0;

	if (!c)
		return;
	c->code = id;
	c->image = image;
	c->language = LANG_PYTHON;
	c->first_line = first;
	READ_USER(name, code + in->layout[CODE_NAME]);
	send_string(in, file, c->file, sizeof(c->file), 1, &c->file_length, &file_kind);
	send_string(in, name, c->name, sizeof(c->name), 0, &c->name_length, &name_kind);
	c->kinds = file_kind | name_kind << 8;
	READ_USER(length, table + in->layout[BYTES_SIZE]);
	c->table_length = length > 0xffffffff ? 0xffffffff : length;
	if (length > MAX_TABLE)
		length = MAX_TABLE;
	asm volatile("" : "+r"(length));
	length &= 2 * MAX_TABLE - 1;
	if (length > MAX_TABLE)
		return;
	if (bpf_probe_read_user(c->table, length, (void *)(table + in->layout[BYTES_DATA])))
		c->table_length = length = 0;
	send_code(c, length);
}

/* The next state of the forking thread (s->thread); returns whether there may be more, else s->walk says how it ended. */
static inline u32 next_thread(struct stack_sample *s, struct interpreter *in, struct python_walk *w)
{
	u64 id = 0;

	if (!w->thread) {
		u64 from = w->interp ? w->interp + in->layout[INTERP_NEXT] : in->base + in->layout[RUNTIME_INTERPRETERS];

		if (READ_USER(w->interp, from))
			return 0;
		if (!w->interp) {
			s->walk = w->found ? WALK_DONE : WALK_NO_THREAD;
			return 0;
		}
		return !READ_USER(w->thread, w->interp + in->layout[INTERP_THREADS]);
	}
	if (READ_USER(id, w->thread + in->layout[THREAD_ID]))
		return 0;
	if (id != s->thread)
		return !READ_USER(w->thread, w->thread + in->layout[THREAD_NEXT]);
	if (READ_USER(w->frame, w->thread + in->layout[THREAD_FRAME]))
		return 0;
	if (in->layout[CFRAME_FRAME] && READ_USER(w->frame, w->frame + in->layout[CFRAME_FRAME] - 1))
		return 0;
	w->found = 1;
	w->thread = 0; /* one a thread and interpreter */
	return 1;
}

/*
 * Code that is executed once and freed is followed by other code at the same addresses, so what names a code must come
 * from what it says: the end of its file and of its name, and its line table.
 */
static inline u64 mix_string(u64 ident, struct interpreter *in, u64 string)
{
	u64 end[4] = {};
	u64 length = 0;

	READ_USER(length, string + in->layout[STRING_LENGTH]);
	copy_tail((u8 *)end, sizeof(end), string + in->layout[STRING_ASCII], length);
	ident = mix(mix(ident, string), length);
#pragma unroll
	for (int i = 0; i < 4; i++)
		ident = mix(ident, end[i]);
	return ident;
}

/* A line table up to SAMPLE bytes is mixed whole, a longer one by its two ends. */
#define SAMPLE 128

static inline u64 mix_table(u64 ident, struct interpreter *in, u64 table)
{
	u64 words[SAMPLE / 2 / 8] = {};
	u64 size = 0;
	u64 at = table + in->layout[BYTES_DATA];

	READ_USER(size, table + in->layout[BYTES_SIZE]);
	ident = mix(mix(ident, table), size);
	copy_head((u8 *)words, sizeof(words), at, size);
#pragma unroll
	for (int i = 0; i < SAMPLE / 2 / 8; i++)
		ident = mix(ident, words[i]);
	if (size < sizeof(words))
		return ident;
	READ_USER(words, at + size - sizeof(words));
#pragma unroll
	for (int i = 0; i < SAMPLE / 2 / 8; i++)
		ident = mix(ident, words[i]);
	return ident;
}

/* The next frame of the thread; returns as next_thread does. */
static inline u32 next_frame(struct stack_sample *s, struct interpreter *in, struct python_walk *w)
{
	u64 frame = w->frame, code = 0, type = 0, file = 0, name = 0, table = 0, instr = 0;
	u32 first = 0, position = 0;
	u8 owner = 0, entry = 0;

	if (READ_USER(code, frame + in->layout[FRAME_CODE]) || READ_USER(w->frame, frame + in->layout[FRAME_BACK]))
		return 0;
	code &= ~(u64)in->layout[CODE_TAG];
	if (in->layout[FRAME_OWNER])
		READ_USER(owner, frame + in->layout[FRAME_OWNER]);
	if (in->layout[SHIM_OWNER] && owner >= in->layout[SHIM_OWNER]) {
		mark_entry(s);
		return 1;
	}
	READ_USER(instr, frame + in->layout[FRAME_INSTR]);
	if (in->layout[FRAME_IS_ENTRY])
		READ_USER(entry, frame + in->layout[FRAME_IS_ENTRY]);
	if (READ_USER(type, code + in->layout[OBJECT_TYPE]))
		return 0;
	if (type != in->extra) {
		s->walk = WALK_BROKEN;
		return 0;
	}
	READ_USER(file, code + in->layout[CODE_FILENAME]);
	READ_USER(name, code + in->layout[CODE_NAME]);
	READ_USER(table, code + in->layout[CODE_TABLE]);
	READ_USER(first, code + in->layout[CODE_FIRSTLINENO]);
	if (file == name && !first) /* _Py_InitCleanup, around a specialized call of a class (3.12): sys._getframe has no such */
		return 1;
	if (in->layout[CODE_INSTRUCTIONS])
		position = instr - code - in->layout[CODE_INSTRUCTIONS];
	else
		position = instr;
	/* Up to 3.10 each frame has a C loop of its own. */
	u32 flags = !in->layout[CODE_INSTRUCTIONS] || entry ? FRAME_ENTRY : 0;
	u64 ident = mix(mix(s->image, code), first);

	ident = mix_string(mix_string(ident, in, file), in, name);
	ident = mix_table(ident, in, table);
	if (!sent_code.lookup(&ident))
		send_python_code(in, s->image, ident, code, file, table, first);
	if (!add_frame(s, ident, position, flags)) {
		s->walk = WALK_TOO_DEEP;
		return 0;
	}
	if (!w->frame)
		mark_entry(s);
	return 1;
}

/* One turn; returns the language whose walker to call next, this one again or LANG_NONE. */
static inline u32 walk_python_frames(void)
{
	int zero = 0;
	struct stack_sample *s = scratch.lookup(&zero);
	struct python_walk *w = python_walk.lookup(&zero);

	if (!s || !w)
		return LANG_NONE;
	struct interpreter *in = interpreters.lookup(&s->image);
	if (!in)
		return LANG_NONE;
	if (s->walk == WALK_NONE) {
		s->walk = WALK_UNREADABLE;
		w->interp = w->thread = w->frame = 0;
		w->turns = w->found = 0;
	}
	for (int i = 0; i < TURN; i++)
		if (!(w->frame ? next_frame(s, in, w) : next_thread(s, in, w)))
			return LANG_NONE;
	if (++w->turns < MAX_TURNS)
		return LANG_PYTHON;
	s->walk = s->frames ? WALK_TOO_DEEP : WALK_NO_THREAD;
	return LANG_NONE;
}

int walk_python(struct bpf_raw_tracepoint_args *ctx)
{
	walkers.call((struct pt_regs *)ctx, walk_python_frames());
	return 0;
}

int walk_python_return(struct pt_regs *ctx)
{
	call_walkers.call(ctx, walk_python_frames());
	return 0;
}
