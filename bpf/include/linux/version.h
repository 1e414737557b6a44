/* SPDX-License-Identifier: GPL-2.0 */
/* Programs are checked by trying to load them, never by version: this number decides nothing. */
#ifndef FORKTRACE_LINUX_VERSION_H
#define FORKTRACE_LINUX_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
#endif
