/* SPDX-License-Identifier: GPL-2.0 */
/* Registers are read as an array of words (stack.c); BCC only wants the type to exist. */
#ifndef FORKTRACE_UAPI_LINUX_PTRACE_H
#define FORKTRACE_UAPI_LINUX_PTRACE_H
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#endif
