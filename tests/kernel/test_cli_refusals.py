"""What forktrace refuses, and how: one line of what is wrong, one of what to do, the status, and stdout empty."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import AS_NOBODY, Answer, forktrace, hiding
from support import Program, proc_state, wait_until

from tracer.errors import ForktraceError, Unavailable
from tracer.probe import syscalls
from tracer.probe.build import CACHE
from tracer.probe.tracefs import open_tracefs
from tracer.session import Session, SessionOptions

pytestmark = pytest.mark.kernel


def assert_refused(answer: Answer, status: int, message: str, remedy: str) -> None:
    assert answer.err == f"forktrace: {message}\n  {remedy}\n"
    assert (answer.status, answer.out) == (status, "")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


# --- targets --------------------------------------------------------------------------------------------------


def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_no_such_process() -> None:
    pid = dead_pid()
    remedy = "forktrace ps lists the processes that hold zombies"
    assert_refused(forktrace("-p", pid), 1, f"there is no process {pid}", remedy)


def test_a_thread() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        tid, pid = thread.native_id, os.getpid()
        assert_refused(
            forktrace("-p", tid), 1, f"{tid} is a thread of process {pid}", f"trace the process: -p {pid}"
        )
    finally:
        done.set()


def test_a_kernel_thread() -> None:
    remedy = "it has no user code that could be traced"
    assert_refused(forktrace("-p", 2), 1, "2 (kthreadd) is a kernel thread", remedy)


def test_a_zombie() -> None:
    process = subprocess.Popen(["true"])
    try:
        wait_until(lambda: proc_state(process.pid) == "Z")
        message = f"process {process.pid} is a zombie itself: it does nothing any more"
        remedy = f"trace the parent that does not reap it: -p {os.getpid()}"
        assert_refused(forktrace("-p", process.pid), 1, message, remedy)
    finally:
        process.wait()


def test_a_process_that_ends_while_the_trace_starts(sleeper: subprocess.Popen[bytes]) -> None:
    with Session(SessionOptions(pids=(sleeper.pid,))) as session:
        attach = session._probe.attach

        def attach_too_late() -> None:
            attach()
            sleeper.kill()
            sleeper.wait()

        session._probe.attach = attach_too_late  # type: ignore[method-assign]
        with pytest.raises(ForktraceError) as refused:
            session.start()
    assert refused.value.message == f"process {sleeper.pid} ended before tracing began"
    assert refused.value.help == "start it with: sudo forktrace run -- COMMAND"


@pytest.mark.parametrize("value", ["0", "-1", "text", "1,,2", "", "1.5", "4194305", "1\n2"])
def test_what_is_no_pid(value: str) -> None:
    answer = forktrace("-p", value)
    assert (answer.status, answer.out) == (2, "")
    assert " is not a pid\n  see: forktrace --help\n" in answer.err


def test_several_pids_and_one_of_them_missing(sleeper: subprocess.Popen[bytes]) -> None:
    pid = dead_pid()
    answer = forktrace("-p", f"{sleeper.pid},{pid}", "-p", sleeper.pid)
    assert (answer.status, answer.err.splitlines()[0]) == (1, f"forktrace: there is no process {pid}")


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (["-p", "1", "--all"], "-p, --cgroup and --all exclude each other", "give one of them"),
        (["--cgroup", "/", "--all"], "-p, --cgroup and --all exclude each other", "give one of them"),
        (["-q"], "what shall be traced?", "name a process with -p PID, a cgroup with --cgroup, or --all"),
        (["--all", "-d", "0"], "Invalid value for '-d' / '--duration': 0.0 is not in the range x>0.", ""),
        (["--all", "-d", "nan"], "Invalid value for '-d' / '--duration': nan is no number of seconds", ""),
        (["--all", "--min-age", "inf"], "Invalid value for '--min-age': inf is no number of seconds", ""),
        (["--all", "--min-age", "-1"], "Invalid value for '--min-age': -1.0 is not in the range x>=0.", ""),
        (["--all", "--json", "ps"], "options go behind the command: forktrace ps …", ""),
        (["nonsense"], "No such command 'nonsense'.", ""),
        (["run"], "Missing argument 'COMMAND...'.", "see: forktrace run --help"),
        (["run", "--"], "Missing argument 'COMMAND...'.", "see: forktrace run --help"),
        (["run", "-d", "x", "true"], "Invalid value for '-d' / '--duration': 'x' is not a valid", ""),
        (["report"], "Missing argument 'FILE'.", "see: forktrace report --help"),
        (["export", "-f", "folded"], "which capture?", ""),
        (
            ["export", "x", "-f", "pdf"],
            "there is no format pdf",
            "the formats are: folded, svg, speedscope, pprof, perfetto, dot, mermaid, csv, jsonl",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage(arguments: list[str], message: str, remedy: str) -> None:
    answer = forktrace(*arguments)
    assert (answer.status, answer.out) == (2, "")
    said, *rest = answer.err.splitlines()
    assert said.startswith(f"forktrace: {message}")
    assert len(rest) <= 1
    assert not remedy or rest == [f"  {remedy}"]


def test_no_arguments_at_all() -> None:
    answer = forktrace()
    assert (answer.status, answer.err) == (2, "")
    assert answer.out.startswith("Usage: forktrace ")
    assert "sudo forktrace -p PID" in answer.out


@pytest.mark.parametrize("path", ["/etc", "/nowhere", "/sys/fs/cgroup/nowhere"])
def test_what_is_no_cgroup(path: str) -> None:
    remedy = "name one below /sys/fs/cgroup; cat /proc/PID/cgroup shows it"
    answer = forktrace("--cgroup", path)
    assert_refused(answer, 1, f"{path} is no cgroup directory (No such file or directory)", remedy)


# --- permission, kernel, BCC ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["-p", "PID"], ["--all"], ["run", "--", "true"]], ids=" ".join)
def test_not_root(sleeper: subprocess.Popen[bytes], arguments: list[str]) -> None:
    answer = forktrace(*(each.replace("PID", str(sleeper.pid)) for each in arguments), prefix=AS_NOBODY)
    assert_refused(answer, 77, "tracing needs root", "run it again as: sudo forktrace …")


def without_bcc(directory: Path) -> dict[str, str]:
    """An environment in which Python finds a bcc that cannot be imported."""
    (directory / "bcc").mkdir()
    (directory / "bcc" / "__init__.py").write_text("raise ImportError(\"No module named 'bcc'\")\n")
    return {"PYTHONPATH": str(directory)}


def test_bcc_cannot_be_imported(tmp_path: Path) -> None:
    answer = forktrace("--all", prefix=hiding(CACHE), env=without_bcc(tmp_path))
    message = f"Python's bcc module cannot be imported by {sys.executable} (No module named 'bcc')"
    remedy = "apt install python3-bpfcc, and run forktrace with the distribution's Python (scripts/setup does both)"
    assert_refused(answer, 69, message, remedy)


def test_no_btf() -> None:
    answer = forktrace("--all", prefix=hiding(CACHE, "/sys/kernel/btf"))
    message = "this kernel has no BTF (/sys/kernel/btf/vmlinux: No such file or directory)"
    remedy = "a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed: every distribution kernel since 5.10 is"
    assert_refused(answer, 69, message, remedy)


def test_bpf_refused() -> None:
    prefix = ("setpriv", "--inh-caps=-all", "--bounding-set=-bpf,-perfmon,-sys_admin")
    answer = forktrace("--all", prefix=prefix)
    assert (answer.status, answer.out) == (70, "")
    message, remedy = answer.err.splitlines()
    assert message == "forktrace: the kernel refused the BPF program try_load: Operation not permitted"
    assert "CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN (--privileged)" in remedy
    assert "lockdown" in remedy


WITHOUT_TRACEFS = hiding(
    "/sys/kernel/tracing",
    "/sys/kernel/debug",
    then='exec setpriv --inh-caps=-all --bounding-set=-sys_admin "$@"',
)


def test_no_tracefs() -> None:
    remedy = "mount -t tracefs none /sys/kernel/tracing, or trace with --light, which does without it"
    message = "tracefs is not mounted and cannot be mounted privately (Operation not permitted)"
    assert_refused(forktrace("--all", prefix=WITHOUT_TRACEFS), 69, message, remedy)


def test_light_does_without_tracefs() -> None:
    answer = forktrace("--all", "--light", "-d", "0.1", prefix=WITHOUT_TRACEFS)
    assert answer.status == 0
    assert "Totals" in answer.out


def test_tracefs_that_cannot_be_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(filesystem: str) -> int:
        raise PermissionError(1, "Operation not permitted", filesystem)

    monkeypatch.setattr(syscalls, "private_mount", refuse)
    with pytest.raises(Unavailable) as refused, open_tracefs(mounts=("/nowhere",)):
        pass
    assert refused.value.status == 69
    assert "mount -t tracefs none /sys/kernel/tracing" in refused.value.help
    assert "--light" in refused.value.help


# --- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_a_file_that_exists_is_refused_before_anything_is_traced(
    option: str, tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    file = tmp_path / "precious"
    file.write_text("kept")
    answer = forktrace("-p", sleeper.pid, option, file)
    assert (answer.status, answer.out) == (1, "")
    assert answer.err.startswith(f"forktrace: {file} ")
    assert "--force" in answer.err
    assert "tracing" not in answer.err
    assert file.read_text() == "kept"


@pytest.mark.parametrize("option", ["-o", "--report"])
@pytest.mark.parametrize("path", ["/proc/capture", "/nowhere/capture"])
def test_a_file_that_cannot_be_made(option: str, path: str, sleeper: subprocess.Popen[bytes]) -> None:
    answer = forktrace("-p", sleeper.pid, option, path)
    assert (answer.status, answer.out) == (1, "")
    assert "No such file or directory" in answer.err
    assert path in answer.err
    assert "tracing" not in answer.err


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_a_trace_that_does_not_begin_leaves_no_file(option: str, tmp_path: Path) -> None:
    pid = dead_pid()
    assert forktrace("-p", pid, option, tmp_path / "new").status == 1
    assert forktrace("run", option, tmp_path / "new", "--", "/nowhere/command").status == 127
    prefix = ("setpriv", "--inh-caps=-all", "--bounding-set=-bpf,-perfmon,-sys_admin")
    assert forktrace("--all", option, tmp_path / "new", prefix=prefix).status == 70
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", " is empty: the tracer ended before its first flush"),
        (b"text\n" * 100, " is not a forktrace capture"),
        (b"SQLite format 3\0" + b"\xff" * 4096, ""),
        (None, "cannot read "),
    ],
    ids=["empty", "text", "damaged", "missing"],
)
def test_report_of_what_is_no_capture(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    for arguments in (("report", file), ("export", file, "-f", "svg")):
        answer = forktrace(*arguments)
        assert (answer.status, answer.out) == (1, "")
        assert message in answer.err
        assert str(file) in answer.err
        assert len(answer.err.splitlines()) == 2


@pytest.mark.parametrize("path", ["/dev/zero", "/", "FIFO"])
def test_report_of_what_is_no_file_does_not_hang(path: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    answer = forktrace("report", path.replace("FIFO", str(fifo)))
    assert (answer.status, answer.out) == (1, "")


def test_hostile_words_are_escaped() -> None:
    answer = forktrace("report", "/nowhere/\x1b[31mred\nline")
    assert answer.status == 1
    assert answer.err.splitlines()[0] == (
        r"forktrace: cannot read /nowhere/\x1b[31mred\nline: No such file or directory"
    )


def test_a_hostile_name_of_the_target(start: Callable[..., Program]) -> None:
    rename = r"import ctypes; ctypes.CDLL(None).prctl(15, b'\x1b[2J\n(x', 0, 0, 0)"
    source = f"{rename}; print(flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            answer = forktrace("-p", process.pid, "-d", "0.1")
        finally:
            process.kill()
    assert answer.status == 0
    assert rf"tracing process {process.pid} (\x1b[2J\n(x) and descendants" in answer.err
    assert "\x1b" not in answer.out + answer.err
