/* The shared library of deep_stack: it calls back, so that the stack goes to and fro between two files. */
#ifndef DEEP_STACK_H
#define DEEP_STACK_H

typedef void (*stop_fn)(const char *how);

int deep_plain(int depth, stop_fn stop, const char *how);   /* CFA by the stack pointer */
int deep_variable(int size, stop_fn stop, const char *how); /* CFA by the frame pointer: variable-length array */
int deep_aligned(stop_fn stop, const char *how);            /* CFA by an expression: realigned stack */

#endif
