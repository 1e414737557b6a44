"""pprof: read back by protoc and profile.proto, and by pprof itself where Go is installed."""

from __future__ import annotations

import gzip
import io
import re
import subprocess
from pathlib import Path

import consumers
import lives
import pytest
import traces
from hypothesis import given
from hypothesis import strategies as st

from tracer.export import pprof, protobuf
from tracer.export.attribution import ALL_FORKS, LEAKED, ZOMBIE_SECONDS, Selection
from tracer.trace import Trace


def written(trace: Trace, selection: Selection = LEAKED) -> bytes:
    out = io.BytesIO()
    pprof.write(trace, out, selection)
    return out.getvalue()


@given(st.integers(-(2**63), 2**64 - 1))
def test_a_number_comes_back(value: int) -> None:
    (found,) = consumers.varints(protobuf.varint(value))
    assert found % 2**64 == value % 2**64
    assert len(protobuf.varint(value)) <= 10


def strings(text: str) -> list[str]:
    return re.findall(r'^string_table: "(.*)"$', text, re.MULTILINE)


def samples(text: str) -> list[tuple[int, ...]]:
    blocks = re.findall(r"^sample \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return sorted(tuple(map(int, re.findall(r"^  value: (\d+)", each, re.MULTILINE))) for each in blocks)


def test_protoc_reads_it() -> None:
    text = consumers.read_profile(written(lives.LIVES))
    table = strings(text)
    assert table[0] == ""
    assert [table[int(n)] for n in re.findall(r"^  (?:type|unit): (\d+)", text, re.MULTILINE)] == [
        "children",
        "count",
        "zombie",
        "nanoseconds",
    ]
    assert samples(text) == [(1, 290_000_000_000), (2, 297_500_000_000), (2, 594_000_000_000)]
    assert f"time_nanos: {int(lives.LIVES.started_at)}000000000" in text
    assert "duration_nanos: 300000000000" in text
    functions = [
        table[int(n)] for n in re.findall(r"^function \{\n  id: \d+\n  name: (\d+)", text, re.MULTILINE)
    ]
    assert {"main (leaky)", "spawn_helper (libfoo.so.1)", "_Fork (libc6)", "[no stack]"} < set(functions)
    assert "line: 42" in text


def test_all_forks_without_times() -> None:
    text = consumers.read_profile(written(traces.MANY, ALL_FORKS))
    assert samples(text) == [(20,), (100,), (1000,), (1000,)]


@pytest.mark.parametrize("name", lives.EVIL)
def test_hostile_names_are_text(name: str) -> None:
    text = consumers.read_profile(written(lives.evil(name)))
    assert samples(text) == [(4, text_ns(lives.evil(name)))]
    assert max(map(len, strings(text))) < 4000  # in protoc's spelling of bytes


def text_ns(trace: Trace) -> int:
    from tracer.export.attribution import zombie_ns

    ((_, ns),) = zombie_ns(trace, LEAKED)
    return ns


def test_equal_traces_give_equal_bytes_and_empty_ones_are_profiles() -> None:
    assert written(lives.LIVES) == written(lives.LIVES)
    assert b"children" in gzip.decompress(written(traces.EMPTY))


def test_pprof_itself_reads_it(tmp_path: Path) -> None:
    go = consumers.program("go", reason="no Go to run pprof")
    file = tmp_path / "x.pprof"
    for selection, total in ((LEAKED, "5"), (Selection(weight=ZOMBIE_SECONDS), "1181.50s")):
        file.write_bytes(written(lives.LIVES, selection))
        done = subprocess.run([go, "tool", "pprof", "-top", file], capture_output=True, text=True, check=True)
        assert f"Total samples = {total}" in done.stdout
        assert "spawn_helper (libfoo.so.1)" in done.stdout
    tags = subprocess.run([go, "tool", "pprof", "-tags", file], capture_output=True, text=True, check=True)
    assert "responsible:" in tags.stdout
    assert "rack-streaming-proxy 1.0.3" in tags.stdout
