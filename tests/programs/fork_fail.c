/*
 * Makes clone fail for real, and counts.
 *
 *   fork_fail [--wait] as_it_is | nproc | clone3_enosys | clone3_eperm | clone_eperm | dead_init | pid_max
 *
 * as_it_is       nothing is prepared: the limit is that of a cgroup that the test made
 * nproc          RLIMIT_NPROC is full for another user: EAGAIN for processes and threads
 * clone3_enosys  seccomp says ENOSYS to clone3, the libc falls back to clone: no failure
 * clone3_eperm   seccomp says EPERM to clone3: threads fail, fork (clone) does not
 * clone_eperm    seccomp says EPERM to clone: fork fails
 * dead_init      the init of the caller's pid namespace for children is dead: ENOMEM
 * pid_max        all pids of the caller's pid namespace are taken: EAGAIN (Linux 6.14)
 *
 * It all happens in one child (pid_max: in a child of it), which lives on.  Prints one line a child, as fates.c does, and
 * {"failed": "EAGAIN", "thread": false, "count": N, "pid": who called} for each kind of failure, and
 * {"threads": N} for the threads that were made.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>

enum { TRIES = 3, OTHER_USER = 65534 };

struct counts {
	pid_t caller;
	int process_errno, process_failures, thread_errno, thread_failures, threads;
};

static void *nothing(void *argument)
{
	return argument;
}

/* TRIES forks and TRIES threads; what succeeds is reaped and joined. */
static void try_all(struct counts *counts, bool threads_too)
{
	for (int i = 0; i < TRIES; i++) {
		struct child *child = child_new();
		pid_t pid = fork();

		if (pid == 0) {
			child_begin(child);
			_exit(0);
		}
		if (pid < 0) {
			counts->process_errno = errno;
			counts->process_failures++;
		} else {
			child->pid = pid;
			reap_wait4(child, 0, WAITED);
		}
	}
	for (int i = 0; threads_too && i < TRIES; i++) {
		pthread_t thread;
		int error = pthread_create(&thread, NULL, nothing, NULL);

		if (error) {
			counts->thread_errno = error;
			counts->thread_failures++;
		} else {
			pthread_join(thread, NULL);
			counts->threads++;
		}
	}
}

static void refuse(long call, int error)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned int)call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned int)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = sizeof(filter) / sizeof(*filter), .filter = filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		fail("seccomp");
}

static void nproc(void)
{
	struct rlimit none = {.rlim_cur = 1, .rlim_max = 1};

	if (setresgid(OTHER_USER, OTHER_USER, OTHER_USER) || setresuid(OTHER_USER, OTHER_USER, OTHER_USER))
		fail("setresuid");
	if (setrlimit(RLIMIT_NPROC, &none))
		fail("RLIMIT_NPROC");
}

static void lose_init(void)
{
	struct child *init;

	if (unshare(CLONE_NEWPID))
		fail("unshare");
	if (fork_child(&init) == 0)
		_exit(0);
	reap_wait4(init, 0, WAITED);
	init->note = "init of a pid namespace, dead at once";
}

static void as_it_is(void)
{
}

/* The smallest pid_max leaves 300 pids; once they have all been used, only those from 300 on are given again. */
static void fill_namespace(void)
{
	struct child *init;
	FILE *setting;

	if (unshare(CLONE_NEWPID))
		fail("unshare");
	if (fork_child(&init) != 0)
		hold();
	setting = fopen("/proc/sys/kernel/pid_max", "w");
	if (!setting || fprintf(setting, "301") < 0 || fclose(setting))
		fail("pid_max");
	for (;;) {
		pid_t pid = fork();

		if (pid == 0) {
			if (getpid() == 300)
				hold();
			_exit(0);
		}
		if (pid < 0)
			fail("fork");
		if (pid == 300)
			return;
		waitpid(pid, NULL, 0);
	}
}

static bool namespaces_have_a_pid_max(void)
{
	int major, minor;
	struct utsname name;

	return uname(&name) == 0 && sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
	       (major > 6 || (major == 6 && minor >= 14));
}

static const char *errno_name(int error)
{
	switch (error) {
	case EAGAIN:
		return "EAGAIN";
	case ENOMEM:
		return "ENOMEM";
	case EPERM:
		return "EPERM";
	default:
		return strerror(error);
	}
}

static void print_failures(pid_t pid, int error, bool thread, int count)
{
	if (count)
		printf("{\"failed\": \"%s\", \"thread\": %s, \"count\": %d, \"pid\": %d}\n", errno_name(error),
		       thread ? "true" : "false", count, pid);
}

static void clone3_enosys(void)
{
	refuse(SYS_clone3, ENOSYS);
}

static void clone3_eperm(void)
{
	refuse(SYS_clone3, EPERM);
}

static void clone_eperm(void)
{
	refuse(SYS_clone, EPERM);
}

static const struct {
	const char *name;
	void (*prepare)(void);
} ways[] = {
	{"as_it_is", as_it_is},
	{"nproc", nproc},
	{"clone3_enosys", clone3_enosys},
	{"clone3_eperm", clone3_eperm},
	{"clone_eperm", clone_eperm},
	{"dead_init", lose_init},
	{"pid_max", fill_namespace},
};

int main(int argc, char **argv)
{
	void (*prepare)(void) = NULL;
	struct counts *counts;
	struct child *worker;
	int done;

	truth_start("fork_fail", &argc, argv);
	for (size_t i = 0; argc == 2 && i < sizeof(ways) / sizeof(*ways); i++)
		if (strcmp(ways[i].name, argv[1]) == 0)
			prepare = ways[i].prepare;
	if (!prepare) {
		fprintf(stderr,
			"usage: fork_fail [--wait] as_it_is | nproc | clone3_enosys | clone3_eperm | clone_eperm | dead_init | "
			"pid_max\n");
		return 2;
	}
	if (geteuid() != 0)
		truth_skip("it takes root to become another user and to make a pid namespace");
	if (prepare == fill_namespace && !namespaces_have_a_pid_max())
		truth_skip("pid_max is the host's before Linux 6.14");
	counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counts == MAP_FAILED)
		fail("mmap");
	done = gate_new();
	if (fork_child(&worker) == 0) {
		prepare();
		counts->caller = self_pid();
		try_all(counts, prepare != lose_init); /* a thread cannot go where its process's children go */
		gate_open(done, 1);
		hold();
	}
	gate_wait(done);
	truth_print();
	print_failures(counts->caller, counts->process_errno, false, counts->process_failures);
	print_failures(counts->caller, counts->thread_errno, true, counts->thread_failures);
	printf("{\"threads\": %d}\n", counts->threads);
	truth_hold();
}
