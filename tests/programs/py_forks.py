"""A Python program that forks in every way that Python has, and says for each fork which frames it came from.

    python py_forks.py [--wait] DIRECTORY [CASE...]

DIRECTORY: empty, for modules with odd names that it writes.  Python 3.8 and later.  It talks the protocol of truth.h;
between hello and ready it prints py_witness's lines, one a fork, and {"no": case, "why": ...} for what this Python
does not have.  All children are waited for but the multiprocessing fork server.
"""

# Old-fashioned on purpose: for Python 3.8, and each call is a way to fork.
# ruff: noqa: B018, C400, C417, F401, PLC3002, PLW0108, PLW1509, PTH100, PTH103, PTH118, PTH120, PTH202, UP031

import asyncio
import ctypes
import functools
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
import weakref
import zipfile

import py_witness
from py_witness import note, profiled

DEPTH = 120  # frames: more than are taken, together with those around them
TURNS = 3  # of Popen: the first is witnessed, the stack of the others is the same


def fork_once():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


# --- os.fork, out of all kinds of code ------------------------------------------------------------------------


def case_fork():
    fork_once()


# fmt: off
def case_multiline():
    pids = [
        1,
        os.fork(
        ),
        2,
    ]
    if pids[1] == 0:
        os._exit(0)
    os.waitpid(
        fork_once() and
        pids[1],
        0,
    )
# fmt: on


class Nested:
    class Inner:
        def method(self):
            return [fork_once() for _ in range(1)]

        @property
        def prop(self):
            return fork_once()

        @staticmethod
        def static():
            return fork_once()

        @classmethod
        def klass(cls):
            return fork_once()

        def __getattr__(self, name):
            return fork_once()

        def __call__(self):
            def local():
                return (lambda: fork_once())()

            return local()


def case_methods():
    inner = Nested.Inner()
    inner.method()
    inner.prop
    inner.static()
    inner.klass()
    inner.anything
    inner()


def case_comprehensions():
    [fork_once() for _ in "a"]
    {fork_once() for _ in "a"}
    {fork_once(): 1 for _ in "a"}
    [[fork_once() for _ in "b"] for _ in "a"]
    list(fork_once() for _ in "a")
    (lambda: fork_once())()


def generator():
    yield fork_once()
    yield from inner_generator()


def inner_generator():
    try:
        yield 1
        yield fork_once()
    finally:
        fork_once()


def case_generators():
    for _ in generator():
        pass
    left = inner_generator()
    next(left)
    left.close()


async def coroutine():
    await asyncio.sleep(0)
    fork_once()
    async for _ in async_generator():
        pass


async def async_generator():
    yield fork_once()


def case_coroutines():
    asyncio.run(coroutine())


@functools.lru_cache(None)
def cached(n):
    return fork_once()


class Deleted:
    def __del__(self):
        fork_once()


def case_called_by_c():
    sorted([2, 1], key=lambda n: fork_once())
    list(map(lambda n: fork_once(), "a"))
    functools.reduce(lambda a, b: fork_once(), [1, 2])
    functools.partial(fork_once)()
    re.sub("a", lambda match: str(fork_once()), "a")
    cached(1)
    thing = Deleted()
    del thing
    dropped = Deleted.__new__(type("Weak", (), {}))
    reference = weakref.ref(dropped, lambda _: fork_once())
    del dropped
    del reference


def decorator(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


@decorator
@decorator
def decorated():
    return fork_once()


def case_decorators():
    decorated()


class Made:
    def __init__(self, really):
        self.made = really and fork_once()

    def __enter__(self):
        fork_once()

    def __exit__(self, *_):
        fork_once()


def case_init():
    for n in range(200):  # hot, so that the call is specialized
        Made(n == 199)


def case_with():
    with Made(False):
        pass


def case_class_body():
    class Body:
        pid = fork_once()

        def __init_subclass__(cls):
            fork_once()

    class Sub(Body):
        pass


def recurse(n):
    return recurse(n - 1) if n else fork_once()


def case_recursion():
    recurse(20)


def case_too_deep():
    recurse(DEPTH)


def case_exec_eval():
    exec("def made():\n\n    return fork_once()\nmade()", {"fork_once": fork_once})
    eval("(fork_once(),\nfork_once())", {"fork_once": fork_once})
    eval(compile("fork_once()", "<é🐍>", "eval"), {"fork_once": fork_once})


def case_executed_once():
    """Code that is freed, and other code at the same addresses."""
    for n in range(24):
        body = ["", "x = 1", "x = [1]", "fork_once()", "x = 2"]
        source = "\n".join(
            ["def f%d():" % (n % 2), *(" " + body[(n + i) % 5] for i in range(5)), "f%d()" % (n % 2)]
        )
        exec(compile(source, "snippet%d.py" % (n % 3), "exec"), {"fork_once": fork_once})


def on_signal(_number, _frame):
    fork_once()


def case_signal():
    before = signal.signal(signal.SIGUSR1, on_signal)
    os.kill(os.getpid(), signal.SIGUSR1)
    for _ in range(3):
        pass
    signal.signal(signal.SIGUSR1, before)


def fork_in_long_function(lines):
    source = ["def long_function(fork_once):"]
    source += [f"    if len('abc') > {n}: x = [y * {n} for y in 'abc' if y]" for n in range(lines)]
    source += ["    return fork_once()"]
    scope = {}
    exec(compile("\n".join(source), "long.py", "exec"), scope)
    scope["long_function"](fork_once)


def case_long_function():
    """A line table of several kilobytes."""
    fork_in_long_function(200)


def case_huge_function():
    """Of more than is taken, from 3.11 on."""
    fork_in_long_function(900)


# --- threads and children that fork -----------------------------------------------------------------------------


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def case_thread():
    in_thread(recurse, 3)
    in_thread(in_thread, fork_once)


def spin(stop):
    while not stop.is_set():
        sum(range(100))


def case_busy_threads():
    """Another thread holds the GIL while this one is in system()."""
    stop = threading.Event()
    threads = [threading.Thread(target=spin, args=(stop,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        os.system("exit 0")
    stop.set()
    for thread in threads:
        thread.join()


def case_forked_again():
    pid = os.fork()
    if pid == 0:
        recurse(1)
        in_thread(recurse, 2)
        other = os.fork()
        if other == 0:
            fork_once()
            os._exit(0)
        os.waitpid(other, 0)
        os._exit(0)
    os.waitpid(pid, 0)


# --- subprocess and its kin ---------------------------------------------------------------------------------------


def turns(function):
    """The first time a profile function is the witness.  It might change what is traced, so then it is not there."""
    for turn in range(TURNS):
        written = os.path.getsize(os.environ[py_witness.PATH])
        sys.setprofile(None if turn else py_witness.on_profile)
        function()
        sys.setprofile(None)
        if written == os.path.getsize(os.environ[py_witness.PATH]):
            py_witness.write_again()


def popen():
    subprocess.Popen(["/bin/true"]).wait()


def popen_with_fork():
    subprocess.Popen(["/bin/true"], preexec_fn=int).wait()


def popen_without_closing():
    subprocess.Popen(["/bin/true"], close_fds=False).wait()


def popen_of_shell():
    os.popen("exit 0").close()


def case_popen():
    turns(popen)
    in_thread(turns, popen)


def case_popen_with_fork():
    turns(popen_with_fork)


def case_popen_without_closing():
    turns(popen_without_closing)  # by os.posix_spawn, as all others from 3.13 on; that has an audit event


def case_os_popen():
    turns(popen_of_shell)


def case_check_output():
    with profiled():
        subprocess.check_output(["/bin/true"])
        subprocess.run("exit 0", shell=True, check=True)


async def asyncio_subprocess():
    process = await asyncio.create_subprocess_exec("/bin/true")
    await process.wait()


def case_asyncio_subprocess():
    with profiled():
        asyncio.run(asyncio_subprocess())


def case_system():
    os.system("exit 0")
    in_thread(os.system, "exit 0")


def case_posix_spawn():
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def case_forkpty():
    pid, fd = os.forkpty()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(fd)


def case_ctypes():
    for library in ctypes.PyDLL(None), ctypes.CDLL(None):  # the second lets go of the GIL
        fork = library.fork
        pid = (note(), fork())[1]
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)


def case_ctypes_callback():
    """C code in between: libc's qsort calls back."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    array = (ctypes.c_int * 2)(2, 1)
    ctypes.CDLL(None).qsort(array, 2, 4, kind(lambda a, b: fork_once() and 0))


# --- multiprocessing ------------------------------------------------------------------------------------------------


def nothing():
    pass


def run_process(method):
    with profiled():
        process = multiprocessing.get_context(method).Process(target=nothing)
        process.start()
        process.join()


def case_multiprocessing_fork():
    run_process("fork")
    context = multiprocessing.get_context("fork")
    process = context.Process(target=recurse, args=(2,))
    process.start()
    process.join()


def case_multiprocessing_spawn():
    run_process("spawn")


def case_multiprocessing_forkserver():
    os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))
    multiprocessing.set_forkserver_preload(["py_witness_installed"])
    run_process("forkserver")
    run_process("forkserver")


# --- interpreters -----------------------------------------------------------------------------------------------------

IN_INTERPRETER = """
import os, sys
sys.path.insert(0, {directory!r})
import py_witness
py_witness.below = {below!r}

def inside():
    (py_witness.note(), os.system("exit 0"))

inside()
"""


def case_subinterpreters():
    for name in "_interpreters", "_xxsubinterpreters":
        try:
            interpreters = importlib.import_module(name)
            break
        except ImportError:
            pass
    else:
        raise NotImplementedError("no module for sub-interpreters")
    legacy = {"_interpreters": ("legacy",)}.get(name, ())
    ident = interpreters.create(*legacy)
    idle = interpreters.create(*legacy)
    # Now the thread has states in three interpreters.  A child of os.fork would not survive that.
    os.system("exit 0")
    run = getattr(interpreters, "exec", None) or interpreters.run_string
    run(ident, script_below())
    os.system("exit 0")
    in_thread(os.system, "exit 0")
    interpreters.destroy(ident)
    interpreters.destroy(idle)


def script_below():
    below = py_witness.stack(sys._getframe(1))
    return IN_INTERPRETER.format(directory=os.path.dirname(os.path.abspath(__file__)), below=below)


# --- names and files --------------------------------------------------------------------------------------------------

MODULE = """
def {name}(fork):


    return fork()

class {name}_:
    def {name}(self, fork): return fork()
"""


def odd_modules(directory):
    """Modules called as no one would: (path, function's name)."""
    deep = os.path.join(directory, *["d" * 60] * 5)
    os.makedirs(deep)
    yield os.path.join(directory, "latin_ü.py"), "größe"
    yield os.path.join(directory, "ucs2_函数.py"), "函数"
    yield os.path.join(directory, "ucs4_🐍.py"), "𐐀𐐁"
    yield os.path.join(directory, os.fsdecode(b"not_utf8_\xff.py")), "plain"
    yield os.path.join(directory, 'quote "\n.py'), "plain"
    yield os.path.join(deep, "long.py"), "f" * 300
    yield os.path.join(deep, "long_函.py"), "函" * 150
    yield os.path.join(deep, "long_🐍.py"), "𐐀" * 70
    for length in 127, 128, 129:
        yield os.path.join(directory, "edge%d.py" % length), "e" * length
    for length in 254, 255, 256, 257:
        yield os.path.join(directory, "x" * 150, "y" * (length - len(directory) - 155) + ".py"), "edge"


def case_names():
    for path, name in odd_modules(ARGUMENTS[0]):
        scope = {}
        exec(compile(MODULE.format(name=name), path, "exec"), scope)
        scope[name](fork_once)
        getattr(scope[name + "_"](), name)(fork_once)


def case_zip_import():
    path = os.path.join(ARGUMENTS[0], "library.zip")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("within_zip.py", MODULE.format(name="zipped"))
        file.writestr("forks_when_imported.py", "import builtins\nbuiltins.fork_once()\n")
    sys.path.insert(0, path)
    import builtins

    import within_zip

    within_zip.zipped(fork_once)
    builtins.fork_once = fork_once
    import forks_when_imported  #  through the frozen importlib and zipimport

    sys.path.remove(path)


def case_zipapp():
    path = os.path.join(ARGUMENTS[0], "app.pyz")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            "__main__.py",
            "import os, py_witness_installed\ndef main():\n    os.system('exit 0')\nmain()\n",
        )
    environment = dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(__file__)))
    with profiled():
        subprocess.run([sys.executable, path], env=environment, check=True)


CASES = {name[5:]: case for name, case in globals().items() if name.startswith("case_")}


def say(**what):
    print(json.dumps(what), flush=True)


def main():
    wait = "--wait" in sys.argv
    say(hello="py_forks.py", pid=os.getpid(), waiting=wait, version=sys.version.split()[0])
    if wait and not sys.stdin.readline():
        return
    path = os.environ[py_witness.PATH] = os.path.join(ARGUMENTS[0], "witness")
    open(path, "x").close()
    py_witness.install()
    warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork with threads (3.12)
    for name in ARGUMENTS[1:] or CASES:
        os.environ[py_witness.CASE] = name
        try:
            CASES[name]()
        except NotImplementedError as error:
            say(no=name, why=str(error))
    with open(path) as witness:
        sys.stdout.write(witness.read())
    say(ready=True)
    sys.stdin.read()


ARGUMENTS = [argument for argument in sys.argv[1:] if argument != "--wait"]
if __name__ == "__main__":
    main()
