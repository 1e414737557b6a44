/*
 * A service that leaks: every request makes libleaky fork a helper that nobody waits for.  For each request it
 * also forks and properly waits for a child of its own, which no report may blame.
 *
 *   leaky_main [--wait] COUNT INTERVAL_MS
 *
 * Prints {"leaked": N, "waited": N, "library": ..., "function": ..., "leaked_pids": [...], "waited_pids": [...]}.
 */
#define _GNU_SOURCE
#include "leaky.h"
#include "truth.h"

#include <sys/wait.h>
#include <time.h>

#define MAX_COUNT 100000

static __attribute__((noinline)) pid_t work_and_wait(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		fail("work_and_wait");
	return pid;
}

static void print_pids(const char *key, const pid_t *pids, int count)
{
	printf(", \"%s\": [", key);
	for (int i = 0; i < count; i++)
		printf("%s%d", i ? ", " : "", pids[i]);
	printf("]");
}

int main(int argc, char **argv)
{
	pid_t *leaked, *waited;
	int count, interval_ms;

	truth_start("leaky_main", &argc, argv);
	count = argc == 3 ? atoi(argv[1]) : 0;
	interval_ms = argc == 3 ? atoi(argv[2]) : -1;
	if (count < 1 || count > MAX_COUNT || interval_ms < 0) {
		fprintf(stderr, "usage: leaky_main [--wait] COUNT INTERVAL_MS\n");
		return 2;
	}
	alarm(0); /* how long it runs is the caller's choice */
	leaked = calloc(count, sizeof(*leaked));
	waited = calloc(count, sizeof(*waited));
	if (!leaked || !waited)
		fail("calloc");
	for (int i = 0; i < count; i++) {
		struct timespec pace = {.tv_sec = interval_ms / 1000, .tv_nsec = interval_ms % 1000 * 1000000L};

		leaked[i] = leaky_request("request");
		if (leaked[i] < 0)
			fail("leaky_request");
		waited[i] = work_and_wait();
		nanosleep(&pace, NULL);
	}
	for (int i = 0; i < count; i++)
		UNTIL(proc_state(leaked[i], NULL, NULL) == 'Z');
	printf("{\"leaked\": %d, \"waited\": %d, \"library\": \"libleaky.so.1.2\", \"function\": "
	       "\"leaky_spawn_helper\"",
	       count, count);
	print_pids("leaked_pids", leaked, count);
	print_pids("waited_pids", waited, count);
	printf("}\n");
	truth_hold();
}
