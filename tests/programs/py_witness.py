"""Writes down where a Python program forks, as the interpreter itself says it at that moment.  Python 3.8 and later.

One JSON object a line, appended to a file that all processes of the program share:
{"forker": pid, "case": "...", "stack": [[file, name, line], ...]}, innermost frame first.
name: co_qualname, before 3.11 co_name.

Nobody's frames are changed for it: audit events come from within os.fork, os.system, os.posix_spawn and os.forkpty;
a profile function is called when a C function is, with the frame that calls it (subprocess's fork_exec); ``note`` is
for what has neither (ctypes), and stands on the line that forks.
"""

import json
import os
import sys
import threading

EVENTS = {"os.fork", "os.forkpty", "os.system", "os.posix_spawn"}
C_FUNCTIONS = {"fork_exec"}
PATH = "PY_WITNESS"  # the file's path is in this environment variable
CASE = "PY_WITNESS_CASE"  # and the scenario that is running
below = []  # frames further out, that this interpreter does not know of


def stack(frame):
    found = []
    while frame is not None:
        code = frame.f_code
        found.append([code.co_filename, getattr(code, "co_qualname", code.co_name), frame.f_lineno])
        frame = frame.f_back
    return found


def write(frames):
    append({"forker": os.getpid(), "case": os.environ[CASE], "stack": frames + below})


def append(line):
    fd = os.open(os.environ[PATH], os.O_WRONLY | os.O_APPEND)
    os.write(fd, json.dumps(line).encode() + b"\n")
    os.close(fd)


def write_again():
    """The last fork was as the one before it."""
    with open(os.environ[PATH], "rb") as file:
        append(json.loads(file.read().splitlines()[-1]))


def note(frames_up=1):
    """The caller forks now, on this line."""
    write(stack(sys._getframe(frames_up)))


def on_audit(event, _arguments):
    if event in EVENTS:
        write(stack(sys._getframe(1)))


def on_profile(frame, event, function):
    if event == "c_call" and function.__name__ in C_FUNCTIONS:
        write(stack(frame))


def install():
    sys.addaudithook(on_audit)


class profiled:
    """Also the forks that C functions without an audit event make, in this thread and those it starts."""

    def __enter__(self):
        threading.setprofile(on_profile)
        sys.setprofile(on_profile)

    def __exit__(self, *_):
        sys.setprofile(None)
        threading.setprofile(None)
