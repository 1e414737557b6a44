/* SPDX-License-Identifier: GPL-2.0 */
/* BCC's prelude includes this by -include: it wants CONFIG_BPF_SYSCALL and nothing else. */
#ifndef FORKTRACE_LINUX_KCONFIG_H
#define FORKTRACE_LINUX_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#endif
