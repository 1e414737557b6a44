"""Stacks with known culprits."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from tracer.blame.attribute import Blamer
from tracer.blame.rules import IN_DATA, Role, Rules
from tracer.trace import Frame, Library, Stack

from .roots import make_database, root_at, stanza
from .test_library import FakeModule

LIB = "/usr/lib/x86_64-linux-gnu"
PACKAGES = {
    "libc6": [f"{LIB}/libc.so.6", f"{LIB}/libpthread.so.0", "/lib64/ld-linux-x86-64.so.2"],
    "libstdc++6": [f"{LIB}/libstdc++.so.6.0.30"],
    "libglib2.0-0": [f"{LIB}/libglib-2.0.so.0.7400.6"],
    "libfoo1": [f"{LIB}/libfoo.so.1", f"{LIB}/libfoo-util.so.1"],
    "python3.11-minimal": ["/usr/bin/python3.11"],
    "nodejs": ["/usr/bin/node"],
    "dash": ["/usr/bin/dash"],
    "openjdk": ["/opt/java/lib/libjava.so", "/opt/java/lib/libjvm.so"],
    "uwsgi-core": ["/usr/bin/uwsgi"],
}


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FakeModule]:
    directory = tmp_path_factory.mktemp("root")
    make_database(directory, [stanza(name, "1.0-1") for name in PACKAGES], PACKAGES)
    root = root_at(directory)
    own = ["/srv/app/server", "/srv/app/libown.so.2.1", "/usr/local/bin/python3.12"]
    return {
        path: FakeModule(path, None, root)
        for path in [*own, *(p for paths in PACKAGES.values() for p in paths)]
    }


def stack(*places: str | Frame) -> Stack:
    """Frames from "function module [file:line]", leaf first."""
    frames = []
    for place in places:
        if isinstance(place, Frame):
            frames.append(place)
            continue
        function, module, *source = place.split()
        module = {"libc": f"{LIB}/libc.so.6", "anon": ""}.get(module, module)
        file, _, line = source[0].partition(":") if source else ("", "", "")
        frames.append(Frame(function, file or None, int(line) if line else None, module or None))
    return Stack(7, tuple(frames))


def names(stack: Stack) -> list[str]:
    return [library.name for library in stack.chain]


FOO = f"{LIB}/libfoo.so.1"
GLIB = f"{LIB}/libglib-2.0.so.0.7400.6"


def test_the_answer_carries_the_innermost_place(modules: dict[str, FakeModule]) -> None:
    answer = Blamer().attribute(
        stack(
            "fork libc",
            f"foo_spawn {FOO} foo.c:42",
            f"foo_work {FOO} foo.c:99",
            f"foo_util {LIB}/libfoo-util.so.1 util.c:5",
            "serve /srv/app/server server.c:10",
            "main /srv/app/server server.c:20",
            "__libc_start_main libc",
            "_start /srv/app/server",
        ),
        modules,
    )
    foo = Library("deb", "libfoo1", "1.0-1", "foo.c", 42, "foo_spawn")
    app = Library("app", "server", None, "server.c", 10, "serve")
    libc = Library("deb", "libc6", "1.0-1", None, None, "fork")
    assert answer.forked_by == answer.responsible == foo
    start = Library("deb", "libc6", "1.0-1", None, None, "__libc_start_main")
    assert answer.chain == (libc, foo, app, start, Library("app", "server", None, None, None, "_start"))
    assert answer.frames[2].library == Library("deb", "libfoo1", "1.0-1", "foo.c", 99, "foo_work")
    assert answer.id == 7


def test_the_innermost_place_may_have_no_line(modules: dict[str, FakeModule]) -> None:
    answer = Blamer().attribute(stack(f"f {FOO}", f"g {FOO} foo.c:3"), modules)
    assert answer.responsible == Library("deb", "libfoo1", "1.0-1", None, None, "f")


@pytest.mark.parametrize(
    ("places", "forked_by", "responsible"),
    [
        (["fork libc", "f /srv/app/server"], "server", "server"),
        (["fork libc", "f /srv/app/libown.so.2.1", "main /srv/app/server"], "libown", "libown"),
        # nothing but the runtime
        (["fork libc", "_dl_start /lib64/ld-linux-x86-64.so.2"], "libc6", "libc6"),
        (
            ["clone3 libc", f"_M_start_thread {LIB}/libstdc++.so.6.0.30", "f /srv/app/server"],
            "server",
            "server",
        ),
        # an old libc's thread library, and a frame of the kernel's
        (["f [vdso]", f"fork {LIB}/libpthread.so.0", f"f {FOO}"], "libfoo1", "libfoo1"),
        # a wrapper hands the child to its caller; without a caller it stays with the wrapper
        (["fork libc", f"g_spawn {GLIB}", f"f {FOO}", "main /srv/app/server"], "libglib2.0-0", "libfoo1"),
        (["fork libc", f"g_spawn {GLIB}", "start libc"], "libglib2.0-0", "libglib2.0-0"),
        # an interpreter is the best answer while the code that it runs is not on the stack
        (["fork libc", "eval /usr/bin/python3.11", "start libc"], "python3.11-minimal", "python3.11-minimal"),
        (["fork libc", "eval /usr/local/bin/python3.12", "start libc"], "python3.12", "python3.12"),
        (["fork libc", "forkshell /usr/bin/dash"], "dash", "dash"),
        # ... also for those who embed it, and for those who call it through a wrapper
        (
            ["fork libc", "eval /opt/lib/libpython3.11.so.1.0", "main /usr/bin/uwsgi"],
            "libpython3.11",
            "libpython3.11",
        ),
        (["fork libc", f"g_spawn {GLIB}", "eval /usr/bin/python3.11"], "libglib2.0-0", "python3.11-minimal"),
        # an extension module stands nearer to the fork than the interpreter
        (["fork libc", f"f {FOO}", "eval /usr/bin/python3.11"], "libfoo1", "libfoo1"),
        # JIT code: below an interpreter that one answers, else nobody is known
        (["fork libc", "uv_spawn /usr/bin/node", "jit anon", "run /usr/bin/node"], "nodejs", "nodejs"),
        (["fork libc", "forkAndExec /opt/java/lib/libjava.so", "jit anon"], "openjdk", "openjdk"),
        (["fork libc", "jit anon", "main /srv/app/server"], "anonymous memory", "anonymous memory"),
    ],
)
def test_culprits(
    modules: dict[str, FakeModule], places: list[str], forked_by: str, responsible: str
) -> None:
    answer = Blamer().attribute(stack(*places), modules)
    assert answer.forked_by is not None
    assert answer.responsible is not None
    assert (answer.forked_by.name, answer.responsible.name) == (forked_by, responsible)
    assert {answer.forked_by, answer.responsible} <= set(answer.chain)


def test_frames_that_know_their_library_pass_the_interpreter_over(modules: dict[str, FakeModule]) -> None:
    gem = Library("gem", "leaky", "1.0.3", "proxy.rb", 70, "serve")
    places = [
        "fork libc",
        "eval /usr/local/bin/python3.12",
        Frame("serve", "proxy.rb", 70, None, "ruby", gem),
    ]
    answer = Blamer().attribute(stack(*places, "start libc"), modules)
    assert answer.responsible is answer.forked_by is gem
    assert answer.frames[2].library is gem
    assert names(answer) == ["libc6", "python3.12", "leaky", "libc6"]


def test_an_empty_stack(modules: dict[str, FakeModule]) -> None:
    empty = Stack(3, (), cut="the stack could not be read")
    assert Blamer().attribute(empty, modules) == empty


def test_a_module_that_nobody_knows() -> None:
    answer = Blamer().attribute(stack("f /srv/x/libx.so.1.5"), {})
    assert answer.responsible == Library("elf", "libx", "1.5", None, None, "f")


def test_attributing_twice_changes_nothing(modules: dict[str, FakeModule]) -> None:
    blamer = Blamer()
    once = blamer.attribute(stack("fork libc", f"f {FOO} foo.c:1", "main /srv/app/server"), modules)
    assert blamer.attribute(once, modules) == once


@pytest.mark.parametrize(
    ("path", "role"),
    [
        (f"{LIB}/libc.so.6", Role.RUNTIME),
        ("/lib/x86_64-linux-gnu/libc-2.31.so", Role.RUNTIME),
        ("/lib/ld-musl-x86_64.so.1", Role.RUNTIME),
        ("[vdso]", Role.RUNTIME),
        ("/usr/lib/libcurl.so.4", Role.OTHER),
        ("/usr/lib/libcrypt.so.1", Role.OTHER),
        ("/srv/v/libd", Role.OTHER),
        (
            "/usr/lib/python3.11/lib-dynload/_posixsubprocess.cpython-311-x86_64-linux-gnu.so",
            Role.INTERPRETER,
        ),
        ("/usr/bin/python3", Role.INTERPRETER),
        ("/usr/bin/python-config", Role.OTHER),
        ("/usr/local/bin/rubyfmt", Role.OTHER),
        ("/usr/bin/node_exporter", Role.OTHER),
        (f"{LIB}/libruby-3.1.so.3.1.2", Role.INTERPRETER),
        (f"{LIB}/libQt5Core.so.5.15.8", Role.WRAPPER),
        ("", Role.OTHER),
    ],
)
def test_roles_of_files(path: str, role: Role) -> None:
    assert Rules.shipped().role_of_file(path) is role


def test_the_rules_are_a_data_file_without_doubles() -> None:
    data = json.loads(files("tracer.blame").joinpath("rules.json").read_text("utf-8"))
    patterns = [pattern for role in IN_DATA for pattern in _patterns(data[role.value])]
    assert len(patterns) == len(set(patterns))


def _patterns(part: object, where: str = "") -> list[tuple[str, str]]:
    """(what it is a pattern of, pattern)"""
    if isinstance(part, dict):
        return [found for key, inner in part.items() for found in _patterns(inner, f"{where}.{key}")]
    return [(where, pattern) for pattern in part] if isinstance(part, list) else []
