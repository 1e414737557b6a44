/*
 * A child reaped by io_uring: no wait system call is ever made.
 *
 * The layouts are those of the kernel's include/uapi/linux/io_uring.h; the operation is younger (6.7) than the headers
 * of the distributions that this must build on, so its number stands here.
 */
#define _GNU_SOURCE
#include "fates.h"

#include <linux/io_uring.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { OP_WAITID = 50 };

static void *map(int ring, size_t size, off_t what)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, what);

	if (memory == MAP_FAILED)
		fail("mmap of the ring");
	return memory;
}

/* Submits one request and waits for its completion.  Returns the result, as a negative errno on failure. */
static int submit_and_wait(const struct io_uring_sqe *request)
{
	struct io_uring_params parameters = {0};
	int ring = (int)syscall(SYS_io_uring_setup, 4, &parameters);
	char *submissions, *completions;
	struct io_uring_sqe *entries;
	unsigned int tail;
	const struct io_uring_cqe *result;

	if (ring < 0)
		return -errno;
	submissions = map(ring, parameters.sq_off.array + parameters.sq_entries * sizeof(uint32_t), IORING_OFF_SQ_RING);
	completions = map(ring, parameters.cq_off.cqes + parameters.cq_entries * sizeof(*result), IORING_OFF_CQ_RING);
	entries = map(ring, parameters.sq_entries * sizeof(*entries), IORING_OFF_SQES);
	entries[0] = *request;
	((uint32_t *)(submissions + parameters.sq_off.array))[0] = 0;
	tail = *(uint32_t *)(submissions + parameters.sq_off.tail);
	atomic_store((_Atomic uint32_t *)(submissions + parameters.sq_off.tail), tail + 1);
	while (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		if (errno != EINTR)
			return -errno;
	result = (const struct io_uring_cqe *)(completions + parameters.cq_off.cqes);
	return result->res;
}

static void iouring_waitid(void)
{
	struct io_uring_sqe request = {.opcode = OP_WAITID, .len = P_PID};
	struct child *child;
	int gate = gate_new(), result;
	siginfo_t info = {0};

	for (int late = 0; late < 2; late++) {
		/* one child is dead already when asked for, one dies while the request is pending */
		if (fork_child(&child) == 0) {
			if (late)
				gate_wait(gate);
			_exit(4);
		}
		if (!late)
			await_death(child->pid);
		request.fd = child->pid;
		request.addr2 = (uintptr_t)&info;
		request.splice_fd_in = WEXITED;
		if (late)
			gate_open(gate, 1);
		result = submit_and_wait(&request);
		if (result == -EINVAL)
			truth_skip("io_uring has no WAITID (Linux 6.7)");
		if (result == -EPERM || result == -ENOSYS)
			truth_skip("io_uring is disabled");
		if (result || info.si_pid != child->pid)
			fail("IORING_OP_WAITID");
		child->status = info.si_status << 8;
		child->ended = true;
		child->fate = WAITED;
		child->call = "io_uring";
		child->reaper = self_pid();
	}
}

const struct scenario uring_scenarios[] = {
	{"iouring_waitid", iouring_waitid},
	{0},
};
