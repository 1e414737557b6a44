/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The records, flags and limits that the BPF programs and tracer/records.py share (tests/unit/test_records.py
 * compares the two), and how the programs read the kernel: by offsets from the running kernel's BTF, which
 * tracer/probe/offsets.py passes as -D flags.
 *
 * "Identity" names a process for good: tgid << 32 | start time in clock ticks (10 ms, as field 22 of
 * /proc/PID/stat), modulo 2^32.  A pid alone is reused.
 */

#define COMM_LEN 16
#define NS_PER_TICK 10000000 /* USER_HZ is 100 */

#define STACK_PAGE 4096
#define MAX_TABLE (4 * STACK_PAGE) /* bytes of a line table that are sent */
#define STACK_MAX (6 * STACK_PAGE) /* bytes copied: bash needs 2-7 KB, python 2-3, ruby 3, node 11-17 */
#define REGS_WORDS 21		   /* struct pt_regs, x86-64 */
#define KNOWN_WORDS 64		   /* stack words that one known stack is recognised by */
#define KNOWN_REGS 4		   /* and entry registers */
#define KNOWN_WAYS 4		   /* known stacks that share image, ip and sp */
#define MAX_FRAMES 96		   /* interpreter frames taken, innermost first */
#define MAX_LAYOUT 48		   /* offsets that a walker is told of its interpreter */

enum event_type {
	EV_FORK = 1,
	EV_EXEC,
	EV_EXIT,	/* the last thread of a process */
	EV_RELEASE,	/* the process left the process table: reaped, or reaped itself */
	EV_WAIT4,	/* wait4 (waitpid, wait) returned a pid that ended */
	EV_WAITID,	/* waitid did */
	EV_THREAD,	/* a thread was created */
	EV_THREAD_EXIT, /* a thread ended, its process lives on */
	EV_FAIL,	/* clone, clone3, fork or vfork failed */
	EV_WAIT_PLACE,	/* the stack of a wait call, once a place */
};

/* event.flags; of EV_WAIT4 and EV_WAITID: the call's options */
#define EXIT_AUTOREAP 1u	  /* EV_EXIT: the parent ignores SIGCHLD or set SA_NOCLDWAIT */
#define FAIL_THREAD 1u		  /* EV_FAIL: it was to be a thread */
#define PIDNS_ADDING (1u << 31)	  /* EV_FAIL: include/linux/pid_namespace.h */
#define FAIL_CLONE3 2u		  /* EV_FAIL: by clone3 (on ENOSYS the C library tries clone next) */

struct event {
	u64 ts;		    /* CLOCK_BOOTTIME, ns */
	u64 task;	    /* identity: the child (FORK), the waiter (WAIT4, WAITID), else the process itself */
	u64 parent;	    /* identity of the real parent at this moment (FORK, EXIT, RELEASE).  FAIL: pid_max of the pid
			       namespace, 0 where it has none of its own */
	u64 forker;	    /* FORK: who called clone; with CLONE_PARENT that is not the parent.  EXIT: the address of the parent's
			       SIGCHLD handler, 0 if it has none.  FAIL: the pid namespace's inode number */
	u64 stack;	    /* FORK, FAIL: id of a known stack, or the number of a sample with STACK_SAMPLE set; 0: none */
	u32 type;	    /* enum event_type */
	u32 flags;
	s32 value;	    /* FORK: exit signal; EXIT: wait status; WAIT*: pid in the waiter's namespace, 0: not known; FAIL: errno */
	u32 tid;	    /* the acting thread's pid (FORK, THREAD: of who called clone), in the initial namespace */
	u32 ns_pid;	    /* FORK: the child's pid in its own pid namespace.  FAIL: pids taken in the namespace, and
			       PIDNS_ADDING unless its init is dead */
	u32 forker_ns_pid;  /* FORK: the child's pid as its forker's namespace sees it */
	char comm[COMM_LEN]; /* FORK: the forker's; EXIT: the leader's; EXEC: the new one */
};

#define STACK_SAMPLE (1ULL << 63)

/* A frame of an interpreter.  code names a struct code_record; position is the walker's own (python.c, ruby.c). */
struct frame {
	u64 code;
	u32 position;
	u32 flags;
};

#define FRAME_ENTRY 1u /* the last one that its invocation of the C interpreter loop executes */

/* stack_sample.walk: how the walk over the interpreter's frames ended */
enum walk {
	WALK_NONE,	/* no interpreter is known in this image */
	WALK_DONE,	/* to the thread's first frame */
	WALK_TOO_DEEP,	/* MAX_FRAMES were taken */
	WALK_NO_THREAD, /* the thread has no state of this interpreter */
	WALK_UNREADABLE, /* memory that should hold a frame could not be read */
	WALK_BROKEN,	/* what is there is no frame */
};

/* A stack that the kernel side did not know: travels in a ring of its own, ahead of the event that names it. */
struct stack_sample {
	u64 number;   /* STACK_SAMPLE | cpu << 48 | count */
	u64 image;    /* which exec's address space, shared with forked children; 0: not followed yet */
	u64 exec_vm;  /* pages of executable mappings: changes when code is mapped or unmapped */
	u64 task;     /* identity of the forker */
	u32 tid;
	u32 child;    /* pid of the child, 0 when the fork failed */
	u32 length;   /* bytes of stack */
	u32 holes;    /* bit n: the n-th page, from sp's (or the gap's end) on, could not be read; its bytes are 0 here */
	u32 language; /* enum language, 0 where no interpreter is known */
	u32 walk;     /* enum walk */
	u32 frames;
	u32 gap; /* where in the copy it goes on further up, past an interpreter's own stack; 0: nowhere */
	u64 fingerprint; /* of the frames: part of what a known stack is recognised by */
	u64 thread; /* its thread pointer, which is pthread_self() */
	u64 gap_size;
	u64 regs[REGS_WORDS];
	struct frame frame[MAX_FRAMES];
	u8 stack[STACK_MAX + STACK_PAGE]; /* the last page is room for the verifier's bounds; never filled */
};

/* What a frame's code is: sent once, ahead of the first sample that names it. */
struct code_record {
	u64 number; /* CODE_RECORD */
	u64 code;
	u64 image;
	u32 language;
	u32 first_line;
	u32 file_length;  /* bytes of the whole; what was copied is the end of a path, the start of a name */
	u32 name_length;
	u32 table_length; /* of the line table, bytes */
	u32 kinds;	  /* the strings' encodings, the walker's own */
	u8 file[256];
	u8 name[128];
	u8 table[MAX_TABLE + STACK_PAGE]; /* the last page is room for the verifier's bounds; never filled */
};

#define CODE_RECORD (1ULL << 62)

/* By image: which interpreter runs there, and where it keeps things. */
enum language {
	LANG_NONE,
	LANG_PYTHON,
	LANG_RUBY,
	LANG_NODE,
	LANG_BASH,
	LANG_PHP,
	LANG_PERL,
	LANG_SHELL, /* one that has no walker: the script's path is all that is known */
	LANG_MAX,
};

struct interpreter {
	u32 language; /* enum language: also its walker's place in the walkers maps */
	u32 version;  /* 0x030b for 3.11 */
	u64 base;     /* python: _PyRuntime; ruby: see ruby.c */
	u64 extra;
	u32 layout[MAX_LAYOUT]; /* offsets in bytes, by the walker's own enum */
};

struct stack_key {
	u64 image;
	u64 ip;
	u64 sp;
	u64 fingerprint;
	u32 exec_vm;
	u32 way;
};

/* The words and registers that unwinding one stack depended on: all equal, and it is the same stack. */
struct known_stack {
	u32 id;
	u32 words;
	u32 regs;
	u32 reg[KNOWN_REGS];	    /* index into regs[] */
	u32 pad;
	u64 reg_value[KNOWN_REGS];
	u32 offset[KNOWN_WORDS];    /* from sp, bytes */
	u64 value[KNOWN_WORDS];
};

struct space_key {
	u64 image;
	u64 exec_vm;
};

struct traced {
	u64 image;	 /* which exec's address space */
	u64 parent_task; /* of the dead: the kernel's address of the real parent at the exit, */
	u64 parent;	 /* and its identity */
};

/*
 * The wait calls of a process that returned since its last exec, by what they would take: any child, or some named
 * ones.  empty: the last that found nothing, because of WNOHANG or by ECHILD.
 */
struct waits {
	u64 any_calls;
	u64 any_last_ns;
	u64 any_empty_ns;
	u64 some_calls;
	u64 some_last_ns;
	u64 some_empty_ns;
	u64 reaped;	 /* calls of both kinds that took a child away */
	u32 any_options; /* of all the calls, or-ed */
	u32 some_options;
	s32 some_target; /* of the last call */
	u32 kinds;	 /* WAITS_* */
};

#define WAITS_GROUP 1u	/* some were for a process group */
#define WAITS_PIDFD 2u	/* some by a pidfd took nobody away: whose it was is not known */
#define WAITS_LOOKED 4u /* some for any child found one and left it (WNOWAIT) */

#define WAIT_ANY (-1)
#define WAIT_OTHER ((s32)0x80000000) /* the caller's process group, or a pidfd */

/* The last wait call for one pid that did not reap it. */
struct named_key {
	u64 waiter; /* identity */
	s32 pid;    /* as the waiter's namespace has it */
	u32 pad;
};

struct named_wait {
	u64 last_ns;
	u32 calls;
	s32 result; /* 0: it had not ended; 1: it had, and was left (WNOWAIT, a stop); -ECHILD: no child that it could see */
};

struct wait_site {
	u64 image;
	u64 ip;
	u64 sp;
};

/* config.mode */
#define MODE_ALL 1u	/* every process of the host; also while the tracer starts */
#define MODE_STACKS 2u	/* take stacks of forks */

struct config {
	u32 mode;
};

/* Indices of the lost map: what was not recorded, and why. */
enum loss {
	LOST_EVENTS,	/* the event ring was full */
	LOST_STACKS,	/* the stack ring was full */
	LOST_TRACED,	/* the map of traced processes was full: a child was not followed */
	LOST_MAX,
};

BPF_RINGBUF_OUTPUT(events, 8);
BPF_RINGBUF_OUTPUT(samples, 8);
BPF_HASH(traced, u64, struct traced, 65536);
BPF_ARRAY(config, struct config, 1);
BPF_ARRAY(lost, u64, LOST_MAX);

#define READ(dst, base, offset) bpf_probe_read_kernel(&(dst), sizeof(dst), (char *)(base) + (offset))
#define READ_USER(dst, address) bpf_probe_read_user(&(dst), sizeof(dst), (void *)(address))

static inline u64 make_identity(u32 tgid, u64 start_ns)
{
	return (u64)tgid << 32 | (u32)(start_ns / NS_PER_TICK);
}

/* Of the process that a task belongs to; 0 if it cannot be read. */
static inline u64 identity(char *task)
{
	u32 tgid = 0;
	u64 start = 0;
	char *leader = 0;

	READ(leader, task, TASK_GROUP_LEADER);
	READ(tgid, task, TASK_TGID);
	READ(start, leader, TASK_START_BOOTTIME);
	return make_identity(tgid, start);
}

static inline u64 parent_identity(char *task)
{
	char *parent = 0;

	READ(parent, task, TASK_REAL_PARENT);
	return identity(parent);
}

static inline u32 mode(void)
{
	int zero = 0;
	struct config *c = config.lookup(&zero);

	return c ? c->mode : 0;
}

static inline void count_lost(int what)
{
	u64 *n = lost.lookup(&what);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static inline void send(struct event *e)
{
	e->ts = bpf_ktime_get_boot_ns();
	if (events.ringbuf_output(e, sizeof(*e), BPF_RB_NO_WAKEUP))
		count_lost(LOST_EVENTS);
}
