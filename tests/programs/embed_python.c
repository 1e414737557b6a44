/*
 * A program that loads libpython when it is running already, as an application server does with its plugins.
 *
 *   embed_python [--wait] LIBPYTHON CODE [ARGUMENT...]
 *
 * CODE is executed with sys.argv = [ARGUMENT...]; it prints what follows the hello, and {"ready": true}.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <dlfcn.h>
#include <sys/wait.h>
#include <wchar.h>

static void *need(void *library, const char *name)
{
	void *found = dlsym(library, name);

	if (!found)
		fail(name);
	return found;
}

int main(int argc, char **argv)
{
	truth_start("embed_python", &argc, argv);
	if (argc < 3)
		fail("usage: embed_python [--wait] LIBPYTHON CODE [ARGUMENT...]");

	pid_t pid = fork(); /* a fork without any Python, which the stack of must show none of */
	if (pid == 0)
		_exit(0);
	waitpid(pid, NULL, 0);

	void *library = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
	if (!library)
		fail(dlerror());
	void (*initialize)(void) = need(library, "Py_Initialize");
	int (*run)(const char *, void *) = need(library, "PyRun_SimpleStringFlags");
	wchar_t *(*decode)(const char *, size_t *) = need(library, "Py_DecodeLocale");
	void (*set_argv)(int, wchar_t **, int) = need(library, "PySys_SetArgvEx");
	wchar_t *arguments[argc];

	for (int i = 3; i < argc; i++)
		arguments[i - 3] = decode(argv[i], NULL);
	initialize();
	set_argv(argc - 3, arguments, 0);
	return run(argv[2], NULL) ? 1 : 0;
}
