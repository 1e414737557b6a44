/*
 * Builds a stack of every kind of frame that gcc makes, then stops in one of several ways:
 *   pause    in a system call            signal   in a handler, on top of the interrupted code
 *   vfork    in vfork(2)                 clone    in clone(2), as called by a library function
 *   spawn    in posix_spawn's clone      thread   in a system call of a second thread
 * Prints "ready" before it stops.  Usage: deep_stack HOW
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "deep_stack.h"

static void ready(void)
{
	puts("ready");
	fflush(stdout);
}

static void handler(int number)
{
	(void)number;
	ready();
	pause();
}

static int child(void *argument)
{
	(void)argument;
	_exit(0);
}

static void stop(const char *how)
{
	static char stack[65536];
	char *arguments[] = {"true", NULL};
	pid_t pid;

	if (!strcmp(how, "signal")) {
		signal(SIGUSR1, handler);
		raise(SIGUSR1);
		return;
	}
	ready();
	if (!strcmp(how, "vfork")) {
		pid = vfork();
		if (!pid)
			_exit(0);
		waitpid(pid, NULL, 0);
	} else if (!strcmp(how, "clone")) {
		pid = clone(child, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
		waitpid(pid, NULL, 0);
	} else if (!strcmp(how, "spawn")) {
		if (!posix_spawnp(&pid, "true", NULL, NULL, arguments, NULL))
			waitpid(pid, NULL, 0);
	} else {
		pause();
	}
}

static void *in_thread(void *how)
{
	deep_plain(5, stop, how);
	return how;
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "pause";
	pthread_t thread;

	if (!strcmp(how, "thread")) {
		pthread_create(&thread, NULL, in_thread, (void *)how);
		pthread_join(thread, NULL);
		return 0;
	}
	return deep_plain(5, stop, how) == 0;
}
