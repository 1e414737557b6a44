"""Threads of a program that knows the truth of them (tests/programs/threads.c), traced on this kernel.

What is alive, what ended and was not joined, and which stacks made them: scenario by scenario, as the program says.
"""

from __future__ import annotations

import errno
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import forktrace, tracing
from support import Program
from tracing import Traced, trace_program

from tracer.probe.build import Options, build_walker
from tracer.probe.loader import BpfObject
from tracer.session import Session
from tracer.trace import Leak, Stack, ThreadTally

pytestmark = pytest.mark.kernel

Start = Callable[..., Program]
SLOW = ("growth", "in_a_child", "storm")  # with tests of their own
STACK_SIZE = 256 * 1024  # of the scenario "unjoined"
PAGE = 4096


def scenarios() -> list[str]:
    source = Path(__file__).parents[1] / "programs" / "threads.c"
    text = source.read_text().partition("SCENARIOS[] = {")[2]
    return [line.split('"')[1] for line in text.partition("};")[0].splitlines() if '"' in line]


def trace(start: Start, *names: str, **probe: Any) -> tuple[dict[str, dict[str, Any]], Traced]:
    program = start("threads", *names, wait=True)
    traced = trace_program(program, threads=True, **probe)
    return {said["scenario"]: said for said in traced.said}, traced


def maker(stack: Stack) -> str:
    """The function of the program that made the threads."""
    ours = [frame.function or "" for frame in stack.frames if (frame.file or "").endswith("/threads.c")]
    return ours[0] if ours else ""


def tallies(traced: Traced) -> dict[str, ThreadTally]:
    """By scenario, or by another function that one of them calls; the scenarios' helping threads are left out."""
    found = [(maker(stack).removeprefix("make_"), tally) for stack, tally in traced.trace.threads]
    found = [each for each in found if each[0] not in ("teller", "join_elsewhere")]
    assert len(found) == len(dict(found)), "one stack a function"
    return dict(found)


def leaks(traced: Traced, kind: str) -> dict[str, Leak]:
    return {maker(leak.stack).removeprefix("make_"): leak for leak in traced.trace.leaks if leak.kind == kind}


def test_every_scenario(start: Start) -> None:
    names = [name for name in scenarios() if name not in SLOW]
    truth, traced = trace(start, *names)
    seen = tallies(traced)
    assert {name: (seen[name].made, seen[name].alive, seen[name].unjoined) for name in names} == {
        name: (said["made"], said["alive"], said["unjoined"]) for name, said in truth.items()
    }
    assert traced.trace.complete
    assert traced.trace.totals.threads_unjoined == sum(said["unjoined"] for said in truth.values())
    found = leaks(traced, "unjoined_thread")
    assert {name: leak.count for name, leak in found.items()} == {
        name: said["unjoined"] for name, said in truth.items() if said["unjoined"]
    }
    for leak in found.values():
        assert leak.comms == {"worker": leak.count}
        assert [(parent.pid, parent.count, parent.alive) for parent in leak.parents] == [
            (traced.pid, leak.count, True)
        ]
        assert leak.verdict.code == "never_joined"
    assert not leaks(traced, "thread")


def test_the_memory_that_unjoined_threads_hold(start: Start) -> None:
    truth, traced = trace(start, "unjoined")
    held = leaks(traced, "unjoined_thread")["unjoined"].held_bytes
    number = truth["unjoined"]["unjoined"]
    assert held is not None
    assert number * STACK_SIZE <= held <= number * (STACK_SIZE + 2 * PAGE)


def test_without_the_option_threads_are_only_counted(start: Start) -> None:
    program = start("threads", "unjoined", wait=True)
    found = trace_program(program).trace
    assert (found.totals.threads, found.totals.threads_unjoined, found.threads) == (4, None, ())
    assert not found.leaks


def test_storm(start: Start) -> None:
    """2,000 threads, half of them joined and half detached: all seen, none left."""
    truth, traced = trace(start, "storm", "unjoined")
    seen = tallies(traced)
    assert seen["storm"] == ThreadTally(truth["storm"]["made"], 0, 0, 0, None)
    assert seen["unjoined"].unjoined == truth["unjoined"]["unjoined"]
    assert traced.trace.complete


@pytest.mark.parametrize("before", [(), ("joined",)], ids=["single-threaded", "with threads"])
def test_a_forked_child(start: Start, before: tuple[str, ...]) -> None:
    """Its first threads come before it is watched: they are not judged, and that is said; later ones are."""
    truth, traced = trace(start, *before, "in_a_child")
    tally = tallies(traced)["in_a_child"]
    assert tally.made == truth["in_a_child"]["made"]
    assert tally.unjoined is not None
    assert 10 <= tally.unjoined < tally.made
    missed = tally.made - tally.unjoined
    assert any(note.startswith(f"{missed} threads were made before") for note in traced.trace.notes)
    (parent,) = leaks(traced, "unjoined_thread")["in_a_child"].parents
    assert parent.pid != traced.pid


def test_growth(start: Start) -> None:
    """One more each quarter of a second is a leak; a pool that has its size is none, nor are threads for a moment."""
    _, traced = trace(start, "growth")
    seen = tallies(traced)
    assert {name: tally.alive for name, tally in seen.items()} == {
        "one_more": 40,
        "one_for_the_pool": 8,
        "one_for_a_moment": 2,
    }
    growing = leaks(traced, "thread")
    assert list(growing) == ["one_more"]
    leak = growing["one_more"]
    assert (leak.count, leak.comms, leak.verdict.code) == (40, {"worker": 40}, "only_grows")
    assert 9 < leak.oldest_age_s < 60
    assert 60 < leak.rate_per_min < 300
    assert Counter(leak.examples).most_common(1)[0][1] == 1


# --- what cannot be watched ----------------------------------------------------------------------------------

ONE_THREAD = """
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
static volatile long tid;
static void *work(void *argument) { tid = syscall(SYS_gettid); return argument; }
int main(void)
{
	pthread_t thread;
	char path[64];

	printf("{\\"hello\\": \\"one\\", \\"pid\\": %d}\\n", (int)getpid());
	fflush(stdout);
	if (getchar() == EOF || pthread_create(&thread, NULL, work, NULL))
		return 1;
	do
		snprintf(path, sizeof(path), "/proc/self/task/%ld", tid);
	while (!tid || access(path, F_OK) == 0);
	puts("{\\"ready\\": true}");
	fflush(stdout);
	while (getchar() != EOF)
		;
	return 0;
}
"""


def build(directory: Path, *flags: str | Path, name: str = "one") -> Path:
    source = directory / "one.c"
    source.write_text(ONE_THREAD)
    subprocess.run(["cc", "-O2", "-pthread", "-o", directory / name, source, *flags], check=True, timeout=60)
    return directory / name


def notes_of(path: Path) -> tuple[Traced, str]:
    with Program.start(path) as program:
        traced = trace_program(program, threads=True)
    return traced, "\n".join(traced.trace.notes)


def test_a_static_program(tmp_path: Path) -> None:
    traced, notes = notes_of(build(tmp_path, "-static", name="fixed"))
    assert "threads of fixed: it is statically linked" in notes
    assert "1 threads were made" in notes
    assert traced.trace.totals.threads_unjoined == 0
    assert not traced.trace.leaks


def test_a_go_program(tmp_path: Path) -> None:
    """One that carries what Go's linker writes."""
    program = build(tmp_path, "-static")
    (tmp_path / "info").write_bytes(b"\xff Go buildinf:")
    command = ["objcopy", "--add-section", f".go.buildinfo={tmp_path / 'info'}", program, tmp_path / "gopher"]
    subprocess.run(command, check=True, timeout=60)
    _, notes = notes_of(tmp_path / "gopher")
    assert "threads of gopher: it is a Go program" in notes


def test_a_jvm(tmp_path: Path) -> None:
    """One that has a libjvm.so; what its C code leaves unjoined is found all the same."""
    (tmp_path / "jvm.c").write_text("int jvm(void) { return 0; }\n")
    library = tmp_path / "libjvm.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "jvm.c"], check=True, timeout=60)
    traced, notes = notes_of(
        build(tmp_path, "-Wl,--no-as-needed", library, f"-Wl,-rpath,{tmp_path}", name="java")
    )
    assert "threads of java: it runs a JVM, which detaches its threads itself" in notes
    assert traced.trace.totals.threads_unjoined == 1


def refused(*_: object) -> Any:
    raise OSError(errno.EINVAL, "Invalid argument")


def test_a_kernel_before_6_6(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It attaches each uprobe by itself."""
    monkeypatch.setattr(BpfObject, "attach_uprobes", refused)
    truth, traced = trace(start, "unjoined", "joined", "timed_out")
    assert traced.trace.totals.threads_unjoined == sum(said["unjoined"] for said in truth.values())


def test_a_kernel_without_uprobes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which threads live is known all the same, and what is not known is said."""
    monkeypatch.setattr(BpfObject, "attach_uprobes", refused)
    monkeypatch.setattr(BpfObject, "attach_perf_uprobe", refused)
    truth, traced = trace(start, "unjoined", "running")
    tally = tallies(traced)["running"]
    assert (tally.alive, tally.unjoined) == (truth["running"]["alive"], None)
    assert traced.trace.totals.threads_unjoined is None
    assert not traced.trace.leaks
    assert traced.trace.notes[0].startswith(
        "unjoined threads are not looked for: no uprobes on this kernel: "
    )


def test_uprobes_are_gone_with_the_trace(start: Start) -> None:
    """Nothing of them is left in the process: its C library's code is what the file says."""
    program = start("threads", "joined", wait=True)
    trace_program(program, threads=True)
    with Path(f"/proc/{program.pid}/maps").open() as maps:
        line = next(line for line in maps if "r-xp" in line and "/libc.so" in line)
    addresses, _, offset, _, _, path = line.split()
    begin, end = (int(each, 16) for each in addresses.split("-"))
    with Path(f"/proc/{program.pid}/mem").open("rb") as memory, Path(path).open("rb") as file:
        memory.seek(begin)
        file.seek(int(offset, 16))
        assert memory.read(end - begin) == file.read(end - begin)


def test_a_stranger_gets_no_uprobe(start: Start) -> None:
    """A process that is not traced keeps its C library's pages, while another one is traced."""
    stranger, program = start("threads", "joined", wait=True), start("threads", "joined", wait=True)
    touched: list[int] = []

    def look(_: Session) -> None:
        touched.extend(private_code(pid) for pid in (stranger.pid, program.pid))

    trace_program(program, look, threads=True)
    assert touched[0] == 0 < touched[1]


def private_code(pid: int) -> int:
    """KB of the C library's code that are the process's own: a breakpoint makes a copy of its page."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    region = re.search(r"^[^\n]* r-xp [^\n]*/libc\.so[^\n]*\n(.*?)VmFlags", text, re.MULTILINE | re.DOTALL)
    assert region
    found = re.search(r"^Anonymous:\s+(\d+) kB", region[1], re.MULTILINE)
    assert found
    return int(found[1])


# --- languages -----------------------------------------------------------------------------------------------


def interpreted(tmp_path: Path, interpreter: str, script: str, seconds: float) -> dict[str, Any]:
    """The report of ``forktrace -p`` on a script that begins when it is told to."""
    path = tmp_path / "script"
    path.write_text(script)
    with subprocess.Popen([interpreter, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        try:
            with tracing("-p", process.pid, "--threads", "--json", "-d", seconds) as running:
                process.stdin.write(b"go\n")
                process.stdin.flush()
                answer = running.end()
        finally:
            process.stdin.close()
            process.kill()
    assert answer.status == 0
    found: dict[str, Any] = json.loads(answer.out)
    return found


def test_ruby_threads_that_only_grow(tmp_path: Path) -> None:
    """Their names are those that they have in the kernel."""
    script = (
        "$stdout.sync = true\nputs 'here'\ngets\n"
        "40.times { |n| Thread.new { Thread.current.name = 'fetcher'; sleep }; sleep 0.25 }\nsleep\n"
    )
    report = interpreted(tmp_path, "ruby", script, 10)
    (leak,) = report["leaks"]
    assert leak["kind"] == "thread"
    assert leak["children"]["comms"].get("fetcher") == leak["count"] >= 20
    assert report["totals"]["threads_unjoined"] == 0


def test_python_threads(tmp_path: Path) -> None:
    """A pool that grows to its size and stops, and threads that end: no leak; none of Python's is unjoined."""
    build_walker("python", Options())  # into the cache: else the first stacks come before the walker is there
    script = (
        "import sys, threading, time\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "print('here', flush=True)\nsys.stdin.readline()\n"
        "pool = ThreadPoolExecutor(8)\n"
        "for n in range(40):\n"
        "    pool.submit(time.sleep, 0.5)\n"
        "    threading.Thread(target=time.sleep, args=(0.4,)).start()\n"
        "    time.sleep(0.25)\n"
        "sys.stdin.readline()\n"
    )
    report = interpreted(tmp_path, "/usr/bin/python3", script, 10)
    assert report["leaks"] == []
    assert report["totals"]["threads_unjoined"] == 0
    made = {
        (frame["line"], each["made"])
        for each in report["threads"]
        for frame in each["stack"]
        if frame["file"] == str(tmp_path / "script") and not each["stack_read_late"]
    }
    assert {line for line, _ in made} <= {7, 8}, "the script's lines that made them"
    assert sum(number for line, number in made if line == 8) > 10


# --- the command ---------------------------------------------------------------------------------------------


def test_run_sees_the_first_thread(programs: Path, tmp_path: Path) -> None:
    """The uprobes stand before the exec, so that nothing is missed; and the capture tells the same."""
    capture, report = tmp_path / "a.forktrace", tmp_path / "report"
    names = ["unjoined", "joined", "tried_too_early", "storm"]
    options = ("--threads", "--min-age", 0, "-o", capture, "--report", report)
    answer = forktrace("run", *options, "--", programs / "threads", *names)
    assert answer.status == 0
    text = report.read_text()
    assert text.startswith("8 unjoined threads, all made by threads (in 2 places)")
    assert "whether they are joined is not known" not in text
    assert forktrace("report", capture).out == text
    found = json.loads(forktrace("report", capture, "--json", "--fail-on-leak").out)
    assert [leak["kind"] for leak in found["leaks"]] == ["unjoined_thread"] * 2
    assert found["totals"]["threads"] == 2012


def test_everything(start: Start) -> None:
    program = start("threads", "unjoined", wait=True)
    with tracing("--all", "--threads", "--min-age", 0, "--json") as running:
        program.go()
        program.truth()
        report = json.loads(running.interrupt().out)
    ours = [
        leak["count"]
        for leak in report["leaks"]
        if leak["kind"] == "unjoined_thread" and program.pid in [each["pid"] for each in leak["parents"]]
    ]
    assert sum(ours) <= 4
    judged = not any("whether they are joined is not known" in note for note in report["notes"])
    assert sum(ours) == 4 or not judged
