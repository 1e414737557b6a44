/*
 * Looks like a bash from outside: its name, and the symbols of bash's own variables.  What is behind them is none of
 * bash's: tests/kernel/test_shell_frames.py looks at what a tracer makes of it.  The protocol is that of truth.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct element {
	long index;
	const char *value;
	struct element *next, *previous;
};

struct array {
	long max_index, count;
	struct element *head, *last;
};

struct variable {
	const char *name;
	void *value;
};

struct bucket {
	struct bucket *next;
	const char *key;
	struct variable *data;
	unsigned hash;
	int times_found;
};

struct table {
	struct bucket **buckets;
	int count, entries;
};

struct context {
	char unused[32];
	struct table *table;
};

int line_number = 7, shell_compatibility_level = 52;
char *command_execution_string;
struct context *global_variables;

#define BUCKETS 64

static struct element ring = { 5, "\xff\x1b[31m\n", &ring, &ring };
static struct array arrays[3] = { { 0, 1, &ring, &ring }, { 0, 1, &ring, &ring }, { 0, 1, &ring, &ring } };
static struct variable variables[3];
static struct bucket buckets[3], endless = { &endless, "x", NULL, 1, 0 };
static struct bucket *heads[BUCKETS];
static struct table table = { heads, BUCKETS, 3 };
static struct context context = { .table = &table };

static unsigned hash_of(const char *name)
{
	unsigned hash = 2166136261u;

	while (*name)
		hash = hash * 16777619u ^ (unsigned char)*name++;
	return hash;
}

static void define(int at, const char *name)
{
	unsigned hash = hash_of(name);

	variables[at] = (struct variable){ name, &arrays[at] };
	buckets[at] = (struct bucket){ heads[hash % BUCKETS], name, &variables[at], hash, 0 };
	heads[hash % BUCKETS] = &buckets[at];
}

static void say(const char *way)
{
	pid_t child;

	printf("{\"way\": \"%s\"}\n", way);
	fflush(stdout);
	child = fork();
	if (child == 0)
		_exit(0);
	waitpid(child, NULL, 0);
}

int main(void)
{
	char byte;

	printf("{\"pid\": %d}\n", getpid());
	fflush(stdout);
	if (read(0, &byte, 1) != 1)
		return 1;
	say("nothing there");
	global_variables = (struct context *)0x7fffffffffffull;
	say("no memory");
	global_variables = &context;
	for (int i = 0; i < BUCKETS; i++)
		heads[i] = &endless;
	say("an endless bucket");
	memset(heads, 0, sizeof(heads));
	define(0, "FUNCNAME");
	define(1, "BASH_SOURCE");
	define(2, "BASH_LINENO");
	say("functions without an end");
	ring.value = (const char *)0xdead000000000000ull;
	say("names without memory");
	table.count = -1;
	say("a table of no size");
	srand(1);
	for (unsigned char *at = (unsigned char *)&arrays; at < (unsigned char *)(&arrays + 1); at++)
		*at = rand();
	table.count = BUCKETS;
	say("random bytes");
	printf("{\"ready\": true}\n");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
