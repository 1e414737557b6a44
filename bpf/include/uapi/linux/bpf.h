/* SPDX-License-Identifier: GPL-2.0 */
/* BCC carries the BPF interface itself; a second copy would define every enumerator twice. */
#include <bcc/bpf.h>
