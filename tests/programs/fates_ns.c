/* Scenarios of pid namespaces and of pids used twice. */
#define _GNU_SOURCE
#include "fates.h"

#include <linux/sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* Forks the init of a new pid namespace: returns 0 in it. */
static pid_t fork_namespace_init(struct child **init)
{
	struct child *entry = child_new();
	pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, NULL, NULL, NULL, NULL);

	if (pid < 0)
		truth_skip("no new pid namespace: it needs root");
	if (pid == 0)
		child_begin(entry);
	else
		entry->pid = pid;
	*init = entry;
	return pid;
}

/* An init with a child it reaps, one it leaves as a zombie, an orphan it adopts and forgets, and one that lives on. */
static void pidns(void)
{
	struct child *init, *middle, *orphan, *zombie;
	int gate = gate_new(), done = gate_new();

	if (fork_namespace_init(&init) == 0) {
		reap_wait4(spawn_exit(1), 0, WAITED);
		zombie = spawn_exit(2);
		stands(zombie, ZOMBIE);
		if (fork_child(&middle) == 0) {
			if (fork_child(&orphan) == 0) {
				gate_wait(gate);
				_exit(3);
			}
			_exit(0);
		}
		reap_wait4(middle, 0, WAITED);
		gate_open(gate, 1);
		orphan = middle + 1;
		stands(orphan, ORPHANED);
		orphan->note = "the namespace's init adopted it and does not wait";
		spawn_hold();
		gate_open(done, 1);
		hold();
	}
	gate_wait(done);
	UNTIL(((volatile struct child *)init)[5].pid);
	init->note = "init of a pid namespace";
}

/* A dying init takes all others of its namespace with it. */
static void pidns_init_exits(void)
{
	struct child *init;

	if (fork_namespace_init(&init) == 0) {
		struct child *living = spawn_hold();

		stands(spawn_exit(2), ZOMBIE);
		UNTIL(*(volatile pid_t *)&living->pid);
		_exit(6);
	}
	reap_wait4(init, 0, WAITED);
	await_release(init[1].pid);
	init[1].fate = ORPHANED; /* its parent was dying already when the kernel killed it */
	init[1].status = SIGKILL;
	init[1].ended = true;
	init[1].note = "killed with its namespace";
	init[2].note = "released with its namespace";
}

/* A child with a chosen pid (the innermost namespace's), which exits with `code`. */
static struct child *exit_with_pid(pid_t pid, int code)
{
	struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&pid, .set_tid_size = 1};
	struct child *child = child_new();
	long made = syscall(SYS_clone3, &arguments, sizeof(arguments));

	if (made < 0) {
		if (errno == EEXIST)
			truth_skip("another process took the pid in between");
		truth_skip("clone3 with set_tid is not there (Linux 5.5), or is refused");
	}
	if (made == 0) {
		child_begin(child);
		_exit(code);
	}
	if (getpid() == self_pid())
		child->pid = pid;
	return child;
}

/* Two processes of one pid; /proc's start times tell them apart. */
static void pid_reuse(void)
{
	struct child *first = spawn_exit(1), *second;

	stands(first, ZOMBIE);
	proc_state(first->pid, NULL, &first->start_ticks);
	reap_wait4(first, 0, WAITED);
	await_release(first->pid);
	/* real pids come back after a whole round of them, not within the tick that start times are counted in */
	UNTIL(now_ns() / 10000000 > (long long)first->start_ticks + 1);
	second = exit_with_pid(first->pid, 2);
	stands(second, ZOMBIE);
	proc_state(second->pid, NULL, &second->start_ticks);
	if (first->start_ticks == second->start_ticks)
		fail("the same start time twice");
}

/* The pid inside a namespace comes back; the pids outside differ. */
static void pid_reuse_in_namespace(void)
{
	struct child *init;
	int done = gate_new();

	if (fork_namespace_init(&init) == 0) {
		reap_wait4(exit_with_pid(77, 1), 0, WAITED);
		stands(exit_with_pid(77, 2), ZOMBIE);
		gate_open(done, 1);
		hold();
	}
	gate_wait(done);
	init->note = "init of a pid namespace";
}

const struct scenario namespace_scenarios[] = {
	{"pidns", pidns},
	{"pidns_init_exits", pidns_init_exits},
	{"pid_reuse", pid_reuse},
	{"pid_reuse_in_namespace", pid_reuse_in_namespace},
	{0},
};
