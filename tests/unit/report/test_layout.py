from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tracer.report.escape import encodable, visible
from tracer.report.layout import column_widths, duration, latency, rate, shorten, shorten_path


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0.0s"),
        (0.84, "0.8s"),
        (12.3, "12.3s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (252, "4m12s"),
        (3599.6, "1h00m"),
        (11_100, "3h05m"),
        (187_200, "2d04h"),
        (86_400 * 400, "400d00h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0us"),
        (3.21e-6, "3.2us"),
        (35e-6, "35us"),
        (0.0012, "1.2ms"),
        (0.35, "350ms"),
        (0.9999, "1.0s"),
        (90, "1m30s"),
    ],
)
def test_latency(seconds: float, words: str) -> None:
    assert latency(seconds) == words


@pytest.mark.parametrize(
    ("per_minute", "words"),
    [
        (0, ""),
        (5.2, "5.2 a minute"),
        (12_345.6, "12,346 a minute"),
        (0.4, "24.0 an hour"),
        (0.004, "5.8 a day"),
        (1e-9, "less than one a day"),
    ],
)
def test_rate(per_minute: float, words: str) -> None:
    assert rate(per_minute) == words


def test_shortened_paths_keep_what_names_them() -> None:
    path = "/usr/lib/x86_64-linux-gnu/ruby/vendor_ruby/socket.so+0x1234"
    assert shorten_path(path, 80) == path
    assert shorten_path(path, 44) == "/usr/…/ruby/vendor_ruby/socket.so+0x1234"
    assert shorten_path(path, 24) == "/usr/…/socket.so+0x1234"
    assert shorten_path(path, 19) == "…/socket.so+0x1234"
    assert shorten_path(path, 12) == "soc…+0x1234"[:12] or cell_len(shorten_path(path, 12)) <= 12


@given(st.text(), st.integers(0, 50))
def test_shorten_fits(text: str, width: int) -> None:
    assert cell_len(shorten(text, width)) <= width
    assert cell_len(shorten_path(text, width)) <= width


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1), st.integers(3, 60))
def test_columns_fit(rows: list[tuple[str, str, str]], room: int) -> None:
    widths = column_widths(rows, room)
    assert sum(widths) <= room
    natural = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    assert all(width <= most for width, most in zip(widths, natural, strict=True))
    if sum(natural) <= room:
        assert widths == natural


def test_what_does_not_print_is_spelled_out() -> None:
    text = "a\x1b[31m\n\r\t\x00\x9b\u202e\u2066\u200b\u2028\ue000\udcff\ud800\U000e0001b"
    assert visible(text) == (
        "a\\x1b[31m\\n\\r\\t\\x00\\x9b\\u202e\\u2066\\u200b\\u2028\\ue000\\xff\\ud800\\U000e0001b"
    )
    assert visible("naïve 日本 → [bold]") == "naïve 日本 → [bold]"
    assert encodable("a\udcff\n\ud800") == "a\\xff\n\\ud800"
