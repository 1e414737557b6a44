/*
 * Forks at full speed, from many processes and at two depths, before, while and after a tracer attaches.
 *
 *   churn [--wait] WORKERS
 *
 * Each worker forks a child in a loop, which forks another one; all are waited for.  SIGUSR1 ends it; then it prints
 * {"pid", "parent", "before_ns", "after_ns"} for each fork: its clone came between these two times (CLOCK_BOOTTIME).
 */
#define _GNU_SOURCE
#include "truth.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { MAX_FORKS = 1 << 17, MAX_WORKERS = 64 };

struct fork {
	pid_t pid, parent;
	long long before_ns, after_ns;
};

static struct {
	atomic_int used, stop;
	struct fork forks[MAX_FORKS];
} *log_;

static pid_t logged_fork(void)
{
	int i = atomic_fetch_add(&log_->used, 1);
	struct fork *entry = &log_->forks[i];

	if (i >= MAX_FORKS) {
		errno = ENOSPC;
		fail("more forks than the log holds");
	}
	entry->parent = getpid();
	entry->before_ns = now_ns();
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	if (pid > 0) {
		entry->pid = pid;
		entry->after_ns = now_ns();
	}
	return pid;
}

static void reap(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || status)
		fail("waitpid");
}

static void worker(void)
{
	while (!log_->stop) {
		pid_t child = logged_fork();

		if (child == 0) {
			pid_t grandchild = logged_fork();

			if (grandchild == 0)
				_exit(0);
			reap(grandchild);
			_exit(0);
		}
		reap(child);
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t workers[MAX_WORKERS];
	sigset_t stop;
	int count, number;

	truth_start("churn", &argc, argv);
	count = argc == 2 ? atoi(argv[1]) : 0;
	if (count < 1 || count > MAX_WORKERS) {
		fprintf(stderr, "usage: churn [--wait] WORKERS (at most 64)\n");
		return 2;
	}
	log_ = mmap(NULL, sizeof(*log_), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (log_ == MAP_FAILED)
		fail("mmap");
	sigemptyset(&stop);
	sigaddset(&stop, SIGUSR1);
	sigprocmask(SIG_BLOCK, &stop, NULL);
	for (int i = 0; i < count; i++) {
		workers[i] = logged_fork();
		if (workers[i] == 0) {
			alarm(DEADLINE_S);
			worker();
		}
	}
	sigwait(&stop, &number);
	log_->stop = 1;
	for (int i = 0; i < count; i++)
		reap(workers[i]);
	for (int i = 0; i < log_->used; i++)
		printf("{\"pid\": %d, \"parent\": %d, \"before_ns\": %lld, \"after_ns\": %lld}\n", log_->forks[i].pid,
		       log_->forks[i].parent, log_->forks[i].before_ns, log_->forks[i].after_ns);
	truth_hold();
}
