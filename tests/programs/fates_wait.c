/* Scenarios of waiting and not waiting: which call reaps, which only looks, and who never asks. */
#define _GNU_SOURCE
#include "fates.h"

#include <pthread.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static volatile pid_t sigchld_pid;
static volatile int sigchld_status;

static void note_sigchld(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	sigchld_status = info->si_code == CLD_EXITED ? info->si_status << 8 : info->si_status;
	sigchld_pid = info->si_pid;
}

void watch_sigchld(void)
{
	struct sigaction action = {.sa_sigaction = note_sigchld, .sa_flags = SA_SIGINFO | SA_RESTART};

	sigchld_pid = 0;
	sigaction(SIGCHLD, &action, NULL);
}

struct child *child_by_sigchld(const char *call, const char *exec)
{
	struct child *child = child_new();

	UNTIL(sigchld_pid);
	signal(SIGCHLD, SIG_DFL);
	child->pid = sigchld_pid;
	child->status = sigchld_status;
	child->ended = true;
	child->exec = exec;
	if (call) {
		child->fate = WAITED;
		child->call = call;
		child->reaper = self_pid();
	}
	return child;
}

static void by_wait4(void)
{
	reap_wait4(spawn_exit(7), 0, WAITED);
	reap_wait4(spawn_exit(0), 0, WAITED);
}

static void by_waitid(void)
{
	reap_waitid(spawn_exit(7), 0, WAITED);
}

/* WNOWAIT reports and leaves the zombie: the first call is no reap. */
static void wnowait_then_wait(void)
{
	struct child *child = spawn_exit(3);
	siginfo_t info;

	if (waitid(P_PID, child->pid, &info, WEXITED | WNOWAIT) || info.si_pid != child->pid)
		fail("waitid WNOWAIT");
	stands(child, ZOMBIE);
	reap_wait4(child, 0, WAITED);
}

static void wnowait_only(void)
{
	struct child *child = spawn_exit(3);
	siginfo_t info;

	if (waitid(P_PID, child->pid, &info, WEXITED | WNOWAIT) || info.si_pid != child->pid)
		fail("waitid WNOWAIT");
	stands(child, ZOMBIE);
	child->note = "reported by waitid(WNOWAIT), which reaps nothing";
}

/* The system call takes no siginfo: whoever watches it learns no pid from it. */
static void null_info(void)
{
	struct child *child = spawn_exit(5);

	stands(child, ZOMBIE);
	if (syscall(SYS_waitid, P_PID, child->pid, NULL, WEXITED, NULL))
		fail("waitid NULL");
	await_release(child->pid);
	child->fate = WAITED;
	child->call = "waitid";
	child->reaper = self_pid();
	child->note = "siginfo NULL";
}

/* A bad pointer makes the call fail with EFAULT, after the child was reaped. */
static void efault(void)
{
	struct child *child = spawn_exit(5);

	stands(child, ZOMBIE);
	if (syscall(SYS_wait4, child->pid, (int *)16, 0, NULL) != -1 || errno != EFAULT)
		fail("wait4 EFAULT");
	await_release(child->pid);
	child->fate = WAITED;
	child->call = "wait4";
	child->reaper = self_pid();
	child->note = "wait4 reaped it and returned EFAULT";
}

static void by_pidfd(void)
{
	struct child *child = spawn_exit(6);
	int pidfd = (int)syscall(SYS_pidfd_open, child->pid, 0);
	siginfo_t info = {0};

	if (pidfd < 0)
		fail("pidfd_open");
	if (waitid((idtype_t)P_PIDFD, pidfd, &info, WEXITED) || info.si_pid != child->pid)
		fail("waitid P_PIDFD");
	child->status = info.si_status << 8;
	child->ended = true;
	child->fate = WAITED;
	child->call = "waitid";
	child->reaper = self_pid();
}

static void wnohang_poll(void)
{
	struct child *child;
	int gate = gate_new(), status;

	if (fork_child(&child) == 0) {
		gate_wait(gate);
		_exit(9);
	}
	if (waitpid(child->pid, &status, WNOHANG) != 0)
		fail("WNOHANG before the death");
	gate_open(gate, 1);
	UNTIL(waitpid(child->pid, &child->status, WNOHANG) == child->pid);
	child->ended = true;
	child->fate = WAITED;
	child->call = "wait4";
	child->reaper = self_pid();
}

static void polled_too_early(void)
{
	struct child *child;
	int gate = gate_new(), status;

	if (fork_child(&child) == 0) {
		gate_wait(gate);
		_exit(9);
	}
	if (waitpid(child->pid, &status, WNOHANG) != 0)
		fail("WNOHANG before the death");
	gate_open(gate, 1);
	stands(child, ZOMBIE);
	child->note = "WNOHANG before the death, never again";
}

static void waits_for_others(void)
{
	struct child *kept = spawn_exit(4);

	for (int i = 0; i < 3; i++)
		reap_wait4(spawn_exit(0), 0, WAITED);
	stands(kept, ZOMBIE);
}

static void *reap_in_thread(void *child)
{
	reap_wait4(child, 0, WAITED);
	return NULL;
}

static void by_other_thread(void)
{
	struct child *child = spawn_exit(2);
	pthread_t thread;

	if (pthread_create(&thread, NULL, reap_in_thread, child) || pthread_join(thread, NULL))
		fail("pthread");
	child->note = "reaped by another thread than the one that forked";
}

static void zombie(void)
{
	stands(spawn_exit(0), ZOMBIE);
	stands(spawn_exit(1), ZOMBIE);
}

static void running(void)
{
	spawn_hold();
}

static void end_by_signal(int signal_number, bool with_core)
{
	struct rlimit limit = {0};
	struct child *child;

	if (fork_child(&child) == 0) {
		if (getrlimit(RLIMIT_CORE, &limit))
			_exit(1);
		limit.rlim_cur = with_core ? limit.rlim_max : 0;
		setrlimit(RLIMIT_CORE, &limit);
		signal(signal_number, SIG_DFL);
		raise(signal_number);
		_exit(1);
	}
	reap_wait4(child, 0, WAITED);
	if (!WIFSIGNALED(child->status) || WTERMSIG(child->status) != signal_number)
		fail("not ended by the signal");
}

static void signals(void)
{
	char directory[] = "/tmp/fates-core-XXXXXX", remove[64];

	if (!mkdtemp(directory) || chdir(directory)) /* where core files are plain files, they land here */
		fail("mkdtemp");
	end_by_signal(SIGKILL, false);
	end_by_signal(SIGTERM, false);
	end_by_signal(SIGSEGV, false);
	end_by_signal(SIGABRT, false);
	end_by_signal(SIGSEGV, true);
	end_by_signal(SIGABRT, true);
	snprintf(remove, sizeof(remove), "exec rm -rf %s", directory);
	watch_sigchld();
	if (system(remove))
		fail("rm");
	child_by_sigchld("wait4", "rm")->note = "cleans up the core files";
}

/* Stopped and continued children are reported by wait4 as well; neither report is a reap. */
static void stop_continue(void)
{
	struct child *stopped, *continued, *ended;
	int mortal = gate_new(), status;

	if (fork_child(&stopped) == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* it will not read that the program ended */
		gate_open(mortal, 1);
		hold();
	}
	gate_wait(mortal);
	continued = spawn_hold();
	ended = spawn_hold();
	struct child *all[] = {stopped, continued, ended};

	for (int i = 0; i < 3; i++) {
		kill(all[i]->pid, SIGSTOP);
		if (waitpid(all[i]->pid, &status, WUNTRACED) != all[i]->pid || !WIFSTOPPED(status))
			fail("WUNTRACED");
		if (all[i] == stopped)
			continue;
		kill(all[i]->pid, SIGCONT);
		if (waitpid(all[i]->pid, &status, WCONTINUED) != all[i]->pid || !WIFCONTINUED(status))
			fail("WCONTINUED");
	}
	kill(ended->pid, SIGTERM);
	reap_wait4(ended, 0, WAITED);
	stopped->note = "stopped";
}

static void released_by_kernel(struct child *child, int code)
{
	await_release(child->pid);
	child->status = code << 8; /* nobody is told; it is what the child passed to _exit */
	child->ended = true;
	child->fate = AUTOREAPED;
}

static void autoreap_ignore(void)
{
	int status;

	signal(SIGCHLD, SIG_IGN);
	released_by_kernel(spawn_exit(5), 5);
	if (waitpid(-1, &status, 0) != -1 || errno != ECHILD)
		fail("a child was left to wait for");
}

static void autoreap_nocldwait(void)
{
	struct sigaction action = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};

	sigaction(SIGCHLD, &action, NULL);
	released_by_kernel(spawn_exit(6), 6);
}

/* Ignoring SIGCHLD later does not release who died before. */
static void sigign_after_death(void)
{
	struct child *early = spawn_exit(1), *late;

	stands(early, ZOMBIE);
	signal(SIGCHLD, SIG_IGN);
	late = spawn_exit(2);
	released_by_kernel(late, 2);
	stands(early, ZOMBIE);
}

static volatile pid_t handled_pid;
static volatile int handled_count, handled_status;

static void wait_once(int sig)
{
	int status;

	(void)sig;
	handled_pid = waitpid(-1, &status, WNOHANG);
	handled_status = status;
	handled_count++;
}

/* Signals coalesce: five deaths while SIGCHLD is blocked make one signal, one wait, and four zombies. */
static void handler_waits_once(void)
{
	struct child *children[5];
	sigset_t block;

	sigemptyset(&block);
	sigaddset(&block, SIGCHLD);
	sigprocmask(SIG_BLOCK, &block, NULL);
	signal(SIGCHLD, wait_once);
	for (int i = 0; i < 5; i++)
		children[i] = spawn_exit(i);
	for (int i = 0; i < 5; i++)
		await_death(children[i]->pid);
	sigprocmask(SIG_UNBLOCK, &block, NULL);
	UNTIL(handled_count > 0);
	for (int i = 0; i < 5; i++) {
		siginfo_t info = {0};

		if (waitid(P_PID, children[i]->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid) {
			stands(children[i], ZOMBIE);
			continue;
		}
		if (children[i]->pid != handled_pid)
			fail("gone, yet not reaped by the handler");
		children[i]->status = handled_status;
		children[i]->ended = true;
		children[i]->fate = WAITED;
		children[i]->call = "wait4";
		children[i]->reaper = self_pid();
	}
}

static void burst(void)
{
	enum { COUNT = 1000 };
	static struct child *children[COUNT];
	int gate = gate_new();

	for (int i = 0; i < COUNT; i++) {
		if (fork_child(&children[i]) == 0) {
			gate_wait(gate);
			_exit(i % 256);
		}
	}
	gate_open(gate, COUNT);
	for (int i = 0; i < COUNT; i++)
		reap_wait4(children[i], 0, WAITED);
}

static void posix_spawn_ok(void)
{
	char *arguments[] = {"true", NULL}, *environment[] = {NULL};
	struct child *child = child_new();

	if (posix_spawn(&child->pid, "/bin/true", NULL, NULL, arguments, environment))
		fail("posix_spawn");
	child->exec = "true";
	reap_wait4(child, 0, WAITED);
}

/* The exec fails in the child; the libc reaps it and returns the error: no leak. */
static void posix_spawn_missing(void)
{
	char *arguments[] = {"missing", NULL}, *environment[] = {NULL};
	pid_t pid;

	watch_sigchld();
	if (posix_spawn(&pid, "/nonexistent/missing", NULL, NULL, arguments, environment) != ENOENT)
		fail("posix_spawn of a missing program");
	child_by_sigchld("wait4", NULL)->note = "reaped by the libc";
}

static void system_call(void)
{
	watch_sigchld();
	if (system("exec true"))
		fail("system");
	child_by_sigchld("wait4", NULL)->exec = access("/bin/true", X_OK) ? "sh" : "true";
}

static void by_popen(void)
{
	struct child *child;
	FILE *output;
	int status;

	watch_sigchld();
	output = popen("exit 3", "r");
	if (!output)
		fail("popen");
	status = pclose(output);
	child = child_by_sigchld("wait4", "sh");
	if (status != child->status)
		fail("pclose");
}

static void popen_never_closed(void)
{
	FILE *output;

	watch_sigchld();
	output = popen("exit 3", "r");
	if (!output || fgetc(output) != EOF)
		fail("popen");
	stands(child_by_sigchld(NULL, "sh"), ZOMBIE);
}

const struct scenario wait_scenarios[] = {
	{"wait4", by_wait4},
	{"waitid", by_waitid},
	{"waitid_wnowait_then_wait", wnowait_then_wait},
	{"waitid_wnowait_only", wnowait_only},
	{"waitid_null_info", null_info},
	{"waitid_pidfd", by_pidfd},
	{"wait4_efault", efault},
	{"wnohang_poll", wnohang_poll},
	{"polled_too_early", polled_too_early},
	{"waits_for_others", waits_for_others},
	{"waited_by_other_thread", by_other_thread},
	{"zombie", zombie},
	{"running", running},
	{"signals", signals},
	{"stop_continue", stop_continue},
	{"autoreap_ignore", autoreap_ignore},
	{"autoreap_nocldwait", autoreap_nocldwait},
	{"sigign_after_death", sigign_after_death},
	{"sigchld_handler_waits_once", handler_waits_once},
	{"burst", burst},
	{"posix_spawn_ok", posix_spawn_ok},
	{"posix_spawn_missing", posix_spawn_missing},
	{"system_call", system_call},
	{"popen", by_popen},
	{"popen_never_closed", popen_never_closed},
	{0},
};
