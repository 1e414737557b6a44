"""How a trace ends, and where its report and its capture go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
from command_line import AS_NOBODY, DEADLINE_S, NOBODY, Tracer, forktrace, in_shell, reachable, tracing
from support import Program, wait_until

import tracer.report
from tracer.cli.captured import load_trace
from tracer.errors import ForktraceError

pytestmark = pytest.mark.kernel

LEAKS = 3
VERDICT = (
    f"{LEAKS} children never waited for, all forked by libleaky 1.2 (leaky.c:8,\nleaky_spawn_helper); oldest "
)
START = Callable[..., Program]


@pytest.fixture
def leaky(start: START) -> Program:
    """It leaks as soon as it is let go."""
    return start("leaky_main", LEAKS, 1, wait=True)


def leak(program: Program) -> None:
    program.go()
    program.truth()


# --- ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_ends_the_trace_with_a_report(leaky: Program, number: signal.Signals) -> None:
    with tracing("-p", leaky.pid, "--min-age", 0) as running:
        leak(leaky)
        running.send(number)
        answer = running.end()
    assert answer.status == 0
    assert answer.out.startswith(VERDICT)
    assert (
        answer.err == f"forktrace: tracing process {leaky.pid} (leaky_main) and descendants; Ctrl-C ends it\n"
    )


def test_nohup_means_its_hangup(leaky: Program) -> None:
    with tracing("-p", leaky.pid, "--min-age", 0, prefix=["nohup"], begun="forktrace: tracing") as running:
        running.send(signal.SIGHUP)
        leak(leaky)
        answer = running.interrupt()
    assert answer.status == 0
    assert answer.out.startswith(VERDICT)


def test_ctrl_c_works_where_a_shell_ignores_it(leaky: Program) -> None:
    """Of a background job, as a script starts it."""
    with tracing("-p", leaky.pid, prefix=in_shell('trap "" INT; exec "$@"')) as running:
        assert running.interrupt().status == 0


def test_the_second_signal_quits_at_once() -> None:
    source = """
import time
from tracer.cli.live import Stopper
with Stopper().installed() as stopper:
    print("ready", flush=True)
    while not stopper.stopped:
        time.sleep(0.01)
    print("stopped", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in ("ready\n", "stopped\n"):
                assert process.stdout.readline() == line
                process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_S) == 128 + signal.SIGINT
        finally:
            process.kill()


def test_the_end_of_the_target_ends_the_trace(leaky: Program) -> None:
    with tracing("-p", leaky.pid, "--min-age", 0) as running:
        leak(leaky)
        leaky.release()
        answer = running.end()
    assert answer.status == 0
    assert answer.out.startswith(VERDICT)
    assert f"parent       pid {leaky.pid} leaky_main: {LEAKS}, has ended" in answer.out


def test_the_end_of_several_targets_is_the_end_of_the_last(start: START) -> None:
    one, two = (start("leaky_main", LEAKS, 1, wait=True) for _ in range(2))
    with tracing("-p", f"{one.pid},{two.pid}", "-p", one.pid, "--min-age", 0) as running:
        leak(one)
        one.release()
        leak(two)
        two.release()
        answer = running.end()
    assert answer.out.startswith(f"{2 * LEAKS} children never waited for, all forked by libleaky 1.2")


def test_the_duration_ends_the_trace(leaky: Program) -> None:
    begin = time.monotonic()
    answer = forktrace("-p", leaky.pid, "-d", "0.2")
    assert time.monotonic() - begin < 10
    assert answer.status == 0
    assert answer.out.startswith("No leak: nothing forked in 0.")
    assert "for 0.2 s, or until Ctrl-C" in answer.err


def test_quiet(leaky: Program) -> None:
    answer = forktrace("-q", "-p", leaky.pid, "-d", "0.1")
    assert (answer.status, answer.err) == (0, "")


def test_fail_on_leak(leaky: Program) -> None:
    assert forktrace("-p", leaky.pid, "-d", "0.1", "--fail-on-leak").status == 0
    with tracing("-p", leaky.pid, "--min-age", 0, "--fail-on-leak") as running:
        leak(leaky)
        answer = running.interrupt()
    assert answer.status == 3
    assert answer.out.startswith(VERDICT)


def test_min_age(leaky: Program) -> None:
    with tracing("-p", leaky.pid, "--min-age", 3600, "--fail-on-leak") as running:
        leak(leaky)
        answer = running.interrupt()
    assert answer.status == 0
    assert answer.out.startswith(
        f"No leak: {2 * LEAKS} forks, {2 * LEAKS} dead children: {LEAKS} waited for, "
    )
    assert f"{LEAKS} standing now, {LEAKS} for less than 1h00m (no leak)" in answer.out


def test_two_tracers_at_the_same_time(start: START) -> None:
    one, two = (start("leaky_main", count, 1, wait=True) for count in (2, 5))
    options = ("--min-age", 0, "--json")
    with tracing("-p", one.pid, *options) as first, tracing("-p", two.pid, *options) as second:
        leak(two)
        leak(one)
        reports = [json.loads(running.interrupt().out) for running in (first, second)]
    assert [report["leaks"][0]["count"] for report in reports] == [2, 5]
    assert [report["totals"]["forks"] for report in reports] == [4, 10]


# --- the report -----------------------------------------------------------------------------------------------


def test_json_is_as_the_schema_says(leaky: Program) -> None:
    with tracing("-p", leaky.pid, "--min-age", 0, "--json") as running:
        leak(leaky)
        answer = running.interrupt()
    report = json.loads(answer.out)
    schema = Path(tracer.report.__file__).with_name("forktrace.report-1.schema.json")
    jsonschema.validate(report, json.loads(schema.read_text()))
    (found,) = report["leaks"]
    assert (found["count"], found["responsible"]["name"]) == (LEAKS, "libleaky")
    assert found["responsible"]["function"] == "leaky_spawn_helper"
    assert report["trace"]["targets"] == [{"pid": leaky.pid, "comm": "leaky_main"}]
    assert report["trace"]["complete"]


def test_a_report_in_a_file(leaky: Program, tmp_path: Path) -> None:
    file = tmp_path / "report"
    with tracing("-p", leaky.pid, "--min-age", 0, "--report", file) as running:
        leak(leaky)
        answer = running.interrupt()
    assert (answer.status, answer.out) == (0, "")
    assert file.read_text().startswith(VERDICT)
    file.write_text("old\n" * 1000)
    answer = forktrace("-p", leaky.pid, "-d", "0.1", "--report", file, "--force")
    assert (answer.status, answer.out) == (0, "")
    assert file.read_text().startswith("No new leak")
    assert "old\n" not in file.read_text()


def test_a_report_that_fails_leaves_an_old_one_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "report"
    file.write_text("old")
    assert forktrace("-p", 4194304, "--report", file, "--force").status == 1
    assert file.read_text() == "old"


def test_a_report_that_its_file_cannot_take_is_printed(leaky: Program) -> None:
    answer = forktrace("-p", leaky.pid, "-d", "0.1", "--report", "/dev/full", "--force")
    assert answer.status == 1
    assert answer.out.startswith("No leak: ")
    assert (
        answer.err.splitlines()[-1] == "forktrace: /dev/full: No space left on device; it was printed instead"
    )


def test_head_has_read_enough(leaky: Program) -> None:
    script = 'set -o pipefail; "$@" | head -1'
    answer = forktrace("-q", "-p", leaky.pid, "-d", "0.1", prefix=("bash", "-c", script, "bash"))
    assert (answer.status, answer.err) == (0, "")
    assert len(answer.out.splitlines()) == 1


def test_a_reader_that_is_gone(leaky: Program) -> None:
    """Before anything is printed; leaks still tell by the status."""
    reader, writer = os.pipe()
    with tracing("-p", leaky.pid, "--min-age", 0, "--fail-on-leak", stdout=writer) as running:
        os.close(writer)
        os.close(reader)
        leak(leaky)
        answer = running.interrupt()
    assert answer.status == 3
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, leaky: Program, tmp_path: Path) -> None:
    """No file of the trace's takes the place of a closed stream."""
    capture = tmp_path / "capture"
    answer = forktrace("-p", leaky.pid, "-d", "0.1", "-o", capture, prefix=in_shell(f'exec "$@" {closed}'))
    assert answer.status == 0
    assert answer.out.startswith("No leak") == (">&-" not in closed.replace("2>&-", ""))
    assert forktrace("report", capture).out.startswith("No leak")


def test_a_full_stdout(leaky: Program) -> None:
    with open("/dev/full", "w") as full:
        for option in ("-q", "--json"):
            with tracing("-p", leaky.pid, "-d", "0.1", option, stdout=full, begun="") as running:
                answer = running.end()
            assert answer.status == 1
            assert answer.err.splitlines()[-2:] == [
                "forktrace: cannot print the report: No space left on device",
                "  put it into a file that has room: --report FILE",
            ]


# --- captures -------------------------------------------------------------------------------------------------


def test_the_report_of_a_capture_is_that_of_the_live_trace(leaky: Program, tmp_path: Path) -> None:
    """Printed by the user who called sudo, from a file that is his."""
    capture = reachable(tmp_path) / "capture"
    tmp_path.chmod(0o777)
    sudo = {"SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY)}
    with tracing("-p", leaky.pid, "--min-age", 0, "-o", capture, env=sudo) as running:
        leak(leaky)
        live = running.interrupt()
    assert live.out.startswith(VERDICT)
    again = forktrace("report", capture, prefix=AS_NOBODY)
    assert (again.status, again.out, again.err) == (0, live.out, "")
    assert (
        json.loads(forktrace("report", "--json", capture, prefix=AS_NOBODY).out)["leaks"][0]["count"] == LEAKS
    )
    assert forktrace("report", "--fail-on-leak", capture).status == 3
    assert forktrace("report", "--min-age", "3600", capture).out.startswith("No leak")


def test_exports(leaky: Program, tmp_path: Path) -> None:
    capture = tmp_path / "capture"
    with tracing("-p", leaky.pid, "--min-age", 0, "-o", capture) as running:
        leak(leaky)
        running.interrupt()
    folded = forktrace("export", capture, "-f", "folded")
    stack, _, count = folded.out.rstrip("\n").rpartition(" ")
    assert (folded.status, int(count)) == (0, LEAKS)
    assert "main (leaky_main);leaky_request (libleaky);leaky_spawn_helper (libleaky);" in stack
    every = forktrace("export", capture, "-f", "folded", "--all-forks").out.splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in every) == 2 * LEAKS
    picture = tmp_path / "picture.svg"
    assert forktrace("export", capture, "-f", "svg", "-o", picture).status == 0
    assert "leaky_spawn_helper" in picture.read_text()
    assert forktrace("export", capture, "-f", "svg", "-o", picture).status == 1
    formats = forktrace("export", "-f", "list")
    assert [line.split()[0] for line in formats.out.splitlines()][:2] == ["folded", "svg"]


def test_a_killed_tracer_leaves_a_readable_capture(leaky: Program, tmp_path: Path) -> None:
    capture = tmp_path / "capture"

    def written() -> bool:
        try:
            return sum(leak.count for leak in load_trace(str(capture)).leaks) == LEAKS
        except ForktraceError:  # a flush is being made
            return False

    with tracing("-p", leaky.pid, "--min-age", 0, "-o", capture) as running:
        leak(leaky)
        wait_until(written, 2.0, "a flush within the second after the leak")
        running.send(signal.SIGKILL)
        assert running.end().status == -signal.SIGKILL
    answer = forktrace("report", capture)
    assert answer.status == 0
    assert answer.out.startswith(VERDICT)
    assert "INCOMPLETE: " in answer.out
    assert not json.loads(forktrace("report", "--json", capture).out)["trace"]["complete"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """A prefix: tmp_path is a small filesystem, in a mount namespace of its own."""
    yield (
        "unshare",
        "--mount",
        *in_shell(f'mount -t tmpfs -o size=256k none {tmp_path} || exit 9; exec "$@"'),
    )


def fill(running: Tracer, directory: Path) -> None:
    enter = ["nsenter", "--target", str(running.process.pid), "--mount"]
    subprocess.run(
        [*enter, "dd", "if=/dev/zero", f"of={directory}/filler", "bs=4k"], check=False, capture_output=True
    )


def test_the_trace_survives_a_full_disk(start: START, small_disk: tuple[str, ...], tmp_path: Path) -> None:
    capture = tmp_path / "capture"
    storm = start("leaky_main", 400, 0, wait=True)
    with tracing("-p", storm.pid, "--min-age", 0, "-o", capture, prefix=small_disk) as running:
        fill(running, tmp_path)
        leak(storm)
        answer = running.interrupt()
    assert answer.status == 0
    assert answer.out.startswith("400 children never waited for, all forked by libleaky 1.2")
    assert "the capture is not complete: " in " ".join(answer.out.split())
    assert answer.err.splitlines()[1].startswith(f"forktrace: cannot write the capture {capture}: ")


def test_force_replaces_a_capture(leaky: Program, tmp_path: Path) -> None:
    capture = tmp_path / "capture"
    capture.write_text("something else")
    assert forktrace("-p", leaky.pid, "-d", "0.1", "-o", capture, "--force").status == 0
    assert forktrace("report", capture).out.startswith("No leak")
