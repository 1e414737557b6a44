/*
 * What the test programs share: the protocol they talk, and the account of every child they make.
 *
 * The account lies in memory that all processes of the program share, so whoever learns something about a child
 * (its parent, its reaper, the child itself inside a pid namespace) writes it down, and the main process prints
 * it.  Nothing in it is guessed: statuses come from wait calls, or from /proc where nobody waits.
 *
 * The protocol, one JSON object a line on stdout:
 *   {"hello": "fates", "pid": 12, "waiting": true}   with --wait it now waits for a line on stdin (or SIGUSR1)
 *   {"pid": 13, "fate": "waited", ...}               one a child, or totals, as the program's usage says
 *   {"skip": "why"}                                  the kernel cannot do what was asked; nothing else follows
 *   {"ready": true}                                  all of it is true from here until stdin closes or SIGTERM
 */
#ifndef TRUTH_H
#define TRUTH_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define DEADLINE_S 60 /* no step of any program takes this long; SIGALRM ends the process that hangs */

enum fate { RUNNING, WAITED, ZOMBIE, ORPHANED, AUTOREAPED };

/* One child.  Pids are those of the pid namespace that /proc was mounted in, ns_pid the child's own view. */
struct child {
	pid_t pid;
	pid_t ns_pid; /* 0: as pid */
	pid_t parent; /* who had to wait for it when it was forked */
	pid_t forker; /* who called clone: another process than parent with CLONE_PARENT */
	pid_t reaper; /* who released it, 0: nobody, or the kernel */
	enum fate fate;
	bool ended;
	int status;	  /* as wait4 gives it, once ended */
	const char *call; /* the call that reaped it */
	const char *exec; /* the command it last executed */
	const char *note;
	unsigned long long start_ticks; /* field 22 of /proc/PID/stat, 0: not looked up */
};

/* Takes "--wait" out of the arguments, says hello, and waits for the start if asked to. */
void truth_start(const char *program, int *argc, char **argv);
/* Prints {"ready": true} and waits for a line on stdin: what was done so far was there before the trace. */
void truth_pause(void);
/* Prints every child of the account; an entry without a pid is none: its fork failed. */
void truth_print(void);
/* Prints {"ready": true}, blocks until stdin closes or SIGTERM comes, and exits with 0. */
_Noreturn void truth_hold(void);
_Noreturn void truth_skip(const char *why);
/* Says what failed (with errno) on stderr and exits with 1. */
_Noreturn void fail(const char *what);

/* A new entry of the account, of a child that the caller is about to make. */
struct child *child_new(void);
/* First thing in a child that fork_child() did not make: a deadline of its own, and no hold on the end. */
void child_begin(struct child *child);
/* fork(), with an entry in *child. */
pid_t fork_child(struct child **child);
/* A child that exits at once with `code`, one that blocks until the program ends. */
struct child *spawn_exit(int code);
struct child *spawn_hold(void);
/* Blocks until the main process is gone, then exits with 0. */
_Noreturn void hold(void);
/* Replaces the process by "cat", reading what ends when the main process does. */
_Noreturn void exec_hold(void);

/* Blocks until the process is dead (all threads of it), by pidfd: no wait call is made, nothing is reaped. */
void await_death(pid_t pid);
/* The state letter in /proc/PID/stat, 0 when there is no such process.  status, start_ticks: may be NULL. */
char proc_state(pid_t pid, int *status, unsigned long long *start_ticks);
/* Whether the process's command name, from /proc/PID/comm, is this one. */
bool proc_comm_is(pid_t pid, const char *comm);
/* Waits until the child is dead, checks in /proc that it stands as a zombie, and writes that down. */
void stands(struct child *child, enum fate fate);
/* Waits until no process has that pid any more. */
void await_release(pid_t pid);
/* Reaps by wait4(2) or waitid(2), and writes down `fate`. */
void reap_wait4(struct child *child, int options, enum fate fate);
void reap_waitid(struct child *child, int options, enum fate fate);

/* A semaphore between processes. */
int gate_new(void);
void gate_wait(int gate);
void gate_open(int gate, unsigned int waiters);

/* The caller's pid in the namespace of /proc: what an observer on the host sees. */
pid_t self_pid(void);
long long now_ns(void);
/* For loops that poll a condition: gives way for a moment, fails once `since_ns` is DEADLINE_S ago. */
void poll_again(long long since_ns, const char *waiting_for);
const char *fate_name(enum fate fate);

#define UNTIL(condition)                                                                                               \
	do {                                                                                                           \
		long long since_ns_ = now_ns();                                                                        \
		while (!(condition))                                                                                   \
			poll_again(since_ns_, #condition);                                                             \
	} while (0)

#endif
