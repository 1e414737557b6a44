/* The account of every child, and the protocol: see truth.h. */
#define _GNU_SOURCE
#include "truth.h"

#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define MAX_CHILDREN 4096

struct account {
	atomic_int used;
	struct child children[MAX_CHILDREN];
};

static struct account *account;
static int hold_read, hold_write; /* nobody writes: the main process's death closes it for all who read */
static volatile sig_atomic_t started, ended;

static void on_start(int sig)
{
	(void)sig;
	started = 1;
}

static void on_end(int sig)
{
	(void)sig;
	ended = 1;
}

void fail(const char *what)
{
	int error = errno;

	dprintf(STDERR_FILENO, "%d: %s: %s\n", getpid(), what, strerror(error));
	_exit(1);
}

/*
 * Handlers for the two signals that count, which stay blocked (SIG_BLOCK) but while read_stdin() sleeps: none can slip
 * in between its look at the flags and the sleep.
 */
static void catch_signals(int how)
{
	struct sigaction start = {.sa_handler = on_start}, end = {.sa_handler = on_end};
	sigset_t both;

	sigemptyset(&both);
	sigaddset(&both, SIGTERM);
	sigaddset(&both, SIGUSR1);
	sigaction(SIGUSR1, &start, NULL);
	sigaction(SIGTERM, &end, NULL);
	sigprocmask(how, &both, NULL);
}

/* Reads stdin until a line's end or SIGUSR1 (for_start), or until it closes.  False: it closed, or SIGTERM came. */
static bool read_stdin(bool for_start)
{
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	sigset_t asleep;
	char byte;

	sigprocmask(SIG_BLOCK, NULL, &asleep);
	sigdelset(&asleep, SIGTERM);
	sigdelset(&asleep, SIGUSR1);
	while (!ended && !(for_start && started)) {
		if (ppoll(&input, 1, NULL, &asleep) < 0)
			continue;
		if (read(STDIN_FILENO, &byte, 1) <= 0)
			return false;
		if (for_start && byte == '\n')
			break;
	}
	return !ended;
}

void truth_start(const char *program, int *argc, char **argv)
{
	bool wait = false;
	int kept = 1, pipes[2];

	for (int i = 1; i < *argc; i++) {
		if (strcmp(argv[i], "--wait") == 0)
			wait = true;
		else
			argv[kept++] = argv[i];
	}
	*argc = kept;
	argv[kept] = NULL;
	account = mmap(NULL, sizeof(*account), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (account == MAP_FAILED)
		fail("mmap");
	if (pipe2(pipes, O_CLOEXEC))
		fail("pipe2");
	hold_read = pipes[0];
	hold_write = pipes[1];
	if (wait) /* before the hello: from then on it may be signalled */
		catch_signals(SIG_BLOCK);
	printf("{\"hello\": \"%s\", \"pid\": %d, \"waiting\": %s}\n", program, self_pid(), wait ? "true" : "false");
	fflush(stdout);
	if (wait) {
		if (!read_stdin(true))
			exit(0);
		catch_signals(SIG_UNBLOCK);
		signal(SIGUSR1, SIG_DFL);
		signal(SIGTERM, SIG_DFL);
	}
	alarm(DEADLINE_S);
}

void truth_pause(void)
{
	char byte;

	printf("{\"ready\": true}\n");
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) == 1)
		if (byte == '\n')
			return;
	exit(0);
}

static void print_text(const char *key, const char *text)
{
	if (text)
		printf(", \"%s\": \"%s\"", key, text);
	else
		printf(", \"%s\": null", key);
}

static void print_number(const char *key, bool known, long long number)
{
	if (known)
		printf(", \"%s\": %lld", key, number);
	else
		printf(", \"%s\": null", key);
}

static void print_child(const struct child *child)
{
	int status = child->status;

	printf("{\"pid\": %d, \"ns_pid\": %d, \"parent\": %d, \"forker\": %d, \"fate\": \"%s\"", child->pid,
	       child->ns_pid ? child->ns_pid : child->pid, child->parent, child->forker, fate_name(child->fate));
	print_number("exit", child->ended && WIFEXITED(status), WEXITSTATUS(status));
	print_number("signal", child->ended && WIFSIGNALED(status), WTERMSIG(status));
	printf(", \"core\": %s", child->ended && WIFSIGNALED(status) && WCOREDUMP(status) ? "true" : "false");
	print_text("call", child->call);
	print_number("reaper", child->reaper, child->reaper);
	print_text("exec", child->exec);
	print_text("note", child->note);
	if (child->start_ticks)
		print_number("start_ticks", true, (long long)child->start_ticks);
	printf("}\n");
}

void truth_print(void)
{
	for (int i = 0; i < account->used; i++)
		if (account->children[i].pid)
			print_child(&account->children[i]);
}

void truth_hold(void)
{
	alarm(0);
	catch_signals(SIG_BLOCK);
	printf("{\"ready\": true}\n");
	fflush(stdout);
	read_stdin(false);
	exit(0);
}

void truth_skip(const char *why)
{
	printf("{\"skip\": \"%s\"}\n", why);
	exit(0);
}

struct child *child_new(void)
{
	int i = atomic_fetch_add(&account->used, 1);
	struct child *child = &account->children[i];

	if (i >= MAX_CHILDREN) {
		errno = ENOSPC;
		fail("more children than the account holds");
	}
	child->parent = child->forker = self_pid();
	return child;
}

void child_begin(struct child *child)
{
	close(hold_write);
	alarm(DEADLINE_S);
	child->pid = self_pid();
	child->ns_pid = getpid();
}

pid_t fork_child(struct child **child)
{
	struct child *entry = child_new();
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	if (pid == 0)
		child_begin(entry);
	else if (getpid() == entry->parent) /* inside a pid namespace only the child can tell its pid outside */
		entry->pid = pid;
	*child = entry;
	return pid;
}

struct child *spawn_exit(int code)
{
	struct child *child;

	if (fork_child(&child) == 0)
		_exit(code);
	return child;
}

struct child *spawn_hold(void)
{
	struct child *child;

	if (fork_child(&child) == 0)
		hold();
	return child;
}

void hold(void)
{
	char byte;

	alarm(0);
	while (read(hold_read, &byte, 1) < 0 && errno == EINTR)
		;
	_exit(0);
}

void exec_hold(void)
{
	alarm(0);
	dup2(hold_read, STDIN_FILENO);
	execl("/bin/cat", "cat", (char *)NULL);
	_exit(127);
}

void await_death(pid_t pid)
{
	struct pollfd process = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};

	if (process.fd < 0) {
		if (errno == ESRCH)
			return;
		fail("pidfd_open");
	}
	if (poll(&process, 1, DEADLINE_S * 1000) != 1)
		fail("no death in time");
	close(process.fd);
}

/* Reads /proc/PID/name as a string; false when the process is gone. */
static bool read_proc(pid_t pid, const char *name, char *text, size_t size)
{
	char path[32];
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	length = read(fd, text, size - 1);
	close(fd);
	if (length <= 0)
		return false;
	text[length] = 0;
	return true;
}

char proc_state(pid_t pid, int *status, unsigned long long *start_ticks)
{
	char text[1024], *field, state;

	if (!read_proc(pid, "stat", text, sizeof(text)))
		return 0;
	field = strrchr(text, ')') + 2; /* field 3; the name before it may hold anything */
	state = *field;
	for (int i = 3; i < 52; i++) {
		if (i == 22 && start_ticks)
			*start_ticks = strtoull(field, NULL, 10);
		field = strchr(field, ' ') + 1;
	}
	if (status)
		*status = atoi(field);
	return state;
}

bool proc_comm_is(pid_t pid, const char *comm)
{
	char text[32];

	if (!read_proc(pid, "comm", text, sizeof(text)))
		return false;
	text[strcspn(text, "\n")] = 0;
	return strcmp(text, comm) == 0;
}

void stands(struct child *child, enum fate fate)
{
	/* inside a pid namespace its entry of /proc is the one of the namespace that /proc was mounted in */
	UNTIL(*(volatile pid_t *)&child->pid && proc_state(child->pid, &child->status, NULL) == 'Z');
	child->ended = true;
	child->fate = fate;
}

void await_release(pid_t pid)
{
	UNTIL(kill(pid, 0) < 0 && errno == ESRCH);
}

/* The child's pid as the caller, perhaps inside a pid namespace, must name it. */
static pid_t pid_here(const struct child *child)
{
	if (getpid() == self_pid())
		return child->pid;
	UNTIL(*(volatile const pid_t *)&child->ns_pid);
	return child->ns_pid;
}

void reap_wait4(struct child *child, int options, enum fate fate)
{
	pid_t pid = pid_here(child);

	if (wait4(pid, &child->status, options, NULL) != pid)
		fail("wait4");
	child->ended = true;
	child->fate = fate;
	child->call = "wait4";
	child->reaper = self_pid();
}

void reap_waitid(struct child *child, int options, enum fate fate)
{
	siginfo_t info = {0};
	pid_t pid = pid_here(child);

	if (waitid(P_PID, (id_t)pid, &info, WEXITED | options) || info.si_pid != pid)
		fail("waitid");
	child->status = info.si_code == CLD_EXITED ? info.si_status << 8
						   : info.si_status | (info.si_code == CLD_DUMPED ? 0x80 : 0);
	child->ended = true;
	child->fate = fate;
	child->call = "waitid";
	child->reaper = self_pid();
}

int gate_new(void)
{
	int gate = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);

	if (gate < 0)
		fail("eventfd");
	return gate;
}

void gate_wait(int gate)
{
	uint64_t one;

	while (read(gate, &one, sizeof(one)) < 0)
		if (errno != EINTR)
			fail("gate");
}

void gate_open(int gate, unsigned int waiters)
{
	uint64_t more = waiters;

	if (write(gate, &more, sizeof(more)) != sizeof(more))
		fail("gate");
}

pid_t self_pid(void)
{
	char text[16] = "";

	if (readlink("/proc/self", text, sizeof(text) - 1) <= 0)
		fail("/proc/self");
	return atoi(text);
}

long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

void poll_again(long long since_ns, const char *waiting_for)
{
	struct timespec moment = {.tv_nsec = 500000};

	if (now_ns() - since_ns > DEADLINE_S * 1000000000LL) {
		errno = ETIMEDOUT;
		fail(waiting_for);
	}
	nanosleep(&moment, NULL);
}

const char *fate_name(enum fate fate)
{
	static const char *const names[] = {
		[RUNNING] = "running",	 [WAITED] = "waited",	      [ZOMBIE] = "zombie",
		[ORPHANED] = "orphaned", [AUTOREAPED] = "autoreaped",
	};

	return names[fate];
}
