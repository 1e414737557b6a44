/*
 * Looks like CPython 3.11 and is none: where its threads, frames, code and strings should be stands what an attacker
 * would put there.  Linked with hostile_libpython.c.
 *
 *   hostile_python [--wait]
 *
 * In each scenario it forks FORKS times, and prints {"scenario": ..., "pid": ...} of each child.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define FORKS 3
#define KERNEL 0xffff888000000000
#define NON_CANONICAL 0x0000900000000000
#define PAGE 4096

typedef unsigned char bytes;
typedef unsigned long long word;

/* Offsets of CPython 3.11, tracer/stacks/interpreters/python_layouts.json. */
enum { INTERPRETERS = 40, THREADS = 16, THREAD_NEXT = 8, CFRAME = 56, THREAD_ID = 152, CURRENT_FRAME = 8 };
enum { FRAME_CODE = 32, FRAME_BACK = 48, FRAME_INSTR = 56, TYPE = 8 };
enum { FILENAME = 112, QUALNAME = 128, FIRST_LINE = 72, TABLE = 136, LENGTH = 16, STATE = 32, ASCII = 48, SIZE = 16, DATA = 32 };
enum { COMPACT_ASCII = (1 << 2) | (1 << 5) | (1 << 6) };

extern bytes _PyRuntime[], PyCode_Type[];
pid_t _PyEval_EvalFrameDefault(void);

static bytes interpreter[PAGE], thread[PAGE], cframe[64], code[256], file[128], name[128], table[128];
static bytes frames[256][128];

static void put(bytes *object, int offset, const void *value)
{
	memcpy(object + offset, &value, 8);
}

static void put_word(bytes *object, int offset, word value)
{
	memcpy(object + offset, &value, 8);
}

static void put_text(bytes *string, const char *text)
{
	put_word(string, LENGTH, strlen(text));
	put_word(string, STATE, COMPACT_ASCII);
	memcpy(string + ASCII, text, strlen(text));
}

/* All of it as it should be: two frames, at line 7 of "file.py". */
static void honest(void)
{
	put(_PyRuntime, INTERPRETERS, interpreter);
	put(interpreter, 0, NULL); /* .next */
	put(interpreter, THREADS, thread);
	put(thread, THREAD_NEXT, NULL);
	put(thread, THREAD_ID, (void *)pthread_self());
	put(thread, CFRAME, cframe);
	put(cframe, CURRENT_FRAME, frames[0]);
	for (int i = 0; i < 2; i++) {
		put(frames[i], FRAME_CODE, code);
		put(frames[i], FRAME_BACK, i ? NULL : frames[1]);
		put(frames[i], FRAME_INSTR, code + 184);
	}
	put(code, TYPE, PyCode_Type);
	put(code, FILENAME, file);
	put(code, QUALNAME, name);
	put(code, TABLE, table);
	put_word(code, FIRST_LINE, 7);
	put_text(file, "file.py");
	put_text(name, "name");
	put_word(table, SIZE, 2);
	table[DATA] = 0x80 | 10 << 3 | 7; /* one entry: the first line, 8 instructions */
}

static void *page_of_nothing(void)
{
	return mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void cyclic_interpreters(void)
{
	put(interpreter, 0, interpreter);
	put(thread, THREAD_ID, NULL);
}

static void cyclic_threads(void)
{
	put(thread, THREAD_ID, NULL);
	put(thread, THREAD_NEXT, thread);
}

static void cyclic_frames(void)
{
	put(frames[1], FRAME_BACK, frames[0]);
}

static void many_frames(void)
{
	for (int i = 0; i < 255; i++) {
		memcpy(frames[i], frames[0], sizeof(frames[i]));
		put(frames[i], FRAME_BACK, frames[i + 1]);
	}
}

static void no_interpreter(void)
{
	put(_PyRuntime, INTERPRETERS, NULL);
}

static void kernel_interpreter(void)
{
	put_word(_PyRuntime, INTERPRETERS, KERNEL);
}

static void kernel_thread(void)
{
	put_word(interpreter, THREADS, KERNEL);
}

static void kernel_frame(void)
{
	put_word(cframe, CURRENT_FRAME, KERNEL + 0x123000);
}

static void kernel_code(void)
{
	put_word(frames[1], FRAME_CODE, KERNEL);
}

static void kernel_strings(void)
{
	put_word(code, FILENAME, KERNEL);
	put_word(code, QUALNAME, KERNEL);
	put_word(code, TABLE, KERNEL);
}

static void non_canonical(void)
{
	put_word(frames[0], FRAME_BACK, NON_CANONICAL);
}

static void misaligned(void)
{
	put(frames[0], FRAME_BACK, frames[1] + 3);
}

static void end_of_memory(void)
{
	put_word(frames[0], FRAME_BACK, ~0ULL - 40);
}

static void unmapped_frame(void)
{
	put(frames[0], FRAME_BACK, page_of_nothing());
}

static void no_code(void)
{
	put(frames[1], FRAME_CODE, file);
}

static void huge_lengths(void)
{
	put_word(file, LENGTH, ~0ULL);
	put_word(name, LENGTH, 1ULL << 63);
	put_word(table, SIZE, ~0ULL >> 1);
}

static void length_that_wraps(void)
{
	put_word(file, LENGTH, 0x4000000000000002);
	put_word(file, STATE, 4 << 2 | 1 << 5);
	put_word(table, SIZE, 0x100000000);
}

static void no_text(void)
{
	memset(file + ASCII, 0xff, sizeof(file) - ASCII);
	put_word(file, STATE, 4 << 2 | 1 << 5);
	put_word(name, STATE, 7 << 2 | 1 << 5);
}

static void random_table(void)
{
	put_word(table, SIZE, sizeof(table) - DATA);
	for (unsigned int i = DATA; i < sizeof(table); i++)
		table[i] = i * 0x9e3779b1u >> 13;
}

/* Everything that can be read is noise, but the way to the first frame. */
static void random_frames(void)
{
	unsigned int state = 1;

	for (bytes *at = frames[1]; at < frames[0] + sizeof(frames); at++)
		*at = (state = state * 1103515245 + 12345) >> 16;
}

static const struct {
	const char *name;
	void (*make)(void);
} SCENARIOS[] = {
#define SCENARIO(name) { #name, name }
	SCENARIO(honest),	  SCENARIO(cyclic_interpreters), SCENARIO(cyclic_threads),     SCENARIO(cyclic_frames),
	SCENARIO(many_frames),	  SCENARIO(no_interpreter),	 SCENARIO(kernel_interpreter), SCENARIO(kernel_thread),
	SCENARIO(kernel_frame),	  SCENARIO(kernel_code),	 SCENARIO(kernel_strings),     SCENARIO(non_canonical),
	SCENARIO(misaligned),	  SCENARIO(end_of_memory),	 SCENARIO(unmapped_frame),     SCENARIO(no_code),
	SCENARIO(huge_lengths),	  SCENARIO(length_that_wraps),	 SCENARIO(no_text),	       SCENARIO(random_table),
	SCENARIO(random_frames),
};

int main(int argc, char **argv)
{
	truth_start("hostile_python", &argc, argv);
	for (unsigned int i = 0; i < sizeof(SCENARIOS) / sizeof(SCENARIOS[0]); i++) {
		honest();
		SCENARIOS[i].make();
		for (int n = 0; n < FORKS; n++) {
			pid_t pid = _PyEval_EvalFrameDefault();

			if (waitpid(pid, NULL, 0) != pid)
				fail("waitpid");
			printf("{\"scenario\": \"%s\", \"pid\": %d}\n", SCENARIOS[i].name, pid);
		}
	}
	truth_hold();
}
