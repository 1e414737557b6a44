/*
 * A C extension of Ruby, for ruby_extension.rb: Forker.fork_once forks by itself, Forker.each calls its block.
 * It declares what it needs of ruby.h, which is the same since 1.9 and need not be installed.
 */
#include <sys/wait.h>
#include <unistd.h>

typedef unsigned long VALUE;

VALUE rb_define_module(const char *name);
void rb_define_singleton_method(VALUE object, const char *name, VALUE (*function)(VALUE), int arguments);
VALUE rb_yield(VALUE argument);

static VALUE forker_fork_once(VALUE self)
{
	pid_t pid = fork();

	(void)self;
	if (pid == 0)
		_exit(0);
	waitpid(pid, 0, 0);
	return (VALUE)pid << 1 | 1; /* INT2FIX */
}

static VALUE forker_each(VALUE self)
{
	rb_yield(self);
	return self;
}

void Init_ruby_extension(void)
{
	VALUE module = rb_define_module("Forker");

	rb_define_singleton_method(module, "fork_once", forker_fork_once, 0);
	rb_define_singleton_method(module, "each", forker_each, 0);
}
