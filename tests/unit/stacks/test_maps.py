"""The text of /proc/PID/maps: what is kept, escapes, and lines that are none."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tracer.stacks.maps import Mapping, parse

TEXT = """\
00400000-00452000 r-xp 00001000 08:02 173521      /usr/bin/dbus daemon
00651000-00652000 r--p 00051000 08:02 173521      /usr/bin/dbus daemon
7f1000000000-7f1000001000 rwxp 00000000 00:00 0 
7f1000002000-7f1000003000 r-xp 00000000 fe:105 12 /tmp/a\\012b\\c (deleted)
7ffd0000e000-7ffd00010000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
7f20000
"""  # noqa: W291


def test_executable_mappings_are_found_by_address() -> None:
    space = parse(TEXT)
    program = Mapping(0x400000, 0x452000, 0x1000, os.makedev(8, 2), 173521, "/usr/bin/dbus daemon")
    assert space.find(0x400000) == space.find(0x451FFF) == program
    assert space.find(0x452000) is None  # the end is exclusive
    assert space.find(0x651000) is None  # not executable
    assert space.find(0) is None
    assert space.find(1 << 64) is None
    anonymous = space.find(0x7F1000000800)
    assert anonymous is not None and anonymous.path == ""
    assert space.find(0x7F1000002000) == Mapping(
        0x7F1000002000, 0x7F1000003000, 0, os.makedev(0xFE, 0x105), 12, "/tmp/a\nb\\c (deleted)"
    )
    assert [m.path for m in space.mappings][-2:] == ["[vdso]", "[vsyscall]"]


def test_own_maps() -> None:
    text = Path("/proc/self/maps").read_text(errors="surrogateescape")
    assert len(parse(text).mappings) == sum("x" in line.split()[1] for line in text.splitlines())


@given(st.text(alphabet="0123456789abcdef-:xrwp /\n", max_size=200))
def test_any_text(text: str) -> None:
    for mapping in parse(text).mappings:
        assert mapping.start < mapping.end
