/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FORKTRACE_LINUX_LOG2_H
#define FORKTRACE_LINUX_LOG2_H

/* For compile-time constants, as BCC's table macros use it. */
#define roundup_pow_of_two(n) ((n) <= 1 ? 1UL : 1UL << (64 - __builtin_clzl((unsigned long)(n) - 1)))

#endif
