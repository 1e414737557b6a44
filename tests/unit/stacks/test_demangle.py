"""Names of C++ and Rust against c++filt, which knows them all: equal, or left as they are."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.stacks.demangle import demangle


def reference(names: list[str]) -> list[str]:
    """Without parameters."""
    text = "\n".join(names)
    return subprocess.run(
        ["c++filt", "-p"], input=text, capture_output=True, text=True, check=True
    ).stdout.split("\n")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("fork", "fork"),
        ("_Z5spawnPKc", "spawn"),
        ("_ZN3foo3barEv", "foo::bar"),
        ("_ZNK3foo3bar4sizeEv", "foo::bar::size"),
        ("_ZN3fooC2Ev", "foo::foo"),
        ("_ZN3ns13fooD1Ev", "ns1::foo::~foo"),
        ("_ZNSt6thread4joinEv", "std::thread::join"),
        ("_ZN12_GLOBAL__N_13runEv", "(anonymous namespace)::run"),
        ("_ZN3foo3barEv.cold", "foo::bar [clone .cold]"),
        ("_ZN3foo3barEv.part.0", "foo::bar [clone .part.0]"),
        ("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE", "core::fmt::Write::write_fmt"),
        (
            "_ZN50_$LT$T$u20$as$u20$core..any..Any$GT$7type_id17h0123456789abcdefE",
            None,  # the length is wrong
        ),
        (
            "_ZN36_$LT$T$u20$as$u20$core..any..Any$GT$7type_id17h0123456789abcdefE",
            "<T as core::any::Any>::type_id",
        ),
        ("_ZSt4moveIRiEONSt16remove_referenceIT_E4typeEOS2_", None),  # a template
        ("_ZN3fooplERKS_", None),  # an operator
        ("_ZZ4mainE1x", None),
        ("_RNvC6_123foo3bar", None),
        ("_ZN", None),
        ("_ZN9", None),
        ("_ZN9999fooE", None),
        ("_Z3foo", None),
    ],
)
def test_names(name: str, plain: str | None) -> None:
    assert demangle(name) == (plain or name)


def test_every_name_of_libstdcxx() -> None:
    library = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6"
    text = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    names = sorted(set(re.findall(r" [TWi] (_Z\w+)", text)))
    wanted = reference(names)
    done = 0
    for name, plain in zip(names, wanted, strict=False):
        ours = demangle(name)
        if ours != name:
            assert ours == plain.removeprefix("non-virtual thunk to "), name
            done += 1
    assert len(names) > 3000
    assert done > 400


@given(st.text(alphabet="_ZNESt0123456789CDIv.$abu", max_size=60).map(lambda tail: f"_Z{tail}"))
def test_any_name(name: str) -> None:
    assert isinstance(demangle(name), str)


def test_long_names_take_no_time() -> None:
    start = time.monotonic()
    for rest in (
        "N" + "1a" * 2040 + "E",
        "N" + "9" * 4000,
        "1a" + ".a" * 2000,
        "N1a" + "C1" * 2000,
        "Z_" * 2000,
    ):
        name = f"_Z{rest}"
        assert len(demangle(name)) < 20000
    assert time.monotonic() - start < 1
    assert demangle(huge := "_ZN" + "1a" * 9999 + "E") == huge
