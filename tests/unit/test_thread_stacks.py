"""What /proc shows of threads, from mappings written by hand and from this very process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tracer import procfs, thread_stacks

MB = 1 << 20
MAPS = b"""\
55d000000000-55d000001000 r-xp 00000000 08:01 7 /usr/bin/service
55d000100000-55d000900000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000001000 ---p 00000000 00:00 0
7f0000001000-7f0000801000 rw-p 00000000 00:00 0
7f0000801000-7f0000802000 ---p 00000000 00:00 0
7f0000802000-7f0001002000 rw-p 00000000 00:00 0
7f0010000000-7f0010300000 rw-p 00000000 00:00 0
7f0020000000-7f0020100000 rw-p 00000000 08:01 9 /data/mapped
not a mapping
7f00zz-7f01 rw-p 00000000 00:00 0
"""


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "read_file", lambda path: MAPS if path == "/proc/7/maps" else None)


@pytest.mark.usefixtures("mapped")
def test_sizes() -> None:
    stacks = {0x7F0000800700: 8 * MB + 4096, 0x7F0001001700: 8 * MB + 4096}
    assert thread_stacks.sizes(7, stacks) == stacks


@pytest.mark.usefixtures("mapped")
def test_stacks_without_a_guard_between_them_share_one_mapping() -> None:
    found = thread_stacks.sizes(7, [0x7F00102FF700, 0x7F00100FF700, 0x7F00101FF700])
    assert found == {0x7F00100FF700: MB - 0x900, 0x7F00101FF700: MB, 0x7F00102FF700: MB + 0x900}


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize(
    "handle", [0, 0x55D000200000, 0x7F0020000700, 0x7F0000000500, 0x7FFFFFFFF000, 1 << 63]
)
def test_what_is_in_no_anonymous_memory_has_no_size(handle: int) -> None:
    """It was unmapped, is the program's own memory, or a number that the program made up."""
    assert thread_stacks.sizes(7, [handle]) == {}


def test_a_process_that_is_gone() -> None:
    assert thread_stacks.sizes(1 << 30, [1]) == {}
    assert thread_stacks.names(1 << 30) == {}


@pytest.fixture
def sleeper() -> Iterator[threading.Thread]:
    """A thread of this process that sleeps."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    yield thread
    stop.set()
    thread.join()


def test_this_process(sleeper: threading.Thread) -> None:
    assert sleeper.ident is not None
    assert sleeper.native_id in thread_stacks.names(os.getpid())
    size = thread_stacks.sizes(os.getpid(), [sleeper.ident])[sleeper.ident]  # its pthread_t
    assert 64 * 1024 <= size <= 256 * MB
