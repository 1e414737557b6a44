/* libleaky.so.1: a shared library with the fault that forktrace is for. */
#include "leaky.h"

#include <unistd.h>

__attribute__((noinline)) pid_t leaky_spawn_helper(const char *what)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(what[0] ? 0 : 1);
	return pid;
}

pid_t leaky_request(const char *what)
{
	pid_t pid = leaky_spawn_helper(what);

	/* used after the call, so that it is no tail call: this frame stays on the stack of the fork */
	return pid > 0 ? pid : -1;
}
