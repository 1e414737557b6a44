/* The scenarios of fates.c: one table a file, each ended by an entry without a name. */
#ifndef FATES_H
#define FATES_H

#include "truth.h"

struct scenario {
	const char *name;
	void (*run)(void);
};

extern const struct scenario wait_scenarios[], orphan_scenarios[], clone_scenarios[], namespace_scenarios[],
	uring_scenarios[];

/* For children whose pid the program is not told (libc made and reaped them): SIGCHLD's siginfo names them. */
void watch_sigchld(void);
/* The one child that died since watch_sigchld(), written down as reaped by this process through `call`. */
struct child *child_by_sigchld(const char *call, const char *exec);

#endif
