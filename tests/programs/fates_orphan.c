/* Scenarios in which a parent dies first: orphans, daemons, subreapers, and zombies that outlive their parent. */
#define _GNU_SOURCE
#include "fates.h"

#include <pthread.h>
#include <sys/prctl.h>

static void become_subreaper(void)
{
	/* the orphans come to this program itself: PID 1 of a machine or container may reap late, or never */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		fail("PR_SET_CHILD_SUBREAPER");
}

/*
 * A child that forks another and exits at once; the other waits for the gate, or for the program's end without one.
 * Returns the other: its entry comes right after its parent's, since nobody else makes children meanwhile.
 */
static struct child *orphan_behind(int gate, int code)
{
	struct child *parent, *orphan;

	if (fork_child(&parent) == 0) {
		if (fork_child(&orphan) == 0) {
			if (gate < 0)
				hold();
			gate_wait(gate);
			_exit(code);
		}
		_exit(0);
	}
	reap_wait4(parent, 0, WAITED);
	return parent + 1;
}

static void orphan(void)
{
	int gate = gate_new();
	struct child *child;

	become_subreaper();
	child = orphan_behind(gate, 4);
	gate_open(gate, 1);
	reap_wait4(child, 0, ORPHANED);
}

static void orphan_unreaped(void)
{
	int gate = gate_new();
	struct child *child;

	become_subreaper();
	child = orphan_behind(gate, 4);
	gate_open(gate, 1);
	stands(child, ORPHANED);
	child->note = "stands as a zombie under the subreaper";
}

static void orphan_autoreaped(void)
{
	int gate = gate_new();
	struct child *child;

	become_subreaper();
	child = orphan_behind(gate, 4);
	signal(SIGCHLD, SIG_IGN);
	gate_open(gate, 1);
	await_release(child->pid);
	child->status = 4 << 8;
	child->ended = true;
	child->fate = ORPHANED;
	child->note = "its new parent ignores SIGCHLD";
}

static void orphan_running(void)
{
	become_subreaper();
	orphan_behind(-1, 4)->note = "orphaned, and alive";
}

static void double_fork_daemon(void)
{
	struct child *middle, *daemon, *ending;
	int gate = gate_new();

	become_subreaper();
	if (fork_child(&middle) == 0) {
		setsid();
		if (fork_child(&daemon) == 0)
			exec_hold();
		_exit(0);
	}
	reap_wait4(middle, 0, WAITED);
	daemon = middle + 1;
	UNTIL(proc_comm_is(daemon->pid, "cat"));
	daemon->exec = "cat";
	daemon->note = "a daemon that goes on";
	ending = orphan_behind(gate, 0);
	gate_open(gate, 1);
	reap_wait4(ending, 0, ORPHANED);
	ending->note = "a daemon that ends";
}

/* The leaking parent is itself a child, which exits: that alone is why the zombie is released. */
static void zombie_then_parent_exits(void)
{
	struct child *parent, *zombie;

	become_subreaper();
	if (fork_child(&parent) == 0) {
		stands(spawn_exit(3), ZOMBIE);
		_exit(0);
	}
	reap_wait4(parent, 0, WAITED);
	zombie = parent + 1;
	reap_wait4(zombie, 0, ZOMBIE);
	zombie->note = "released by the subreaper after its parent had died";
}

/* The nearest subreaper adopts; when that one dies, the next. */
static void subreaper_nested(void)
{
	struct child *inner, *first, *second;
	int gate = gate_new();

	become_subreaper();
	if (fork_child(&inner) == 0) {
		become_subreaper();
		first = orphan_behind(gate, 1);
		gate_open(gate, 1);
		reap_wait4(first, 0, ORPHANED);
		first->note = "reaped by the inner subreaper";
		orphan_behind(gate, 2)->note = "reaped by the outer subreaper";
		_exit(0);
	}
	reap_wait4(inner, 0, WAITED);
	second = inner + 4; /* after the first's parent, the first, and the second's parent */
	gate_open(gate, 1);
	reap_wait4(second, 0, ORPHANED);
}

struct forked_by_thread {
	int gate;
	struct child *children[2];
};

static void *fork_two(void *argument)
{
	struct forked_by_thread *made = argument;

	for (int i = 0; i < 2; i++) {
		if (fork_child(&made->children[i]) == 0) {
			gate_wait(made->gate);
			_exit(i + 1);
		}
	}
	return NULL;
}

/* Its children go to another thread of the same process: no orphans. */
static void fork_by_thread_that_exits(void)
{
	struct forked_by_thread made = {.gate = gate_new()};
	pthread_t thread;

	if (pthread_create(&thread, NULL, fork_two, &made) || pthread_join(thread, NULL))
		fail("pthread");
	gate_open(made.gate, 2);
	reap_wait4(made.children[0], 0, WAITED);
	stands(made.children[1], ZOMBIE);
}

const struct scenario orphan_scenarios[] = {
	{"orphan", orphan},
	{"orphan_unreaped", orphan_unreaped},
	{"orphan_autoreaped", orphan_autoreaped},
	{"orphan_running", orphan_running},
	{"double_fork_daemon", double_fork_daemon},
	{"zombie_then_parent_exits", zombie_then_parent_exits},
	{"subreaper_nested", subreaper_nested},
	{"fork_by_thread_that_exits", fork_by_thread_that_exits},
	{0},
};
