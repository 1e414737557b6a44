/* The symbols by which a CPython is recognised (hostile_python.c).  VERSION: as PY_VERSION_HEX. */
#include <unistd.h>

unsigned char _PyRuntime[4096] = { 1 };
unsigned char PyCode_Type[256] = { 1 };
const unsigned long Py_Version = VERSION;

/* The interpreter's loop: executes "frames", which fork. */
__attribute__((noinline)) pid_t _PyEval_EvalFrameDefault(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	return pid;
}
