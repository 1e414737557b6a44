"""Loading, attaching and going away again: without kernel headers, without tracefs, from the cache, leaving nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import Program, wait_until
from tracing import options_for, step_until_ready

from tracer.probe import build, offsets, syscalls
from tracer.probe.build import Options
from tracer.probe.probe import Probe, ProbeOptions
from tracer.probe.programs import Compiled
from tracer.probe.tracefs import open_tracefs
from tracer.session import Session

pytestmark = pytest.mark.kernel

ROOT = Path(build.__file__).parents[2]

# --- without kernel headers, and without tracefs ------------------------------------------------------------------

HEADERS = (
    "/lib/modules", "/usr/lib/modules", "/usr/src", "/usr/include", "/sys/kernel/kheaders.tar.xz", "/sys/kernel/debug",
    "/sys/kernel/tracing",
)  # fmt: skip
TRACE_A_FORK = """
import json, os, sys
from tracer.session import Session, SessionOptions
from tracer.probe.probe import ProbeOptions
hidden = {path: os.listdir(path) if os.path.isdir(path) else os.path.getsize(path) for path in sys.argv[1:]}
gate_read, gate = os.pipe()
target = os.fork()
if not target:
    os.read(gate_read, 1)
    child = os.fork()
    if not child:
        os._exit(7)
    os.waitpid(child, 0)
    os._exit(0)
with Session(SessionOptions(pids=(target,), probe=ProbeOptions(cache=None))) as session:
    session.start()
    os.write(gate, b"g")
    while not session.over():
        session.step()
    trace = session.finish()
os.waitpid(target, 0)
print(json.dumps({"hidden": hidden, "forks": trace.totals.forks, "waited": trace.totals.waited,
                  "frames": [frame.function for frame in trace.stacks[0][0].frames]}))
"""


def test_no_kernel_header_is_used() -> None:
    """With every place hidden where BCC, or a trace, might find headers or a tracefs of the machine's own."""
    hidden = [path for path in HEADERS if Path(path).exists()]
    hide = "".join(
        f"mount --bind /dev/null {path}\n" if Path(path).is_file() else f"mount -t tmpfs none {path}\n"
        for path in hidden
    )
    script = f'set -e\n{hide}exec "$@"\n'
    run = subprocess.run(
        [
            "unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh",
            sys.executable, "-c", TRACE_A_FORK, *hidden,
        ],
        env={**os.environ, "BCC_KERNEL_SOURCE": "/nonexistent", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert not any(told.pop("hidden").values())
    assert told.pop("frames")
    assert told == {"forks": 1, "waited": 1}


def open_descriptors() -> list[str]:
    return sorted(descriptor.name for descriptor in Path("/proc/self/fd").iterdir())


def test_a_tracefs_of_our_own_appears_nowhere_and_goes() -> None:
    before = Path("/proc/self/mounts").read_text()
    descriptors = open_descriptors()
    with open_tracefs(mounts=()) as tracefs:
        assert Path("/proc/self/mounts").read_text() == before
        event = tracefs.event_id("syscalls", "sys_exit_wait4")
        offset = tracefs.field_offset("syscalls", "sys_exit_wait4", "ret")
        assert tracefs.event_id("syscalls", "no_such_event") is None
        assert tracefs.field_offset("syscalls", "sys_exit_wait4", "no_such_field") is None
    assert event and offset == 16
    assert Path("/proc/self/mounts").read_text() == before
    assert open_descriptors() == descriptors


def test_a_tracefs_of_the_machine_is_taken_where_it_is(tmp_path: Path) -> None:
    """And a directory without events, as an unmounted /sys/kernel/tracing is, is none."""
    empty, mounted = tmp_path / "empty", tmp_path / "mounted"
    for directory in (empty, mounted):
        directory.mkdir()
    subprocess.run(["mount", "-t", "tracefs", "none", mounted], check=True)
    try:
        with open_tracefs(mounts=(str(empty), str(mounted))) as theirs, open_tracefs(mounts=()) as ours:
            event = theirs.event_id("syscalls", "sys_exit_wait4")
            assert event is not None
            assert event == ours.event_id("syscalls", "sys_exit_wait4")
            assert event == int((mounted / "events/syscalls/sys_exit_wait4/id").read_text())
    finally:
        subprocess.run(["umount", mounted], check=True)


# --- offsets ----------------------------------------------------------------------------------------------------


def test_offsets_as_bpftool_reads_them() -> None:
    bpftool = shutil.which("bpftool") or "/usr/sbin/bpftool"
    if not Path(bpftool).exists():
        pytest.skip("bpftool is not installed")
    dump = subprocess.run(
        [bpftool, "--json", "btf", "dump", "file", offsets.BTF_PATH],
        capture_output=True,
        check=True,
        timeout=60,
    )
    types = {each["id"]: each for each in json.loads(dump.stdout)["types"]}
    structs = {each["name"]: each for each in types.values() if each["kind"] == "STRUCT"}

    def member(struct: dict[str, Any], name: str) -> int | None:
        """Bits, looked for in anonymous members as well."""
        for each in struct["members"]:
            if each["name"] == name:
                return int(each["bits_offset"])
            inner = types.get(each["type_id"], {})
            if each["name"] == "(anon)" and inner.get("kind") in ("STRUCT", "UNION"):
                found = member(inner, name)
                if found is not None:
                    return int(each["bits_offset"]) + found
        return None

    mine = dict(offsets.kernel_layout().defines)
    expected = {}
    for flag, (name, path) in offsets.MEMBERS.items():
        struct, bits = structs[name], 0
        for part in path.split("."):
            found = member(struct, part)
            assert found is not None, (name, path)
            bits += found
            (of_part,) = (
                (each for each in struct["members"] if each["name"] == part) if "." in path else ({},)
            )
            struct = types.get(of_part.get("type_id", 0), struct)
        expected[flag] = bits // 8
    expected |= {flag: structs[name]["size"] for flag, name in offsets.SIZES.items()}
    assert {flag: mine[flag] for flag in expected} == expected


# --- the cache --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory with the programs of a full trace in it."""
    cache = tmp_path_factory.mktemp("cache") / "forktrace"
    build.build(Options(), str(cache))
    return cache


@pytest.fixture
def cache(compiled_once: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "forktrace"
    shutil.copytree(compiled_once, copy)
    copy.chmod(0o700)
    return copy


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Instead of the real one: gives nothing, and counts how often it was asked."""
    asked = []

    def compile_nothing(*_: object) -> Compiled:
        asked.append(1)
        return Compiled({}, {})

    monkeypatch.setattr(build, "_compile", compile_nothing)
    yield lambda: len(asked)


def only_file(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


def test_the_second_start_needs_no_compiler(cache: Path) -> None:
    """Nor bcc, which maps all of LLVM; no process is started."""
    script = """
import sys, subprocess
from tracer.probe.probe import Probe, ProbeOptions
def no_process(*_, **__):
    raise AssertionError("a process was started")
subprocess.Popen = subprocess.run = no_process
with Probe(ProbeOptions(cache=sys.argv[1])) as probe:
    probe.attach()
assert "bcc" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", script, cache],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )


def test_the_cache_is_for_root_alone_and_is_what_was_compiled(
    cache: Path, compiler: Callable[[], int]
) -> None:
    assert (cache.stat().st_mode & 0o777, only_file(cache).stat().st_mode & 0o777) == (0o700, 0o600)
    found = build.build(Options(), str(cache))
    assert set(found.programs) > set(build.RAW_TRACEPOINTS)
    assert compiler() == 0


def group_writable(cache: Path) -> None:
    only_file(cache).chmod(0o660)


def world_writable(cache: Path) -> None:
    only_file(cache).chmod(0o602)


def anothers(cache: Path) -> None:
    os.chown(only_file(cache), 65534, 65534)


def symbolic_link(cache: Path) -> None:
    file = only_file(cache)
    file.rename(cache.parent / "elsewhere")
    file.symlink_to(cache.parent / "elsewhere")


def pipe(cache: Path) -> None:
    file = only_file(cache)
    file.unlink()
    os.mkfifo(file, 0o600)


def in_a_directory_that_others_may_write(cache: Path) -> None:
    cache.chmod(0o777)


def in_anothers_directory(cache: Path) -> None:
    os.chown(cache, 65534, 65534)


def in_a_directory_behind_a_link(cache: Path) -> None:
    cache.rename(cache.parent / "real")
    cache.symlink_to(cache.parent / "real")


def cut(cache: Path) -> None:
    file = only_file(cache)
    file.write_bytes(file.read_bytes()[:-100])


def of_another_format(cache: Path) -> None:
    file = only_file(cache)
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 999}))


def with_other_types(cache: Path) -> None:
    file = only_file(cache)
    file.write_text(json.dumps({**json.loads(file.read_text()), "maps": [1, 2], "programs": None}))


def no_text(cache: Path) -> None:
    only_file(cache).write_bytes(b"\xff\x00\xfe")


@pytest.mark.parametrize(
    "spoil",
    [
        group_writable, world_writable, anothers, symbolic_link, pipe, in_a_directory_that_others_may_write,
        in_anothers_directory, in_a_directory_behind_a_link, cut, of_another_format, with_other_types, no_text,
    ],
)  # fmt: skip
def test_a_cached_file_that_is_not_surely_ours_is_not_believed(
    cache: Path, compiler: Callable[[], int], spoil: Callable[[Path], None]
) -> None:
    spoil(cache)
    assert build.build(Options(), str(cache)) == Compiled({}, {})
    assert compiler() == 1


@pytest.mark.parametrize("spoil", [group_writable, anothers, symbolic_link, cut, no_text])
def test_what_was_not_believed_is_replaced(
    cache: Path, compiler: Callable[[], int], spoil: Callable[[Path], None]
) -> None:
    spoil(cache)
    for _ in range(2):
        assert build.build(Options(), str(cache)) == Compiled({}, {})
    assert compiler() == 1


def test_other_sources_other_headers_and_another_kernel_are_compiled_anew(
    cache: Path, compiler: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build.build(replace(Options(), syscalls=False), str(cache))
    assert compiler() == 1
    monkeypatch.setattr(build, "_kernel_build", lambda: b"another")
    build.build(Options(), str(cache))
    assert compiler() == 2
    monkeypatch.undo()
    sources = tmp_path / "bpf"
    shutil.copytree(build.bpf_directory(), sources)
    monkeypatch.setattr(build, "bpf_directory", lambda: sources)
    monkeypatch.setattr(build, "_compile", lambda *_: Compiled({}, {}))
    for name in ("lifecycle.c", "include/linux/types.h"):
        with (sources / name).open("a") as file:
            file.write("\n/* changed */\n")
        assert build.build(Options(), str(cache)) == Compiled({}, {}), f"{name} changed"


# --- nothing is left --------------------------------------------------------------------------------------------

GET_NEXT_ID = {"prog_id": 11, "map_id": 12, "link_id": 31}  # enum bpf_cmd
Ids = set[tuple[str, int]]


def held_by(pid: int) -> tuple[Ids, int]:
    """Programs, maps and links that the process holds, by kind and the kernel's id; and how many perf events."""
    ids: Ids = set()
    events = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # the one that lists the directory
            continue
        events += target == "anon_inode:[perf_event]"
        if "bpf" in target:
            text = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
            fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
            kind = next(kind for kind in ("link_id", "map_id", "prog_id") if kind in fields)
            ids.add((kind, int(fields[kind])))
    return ids, events


def still_there(ids: Ids) -> Ids:
    """By asking for the id that follows the one before it.

    To open each by its id would be a reference of our own, and when that is closed while the kernel clears a program
    array (prog_array_map_clear), the array stays for good: seen on 6.18.
    """
    found = set()
    for kind, number in ids:
        attributes = bytearray((number - 1).to_bytes(4, "little") + bytes(8))
        try:
            syscalls.bpf(GET_NEXT_ID[kind], attributes)
        except FileNotFoundError:  # none follows
            continue
        if int.from_bytes(attributes[4:8], "little") == number:
            found.add((kind, number))
    return found


def kinds(ids: Ids) -> set[str]:
    return {kind for kind, _ in ids}


def test_closing_leaves_nothing(start: Callable[..., Program]) -> None:
    program = start("fates", "burst", wait=True)
    before = held_by(os.getpid())
    with Session(options_for(program.pid)) as session:
        session.start()
        program.go()
        step_until_ready(session, program)
        ids, events = held_by(os.getpid())
        ids -= before[0]
        assert kinds(ids) == {"prog_id", "map_id", "link_id"}
        assert events > before[1]
        assert still_there(ids) == ids
        session.finish()
        links = {each for each in ids if each[0] == "link_id"}
        wait_until(lambda: not still_there(links), what="the links are gone once the trace has ended")
        assert held_by(os.getpid())[1] == before[1]
    wait_until(lambda: not still_there(ids), what="programs and maps are gone")
    assert held_by(os.getpid()) == before


TRACE_FOREVER = """
import sys
from tracer.session import Session, SessionOptions
with Session(SessionOptions(pids=(int(sys.argv[1]),))) as session:
    session.start()
    print("tracing", flush=True)
    while True:
        session.step()
"""


def test_a_tracer_that_is_killed_leaves_nothing(start: Callable[..., Program]) -> None:
    program = start("fates", "running")
    program.truth()
    tracer = subprocess.Popen(
        [sys.executable, "-c", TRACE_FOREVER, str(program.pid)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "tracing\n"
        ids, events = held_by(tracer.pid)
        assert kinds(ids) == {"prog_id", "map_id", "link_id"}
        assert events > 0
        assert still_there(ids) == ids
    finally:
        tracer.send_signal(signal.SIGKILL)
        tracer.communicate(timeout=30)
    # A perf event holds the program that is attached to it: no program, no event.
    wait_until(lambda: not still_there(ids), what="programs, maps and links are gone")


def test_nothing_is_left_where_loading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last program is refused: what was loaded before it is closed."""
    before = held_by(os.getpid())
    real = build.build(Options(), build.CACHE)
    name = list(real.programs)[-1]
    broken = replace(real.programs[name], instructions=bytes(len(real.programs[name].instructions)))
    programs = {**real.programs, name: broken}
    monkeypatch.setattr(build, "build", lambda *_: Compiled(real.maps, programs))
    with pytest.raises(Exception, match=f"the kernel refused the BPF program {name}"):
        Probe(ProbeOptions())
    assert held_by(os.getpid()) == before
