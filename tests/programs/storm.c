/*
 * Many parents with many children of mixed fates, all at once, and the exact totals.
 *
 *   storm [--wait] PARENTS CHILDREN_EACH SEED
 *
 * Prints one line: {"forks", "waited", "zombie", "autoreaped", "running", "calls": {"wait4": n, "waitid": n},
 * "exits": {"0": n, "SIGKILL": n, ...}, "zombie_exits": {...}}.  The parents are children of this program, run until
 * its end, and are counted in forks and running.  One parent in five ignores SIGCHLD.  One child in twenty of the
 * others stays a zombie, so that 20,000 children leave less than a thousand.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { MAX_PARENTS = 1000, MAX_CHILDREN_EACH = 1000, SIGNALS_FROM = 4 };

static const char *const exit_names[] = {"0", "1", "7", "255", "SIGKILL", "SIGTERM", "SIGUSR1"};
static const int exit_values[] = {0, 1, 7, 255, SIGKILL, SIGTERM, SIGUSR1};

enum { EXITS = sizeof(exit_values) / sizeof(*exit_values) };

struct totals {
	atomic_int fates[AUTOREAPED + 1], wait4_calls, waitid_calls, exits[EXITS], zombie_exits[EXITS], finished;
};

/* splitmix64 (Steele, Lea, Flood 2014): each parent draws from a stream of its own. */
static uint64_t draw(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static _Noreturn void end_as(int how)
{
	if (how < SIGNALS_FROM)
		_exit(exit_values[how]);
	kill(getpid(), exit_values[how]);
	for (;;)
		pause();
}

static void check_status(int how, bool exited, int value)
{
	errno = EPROTO;
	if (exited != (how < SIGNALS_FROM) || value != exit_values[how])
		fail("a child ended otherwise than it was told to");
}

static void parent(struct totals *totals, int children, uint64_t state)
{
	bool ignores = draw(&state) % 5 == 0;

	if (ignores)
		signal(SIGCHLD, SIG_IGN);
	for (int i = 0; i < children; i++) {
		int how = (int)(draw(&state) % EXITS);
		uint64_t choice = draw(&state) % 20;
		siginfo_t info = {0};
		int status;
		pid_t pid = fork();

		if (pid < 0)
			fail("fork");
		if (pid == 0)
			end_as(how);
		totals->exits[how]++;
		if (ignores) {
			await_release(pid);
			totals->fates[AUTOREAPED]++;
		} else if (choice == 0) {
			UNTIL(proc_state(pid, &status, NULL) == 'Z');
			check_status(how, WIFEXITED(status),
				     WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
			totals->fates[ZOMBIE]++;
			totals->zombie_exits[how]++;
		} else if (choice < 11) {
			if (wait4(pid, &status, 0, NULL) != pid)
				fail("wait4");
			check_status(how, WIFEXITED(status),
				     WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
			totals->fates[WAITED]++;
			totals->wait4_calls++;
		} else {
			if (waitid(P_PID, (id_t)pid, &info, WEXITED) || info.si_pid != pid)
				fail("waitid");
			check_status(how, info.si_code == CLD_EXITED, info.si_status);
			totals->fates[WAITED]++;
			totals->waitid_calls++;
		}
	}
}

static void print_exits(const char *key, const atomic_int *counts)
{
	const char *separator = "";

	printf(", \"%s\": {", key);
	for (int i = 0; i < EXITS; i++) {
		if (counts[i]) {
			printf("%s\"%s\": %d", separator, exit_names[i], counts[i]);
			separator = ", ";
		}
	}
	printf("}");
}

int main(int argc, char **argv)
{
	struct totals *totals;
	int parents, children, gate;
	uint64_t seed;

	truth_start("storm", &argc, argv);
	parents = argc == 4 ? atoi(argv[1]) : 0;
	children = argc == 4 ? atoi(argv[2]) : 0;
	if (parents < 1 || parents > MAX_PARENTS || children < 1 || children > MAX_CHILDREN_EACH) {
		fprintf(stderr, "usage: storm [--wait] PARENTS CHILDREN_EACH SEED (at most %d and %d)\n", MAX_PARENTS,
			MAX_CHILDREN_EACH);
		return 2;
	}
	seed = strtoull(argv[3], NULL, 10);
	totals = mmap(NULL, sizeof(*totals), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (totals == MAP_FAILED)
		fail("mmap");
	gate = gate_new();
	for (int i = 0; i < parents; i++) {
		struct child *entry;

		if (fork_child(&entry) == 0) {
			gate_wait(gate);
			parent(totals, children, seed * MAX_PARENTS + (uint64_t)i);
			totals->finished++;
			hold();
		}
		totals->fates[RUNNING]++;
	}
	gate_open(gate, (unsigned int)parents);
	UNTIL(totals->finished == parents);
	printf("{\"forks\": %d, \"waited\": %d, \"zombie\": %d, \"autoreaped\": %d, \"running\": %d",
	       parents + parents * children, totals->fates[WAITED], totals->fates[ZOMBIE], totals->fates[AUTOREAPED],
	       totals->fates[RUNNING]);
	printf(", \"calls\": {\"wait4\": %d, \"waitid\": %d}", totals->wait4_calls, totals->waitid_calls);
	print_exits("exits", totals->exits);
	print_exits("zombie_exits", totals->zombie_exits);
	printf("}\n");
	truth_hold();
}
