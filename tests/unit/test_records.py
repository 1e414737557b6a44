"""tracer/records.py against bpf/forktrace.h, as a C compiler lays it out."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from typing import Any, Final

import pytest

from tracer import records
from tracer.probe.build import bpf_directory

# Each struct, its Python layout, and the C members in the layout's order.  A layout may end before the struct does.
LAYOUTS: Final = {
    "event": (records.EVENT, records.EVENT_FIELDS),
    "stack_sample": (
        records.SAMPLE_HEAD,
        (
            "number", "image", "exec_vm", "task", "tid", "child", "length", "holes",
            "language", "walk", "frames", "gap", "fingerprint", "thread", "gap_size",
        ),
    ),
    "frame": (records.FRAME, ("code", "position", "flags")),
    "code_record": (
        records.CODE_HEAD,
        (
            "number", "code", "image", "language", "first_line", "file_length", "name_length", "table_length",
            "kinds", "file", "name",
        ),
    ),
    "interpreter": (
        records.INTERPRETER,
        ("language", "version", "base", "extra", *(f"layout[{i}]" for i in range(records.MAX_LAYOUT))),
    ),
    "stack_key": (records.STACK_KEY, ("image", "ip", "sp", "fingerprint", "exec_vm", "way")),
    "known_stack": (
        records.KNOWN_STACK,
        (
            "id", "words", "regs",
            *(f"reg[{i}]" for i in range(records.KNOWN_REGS)),
            "pad",
            *(f"reg_value[{i}]" for i in range(records.KNOWN_REGS)),
            *(f"offset[{i}]" for i in range(records.KNOWN_WORDS)),
            *(f"value[{i}]" for i in range(records.KNOWN_WORDS)),
        ),
    ),
    "space_key": (records.SPACE_KEY, ("image", "exec_vm")),
    "traced": (records.TRACED, ("image", "parent_task", "parent")),
    "waits": (
        records.WAITS,
        (
            "any_calls", "any_last_ns", "any_empty_ns", "some_calls", "some_last_ns", "some_empty_ns", "reaped",
            "any_options", "some_options", "some_target", "kinds",
        ),
    ),
    "named_key": (records.NAMED_KEY, ("waiter", "pid", "pad")),
    "named_wait": (records.NAMED_WAIT, ("last_ns", "calls", "result")),
    "config": (records.CONFIG, ("mode",)),
}  # fmt: skip
KERNEL_ALONE: Final = {"wait_site"}  # structs that user space never sees
CONSTANTS: Final = {
    "EXIT_AUTOREAP": records.EXIT_AUTOREAP,
    "FAIL_THREAD": records.FAIL_THREAD,
    "PIDNS_ADDING": records.PIDNS_ADDING,
    "WAITS_GROUP": records.WAITS_GROUP,
    "WAITS_PIDFD": records.WAITS_PIDFD,
    "WAITS_LOOKED": records.WAITS_LOOKED,
    "WAIT_ANY": records.WAIT_ANY % 2**64,  # printed as unsigned
    "WAIT_OTHER": records.WAIT_OTHER % 2**64,
    "FAIL_CLONE3": records.FAIL_CLONE3,
    "STACK_SAMPLE": records.STACK_SAMPLE,
    "MODE_ALL": records.MODE_ALL,
    "MODE_STACKS": records.MODE_STACKS,
    "REGS_WORDS": records.REGS_WORDS,
    "KNOWN_WORDS": records.KNOWN_WORDS,
    "KNOWN_REGS": records.KNOWN_REGS,
    "KNOWN_WAYS": records.KNOWN_WAYS,
    "STACK_MAX": records.STACK_MAX,
    "CODE_RECORD": records.CODE_RECORD,
    "MAX_FRAMES": records.MAX_FRAMES,
    "MAX_LAYOUT": records.MAX_LAYOUT,
    "MAX_TABLE": records.MAX_TABLE,
    "FRAME_ENTRY": records.FRAME_ENTRY,
    "NS_PER_TICK": 10_000_000,
    "LOST_MAX": len(records.LOST),
    **{f"EV_{each.name}": each.value for each in records.EventType},
    **{f"LANG_{each.name}": each.value for each in records.Language},
    "LANG_MAX": len(records.Language),
    **{f"WALK_{each.name}": each.value for each in records.Walk},
    **{f"LOST_{name.upper()}": index for index, name in enumerate(records.LOST)},
}
PRELUDE: Final = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
typedef uint8_t u8; typedef int32_t s32; typedef uint32_t u32; typedef uint64_t u64;
"""


def declarations() -> str:
    """The header as far as it is plain C: before BCC's maps."""
    text = (bpf_directory() / "forktrace.h").read_text(encoding="ascii")
    return text[: re.search(r"^BPF_", text, re.MULTILINE).start()]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """sizes, offsets and values by their C names."""
    wanted = {name: f"(unsigned long long)({name})" for name in CONSTANTS}
    wanted["code_record.table"] = "offsetof(struct code_record, table)"
    wanted["stack_sample.frame"] = "offsetof(struct stack_sample, frame)"
    wanted["stack_sample.regs"] = "offsetof(struct stack_sample, regs)"
    wanted["stack_sample.stack"] = "offsetof(struct stack_sample, stack)"
    for name, (_, members) in LAYOUTS.items():
        wanted[name] = f"sizeof(struct {name})"
        wanted |= {f"{name}.{member}": f"offsetof(struct {name}, {member})" for member in members}
        wanted |= {f"{name}.{member}:size": f"sizeof(((struct {name} *)0)->{member})" for member in members}
    prints = "".join(
        f'printf("\\"{key}\\": %llu,\\n", (unsigned long long){c});\n' for key, c in wanted.items()
    )
    source = tmp_path_factory.mktemp("records") / "layout.c"
    source.write_text(
        f'{PRELUDE}{declarations()}\nint main(void) {{ puts("{{"); {prints} puts("\\"end\\": 0}}"); }}\n'
    )
    program = source.with_suffix("")
    subprocess.run(["cc", "-Wall", "-o", program, source], check=True, timeout=60)
    found: dict[str, Any] = json.loads(subprocess.check_output([program], text=True))
    return found


def fields(layout: struct.Struct) -> list[tuple[int, int]]:
    """Offset and size of each value that the layout unpacks."""
    kinds = [
        code
        for number, code in re.findall(r"(\d*)([A-Za-z])", layout.format.lstrip("=<"))
        for code in ([f"{number}s"] if code == "s" else [code] * int(number or 1))
    ]
    sizes = [struct.calcsize(f"={kind}") for kind in kinds]
    return [(sum(sizes[:index]), size) for index, size in enumerate(sizes)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(compiled: dict[str, Any], name: str) -> None:
    layout, members = LAYOUTS[name]
    header = (
        struct.calcsize("=" + records.RING_HEADER) if name == "event" else 0
    )  # of the ring's, not the struct's
    mine = fields(layout)[2 if header else 0 :]
    assert [
        (member, offset - header, size) for member, (offset, size) in zip(members, mine, strict=True)
    ] == [(member, compiled[f"{name}.{member}"], compiled[f"{name}.{member}:size"]) for member in members]
    if name == "stack_sample":
        assert compiled["stack_sample.regs"] == layout.size
        assert compiled["stack_sample.frame"] == layout.size + records.REGS_WORDS * 8
        frames = records.MAX_FRAMES * records.FRAME.size
        assert compiled["stack_sample.stack"] == compiled["stack_sample.frame"] + frames
    elif name == "code_record":
        assert compiled["code_record.table"] == layout.size
    else:
        assert layout.size - header == compiled[name]


@pytest.mark.parametrize("name", CONSTANTS)
def test_values(compiled: dict[str, Any], name: str) -> None:
    assert compiled[name] == CONSTANTS[name]


def test_nothing_of_the_header_is_left_out() -> None:
    text = declarations()
    assert set(re.findall(r"^struct (\w+) \{", text, re.MULTILINE)) == set(LAYOUTS) | KERNEL_ALONE
    defined = set(re.findall(r"^#define (\w+)", text, re.MULTILINE)) - {"COMM_LEN", "STACK_PAGE"}
    enumerated = set(re.findall(r"^\t((?:EV|LOST|LANG|WALK)_\w+)", text, re.MULTILINE))
    assert defined | enumerated == set(CONSTANTS)


def test_events_fill_the_ring_without_gaps(compiled: dict[str, Any]) -> None:
    """iter_unpack over the mapped ring: a record begins where the one before it ended."""
    assert compiled["event"] % 8 == 0
