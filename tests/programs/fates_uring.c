/*
 * A child reaped by io_uring: no wait system call is ever made.  And the threads that the kernel puts into a process
 * for io_uring and vhost: in /proc they look like its own, yet the program made none of them.
 *
 * The layouts are those of the kernel's include/uapi/linux/io_uring.h; the operation is younger (6.7) than the headers
 * of the distributions that this must build on, so its number stands here.
 */
#define _GNU_SOURCE
#include "fates.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/vhost.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
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

/* Threads of this process whose name begins so. */
static int threads_named(const char *prefix)
{
	DIR *tasks = opendir("/proc/self/task");
	char path[300], name[32];
	struct dirent *entry;
	int count = 0;

	if (!tasks)
		fail("/proc/self/task");
	while ((entry = readdir(tasks))) {
		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
		FILE *comm = entry->d_name[0] == '.' ? NULL : fopen(path, "r");

		if (!comm)
			continue;
		count += fgets(name, sizeof(name), comm) && strncmp(name, prefix, strlen(prefix)) == 0;
		fclose(comm);
	}
	closedir(tasks);
	return count;
}

static void *hold_thread(void *unused)
{
	hold();
	return unused;
}

static void *return_at_once(void *argument)
{
	return argument;
}

/* One thread that ends, one that stays, one child. */
static void ordinary_work(void)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, return_at_once, NULL) || pthread_join(thread, NULL) ||
	    pthread_create(&thread, NULL, hold_thread, NULL))
		fail("pthread");
	reap_wait4(spawn_exit(1), 0, WAITED);
}

static void print_threads(int workers)
{
	printf("{\"workers\": %d, \"threads\": 2, \"threads_running\": 1}\n", workers);
}

static void iouring_workers(void)
{
	struct io_uring_params polled = {.flags = IORING_SETUP_SQPOLL, .sq_thread_idle = 1000};
	struct io_uring_sqe request = {.opcode = IORING_OP_NOP, .flags = IOSQE_ASYNC};
	int ring, workers;

	ordinary_work();
	ring = (int)syscall(SYS_io_uring_setup, 4, &polled);
	if (ring < 0 || submit_and_wait(&request))
		truth_skip("io_uring is disabled");
	UNTIL(threads_named("iou-sqp") == 1); /* it names itself */
	workers = threads_named("iou-");
	close(ring);
	UNTIL(threads_named("iou-sqp") == 0); /* an end of such a thread is none of the program's threads either */
	print_threads(workers);
}

static void vhost_worker(void)
{
	int device = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);

	ordinary_work();
	if (device < 0 || ioctl(device, VHOST_SET_OWNER))
		truth_skip("there is no /dev/vhost-net");
	print_threads(threads_named("vhost-"));
}

const struct scenario uring_scenarios[] = {
	{"iouring_waitid", iouring_waitid},
	{"iouring_workers", iouring_workers},
	{"vhost_worker", vhost_worker},
	{0},
};
