/*
 * Forks by every way that the C library has, from a call stack that the program itself knows.
 *
 *   spawners [--wait] WAY COUNT        spawners --list
 *
 * Prints one line a call site: {"forks": N, "frames": [["function", line], ...]}, the frames of this file, leaf first.
 * Each function calls the next one on a line of its own, and writes that line down as it does.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define KEEP __attribute__((noinline, noclone))
/* Nothing after the call can be the compiler's reason to jump instead of calling. */
#define NO_TAIL_CALL __asm__ volatile("" ::: "memory")

enum { MAX_DEPTH = 6 };

struct frame {
	const char *function;
	int line;
};

/* Root first; the second one is of a child that forks.  Shared with the children. */
static struct frame (*paths)[MAX_DEPTH];
static int which;

#define AT(depth) (paths[which][depth] = (struct frame){__func__, __LINE__})

static KEEP pid_t by_fork(int depth)
{
	AT(depth); pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	return pid;
}

static KEEP pid_t by_vfork(int depth)
{
	AT(depth); pid_t pid = vfork();

	if (pid == 0)
		_exit(0);
	return pid;
}

static KEEP pid_t by_posix_spawn(int depth)
{
	char *arguments[] = {"true", NULL}, *environment[] = {NULL};
	pid_t pid;

	AT(depth); if (posix_spawn(&pid, "/bin/true", NULL, NULL, arguments, environment))
		fail("posix_spawn");
	return pid;
}

static KEEP pid_t by_system(int depth)
{
	AT(depth); int status = system("exit 3");

	if (status != 3 << 8)
		fail("system");
	return 0;
}

static KEEP pid_t by_popen(int depth)
{
	AT(depth); FILE *output = popen("exit 3", "r");

	if (!output || pclose(output) != 3 << 8)
		fail("popen");
	return 0;
}

static int exit_at_once(void *unused)
{
	(void)unused;
	_exit(0);
}

static KEEP pid_t by_clone(int depth)
{
	static char stack[65536] __attribute__((aligned(16)));

	AT(depth); pid_t pid = clone(exit_at_once, stack + sizeof(stack), SIGCHLD, NULL);

	NO_TAIL_CALL;
	return pid;
}

static KEEP pid_t by_raw_clone(int depth)
{
	AT(depth); pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);

	if (pid == 0)
		_exit(0);
	return pid;
}

/* Deeper than one page of stack, in a frame whose size only the tables or a frame pointer tell. */
static KEEP pid_t by_fork_below_a_large_frame(int depth)
{
	volatile int size = 9000 + depth;
	volatile char *large = __builtin_alloca((size_t)size);

	large[0] = 1;
	AT(depth); pid_t pid = by_fork(depth + 1);

	return pid + large[0] - 1;
}

/* The process that forks is gone before anybody can look at it; whom it forked lives on. */
static KEEP void fork_and_exit(int depth, struct child *child, int report, int until_closed)
{
	AT(depth); pid_t pid = fork();

	if (pid)
		_exit(pid < 0);
	if (child) {
		child_begin(child);
		hold();
	}
	for (int i = depth; i >= 0; i--)
		dprintf(report, "%s[\"%s\", %d]%s", i == depth ? "[" : ", ", paths[which][i].function, paths[which][i].line,
			i ? "" : "]\n");
	close(report);
	while (read(until_closed, &depth, 1) < 0 && errno == EINTR)
		;
	_exit(0);
}

static KEEP pid_t by_double_fork(int depth)
{
	struct child *grandchild = child_new();
	AT(depth); pid_t middle = fork();

	if (middle == 0) {
		memcpy(paths[1], paths[0], sizeof(paths[0]));
		which = 1;
		AT(depth); fork_and_exit(depth + 1, grandchild, -1, -1);
	}
	return middle;
}

static char frames_of_other[1000];

/* The same by a program that was never seen before. */
static KEEP pid_t by_exec_double_fork(int depth)
{
	int report[2], held[2];
	char numbers[2][12];
	char *arguments[] = {"spawners", "--middle", numbers[0], numbers[1], NULL}, *environment[] = {NULL};
	size_t length = 0;
	ssize_t got;
	pid_t pid;

	if (pipe(report) || pipe(held) || fcntl(held[1], F_SETFD, FD_CLOEXEC))
		fail("pipe");
	snprintf(numbers[0], sizeof(numbers[0]), "%d", report[1]);
	snprintf(numbers[1], sizeof(numbers[1]), "%d", held[0]);
	AT(depth); if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environment))
		fail("posix_spawn");
	close(report[1]);
	close(held[0]); /* held[1] stays open until this program ends */
	while ((got = read(report[0], frames_of_other + length, sizeof(frames_of_other) - 1 - length)) > 0)
		length += (size_t)got;
	frames_of_other[length] = 0;
	close(report[0]);
	return pid;
}

static const struct way {
	const char *name;
	pid_t (*make)(int depth);
} ways[] = {
	{"fork", by_fork},
	{"vfork", by_vfork},
	{"posix_spawn", by_posix_spawn},
	{"system", by_system},
	{"popen", by_popen},
	{"clone", by_clone},
	{"raw_clone", by_raw_clone},
	{"deep", by_fork_below_a_large_frame},
	{"double_fork", by_double_fork},
	{"exec_double_fork", by_exec_double_fork},
};

static void reap(pid_t pid)
{
	if (pid < 0 || (pid && waitpid(pid, NULL, 0) != pid))
		fail("fork and wait");
}

static KEEP void work(const struct way *way, int depth)
{
	AT(depth); pid_t pid = way->make(depth + 1);

	reap(pid);
}

static void print_path(int forks, const struct frame *path)
{
	const char *separator = "";

	if (!path[0].line)
		return;
	printf("{\"forks\": %d, \"frames\": [", forks);
	for (int i = MAX_DEPTH - 1; i >= 0; i--) {
		if (path[i].line) {
			printf("%s[\"%s\", %d]", separator, path[i].function, path[i].line);
			separator = ", ";
		}
	}
	printf("]}\n");
}

static void *in_a_thread(void *way)
{
	AT(0); work(way, 1);

	NO_TAIL_CALL;
	return NULL;
}

int main(int argc, char **argv)
{
	const struct way *way = NULL;
	bool thread;
	int count;

	paths = mmap(NULL, 2 * sizeof(*paths), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (paths == MAP_FAILED)
		fail("mmap");
	if (argc == 4 && strcmp(argv[1], "--middle") == 0) {
		AT(0); fork_and_exit(1, NULL, atoi(argv[2]), atoi(argv[3]));
	}

	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++)
			printf("%s\nthread_%s\n", ways[i].name, ways[i].name);
		return 0;
	}
	truth_start("spawners", &argc, argv);
	thread = argc == 3 && strncmp(argv[1], "thread_", 7) == 0;
	for (size_t i = 0; argc == 3 && i < sizeof(ways) / sizeof(*ways); i++)
		if (strcmp(ways[i].name, argv[1] + (thread ? 7 : 0)) == 0)
			way = &ways[i];
	count = argc == 3 ? atoi(argv[2]) : 0;
	if (!way || count < 1) {
		fprintf(stderr, "usage: spawners [--wait] WAY COUNT (spawners --list names the ways)\n");
		return 2;
	}
	for (int i = 0; i < count; i++) {
		if (thread) {
			pthread_t id;

			if (pthread_create(&id, NULL, in_a_thread, (void *)way) || pthread_join(id, NULL))
				fail("pthread");
		} else {
			AT(0); work(way, 1);
		}
	}
	print_path(count, paths[0]);
	print_path(count, paths[1]);
	if (frames_of_other[0])
		printf("{\"forks\": %d, \"frames\": %s}\n", count, strtok(frames_of_other, "\n"));
	truth_hold();
}
