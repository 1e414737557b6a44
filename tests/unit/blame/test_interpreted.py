"""Stacks of interpreters with known culprits: the language's frames among native ones, as the tracer merges them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.blame.attribute import Blamer
from tracer.stacks.files import Root
from tracer.trace import Frame, Library, Stack

from .roots import make_database, make_texts, root_at, stanza
from .test_library import FakeModule
from .test_npm import package
from .test_python import SITE, distribution_files
from .test_ruby import gemspec

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"
PYTHON = "/usr/local/bin/python3.12"
STDLIB = "/usr/local/lib/python3.12"
RUBY = "/usr/local/lib/libruby.so.3.3.1"
GEMS = "/usr/local/bundle/gems"
NODE = "/opt/node/v20.11.1/bin/node"
MODULES = "/srv/web/node_modules"
NATIVE = (
    LIBC,
    PYTHON,
    RUBY,
    NODE,
    f"{SITE}/leaky/_ext.cpython-312-x86_64-linux-gnu.so",
    "/usr/lib/libffi.so.8",
)
EXTENSION = NATIVE[-2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    directory = tmp_path_factory.mktemp("root")
    make_database(directory, [stanza("libc6", "2.36-9")], {"libc6": [LIBC]})
    make_texts(
        directory,
        distribution_files("leaky", "1.0.3", "leaky/spawn.py", "leaky/_ext.cpython-312-x86_64-linux-gnu.so"),
        distribution_files("pexpect", "4.9.0", "pexpect/pty_spawn.py"),
        distribution_files("gunicorn", "23.0.0", "gunicorn/arbiter.py", "../../../bin/gunicorn"),
        {
            f"{STDLIB}/os.py": "",
            "/usr/local/include/python3.12/patchlevel.h": '#define PY_VERSION "3.12.1"\n',
        },
        {"/srv/shop/pyproject.toml": "", "/srv/shop/.git/HEAD": "0123456789abcdef" * 2 + "01234567\n"},
        {"/usr/local/bundle/specifications/leaky-gem-1.0.3.gemspec": gemspec("leaky-gem", "1.0.3")},
        {
            "/usr/local/lib/ruby/gems/3.3.0/specifications/default/open3-0.2.1.gemspec": gemspec(
                "open3", "0.2.1", "lib/open3.rb"
            )
        },
        {"/srv/rack/config.ru": ""},
        package("/srv/web", "web", "0.3.0"),
        package(f"{MODULES}/execa", "execa", "9.6.1"),
        package(f"{MODULES}/leaky-node", "leaky-node", "1.2.3"),
        package(f"{MODULES}/express", "express", "4.19.2"),
    )
    return root_at(directory)


def stack(language: str, *places: str) -> Stack:
    """Frames from "function file[:line]", leaf first; a native file makes a native frame."""
    frames = []
    for place in places:
        function, _, file = place.partition(" ")
        if file in NATIVE:
            frames.append(Frame(function, None, None, file))
        else:
            path, _, line = file.rpartition(":") if file[-1:].isdigit() else (file, "", "")
            frames.append(Frame(function, path or None, int(line) if line else None, None, language))
    return Stack(1, tuple(frames))


def blame(root: Root, language: str, *places: str) -> Stack:
    modules = {path: FakeModule(path, None, root) for path in NATIVE}
    return Blamer().attribute(stack(language, *places), modules)


def short(library: Library | None) -> str:
    return f"{library.kind} {library.name} {library.version}" if library else ""


PY_TAIL = ("<module> /srv/shop/main.py:7", "_run_code <frozen runpy>:88", f"main {PYTHON}")


@pytest.mark.parametrize(
    ("places", "forked_by", "responsible"),
    [
        # Popen of a package
        (
            [
                f"fork_exec {LIBC}",
                f"do_fork_exec {PYTHON}",
                f"Popen._execute_child {STDLIB}/subprocess.py:1955",
                f"Popen.__init__ {STDLIB}/subprocess.py:1022",
                f"spawn {SITE}/leaky/spawn.py:12",
                *PY_TAIL,
            ],
            "python leaky 1.0.3",
            "python leaky 1.0.3",
        ),
        # a wrapper that is a package, called by a package and by the application
        (
            [
                f"fork {LIBC}",
                f"spawn {SITE}/pexpect/pty_spawn.py:1",
                f"spawn {SITE}/leaky/spawn.py:12",
                *PY_TAIL,
            ],
            "python pexpect 4.9.0",
            "python leaky 1.0.3",
        ),
        (
            [f"fork {LIBC}", f"spawn {SITE}/pexpect/pty_spawn.py:1", *PY_TAIL],
            "python pexpect 4.9.0",
            "app shop 0123456789ab",
        ),
        # a server framework is none
        (
            [f"fork {LIBC}", f"spawn_worker {SITE}/gunicorn/arbiter.py:590", "<module> /venv/bin/gunicorn:8"],
            "python gunicorn 23.0.0",
            "python gunicorn 23.0.0",
        ),
        # an extension module that forks by itself; ctypes
        (
            [f"fork {LIBC}", f"spawn {EXTENSION}", f"eval {PYTHON}", *PY_TAIL],
            "python leaky 1.0.3",
            "python leaky 1.0.3",
        ),
        (
            [f"fork {LIBC}", "ffi_call /usr/lib/libffi.so.8", f"eval {PYTHON}", *PY_TAIL],
            "elf libffi.so.8 None",
            "app shop 0123456789ab",
        ),
        # nothing but the standard library: the file in it that acts by itself, else the wrapper
        (
            [f"fork {LIBC}", f"run_cgi {STDLIB}/http/server.py:1", f"run {STDLIB}/socketserver.py:2"],
            "stdlib python 3.12.1",
            "stdlib python 3.12.1",
        ),
        ([f"fork {LIBC}", f"main {STDLIB}/multiprocessing/forkserver.py:1"], *["stdlib python 3.12.1"] * 2),
        # code made at run time is its caller's, and the application's where the language itself called
        (
            [f"fork {LIBC}", "f <decorator-gen-3>:2", f"g {SITE}/leaky/spawn.py:9", *PY_TAIL],
            "python leaky 1.0.3",
            "python leaky 1.0.3",
        ),
        ([f"fork {LIBC}", "<module> <string>:1", f"run {STDLIB}/runpy.py:1"], *["app <string> None"] * 2),
        ([f"fork {LIBC}", "<module> <string>:1"], *["app <string> None"] * 2),
    ],
)
def test_python(root: Root, places: list[str], forked_by: str, responsible: str) -> None:
    answer = blame(root, "python", *places)
    assert (short(answer.forked_by), short(answer.responsible)) == (forked_by, responsible)
    assert {answer.forked_by, answer.responsible} <= set(answer.chain)


RACK = f"{GEMS}/rack-3.0.8/lib/rack/builder.rb"


@pytest.mark.parametrize(
    ("places", "forked_by", "responsible"),
    [
        (
            [
                f"fork {LIBC}",
                f"rb_f_fork {RUBY}",
                "Kernel#fork ",
                f"start {GEMS}/leaky-gem-1.0.3/lib/leaky.rb:42",
                f"call {RACK}:1",
                "block /srv/rack/config.ru:7",
                f"main {RUBY}",
            ],
            "gem leaky-gem 1.0.3",
            "gem leaky-gem 1.0.3",
        ),
        (
            [
                f"vfork {LIBC}",
                "Kernel#spawn ",
                "popen_run /usr/local/lib/ruby/3.3.0/open3.rb:200",
                f"start {GEMS}/leaky-gem-1.0.3/lib/leaky.rb:42",
                "block /srv/rack/config.ru:7",
            ],
            "gem open3 0.2.1",
            "gem leaky-gem 1.0.3",
        ),
        (
            [
                f"fork {LIBC}",
                "Kernel#fork ",
                f"fork {GEMS}/servolux-0.13.0/lib/servolux/child.rb:5",
                "tap <internal:kernel>:90",
                "block /srv/rack/config.ru:7",
            ],
            "gem servolux 0.13.0",
            "app rack None",
        ),
        (
            [
                f"fork {LIBC}",
                f"f (eval at {GEMS}/leaky-gem-1.0.3/lib/leaky.rb:3):1",
                "run /srv/rack/config.ru:1",
            ],
            *["gem leaky-gem 1.0.3"] * 2,
        ),
        ([f"fork {LIBC}", "f (eval):1", f"run {RACK}:1"], *["gem rack 3.0.8"] * 2),
        ([f"fork {LIBC}", "<main> -e:1"], *["app -e None"] * 2),
    ],
)
def test_ruby(root: Root, places: list[str], forked_by: str, responsible: str) -> None:
    answer = blame(root, "ruby", *places)
    assert (short(answer.forked_by), short(answer.responsible)) == (forked_by, responsible)


@pytest.mark.parametrize(
    ("places", "forked_by", "responsible"),
    [
        (
            [
                f"fork {LIBC}",
                f"uv_spawn {NODE}",
                "spawn node:internal/child_process:395",
                "spawn node:child_process:761",
                f"execa file://{MODULES}/execa/lib/x.js:3",
                f"leak {MODULES}/leaky-node/index.js:9",
                f"handle {MODULES}/express/lib/router.js:1",
                "main /srv/web/server.js:5",
                f"start {NODE}",
            ],
            "npm execa 9.6.1",
            "npm leaky-node 1.2.3",
        ),
        (
            [f"fork {LIBC}", f"uv_spawn {NODE}", "spawn node:child_process:761", "main /srv/web/server.js:5"],
            *["app web 0.3.0"] * 2,
        ),
        (
            [f"fork {LIBC}", "spawn node:child_process:1", "x evalmachine.<anonymous>:1"],
            *["app evalmachine.<anonymous> None"] * 2,
        ),
    ],
)
def test_node(root: Root, places: list[str], forked_by: str, responsible: str) -> None:
    answer = blame(root, "javascript", *places)
    assert (short(answer.forked_by), short(answer.responsible)) == (forked_by, responsible)


def test_the_chain_and_the_places(root: Root) -> None:
    answer = blame(
        root,
        "python",
        f"fork {LIBC}",
        f"eval {PYTHON}",
        f"Popen {STDLIB}/subprocess.py:1022",
        f"spawn {SITE}/leaky/spawn.py:12",
        f"outer {SITE}/leaky/spawn.py:30",
        "<module> /srv/shop/main.py:7",
        "_run_code <frozen runpy>:88",
        f"main {PYTHON}",
        f"start {LIBC}",
    )
    assert answer.responsible == Library("python", "leaky", "1.0.3", f"{SITE}/leaky/spawn.py", 12, "spawn")
    assert list(map(short, answer.chain)) == [
        "deb libc6 2.36-9",
        "elf python3.12 None",
        "stdlib python 3.12.1",
        "python leaky 1.0.3",
        "app shop 0123456789ab",
        "stdlib python 3.12.1",  # of a frame without a file
        "elf python3.12 None",
        "deb libc6 2.36-9",
    ]
    assert [frame.library.line for frame in answer.frames if frame.library] == [None] * 2 + [
        1022,
        12,
        30,
        7,
        88,
        None,
        None,
    ]


def test_the_version_of_a_language_by_its_interpreter(root: Root) -> None:
    for language, native, version in (
        ("python", PYTHON, "3.12"),
        ("ruby", RUBY, "3.3.1"),
        ("javascript", NODE, "20.11.1"),
    ):
        file = {"python": "<frozen runpy>", "ruby": "<internal:kernel>", "javascript": "node:events"}[
            language
        ]
        answer = blame(root, language, f"f {file}:1", f"main {native}")
        assert answer.chain[0].version == version


def test_scripts_that_were_started_by_a_relative_name(root: Root) -> None:
    for language in ("python", "ruby", "php"):
        frame = Frame("f", "lib/../worker", 3, None, language)
        answer = Blamer().attribute(Stack(1, (frame,)), {}, root, "/srv/shop")
        assert answer.responsible == Library("app", "shop", "0123456789ab", "lib/../worker", 3, "f")
        assert short(Blamer().attribute(Stack(1, (frame,)), {}, root).responsible) == "app worker None"


def test_java(root: Root) -> None:
    names = [
        "void java.lang.ProcessImpl.<init>()",
        "int org.apache.commons.exec.Launcher.exec()",
        "void com.x.Y.run()",
    ]
    frames = tuple(Frame(name, None, None, None, "java") for name in names)
    answer = Blamer().attribute(Stack(1, frames), {}, root)
    assert short(answer.forked_by) == "unknown org.apache.commons.exec None"
    assert short(answer.responsible) == "unknown com.x None"


@pytest.mark.parametrize(
    ("language", "file", "expected"),
    [
        ("perl", "/usr/share/perl/5.36/IPC/Open3.pm", "stdlib perl 5.36"),
        ("perl", "/usr/lib/x86_64-linux-gnu/perl-base/POSIX.pm", "stdlib perl None"),
        ("perl", "/usr/local/lib/perl5/5.40.0/IPC/Cmd.pm", "stdlib perl 5.40.0"),
        ("perl", "/usr/local/lib/perl5/site_perl/5.40.0/Foo.pm", "app Foo.pm None"),
        ("shell", "/usr/bin/tool", "deb tool 2.0-1"),
        ("shell", "/srv/run.sh", "app run.sh None"),
        ("php", "/srv/rack/index.php", "app rack None"),
    ],
)
def test_other_languages(tmp_path: Path, language: str, file: str, expected: str) -> None:
    make_database(tmp_path, [stanza("tool", "2.0-1")], {"tool": ["/usr/bin/tool"]})
    make_texts(tmp_path, {"/srv/rack/composer.json": "{}"})
    frame = Frame("f", file, 3, None, language)
    answer = Blamer().attribute(Stack(1, (frame,)), {}, root_at(tmp_path))
    assert short(answer.chain[0]) == expected


def test_editable_code_is_known_after_its_environment(tmp_path: Path) -> None:
    make_texts(
        tmp_path,
        distribution_files("mine", "0.1"),
        {
            f"{SITE}/mine-0.1.dist-info/direct_url.json": '{"url": "file:///src/mine", "dir_info": {"editable": true}}'
        },
        {"/src/mine/pyproject.toml": ""},
    )
    blamer, root = Blamer(), root_at(tmp_path)
    mine = Frame("f", "/src/mine/mine/a.py", 1, None, "python")
    other = Frame("g", f"{SITE}/x/y.py", 1, None, "python")
    assert short(blamer.attribute(Stack(1, (mine,)), {}, root).responsible) == "app mine None"
    assert short(blamer.attribute(Stack(2, (mine, other)), {}, root).responsible) == "python mine 0.1"


def test_without_a_root(root: Root) -> None:
    answer = Blamer().attribute(
        stack("python", "spawn /srv/x.py:1", f"f {SITE}/leaky/a.py:1", "main /srv/y.py:2"), {}
    )
    assert list(map(short, answer.chain)) == ["app x.py None", "python leaky None", "app y.py None"]
