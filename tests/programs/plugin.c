/* A library for plugins.c: FUNCTION forks.  PADDING: bytes of further code, which make its mapping larger. */
#include <unistd.h>

__attribute__((visibility("default"))) pid_t FUNCTION(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	return pid;
}

__asm__(".text\n.skip " PADDING "\n");
