/* SPDX-License-Identifier: GPL-2.0 */
/* Named by BCC's prelude for network programs; nothing of it is used here. */
