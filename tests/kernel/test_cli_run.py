"""``forktrace run``: the command is as it would be without the trace, and is seen from its first instruction."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import DEADLINE_S, NOBODY, forktrace, in_shell, reachable, tracing
from support import wait_until

pytestmark = pytest.mark.kernel

# Forks at once, forgets, and ends when all of them are dead.
HASTY = """
import os
for pid in [os.fork() or os._exit(0) for _ in range(3)]:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
"""
SUDO = {"SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY), "SUDO_USER": "nobody"}


def report_of(*command: object, **options: Any) -> dict[str, Any]:
    found = json.loads(forktrace("run", "--json", "--min-age", 0, "--", *command, **options).err)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_the_status_is_the_commands(script: str, status: int) -> None:
    assert forktrace("run", "--", "sh", "-c", script).status == status


def test_a_command_that_is_not_found() -> None:
    for command, reason, status in (
        ("/nowhere/command", "No such file or directory", 127),
        ("no-such-command-on-the-path", "No such file or directory", 127),
        ("/etc/passwd", "Permission denied", 126),
        ("/etc", "Permission denied", 126),
    ):
        answer = forktrace("run", "--", command)
        assert (answer.status, answer.out) == (status, "")
        assert answer.err == f"forktrace: {command}: {reason}\n"


def test_stdout_is_the_commands_and_the_report_goes_to_stderr() -> None:
    answer = forktrace("run", "--", "sh", "-c", "echo out; echo err >&2")
    assert (answer.status, answer.out) == (0, "out\n")
    assert answer.err.startswith("err\nNo leak: nothing forked in ")


def test_the_report_on_stdout() -> None:
    answer = forktrace("run", "--report", "-", "--", "echo", "out")
    assert answer.out.startswith("out\nNo leak: ")
    assert answer.err == ""


def test_the_report_in_a_file_is_there_before_the_command_ends(tmp_path: Path) -> None:
    file = tmp_path / "report"
    with tracing(
        "run", "-d", "0.1", "--report", file, "--", "sleep", "60", begun="", stdout=subprocess.DEVNULL
    ) as running:
        wait_until(lambda: file.exists() and "Totals" in file.read_text(), DEADLINE_S)
        assert running.process.poll() is None
        running.send(signal.SIGTERM)
        assert running.end().status == 0
        (pid,) = (word for word in running.said().split() if word.rstrip(")").isdigit())
        os.kill(int(pid.rstrip(")")), signal.SIGKILL)


def test_it_is_seen_from_its_first_instruction() -> None:
    report = report_of(sys.executable, "-c", HASTY)
    (leak,) = report["leaks"]
    assert (leak["kind"], leak["count"]) == ("zombie", 3)
    assert [target["comm"] for target in report["trace"]["targets"]] == [Path(sys.executable).name[:15]]
    assert (report["totals"]["forks"], report["totals"]["execs"]) == (3, 1)
    assert report["trace"]["complete"]


def test_fail_on_leak_wins_over_the_status() -> None:
    hasty = ("--min-age", 0, "--", sys.executable, "-c", HASTY)
    assert forktrace("run", *hasty).status == 0
    assert forktrace("run", "--fail-on-leak", *hasty).status == 3
    assert forktrace("run", "--fail-on-leak", "--", "sh", "-c", "exit 5").status == 5


def test_environment_directory_arguments_and_input_are_kept(tmp_path: Path) -> None:
    script = 'pwd; echo "$GREETING"; printf "%s\\n" "$@"; cat; umask'
    (tmp_path / "input").write_text("from stdin\n")
    with (tmp_path / "input").open() as stdin:
        answer = forktrace(
            *("run", "-q", "--", "sh", "-c", script, "sh", "-d", "--json", "a b", ""),
            env={"GREETING": "hello there"},
            cwd=tmp_path,
            stdin=stdin,
            umask=0o027,
        )
    assert answer.out.splitlines() == [
        *(str(tmp_path), "hello there", "-d", "--json", "a b", "", "from stdin", "0027")
    ]


def test_signals_are_as_the_command_would_find_them_without_us() -> None:
    """Its masks and what is ignored: also where a shell's "&" ignores SIGINT."""
    show = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status"
    for before in ("", "trap '' INT HUP;"):
        plain = subprocess.run(["sh", "-c", f"{before} {show}"], capture_output=True, text=True, check=True)
        script = in_shell(f'{before} exec "$@"')
        traced = forktrace(
            "run", "-q", "--", "grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status", prefix=script
        )
        assert traced.out == plain.stdout


def test_no_descriptor_of_ours_reaches_the_command() -> None:
    answer = forktrace("run", "-q", "--", "ls", "/proc/self/fd")
    assert answer.out.split() == ["0", "1", "2", "3"]  # 3 is the directory


def test_the_duration_ends_the_trace_and_not_the_command() -> None:
    answer = forktrace("run", "-d", "0.1", "--", "sh", "-c", "sleep 1; echo done; exit 4")
    assert (answer.status, answer.out) == (4, "done\n")
    assert "Totals" in answer.err


def test_sigterm_ends_the_trace_and_not_the_command(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"echo $$ > {ready}.new; mv {ready}.new {ready}; exec sleep 60"
    with tracing("run", "--", "sh", "-c", script, begun="", stdout=subprocess.DEVNULL) as running:
        wait_until(ready.exists, DEADLINE_S)
        pid = int(ready.read_text())
        try:
            running.send(signal.SIGTERM)
            answer = running.end()
            assert Path(f"/proc/{pid}").exists()
        finally:
            os.kill(pid, signal.SIGKILL)
    assert answer.status == 0
    assert "Totals" in answer.err
    assert answer.err.endswith(f"forktrace: the command (pid {pid}) is still running\n")


def test_ctrl_c_ends_both(tmp_path: Path) -> None:
    """As a terminal sends it: to the whole group."""
    ready = tmp_path / "ready"
    command = ("sh", "-c", f": > {ready}; exec sleep 60")
    with tracing("run", "--", *command, begun="", start_new_session=True) as running:
        wait_until(ready.exists, DEADLINE_S)
        os.killpg(running.process.pid, signal.SIGINT)
        answer = running.end()
    assert answer.status == 130
    assert "Totals" in answer.err
    assert "is still running" not in answer.err


def test_a_killed_tracer_leaves_the_command_alone(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"echo $$ > {ready}.new; mv {ready}.new {ready}; exec sleep 60"
    with tracing("run", "--", "sh", "-c", script, begun="", stdout=subprocess.DEVNULL) as running:
        wait_until(ready.exists, DEADLINE_S)
        running.send(signal.SIGKILL)
        running.end()
    pid = int(ready.read_text())
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, signal.SIGKILL)


def test_under_sudo_the_command_is_the_users(tmp_path: Path) -> None:
    directory = reachable(tmp_path)
    directory.chmod(0o777)
    files = (directory / "capture", directory / "report")
    script = "id -u; id -g; id -G; echo $HOME $USER $LOGNAME; grep CapEff /proc/self/status"
    options = ("-o", files[0], "--report", files[1])
    answer = forktrace("run", *options, "--", "sh", "-c", script, env=SUDO)
    user = pwd.getpwuid(NOBODY)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        *(str(NOBODY), str(NOBODY), " ".join(map(str, os.getgrouplist(user.pw_name, NOBODY)))),
        f"{user.pw_dir} {user.pw_name} {user.pw_name}",
        "CapEff:\t0000000000000000",
    ]
    for file in files:
        assert (file.stat().st_uid, file.stat().st_gid) == (NOBODY, NOBODY)


def test_under_sudo_with_a_user_that_no_database_knows() -> None:
    sudo = {"SUDO_UID": "54321", "SUDO_GID": "54322"}
    answer = forktrace("run", "-q", "--", "id", "-u", env=sudo)
    assert (answer.status, answer.out) == (0, "54321\n")
    assert forktrace("run", "-q", "--", "id", "-G", env=sudo).out == "54322\n"


def test_the_user_cannot_run_what_only_root_can(tmp_path: Path) -> None:
    script = reachable(tmp_path) / "script"
    script.write_text("#!/bin/sh\necho root\n")
    script.chmod(0o700)
    answer = forktrace("run", "--", script, env=SUDO)
    assert (answer.status, answer.out, answer.err) == (126, "", f"forktrace: {script}: Permission denied\n")


def test_a_command_that_ends_while_others_live_on(tmp_path: Path) -> None:
    """The trace ends with the command; what it left behind is told, and left alone."""
    pid_file = tmp_path / "pid"
    report = report_of("sh", "-c", f"sleep 60 > /dev/null 2>&1 & echo $! > {pid_file}")
    pid = int(pid_file.read_text())
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, signal.SIGKILL)
    assert (report["totals"]["forks"], report["totals"]["running"]) == (1, 1)


def test_light_and_without_stacks() -> None:
    report = report_of(sys.executable, "-c", HASTY)
    assert report["leaks"][0]["stack"]
    for option, stack in (("--light", True), ("--no-stacks", False)):
        answer = forktrace("run", "--json", "--min-age", 0, option, "--", sys.executable, "-c", HASTY)
        (leak,) = json.loads(answer.err)["leaks"]
        assert leak["count"] == 3
        assert bool(leak["stack"]) == stack
