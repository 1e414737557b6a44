/*
 * One scenario a run: how children can live and die, and what is true of each of them when {"ready": true} is said.
 *
 *   fates [--wait] SCENARIO        fates --list
 *
 * Prints one line a child: {"pid", "ns_pid", "parent", "forker", "fate", "exit", "signal", "core", "call", "reaper",
 * "exec", "note"}; every process that the program made below itself has one.  Fates: docs/lifecycle.md.
 * Where the kernel makes threads of its own in the program: {"workers", "threads", "threads_running"}, how many of those
 * there were, how many the program itself made, and how many of these live.
 */
#include "fates.h"

static const struct scenario *const tables[] = {wait_scenarios, orphan_scenarios, clone_scenarios, namespace_scenarios,
						uring_scenarios};

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		for (size_t i = 0; i < sizeof(tables) / sizeof(*tables); i++)
			for (const struct scenario *entry = tables[i]; entry->name; entry++)
				puts(entry->name);
		return 0;
	}
	truth_start("fates", &argc, argv);
	for (size_t i = 0; argc == 2 && i < sizeof(tables) / sizeof(*tables); i++) {
		for (const struct scenario *entry = tables[i]; entry->name; entry++) {
			if (strcmp(entry->name, argv[1]) == 0) {
				entry->run();
				truth_print();
				truth_hold();
			}
		}
	}
	fprintf(stderr, "usage: fates [--wait] SCENARIO (fates --list names them)\n");
	return 2;
}
