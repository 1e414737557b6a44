/*
 * One fault a run: a parent that does not reap, for exactly one reason, or one that nearly has that fault.
 *
 *   verdicts [--wait] SCENARIO        verdicts --list
 *
 * Prints one line a child, as fates.c does.  Scenarios whose name begins with "before_" do their first part before a
 * first {"ready": true}, and the rest after a line on stdin: the trace begins in between.
 */
#define _GNU_SOURCE
#include "truth.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

enum { FEW = 3 };

static struct child *zombies[FEW];

/* FEW children that wait for the gate, and then die at once. */
static void spawn_at(int gate)
{
	for (int i = 0; i < FEW; i++) {
		if (fork_child(&zombies[i]) == 0) {
			gate_wait(gate);
			_exit(i);
		}
	}
}

static void all_stand(void)
{
	for (int i = 0; i < FEW; i++)
		stands(zombies[i], ZOMBIE);
}

static void leave_zombies(void)
{
	int gate = gate_new();

	spawn_at(gate);
	gate_open(gate, FEW);
	all_stand();
}

static void change_mask(int how)
{
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	pthread_sigmask(how, &mask, NULL);
}

/* --- never_waits ---------------------------------------------------------------------------------------------- */

static void never_waits(void)
{
	leave_zombies();
}

static volatile sig_atomic_t noted;

static void note_death(int sig)
{
	(void)sig;
	noted = 1;
}

static void handler_does_not_wait(void)
{
	signal(SIGCHLD, note_death);
	leave_zombies();
}

static void blocked_without_handler(void)
{
	change_mask(SIG_BLOCK);
	leave_zombies();
}

static void two_parents(void (*first)(void), void (*second)(void))
{
	void (*does[])(void) = {first, second};
	int gates[] = {gate_new(), gate_new()};

	for (int i = 0; i < 2; i++) {
		struct child *parent;

		if (fork_child(&parent) == 0) {
			stands(spawn_exit(1), ZOMBIE);
			does[i]();
			gate_open(gates[i], 1);
			hold();
		}
		gate_wait(gates[i]);
	}
}

static void go_on(void)
{
}

static void wait_for_another(void)
{
	reap_wait4(spawn_exit(0), 0, WAITED);
}

static void two_parents_one_reason(void)
{
	two_parents(go_on, go_on);
}

static void two_parents_two_reasons(void)
{
	two_parents(go_on, wait_for_another);
}

/* --- waits_for_others ----------------------------------------------------------------------------------------- */

static void waits_for_others(void)
{
	leave_zombies();
	for (int i = 0; i < 2; i++)
		reap_wait4(spawn_exit(0), 0, WAITED);
}

static void polls_for_others(void)
{
	struct child *other = spawn_exit(0);

	leave_zombies();
	UNTIL(waitpid(other->pid, &other->status, WNOHANG) == other->pid);
	other->ended = true;
	other->fate = WAITED;
	other->call = "wait4";
	other->reaper = self_pid();
}

static void waits_for_others_by_pidfd(void)
{
	struct child *other = spawn_exit(0);
	int pidfd = (int)syscall(SYS_pidfd_open, other->pid, 0);
	siginfo_t info = {0};

	leave_zombies();
	if (pidfd < 0 || waitid((idtype_t)P_PIDFD, (id_t)pidfd, &info, WEXITED))
		fail("P_PIDFD");
	other->status = info.si_status << 8;
	other->ended = true;
	other->fate = WAITED;
	other->call = "waitid";
	other->reaper = self_pid();
}

static void *wait_for_child(void *child)
{
	waitpid(((struct child *)child)->pid, NULL, 0);
	return NULL;
}

static void *wait_by_pidfd(void *child)
{
	int pidfd = (int)syscall(SYS_pidfd_open, ((struct child *)child)->pid, 0);
	siginfo_t info;

	waitid((idtype_t)P_PIDFD, (id_t)pidfd, &info, WEXITED);
	return NULL;
}

static void *wait_for_group(void *child)
{
	waitpid(-((struct child *)child)->pid, NULL, 0);
	return NULL;
}

/* Whether a thread of this process is in wait4 or waitid now. */
static bool is_waiting(void)
{
	DIR *tasks = opendir("/proc/self/task");
	bool found = false;
	struct dirent *entry;

	if (!tasks)
		fail("/proc/self/task");
	while ((entry = readdir(tasks))) {
		char path[300], text[128];
		FILE *file;
		int number = -1;

		snprintf(path, sizeof(path), "/proc/self/task/%s/syscall", entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(text, sizeof(text), file))
			number = atoi(text);
		fclose(file);
		found |= number == SYS_wait4 || number == SYS_waitid;
	}
	closedir(tasks);
	return found;
}

static void in_thread(void *(*wait)(void *), struct child *child)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, wait, child))
		fail("pthread_create");
	UNTIL(is_waiting());
}

static void thread_waits_for_another(void)
{
	in_thread(wait_for_child, spawn_hold());
	leave_zombies();
}

static void before_thread_waits_for_another(void)
{
	in_thread(wait_for_child, spawn_hold());
	truth_pause();
	leave_zombies();
}

static void before_thread_waits_by_pidfd(void)
{
	in_thread(wait_by_pidfd, spawn_hold());
	truth_pause();
	leave_zombies();
}

/* A wait for a group may be for these as well: here they are in another, but nobody sees that. */
static void thread_waits_for_a_group(void)
{
	struct child *leader = spawn_hold();

	setpgid(leader->pid, leader->pid);
	in_thread(wait_for_group, leader);
	leave_zombies();
}

static void looks_with_wnowait(void)
{
	siginfo_t info;

	leave_zombies();
	for (int i = 0; i < FEW; i++)
		if (waitid(P_PID, (id_t)zombies[i]->pid, &info, WEXITED | WNOWAIT))
			fail("WNOWAIT");
	reap_wait4(spawn_exit(0), 0, WAITED);
}

/* --- polled_too_early ----------------------------------------------------------------------------------------- */

static void polled_too_early(void)
{
	int gate = gate_new(), status;

	spawn_at(gate);
	for (int i = 0; i < FEW; i++)
		if (waitpid(zombies[i]->pid, &status, WNOHANG) != 0)
			fail("WNOHANG before the death");
	gate_open(gate, FEW);
	all_stand();
}

static void polled_any_too_early(void)
{
	int gate = gate_new(), status;

	spawn_at(gate);
	if (waitpid(-1, &status, WNOHANG) != 0)
		fail("WNOHANG before the death");
	gate_open(gate, FEW);
	all_stand();
}

static void polled_one_too_early(void)
{
	int gate = gate_new(), status;

	spawn_at(gate);
	if (waitpid(zombies[0]->pid, &status, WNOHANG) != 0)
		fail("WNOHANG before the death");
	gate_open(gate, FEW);
	all_stand();
}

static void polled_by_pidfd(void)
{
	int gate = gate_new();
	siginfo_t info = {0};

	spawn_at(gate);
	for (int i = 0; i < FEW; i++)
		if (waitid((idtype_t)P_PIDFD, (id_t)syscall(SYS_pidfd_open, zombies[i]->pid, 0), &info,
			   WEXITED | WNOHANG))
			fail("P_PIDFD");
	gate_open(gate, FEW);
	all_stand();
}

static void reaped(struct child *child, int status)
{
	child->status = status;
	child->ended = true;
	child->fate = WAITED;
	child->call = "wait4";
	child->reaper = self_pid();
}

static void polls_again(void)
{
	int gate = gate_new(), status;

	spawn_at(gate);
	for (int i = 0; i < FEW; i++)
		if (waitpid(zombies[i]->pid, &status, WNOHANG) != 0)
			fail("WNOHANG before the death");
	gate_open(gate, FEW);
	for (int i = 0; i < FEW; i++) {
		UNTIL(waitpid(zombies[i]->pid, &status, WNOHANG) == zombies[i]->pid);
		reaped(zombies[i], status);
	}
}

/* --- handler_waits_once --------------------------------------------------------------------------------------- */

static volatile pid_t handled[16];
static volatile int handled_status[16], handled_count, handler_runs;

static void take(pid_t pid, int status)
{
	if (pid > 0) {
		handled[handled_count] = pid;
		handled_status[handled_count++] = status;
	}
}

static void wait_once(int sig)
{
	int status;
	pid_t pid = waitpid(-1, &status, WNOHANG);

	(void)sig;
	take(pid, status);
	handler_runs++;
}

static void wait_in_loop(int sig)
{
	int status;
	pid_t pid;

	(void)sig;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		take(pid, status);
	handler_runs++;
}

/* What the handler took is waited for, the rest stands. */
static void account_for_handler(void)
{
	for (int i = 0; i < FEW; i++) {
		bool taken = false;

		for (int n = 0; n < handled_count; n++) {
			if (handled[n] == zombies[i]->pid) {
				reaped(zombies[i], handled_status[n]);
				taken = true;
			}
		}
		if (!taken)
			stands(zombies[i], ZOMBIE);
	}
}

/* All die while SIGCHLD is blocked: one signal for all of them. */
static void die_at_once(void (*handler)(int))
{
	int gate = gate_new();

	change_mask(SIG_BLOCK);
	signal(SIGCHLD, handler);
	spawn_at(gate);
	gate_open(gate, FEW);
	for (int i = 0; i < FEW; i++)
		await_death(zombies[i]->pid);
	change_mask(SIG_UNBLOCK);
	UNTIL(handler_runs > 0);
	account_for_handler();
}

static void handler_waits_once(void)
{
	die_at_once(wait_once);
}

static void handler_loops(void)
{
	die_at_once(wait_in_loop);
}

static void handler_waits_once_for_each(void)
{
	signal(SIGCHLD, wait_once);
	for (int i = 0; i < FEW; i++) {
		zombies[i] = spawn_exit(i);
		UNTIL(handled_count > i);
	}
	account_for_handler();
}

static void *take_signals(void *gate)
{
	gate_wait((int)(intptr_t)gate);
	change_mask(SIG_UNBLOCK);
	gate_wait(gate_new());
	return NULL;
}

/* A thread that takes SIGCHLD from when the gate opens. */
static void start_taker(int gate)
{
	pthread_t thread;

	change_mask(SIG_BLOCK);
	if (pthread_create(&thread, NULL, take_signals, (void *)(intptr_t)gate))
		fail("pthread_create");
}

/* The handler runs in another thread than the one that forked. */
static void handler_in_another_thread(void)
{
	int gate = gate_new(), dead = gate_new();

	signal(SIGCHLD, wait_once);
	start_taker(dead);
	spawn_at(gate);
	gate_open(gate, FEW);
	for (int i = 0; i < FEW; i++)
		await_death(zombies[i]->pid);
	gate_open(dead, 1);
	UNTIL(handler_runs > 0);
	account_for_handler();
}

/* One wait a signal, too, but a thread that takes them with sigwait. */
static void *wait_once_a_signal(void *unused)
{
	siginfo_t info;
	sigset_t mask;

	(void)unused;
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	while (sigwaitinfo(&mask, &info) == SIGCHLD)
		wait_once(SIGCHLD);
	return NULL;
}

static void sigwait_waits_once(void)
{
	int gate = gate_new();
	pthread_t thread;

	change_mask(SIG_BLOCK);
	spawn_at(gate);
	gate_open(gate, FEW);
	for (int i = 0; i < FEW; i++)
		await_death(zombies[i]->pid);
	if (pthread_create(&thread, NULL, wait_once_a_signal, NULL))
		fail("pthread_create");
	UNTIL(handler_runs > 0);
	account_for_handler();
}

/* --- sigchld_blocked ------------------------------------------------------------------------------------------ */

static void sigchld_blocked(void)
{
	signal(SIGCHLD, wait_in_loop);
	change_mask(SIG_BLOCK);
	leave_zombies();
}

/* The handler did its work until SIGCHLD was blocked. */
static void sigchld_blocked_later(void)
{
	struct child *early;

	signal(SIGCHLD, wait_in_loop);
	early = spawn_exit(7);
	UNTIL(handled_count == 1 && handler_runs > 0);
	reaped(early, handled_status[0]);
	change_mask(SIG_BLOCK);
	leave_zombies();
}

/* Blocked where they are forked, but another thread takes the signal. */
static void sigchld_blocked_in_one_thread(void)
{
	int gate = gate_new(), now = gate_new();

	signal(SIGCHLD, wait_in_loop);
	start_taker(now);
	gate_open(now, 1);
	spawn_at(gate);
	gate_open(gate, FEW);
	UNTIL(handled_count == FEW);
	account_for_handler();
}

static int open_signalfd(void)
{
	sigset_t mask;
	int descriptor;

	change_mask(SIG_BLOCK);
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	descriptor = signalfd(-1, &mask, SFD_CLOEXEC);
	if (descriptor < 0)
		fail("signalfd");
	return descriptor;
}

/* Blocked on purpose: an event loop reads SIGCHLD from a signalfd, as systemd does. */
static void signalfd_loop(void)
{
	int gate = gate_new(), descriptor = open_signalfd(), loop = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = {.events = EPOLLIN};
	struct signalfd_siginfo info;

	signal(SIGCHLD, note_death);
	if (loop < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, descriptor, &event))
		fail("epoll");
	spawn_at(gate);
	gate_open(gate, FEW);
	while (handled_count < FEW)
		if (epoll_wait(loop, &event, 1, -1) == 1 && read(descriptor, &info, sizeof(info)) == sizeof(info))
			wait_in_loop(SIGCHLD);
	account_for_handler();
}

/* The loop is busy with something else and has not read the signal yet. */
static void signalfd_unread(void)
{
	signal(SIGCHLD, note_death);
	open_signalfd();
	leave_zombies();
}

/* It reads the signal, and waits for nobody. */
static void signalfd_read_without_wait(void)
{
	struct signalfd_siginfo info;
	int descriptor = open_signalfd();

	leave_zombies();
	if (read(descriptor, &info, sizeof(info)) != sizeof(info))
		fail("signalfd");
}

/* --- clone_signal --------------------------------------------------------------------------------------------- */

static struct child *spawn_silent(int gate)
{
	struct child *child = child_new();
	pid_t pid = (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);

	if (pid < 0)
		fail("clone");
	if (pid == 0) {
		child_begin(child);
		gate_wait(gate);
		_exit(4);
	}
	child->pid = pid;
	return child;
}

static void clone_silent(void)
{
	int gate = gate_new();

	for (int i = 0; i < FEW; i++)
		zombies[i] = spawn_silent(gate);
	gate_open(gate, FEW);
	all_stand();
}

static void clone_signal(void)
{
	clone_silent();
	if (waitpid(-1, NULL, 0) != -1 || errno != ECHILD)
		fail("a plain wait saw it");
}

static void clone_signal_never_waited(void)
{
	clone_silent();
}

/* It knows of __WALL, and uses it for another one. */
static void clone_signal_and_wall(void)
{
	struct child *other;
	int gate = gate_new();

	clone_silent();
	other = spawn_silent(gate);
	gate_open(gate, 1);
	reap_wait4(other, __WALL, WAITED);
}

/* --- parent_stuck --------------------------------------------------------------------------------------------- */

/* A parent below this program, which has a zombie and then does what it is told. */
static void parent_that(void (*does)(void), char state)
{
	struct child *parent, *victim;
	int gate = gate_new();

	if (fork_child(&parent) == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* it will not see the program's end */
		if (fork_child(&victim) == 0) {
			gate_wait(gate);
			_exit(1);
		}
		does();
		hold();
	}
	victim = parent + 1;
	UNTIL(*(volatile pid_t *)&victim->pid && proc_state(parent->pid, NULL, NULL) == state);
	gate_open(gate, 1);
	stands(victim, ZOMBIE);
}

static void stop(void)
{
	raise(SIGSTOP);
}

static void stuck_stopped(void)
{
	parent_that(stop, 'T');
}

static void stuck_not(void)
{
	parent_that(go_on, 'S');
}

/* Its vfork does not return before the child execs: it hangs in state D. */
static void vfork_and_hang(void)
{
	struct child *entry = child_new();
	pid_t pid = vfork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		entry->pid = self_pid();
		for (;;)
			pause();
	}
}

static void stuck_in_vfork(void)
{
	parent_that(vfork_and_hang, 'D');
}

/* --- held_by_tracer ------------------------------------------------------------------------------------------- */

/* A tracer attaches to them; it lets go or not, and then sleeps. */
static void traced_by(bool lets_go, int count)
{
	int gate = gate_new(), attached = gate_new();
	struct child *tracer;

	spawn_at(gate);
	if (fork_child(&tracer) == 0) {
		for (int i = 0; i < count; i++)
			if (ptrace(PTRACE_SEIZE, zombies[i]->pid, NULL, NULL))
				fail("PTRACE_SEIZE");
		for (int i = 0; lets_go && i < count; i++) {
			if (ptrace(PTRACE_INTERRUPT, zombies[i]->pid, NULL, NULL))
				fail("PTRACE_INTERRUPT");
			waitpid(zombies[i]->pid, NULL, __WALL);
			if (ptrace(PTRACE_DETACH, zombies[i]->pid, NULL, NULL))
				fail("PTRACE_DETACH");
		}
		gate_open(attached, 1);
		hold();
	}
	gate_wait(attached);
	gate_open(gate, FEW);
	all_stand();
}

static void held_by_tracer(void)
{
	traced_by(false, FEW);
}

static void held_one_of_them(void)
{
	traced_by(false, 1);
}

static void tracer_let_go(void)
{
	traced_by(true, FEW);
}

/* --- pid1_not_reaping ----------------------------------------------------------------------------------------- */

/* An init of a pid namespace adopts an orphan. */
static void namespace_init(void (*does)(void))
{
	int gate = gate_new(), done = gate_new();
	struct child *init = child_new(), *middle, *orphan;
	pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, NULL, NULL, NULL, NULL);

	if (pid < 0)
		truth_skip("no new pid namespace: it needs root");
	if (pid == 0) {
		child_begin(init);
		if (fork_child(&middle) == 0) {
			if (fork_child(&orphan) == 0) {
				gate_wait(gate);
				_exit(3);
			}
			_exit(0);
		}
		reap_wait4(middle, 0, WAITED);
		gate_open(gate, 1);
		stands(middle + 1, ORPHANED);
		does();
		gate_open(done, 1);
		hold();
	}
	init->pid = pid;
	gate_wait(done);
	init->note = "init of a pid namespace";
}

static void pid1_not_reaping(void)
{
	namespace_init(go_on);
}

static void reap_any(void)
{
	waitpid(-1, NULL, WNOHANG);
}

/* The namespace's init reaps late: the orphan stood for a while. */
static void pid1_reaps_late(void)
{
	namespace_init(reap_any);
}

static void look_only(void)
{
	siginfo_t info;

	waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT);
}

static void pid1_looks_with_wnowait(void)
{
	namespace_init(look_only);
}

static void subreaper_not_reaping(void)
{
	struct child *middle, *orphan;
	int gate = gate_new();

	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		fail("PR_SET_CHILD_SUBREAPER");
	if (fork_child(&middle) == 0) {
		if (fork_child(&orphan) == 0) {
			gate_wait(gate);
			_exit(3);
		}
		_exit(0);
	}
	reap_wait4(middle, 0, WAITED);
	gate_open(gate, 1);
	stands(middle + 1, ORPHANED);
}

/* --- from before the trace ------------------------------------------------------------------------------------ */

static void before_never_waits(void)
{
	int gate = gate_new();

	spawn_at(gate);
	truth_pause();
	gate_open(gate, FEW);
	all_stand();
}

/* The call began before the trace and goes on: any child, but not one without SIGCHLD. */
static void *wait_for_any(void *unused)
{
	(void)unused;
	waitpid(-1, NULL, 0);
	return NULL;
}

static void before_waits_for_any(void)
{
	spawn_hold();
	in_thread(wait_for_any, NULL);
	truth_pause();
	clone_silent();
}

static const struct scenario {
	const char *name;
	void (*run)(void);
} scenarios[] = {
	{"never_waits", never_waits},
	{"handler_does_not_wait", handler_does_not_wait},
	{"blocked_without_handler", blocked_without_handler},
	{"two_parents_one_reason", two_parents_one_reason},
	{"two_parents_two_reasons", two_parents_two_reasons},
	{"waits_for_others", waits_for_others},
	{"polls_for_others", polls_for_others},
	{"waits_for_others_by_pidfd", waits_for_others_by_pidfd},
	{"thread_waits_for_another", thread_waits_for_another},
	{"before_thread_waits_for_another", before_thread_waits_for_another},
	{"before_thread_waits_by_pidfd", before_thread_waits_by_pidfd},
	{"thread_waits_for_a_group", thread_waits_for_a_group},
	{"looks_with_wnowait", looks_with_wnowait},
	{"polled_too_early", polled_too_early},
	{"polled_any_too_early", polled_any_too_early},
	{"polled_one_too_early", polled_one_too_early},
	{"polled_by_pidfd", polled_by_pidfd},
	{"polls_again", polls_again},
	{"handler_waits_once", handler_waits_once},
	{"handler_loops", handler_loops},
	{"handler_waits_once_for_each", handler_waits_once_for_each},
	{"handler_in_another_thread", handler_in_another_thread},
	{"sigwait_waits_once", sigwait_waits_once},
	{"sigchld_blocked", sigchld_blocked},
	{"sigchld_blocked_later", sigchld_blocked_later},
	{"sigchld_blocked_in_one_thread", sigchld_blocked_in_one_thread},
	{"signalfd_loop", signalfd_loop},
	{"signalfd_unread", signalfd_unread},
	{"signalfd_read_without_wait", signalfd_read_without_wait},
	{"clone_signal", clone_signal},
	{"clone_signal_never_waited", clone_signal_never_waited},
	{"clone_signal_and_wall", clone_signal_and_wall},
	{"stuck_stopped", stuck_stopped},
	{"stuck_not", stuck_not},
	{"stuck_in_vfork", stuck_in_vfork},
	{"held_by_tracer", held_by_tracer},
	{"held_one_of_them", held_one_of_them},
	{"tracer_let_go", tracer_let_go},
	{"pid1_not_reaping", pid1_not_reaping},
	{"pid1_reaps_late", pid1_reaps_late},
	{"pid1_looks_with_wnowait", pid1_looks_with_wnowait},
	{"subreaper_not_reaping", subreaper_not_reaping},
	{"before_never_waits", before_never_waits},
	{"before_waits_for_any", before_waits_for_any},
	{0},
};

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		for (const struct scenario *entry = scenarios; entry->name; entry++)
			puts(entry->name);
		return 0;
	}
	truth_start("verdicts", &argc, argv);
	for (const struct scenario *entry = scenarios; argc == 2 && entry->name; entry++) {
		if (strcmp(entry->name, argv[1]) == 0) {
			entry->run();
			truth_print();
			truth_hold();
		}
	}
	fprintf(stderr, "usage: verdicts [--wait] SCENARIO (verdicts --list names them)\n");
	return 2;
}
