/*
 * Libraries that come and go at one address: each has a function that forks, and its own name for it.
 *
 *   plugins [--wait] FORKS ROUNDS LIBRARY FUNCTION [LIBRARY FUNCTION]
 *
 * A round opens each library, forks FORKS children from its function, gives an observer 150 ms to look, and closes it.
 * Prints {"pid": P, "function": F, "address": A} a fork.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <dlfcn.h>
#include <sys/wait.h>

static void use(const char *path, const char *name, int forks)
{
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	pid_t (*function)(void) = NULL;

	if (library)
		*(void **)&function = dlsym(library, name);
	if (!function)
		fail(path);
	for (int i = 0; i < forks; i++) {
		pid_t pid = function();

		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			fail("fork and wait");
		printf("{\"pid\": %d, \"function\": \"%s\", \"address\": %lu}\n", pid, name, (unsigned long)(uintptr_t)function);
	}
	fflush(stdout);
	usleep(150000);
	dlclose(library);
	if (dlopen(path, RTLD_NOW | RTLD_NOLOAD))
		fail("the library stayed");
}

int main(int argc, char **argv)
{
	truth_start("plugins", &argc, argv);
	if (argc < 5 || argc % 2 == 0) {
		fprintf(stderr, "usage: plugins [--wait] FORKS ROUNDS LIBRARY FUNCTION [LIBRARY FUNCTION]\n");
		return 2;
	}
	for (int round = 0; round < atoi(argv[2]); round++)
		for (int i = 3; i < argc; i += 2)
			use(argv[i], argv[i + 1], atoi(argv[1]));
	truth_hold();
}
