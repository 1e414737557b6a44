/* The symbols by which a Ruby is recognised (hostile_ruby.c).  VERSION: its text. */
#include <unistd.h>

const char ruby_version[] = VERSION;
__thread void *ruby_current_ec;
struct {
	unsigned last_id;
	void *str, *ids, *dsymbols;
} ruby_global_symbols;

/* The interpreter's loop: executes "frames", which fork. */
__attribute__((noinline)) pid_t rb_vm_exec(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	return pid;
}
