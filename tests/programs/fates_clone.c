/* Scenarios of making children by other means than fork(), and of exec and exit by threads. */
#define _GNU_SOURCE
#include "fates.h"

#include <linux/sched.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* A child that exits with `code`, made by the raw system call with these flags (the low byte: its exit signal). */
static struct child *clone_exit(unsigned long flags, int code)
{
	struct child *child = child_new();
	pid_t pid = (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);

	if (pid < 0)
		fail("clone");
	if (pid == 0) {
		child_begin(child);
		_exit(code);
	}
	child->pid = pid;
	return child;
}

static void reap_wall(struct child *child)
{
	int status;

	await_death(child->pid);
	if (waitpid(child->pid, &status, 0) != -1 || errno != ECHILD)
		fail("a plain wait saw a clone child");
	reap_wait4(child, __WALL, WAITED);
}

/* A child whose exit signal is not SIGCHLD is never seen by a plain wait. */
static void wall_clone(void)
{
	signal(SIGUSR1, SIG_IGN);
	reap_wall(clone_exit(0, 1));
	reap_wall(clone_exit(SIGUSR1, 2));
}

static void clone_signal_leak(void)
{
	struct child *child;
	int status;

	signal(SIGUSR1, SIG_IGN);
	for (int i = 0; i < 2; i++) {
		child = clone_exit(i ? SIGUSR1 : 0, 3);
		stands(child, ZOMBIE);
		if (waitpid(-1, &status, 0) != -1 || errno != ECHILD)
			fail("a plain wait saw a clone child");
		child->note = i ? "exit signal SIGUSR1" : "no exit signal";
	}
}

/* SIGCHLD ignored releases only those who would have sent SIGCHLD. */
static void clone_signal_ignored(void)
{
	signal(SIGCHLD, SIG_IGN);
	signal(SIGUSR1, SIG_IGN);
	stands(clone_exit(SIGUSR1, 3), ZOMBIE);
}

static void clone3_raw(void)
{
	struct clone_args arguments = {.exit_signal = SIGCHLD};
	struct child *child;

	for (int waited = 0; waited < 2; waited++) {
		pid_t pid;

		child = child_new();
		pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof(arguments));
		if (pid < 0)
			truth_skip("clone3 is not there (Linux 5.3), or is refused");
		if (pid == 0) {
			child_begin(child);
			_exit(8);
		}
		child->pid = pid;
		if (waited)
			reap_wait4(child, 0, WAITED);
		else
			stands(child, ZOMBIE);
	}
}

/* The forker is a child; whom it makes is the child of the main process, which must wait. */
static struct child *clone_parent_of(struct child **forker)
{
	struct child *child;

	if (fork_child(forker) == 0) {
		child = clone_exit(CLONE_PARENT | SIGCHLD, 5);
		hold();
	}
	child = *forker + 1;
	UNTIL(*(volatile pid_t *)&child->pid);
	child->parent = self_pid();
	return child;
}

static void clone_parent(void)
{
	struct child *forker;

	reap_wait4(clone_parent_of(&forker), 0, WAITED);
}

static void clone_parent_leak(void)
{
	struct child *forker;

	stands(clone_parent_of(&forker), ZOMBIE);
}

static void vfork_exec(void)
{
	struct child *child = child_new();
	pid_t pid = vfork();

	if (pid == 0) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(127);
	}
	child->pid = pid;
	child->exec = "true";
	reap_wait4(child, 0, WAITED);
}

static struct child *vfork_child(void)
{
	struct child *child = child_new();
	pid_t pid = vfork();

	if (pid == 0)
		_exit(3);
	child->pid = pid;
	return child;
}

static void vfork_exit(void)
{
	stands(vfork_child(), ZOMBIE);
	reap_wait4(vfork_child(), 0, WAITED);
}

struct survivor {
	int gate;
	int exit_group;
};

static void *survive(void *argument)
{
	const struct survivor *me = argument;

	if (me->gate < 0)
		hold();
	gate_wait(me->gate);
	if (me->exit_group)
		_exit(9);
	/* this thread alone: the process's status is the last thread's today, and was the leader's in older kernels */
	syscall(SYS_exit, 5);
	return NULL;
}

static struct child *leaderless(int gate, int exit_group)
{
	struct child *child;
	pthread_t thread;

	if (fork_child(&child) == 0) {
		struct survivor *survivor = malloc(sizeof(*survivor)); /* must outlive the leader's stack */

		*survivor = (struct survivor){.gate = gate, .exit_group = exit_group};
		if (pthread_create(&thread, NULL, survive, survivor))
			fail("pthread_create");
		syscall(SYS_exit, 2);
	}
	return child;
}

/* Looks like a zombie while its other threads live, and cannot be reaped. */
static void leader_exits_first(void)
{
	struct child *child;
	int gate = gate_new(), status;

	for (int exit_group = 0; exit_group < 2; exit_group++) {
		child = leaderless(gate, exit_group);
		UNTIL(proc_state(child->pid, NULL, NULL) == 'Z');
		if (waitpid(child->pid, &status, WNOHANG) != 0)
			fail("a leader was reaped before its threads");
		gate_open(gate, 1);
		reap_wait4(child, 0, WAITED);
	}
}

static void leader_exits_first_running(void)
{
	struct child *child = leaderless(-1, 1);

	UNTIL(proc_state(child->pid, NULL, NULL) == 'Z');
	child->note = "its leader is dead, another thread goes on";
}

static void leader_exits_first_zombie(void)
{
	struct child *child;
	int gate = gate_new();

	child = leaderless(gate, 1);
	UNTIL(proc_state(child->pid, NULL, NULL) == 'Z');
	gate_open(gate, 1);
	await_death(child->pid);
	stands(child, ZOMBIE);
}

static void *exec_true(void *unused)
{
	execl("/bin/true", "true", (char *)NULL);
	return unused;
}

static void *exec_cat(void *unused)
{
	exec_hold();
	return unused;
}

/* exec by a thread takes over the leader's pid; the old leader goes, and the process lives on. */
static void exec_by_thread(void)
{
	struct child *ended, *alive;
	pthread_t thread;

	if (fork_child(&ended) == 0) {
		pthread_create(&thread, NULL, exec_true, NULL);
		hold();
	}
	ended->exec = "true";
	reap_wait4(ended, 0, WAITED);
	if (fork_child(&alive) == 0) {
		pthread_create(&thread, NULL, exec_cat, NULL);
		for (;;)
			pause();
	}
	alive->exec = "cat";
	UNTIL(proc_comm_is(alive->pid, "cat"));
}

const struct scenario clone_scenarios[] = {
	{"wall_clone", wall_clone},
	{"clone_signal_leak", clone_signal_leak},
	{"clone_signal_ignored", clone_signal_ignored},
	{"clone3_raw", clone3_raw},
	{"clone_parent", clone_parent},
	{"clone_parent_leak", clone_parent_leak},
	{"vfork_exec", vfork_exec},
	{"vfork_exit", vfork_exit},
	{"leader_exits_first", leader_exits_first},
	{"leader_exits_first_running", leader_exits_first_running},
	{"leader_exits_first_zombie", leader_exits_first_zombie},
	{"exec_by_thread", exec_by_thread},
	{0},
};
