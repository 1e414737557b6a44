/* The public functions of libleaky, the library that forks helpers and forgets them. */
#ifndef LEAKY_H
#define LEAKY_H

#include <sys/types.h>

/* Does one piece of work with the help of a process.  Returns that process's pid, or -1: nobody ever waits for it. */
pid_t leaky_request(const char *what);
/* Forks the helper.  Public as well, so that its name stands in the dynamic symbols of a stripped build. */
pid_t leaky_spawn_helper(const char *what);

#endif
