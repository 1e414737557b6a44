"""Source positions against addr2line, for every version of DWARF."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import build
from .test_symbols import module, reference


@pytest.mark.parametrize(
    "flags",
    [
        ["-gdwarf-2"],
        ["-gdwarf-3"],
        ["-gdwarf-4"],
        ["-gdwarf-5"],
        ["-gdwarf-5", "-gz"],
        ["-gdwarf-4", "-ffunction-sections", "-O0"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("ranges", [True, False], ids=["aranges", "no aranges"])
def test_positions_are_those_of_addr2line(tmp_path: Path, flags: list[str], ranges: bool) -> None:
    path = build(tmp_path / "lib.so", *flags)
    if not ranges:
        subprocess.run(["objcopy", "-R", ".debug_aranges", path], check=True)
    own = {"deep_plain", "deep_variable", "deep_aligned"}
    spans = {start: size for start, (size, names) in reference(path, "--syms").items() if names & own}
    addresses = [address for start, size in spans.items() for address in range(start, start + size)]
    assert len(addresses) > 100
    command = ["addr2line", "-e", str(path), *map(hex, addresses)]
    wanted = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = module(path)
    for address, answer in zip(addresses, wanted, strict=True):
        file, line = found.lines.position(address) or ("??", None)
        assert f"{file}:{line or '?'}" == answer.partition(" (discriminator")[0], hex(address)
    assert found.lines.position(0) is found.lines.position(1 << 40) is None
    assert not found.notes


def test_without_debugging_information(tmp_path: Path) -> None:
    found = module(build(tmp_path / "lib.so"))
    assert found.lines.position(next(iter(reference(tmp_path / "lib.so", "--syms")))) is None
    assert not found.notes
