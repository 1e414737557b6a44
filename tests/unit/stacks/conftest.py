"""Small ELF files with all that stacks reads of one, built once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent.parent / "programs" / "deep_stack"


def build(out: Path, *flags: str) -> Path:
    """The library of tests/programs/deep_stack."""
    command = ["gcc", "-O2", "-fPIC", "-shared", "-Wl,--build-id", *flags]
    subprocess.run([*command, SOURCES / "library.c", "-o", out], check=True)
    return out


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("elf") / "libdeep.so", "-g")
