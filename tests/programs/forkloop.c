/*
 * The loop that overhead is measured on: make a child that exits at once, wait for it, again.
 *
 *   forkloop [--wait] ROUNDS [--vfork | --threads]
 *
 * --threads makes a thread and joins it instead.  Prints {"rounds": N, "how": "fork", "ns_per_round": X}.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <pthread.h>
#include <sys/wait.h>

static void reap(pid_t pid)
{
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		fail("fork and wait");
}

static void by_fork(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	reap(pid);
}

static void by_vfork(void)
{
	pid_t pid = vfork();

	if (pid == 0)
		_exit(0);
	reap(pid);
}

static void *nothing(void *argument)
{
	return argument;
}

static void by_thread(void)
{
	pthread_t thread;

	errno = pthread_create(&thread, NULL, nothing, NULL);
	if (errno || pthread_join(thread, NULL))
		fail("pthread");
}

int main(int argc, char **argv)
{
	void (*round)(void) = by_fork;
	const char *how = "fork";
	long rounds = 0;
	long long begin;

	truth_start("forkloop", &argc, argv);
	alarm(0); /* as long as the caller likes */
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--vfork") == 0) {
			round = by_vfork;
			how = "vfork";
		} else if (strcmp(argv[i], "--threads") == 0) {
			round = by_thread;
			how = "threads";
		} else {
			rounds = atol(argv[i]);
		}
	}
	if (rounds < 1) {
		fprintf(stderr, "usage: forkloop [--wait] ROUNDS [--vfork | --threads]\n");
		return 2;
	}
	begin = now_ns();
	for (long i = 0; i < rounds; i++)
		round();
	printf("{\"rounds\": %ld, \"how\": \"%s\", \"ns_per_round\": %.1f}\n", rounds, how,
	       (double)(now_ns() - begin) / (double)rounds);
	truth_hold();
}
