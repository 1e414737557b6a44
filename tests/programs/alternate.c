/*
 * Call sites that are hard to tell apart: the same depth, the same stack pointer, the same caller, and below them the
 * same code to the fork itself; only one return address on the stack differs.
 *
 *   alternate [--wait] SITES FORKS [ROUNDS NEXT AFTER]
 *
 * Prints {"pid": P, "function": "site_3"} a fork.  Then the same process executes NEXT, until ROUNDS are done, NEXT and AFTER
 * in turn, without randomized addresses: when both are the same length, the stack pointers come back as well.  Built with
 * SHIFT, the function at a site's address has another name.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <sys/personality.h>
#include <sys/wait.h>

#ifndef SHIFT
#define SHIFT 0
#endif

static volatile int site;

static __attribute__((noinline, noclone)) pid_t fork_below(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	return pid;
}

/* `site` keeps the compiler from taking two of them for one. */
#define SITE(name, number)                                             \
	static __attribute__((noinline, noclone)) pid_t name(void)     \
	{                                                              \
		pid_t pid = fork_below();                              \
		site = number;                                         \
		return pid;                                            \
	}

#if SHIFT
SITE(site_8, 1)
SITE(site_9, 2)
SITE(site_10, 3)
SITE(site_11, 4)
SITE(site_12, 5)
SITE(site_13, 6)
SITE(site_14, 7)
SITE(site_15, 8)
static pid_t (*const sites[])(void) = {site_8, site_9, site_10, site_11, site_12, site_13, site_14, site_15};
#else
SITE(site_0, 1)
SITE(site_1, 2)
SITE(site_2, 3)
SITE(site_3, 4)
SITE(site_4, 5)
SITE(site_5, 6)
SITE(site_6, 7)
SITE(site_7, 8)
static pid_t (*const sites[])(void) = {site_0, site_1, site_2, site_3, site_4, site_5, site_6, site_7};
#endif

int main(int argc, char **argv)
{
	int count, forks;
	uint64_t random = 12345;

	truth_start("alternate", &argc, argv);
	count = argc > 2 ? atoi(argv[1]) : 0;
	forks = argc > 2 ? atoi(argv[2]) : 0;
	if (count < 1 || count > 8 || forks < 1) {
		fprintf(stderr, "usage: alternate [--wait] SITES FORKS [ROUNDS NEXT AFTER] (at most 8 sites, 9 rounds)\n");
		return 2;
	}
	for (int i = 0; i < forks; i++) {
		random = random * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
		int n = (int)((random >> 33) % (unsigned int)count);
		pid_t pid = sites[n]();

		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			fail("fork and wait");
		printf("{\"pid\": %d, \"function\": \"site_%d\"}\n", pid, n + 8 * SHIFT);
	}
	fflush(stdout);
	if (argc == 6 && argv[3][0] > '1') {
		char rounds[] = {argv[3][0] - 1, 0};
		char *arguments[] = {"alternate", argv[1], argv[2], rounds, argv[5], argv[4], NULL}, *environment[] = {NULL};

		personality(ADDR_NO_RANDOMIZE);
		execve(argv[4], arguments, environment);
		fail("exec");
	}
	truth_hold();
}
