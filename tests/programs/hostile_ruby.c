/*
 * Looks like Ruby 3.1 and is none: where its contexts, frames, methods and strings should be stands what an attacker
 * would put there.  Linked with hostile_libruby.c.
 *
 *   hostile_ruby [--wait] SCENARIO [FORKS]
 *
 * It forks, and prints its children.  With "random" it draws everything anew before each fork.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <pthread.h>
#include <sys/wait.h>

#define KERNEL 0xffff888000000000
#define NON_CANONICAL 0x0000900000000000
#define WORDS (1 << 15)

typedef unsigned long long word;

/* Offsets of Ruby 3.1 in words, tracer/stacks/interpreters/ruby_layouts.json. */
enum { STACK = 0, SIZE = 1, FRAME = 2, FIBER = 5, THREAD = 6 };
enum { THREAD_CONTEXT = 5, FIBER_CONTEXT = 10, FIBER_PREVIOUS = 64 };
enum { CONTROL_FRAME = 8, PC = 0, ISEQ = 2, EP = 4 };
enum { IMEMO = 0x1a, STRING = 5, ARRAY = 7, CLASS = 2, ENTRY = 6 << 12 | IMEMO, CODE = 7 << 12 | IMEMO };
enum { METHOD_FRAME = 0x11110021, C_FRAME = 0x55550021, BLOCK_FRAME = 0x66660021 };

extern __thread void *ruby_current_ec;
extern struct {
	unsigned last_id;
	void *str, *ids, *dsymbols;
} ruby_global_symbols;
pid_t rb_vm_exec(void);

static word arena[WORDS];
static word fiber[128], thread[64], stack[WORDS], environment[8];
static word *const context = fiber + FIBER_CONTEXT;

static word at(const void *place)
{
	return (word)place;
}

/* A context of so many frames, each of them as an iterator's block in C: in no backtrace. */
static void honest(unsigned frames)
{
	context[STACK] = at(stack);
	context[SIZE] = (frames + 1) * CONTROL_FRAME;
	context[FRAME] = at(stack);
	context[FIBER] = at(fiber);
	context[THREAD] = at(thread);
	thread[THREAD_CONTEXT] = at(context);
	environment[3] = BLOCK_FRAME;
	for (unsigned i = 0; i <= frames; i++)
		stack[i * CONTROL_FRAME + EP] = at(environment + 3);
	ruby_current_ec = context;
}

static word seed = 88172645463325252;

static word draw(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static word any_word(void)
{
	static const word flags[] = { ENTRY, CODE, STRING, STRING | 1 << 13, ARRAY, ARRAY | 1 << 13, CLASS, CLASS | 1 << 12,
				      METHOD_FRAME, C_FRAME, METHOD_FRAME | 2, C_FRAME | 2, 2 << 12 | IMEMO };

	switch (draw() % 8) {
	case 0:
		return draw();
	case 1:
		return draw() % 64;
	case 2:
		return flags[draw() % (sizeof(flags) / sizeof(*flags))];
	case 3:
		return draw() % 4 ? 1 : (draw() % 2 ? KERNEL : NON_CANONICAL) | (draw() & 0xfffff8);
	default:
		return at(arena + draw() % WORDS);
	}
}

/* Some words of the arena, the first few of them given. */
static word *draw_object(int words, const word *given)
{
	word *object = arena + draw() % (WORDS - 256);

	memcpy(object, given, words * sizeof(word));
	return object;
}

/* A control frame that is right as far as this goes; what it refers to further on is drawn. */
static void draw_frame(word *frame)
{
	word flags = draw() % 2 ? METHOD_FRAME : C_FRAME;
	word definition[5] = { any_word(), any_word(), any_word(), any_word(), draw() % 4096 };
	word entry[5] = { ENTRY, any_word(), at(draw_object(5, definition)), any_word(), any_word() };
	word method = draw() % 4 ? at(draw_object(5, entry)) : any_word();
	word environment[3] = { method, any_word(), flags | (draw() % 2 ? 2 : 0) };
	word encoded = at(arena + draw() % WORDS), size = draw() % 1000 + 1;
	word body[2] = { draw() % 9 | size << 32, encoded };
	word code[3] = { CODE, any_word(), at(draw_object(2, body)) };

	frame[PC] = flags == C_FRAME ? 0 : encoded + draw() % size * 8;
	frame[ISEQ] = flags == C_FRAME ? 0 : at(draw_object(3, code));
	frame[EP] = at(draw_object(3, environment) + 2);
	if (draw() % 16 == 0)
		frame[draw() % CONTROL_FRAME] = any_word();
}

static void random_memory(void)
{
	unsigned frames = 1 + draw() % 200;

	for (int i = 0; i < WORDS; i++)
		arena[i] = any_word();
	honest(frames);
	for (unsigned i = 0; i < frames; i++)
		draw_frame(stack + i * CONTROL_FRAME);
	fiber[FIBER_PREVIOUS] = any_word();
	ruby_global_symbols.ids = (void *)any_word();
}

static void prepare(const char *scenario)
{
	honest(3);
	if (!strcmp(scenario, "no_context"))
		ruby_current_ec = NULL;
	else if (!strcmp(scenario, "kernel_context"))
		ruby_current_ec = (void *)KERNEL;
	else if (!strcmp(scenario, "another_thread's"))
		thread[THREAD_CONTEXT] = at(arena);
	else if (!strcmp(scenario, "kernel_stack"))
		context[STACK] = context[FRAME] = KERNEL;
	else if (!strcmp(scenario, "huge_stack"))
		context[SIZE] = 1ULL << 61;
	else if (!strcmp(scenario, "misaligned"))
		context[FRAME] += 4;
	else if (!strcmp(scenario, "between_frames"))
		context[FRAME] += 8;
	else if (!strcmp(scenario, "no_environment"))
		stack[EP] = 0;
	else if (!strcmp(scenario, "no_frame"))
		environment[3] = 0;
	else if (!strcmp(scenario, "no_code"))
		stack[ISEQ] = stack[PC] = at(arena);
	else if (!strcmp(scenario, "no_method"))
		environment[3] = C_FRAME;
	else if (!strcmp(scenario, "many_frames"))
		honest(1000);
	else if (!strcmp(scenario, "cyclic_fibers"))
		fiber[FIBER_PREVIOUS] = at(fiber);
	else if (!strcmp(scenario, "foreign_fiber"))
		fiber[FIBER_PREVIOUS] = at(arena);
	else if (strcmp(scenario, "honest") != 0 && strcmp(scenario, "random") != 0)
		fail(scenario);
}

int main(int argc, char **argv)
{
	truth_start("hostile_ruby", &argc, argv);
	if (argc < 2)
		fail("usage: hostile_ruby [--wait] SCENARIO [FORKS]");
	int forks = argc > 2 ? atoi(argv[2]) : 1;

	prepare(argv[1]);
	for (int i = 0; i < forks; i++) {
		if (!strcmp(argv[1], "random"))
			random_memory();
		pid_t pid = rb_vm_exec();

		if (waitpid(pid, NULL, 0) != pid)
			fail("waitpid");
		printf("{\"pid\": %d, \"thread\": %lu}\n", pid, pthread_self());
	}
	truth_hold();
}
