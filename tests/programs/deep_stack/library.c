/* See deep_stack.h.  The arithmetic after each call keeps the compiler from making tail calls of them. */
#include "deep_stack.h"

volatile int deep_sink;

int deep_plain(int depth, stop_fn stop, const char *how)
{
	int below = depth > 1 ? deep_plain(depth - 1, stop, how) : deep_variable(depth * 40, stop, how);

	deep_sink += below;
	return below + depth;
}

int deep_variable(int size, stop_fn stop, const char *how)
{
	volatile char room[size + 16];
	int below;

	room[size] = (char)size;
	below = deep_aligned(stop, how);
	return below + room[size];
}

int deep_aligned(stop_fn stop, const char *how)
{
	volatile char room[100] __attribute__((aligned(64)));

	room[0] = how[0];
	stop(how);
	return room[0];
}
