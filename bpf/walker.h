/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the walkers share.  A walker is compiled on its own, behind forktrace.h and stack.c, and loaded when the first
 * process that needs it is seen; the maps are those of the other programs, by name.
 *
 * The target's memory is its own: whatever is read from it may be anything.  A walk ends with a reason (enum walk).
 */

BPF_PERCPU_ARRAY(code_scratch, struct code_record, 1);
BPF_TABLE("lru_hash", u64, u8, sent_code, 65536);

static inline u64 mix(u64 hash, u64 value)
{
	hash ^= value;
	hash *= 0x9E3779B97F4A7C15ULL;
	return hash ^ hash >> 29;
}

/* The place of a frame is read from the map each time: a register that the verifier follows costs it a state a frame. */
static inline u32 add_frame(struct stack_sample *s, u64 code, u32 position, u32 flags)
{
	u32 n = s->frames;

	if (n >= MAX_FRAMES)
		return 0;
	s->frame[n].code = code;
	s->frame[n].position = position;
	s->frame[n].flags = flags;
	s->frames = n + 1;
	s->fingerprint = mix(s->fingerprint, code ^ (u64)position << 32 ^ (u64)flags << 31);
	return 1;
}

static inline void mark_entry(struct stack_sample *s)
{
	u32 n = s->frames - 1;

	if (n < MAX_FRAMES)
		s->frame[n].flags |= FRAME_ENTRY;
}

/* The end of a string, at most size - 1 bytes of it, where the path's end is what tells. */
static inline void copy_tail(u8 *to, u32 size, u64 from, u64 length)
{
	if (length >= size) {
		from += length - (size - 1);
		length = size - 1;
	}
	asm volatile("" : "+r"(length)); /* else LLVM drops the mask that the verifier needs */
	length &= size - 1;
	bpf_probe_read_user(to, length, (void *)from);
}

static inline void copy_head(u8 *to, u32 size, u64 from, u64 length)
{
	if (length >= size)
		length = size - 1;
	asm volatile("" : "+r"(length));
	length &= size - 1;
	bpf_probe_read_user(to, length, (void *)from);
}

/* Send it, and remember that it was sent; if the ring is full it is sent again with the next sample that needs it. */
static inline void send_code(struct code_record *c, u32 table)
{
	u8 one = 1;
	u64 code = c->code;
	u64 length = table;

	asm volatile("" : "+r"(length));
	if (length > MAX_TABLE)
		return;
	c->number = CODE_RECORD;
	if (samples.ringbuf_output(c, offsetof(struct code_record, table) + length, BPF_RB_NO_WAKEUP) == 0)
		sent_code.update(&code, &one);
}

#define OWNER_LENGTH 128

/*
 * The code of a frame that C strings tell, a file, a function's name and its class or package: shells, PHP, Perl.  It is
 * known by what they say, not by where they are: such strings come and go.  Returns what names it in a frame, or 0.
 */
static inline u64 named_code(u64 image, u32 language, u64 file, u64 name, u64 owner)
{
	int zero = 0;
	struct code_record *c = code_scratch.lookup(&zero);

	if (!c)
		return 0;
	u64 *words = (u64 *)c->file; /* file, name and the table, which takes the owner, are one behind the other */
	u32 count = (sizeof(c->file) + sizeof(c->name) + OWNER_LENGTH) / 8;

	__builtin_memset(words, 0, sizeof(c->file) + sizeof(c->name) + OWNER_LENGTH);
	if (file)
		bpf_probe_read_user_str(c->file, sizeof(c->file), (void *)file);
	if (name)
		bpf_probe_read_user_str(c->name, sizeof(c->name), (void *)name);
	if (owner)
		bpf_probe_read_user_str(c->table, OWNER_LENGTH, (void *)owner);
	u64 code = image ^ (u64)language << 56;
	for (u32 i = 0; i < count; i++)
		code = mix(code, words[i]);
	if (!sent_code.lookup(&code)) {
		c->code = code;
		c->image = image;
		c->language = language;
		c->first_line = 0;
		c->file_length = c->name_length = c->table_length = c->kinds = 0;
		send_code(c, owner ? OWNER_LENGTH : 0);
	}
	return code;
}
