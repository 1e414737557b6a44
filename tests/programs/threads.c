/*
 * Threads in every way that they end and are joined, or not.  Each scenario makes its threads in a function of its own,
 * make_NAME, so that its stack is known by that name.
 *
 *   threads [--wait] NAME...     in turn, in one process
 *   threads --list
 *
 * Prints {"scenario": NAME, "made": N, "alive": N, "unjoined": N} each.  unjoined: ended, joinable, and joined by
 * nobody.  A thread has ended when /proc does not show it any more.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <pthread.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>

#define NOINLINE __attribute__((noipa)) /* nor folded with another function of the same code */
#define FEW 4
#define STACK_SIZE (256 * 1024)

struct worker {
	pthread_t thread;
	pid_t tid;
	bool stop;
	bool detaches_itself;
};

static int made, alive, unjoined; /* of the running scenario */

static void nap(long ms)
{
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&time, NULL);
}

static bool is_there(pid_t tid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/task/%d", tid);
	return access(path, F_OK) == 0;
}

/* Until it is told to stop; the main process's end takes it along. */
static void *work(void *argument)
{
	struct worker *worker = argument;

	pthread_setname_np(pthread_self(), "worker");
	if (worker->detaches_itself)
		pthread_detach(pthread_self());
	__atomic_store_n(&worker->tid, gettid(), __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&worker->stop, __ATOMIC_SEQ_CST))
		nap(1);
	return NULL;
}

static void begin(struct worker *worker)
{
	UNTIL(__atomic_load_n(&worker->tid, __ATOMIC_SEQ_CST));
	made++;
	alive++;
}

static void tell(struct worker *worker)
{
	__atomic_store_n(&worker->stop, true, __ATOMIC_SEQ_CST);
}

static void end(struct worker *worker)
{
	tell(worker);
	UNTIL(!is_there(worker->tid));
	alive--;
}

static void must(int error, const char *what)
{
	if (error) {
		errno = error;
		fail(what);
	}
}

/* The creation is not inlined, and no tail call either: its return address is in the scenario's function. */
#define CREATE(worker, attributes)                                                                                     \
	do {                                                                                                           \
		must(pthread_create(&(worker)->thread, attributes, work, worker), "pthread_create");                   \
		begin(worker);                                                                                         \
	} while (0)

#define EACH(name) for (struct worker *name = calloc(FEW, sizeof(struct worker)), *end_ = name + FEW; name < end_; name++)

static struct timespec in(clockid_t clock, long ms)
{
	struct timespec time;

	clock_gettime(clock, &time);
	time.tv_nsec += ms % 1000 * 1000000;
	time.tv_sec += ms / 1000 + time.tv_nsec / 1000000000;
	time.tv_nsec %= 1000000000;
	return time;
}

static NOINLINE void make_joined(void)
{
	EACH(worker) {
		CREATE(worker, NULL);
		tell(worker);
		must(pthread_join(worker->thread, NULL), "pthread_join");
		alive--;
	}
}

static NOINLINE void make_joined_after_its_end(void)
{
	EACH(worker) {
		CREATE(worker, NULL);
		end(worker);
		must(pthread_join(worker->thread, NULL), "pthread_join");
	}
}

static void *join_it(void *argument)
{
	must(pthread_join(((struct worker *)argument)->thread, NULL), "pthread_join");
	return NULL;
}

/* The joiners are joined as well, but count as another's: they are made by join_elsewhere(). */
static NOINLINE void join_elsewhere(struct worker *worker)
{
	pthread_t joiner;

	must(pthread_create(&joiner, NULL, join_it, worker), "pthread_create");
	nap(5);
	tell(worker);
	must(pthread_join(joiner, NULL), "pthread_join");
}

static NOINLINE void make_joined_by_another(void)
{
	EACH(worker) {
		CREATE(worker, NULL);
		join_elsewhere(worker);
		alive--;
	}
}

static NOINLINE void make_detached_by_attribute(void)
{
	pthread_attr_t attributes;

	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	EACH(worker) {
		CREATE(worker, &attributes);
		end(worker);
	}
}

static NOINLINE void make_detached(void)
{
	EACH(worker) {
		CREATE(worker, NULL);
		must(pthread_detach(worker->thread), "pthread_detach");
		end(worker);
	}
}

static NOINLINE void make_detached_by_itself(void)
{
	EACH(worker) {
		worker->detaches_itself = true;
		CREATE(worker, NULL);
		end(worker);
	}
}

static NOINLINE void make_detached_after_its_end(void)
{
	EACH(worker) {
		CREATE(worker, NULL);
		end(worker);
		must(pthread_detach(worker->thread), "pthread_detach");
	}
}

static NOINLINE void make_unjoined(void)
{
	pthread_attr_t attributes;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	EACH(worker) {
		CREATE(worker, &attributes);
		end(worker);
		unjoined++;
	}
}

static NOINLINE void make_running(void)
{
	EACH(worker)
		CREATE(worker, NULL);
}

static NOINLINE void make_tried(void)
{
	EACH(worker) {
		CREATE(worker, NULL);
		if (pthread_tryjoin_np(worker->thread, NULL) != EBUSY)
			fail("pthread_tryjoin_np is not busy");
		end(worker);
		must(pthread_tryjoin_np(worker->thread, NULL), "pthread_tryjoin_np");
	}
}

static NOINLINE void make_tried_too_early(void)
{
	EACH(worker) {
		CREATE(worker, NULL);
		if (pthread_tryjoin_np(worker->thread, NULL) != EBUSY)
			fail("pthread_tryjoin_np is not busy");
		nap(10);
		end(worker);
		unjoined++;
	}
}

static void *tell_later(void *argument)
{
	nap(20);
	tell(argument);
	return NULL;
}

static NOINLINE pthread_t teller(struct worker *worker)
{
	pthread_t thread;

	must(pthread_create(&thread, NULL, tell_later, worker), "pthread_create");
	return thread;
}

static NOINLINE void make_joined_in_time(void)
{
	EACH(worker) {
		struct timespec limit;
		pthread_t other;

		CREATE(worker, NULL);
		other = teller(worker);
		limit = in(CLOCK_REALTIME, 20000);
		must(pthread_timedjoin_np(worker->thread, NULL, &limit), "pthread_timedjoin_np");
		must(pthread_join(other, NULL), "pthread_join");
		alive--;
	}
}

static NOINLINE void make_joined_by_clock(void)
{
	EACH(worker) {
		struct timespec limit;
		pthread_t other;

		CREATE(worker, NULL);
		other = teller(worker);
		limit = in(CLOCK_MONOTONIC, 20000);
		must(pthread_clockjoin_np(worker->thread, NULL, CLOCK_MONOTONIC, &limit), "pthread_clockjoin_np");
		must(pthread_join(other, NULL), "pthread_join");
		alive--;
	}
}

static NOINLINE void make_timed_out(void)
{
	EACH(worker) {
		struct timespec limit;

		CREATE(worker, NULL);
		limit = in(CLOCK_REALTIME, 10);
		if (pthread_timedjoin_np(worker->thread, NULL, &limit) != ETIMEDOUT)
			fail("pthread_timedjoin_np does not time out");
		limit = in(CLOCK_MONOTONIC, 10);
		if (pthread_clockjoin_np(worker->thread, NULL, CLOCK_MONOTONIC, &limit) != ETIMEDOUT)
			fail("pthread_clockjoin_np does not time out");
		nap(10);
		end(worker);
		unjoined++;
	}
}

static int c11_work(void *argument)
{
	work(argument);
	return 0;
}

static NOINLINE void make_c11(void)
{
	EACH(worker) {
		thrd_t thread;

		must(thrd_create(&thread, c11_work, worker) != thrd_success, "thrd_create");
		begin(worker);
		end(worker);
		must(thrd_join(thread, NULL) != thrd_success, "thrd_join");
	}
}

static NOINLINE void make_c11_unjoined(void)
{
	EACH(worker) {
		thrd_t thread;

		must(thrd_create(&thread, c11_work, worker) != thrd_success, "thrd_create");
		begin(worker);
		end(worker);
		unjoined++;
	}
}

/* Ends by itself, at once. */
static void *nothing(void *argument)
{
	return argument;
}

static NOINLINE void make_storm(void)
{
	pthread_t threads[100];

	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 100; i++, made++)
			must(pthread_create(&threads[i], NULL, nothing, NULL), "pthread_create");
		for (int i = 0; i < 100; i++) {
			if (i % 2)
				must(pthread_join(threads[i], NULL), "pthread_join");
			else
				must(pthread_detach(threads[i]), "pthread_detach");
		}
	}
}

/* In a forked child, whose first threads nobody can have foreseen.  It lives as long as the program. */
static NOINLINE void make_in_a_child(void)
{
	int pipes[2];
	char done;

	if (pipe(pipes))
		fail("pipe");
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	if (pid == 0) {
		for (int i = 0; i < 20; i++) {
			struct worker *worker = calloc(1, sizeof(*worker));

			CREATE(worker, NULL);
			end(worker);
			nap(40);
		}
		if (write(pipes[1], "d", 1) != 1)
			fail("write");
		hold();
	}
	if (read(pipes[0], &done, 1) != 1)
		fail("read");
	made = unjoined = 20;
}

/* Ten seconds: one more thread each quarter of a second. */
static NOINLINE void one_more(void)
{
	struct worker *worker = calloc(1, sizeof(*worker));

	CREATE(worker, NULL);
}

/* A pool that has its size after two seconds, ... */
static NOINLINE void one_for_the_pool(void)
{
	struct worker *worker = calloc(1, sizeof(*worker));

	CREATE(worker, NULL);
}

/* ... and threads that live for one or two turns. */
static NOINLINE struct worker *one_for_a_moment(void)
{
	struct worker *worker = calloc(1, sizeof(*worker));

	CREATE(worker, NULL);
	return worker;
}

static void make_growth(void)
{
	struct worker *moments[2] = { NULL, NULL };

	for (int turn = 0; turn < 40; turn++) {
		one_more();
		if (turn < 8)
			one_for_the_pool();
		struct worker **moment = &moments[turn % 2];

		if (*moment) {
			end(*moment);
			must(pthread_join((*moment)->thread, NULL), "pthread_join");
		}
		*moment = one_for_a_moment();
		nap(250);
	}
}

static const struct scenario {
	const char *name;
	void (*make)(void);
} SCENARIOS[] = {
	{ "joined", make_joined },
	{ "joined_after_its_end", make_joined_after_its_end },
	{ "joined_by_another", make_joined_by_another },
	{ "detached_by_attribute", make_detached_by_attribute },
	{ "detached", make_detached },
	{ "detached_by_itself", make_detached_by_itself },
	{ "detached_after_its_end", make_detached_after_its_end },
	{ "unjoined", make_unjoined },
	{ "running", make_running },
	{ "tried", make_tried },
	{ "tried_too_early", make_tried_too_early },
	{ "joined_in_time", make_joined_in_time },
	{ "joined_by_clock", make_joined_by_clock },
	{ "timed_out", make_timed_out },
	{ "c11", make_c11 },
	{ "c11_unjoined", make_c11_unjoined },
	{ "storm", make_storm },
	{ "in_a_child", make_in_a_child },
	{ "growth", make_growth },
};

int main(int argc, char **argv)
{
	const int number = sizeof(SCENARIOS) / sizeof(*SCENARIOS);

	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		for (int i = 0; i < number; i++)
			puts(SCENARIOS[i].name);
		return 0;
	}
	truth_start("threads", &argc, argv);
	for (int i = 1; i < argc; i++) {
		int at = 0;

		while (at < number && strcmp(SCENARIOS[at].name, argv[i]))
			at++;
		if (at == number) {
			fprintf(stderr, "usage: threads [--wait] NAME... | --list\n");
			return 2;
		}
		made = alive = unjoined = 0;
		SCENARIOS[at].make();
		printf("{\"scenario\": \"%s\", \"made\": %d, \"alive\": %d, \"unjoined\": %d}\n", argv[i], made, alive,
		       unjoined);
	}
	truth_hold();
}
