"""speedscope: its own schema, the numbers of the folded stacks, and the program itself in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import consumers
import jsonschema
import lives
import pytest

from tracer.export import folded, speedscope
from tracer.export.attribution import ALL_FORKS, LEAKED, ZOMBIE_SECONDS, Selection
from tracer.trace import Trace

VERSION = "1.25.0"


def written(trace: Trace, selection: Selection = LEAKED) -> str:
    out = io.StringIO()
    speedscope.write(trace, out, selection)
    return out.getvalue()


def refolded(document: Any, number: int) -> dict[str, float]:
    """A profile as folded stacks."""
    names = [frame["name"] for frame in document["shared"]["frames"]]
    profile = document["profiles"][number]
    sums: Counter[str] = Counter()
    for sample, weight in zip(profile["samples"], profile["weights"], strict=True):
        sums[";".join(names[each] for each in sample)] += weight
    assert profile["endValue"] == pytest.approx(sum(sums.values()))
    return dict(sums)


def folded_numbers(trace: Trace, selection: Selection) -> dict[str, int]:
    out = io.StringIO()
    folded.write(trace, out, selection)
    lines = (line.rpartition(" ") for line in out.getvalue().splitlines())
    return {stack: int(count) for stack, _, count in lines}


@pytest.mark.parametrize("selection", [LEAKED, ALL_FORKS, Selection(frozenset({"waited"}))])
def test_it_says_what_the_folded_stacks_say(selection: Selection) -> None:
    document = json.loads(written(lives.LIVES, selection))
    assert refolded(document, 0) == folded_numbers(lives.LIVES, selection)
    by_time = folded_numbers(lives.LIVES, Selection(selection.fates, ZOMBIE_SECONDS))
    assert refolded(document, 1) == pytest.approx({stack: ms / 1000 for stack, ms in by_time.items()})
    assert [profile["unit"] for profile in document["profiles"]] == ["none", "seconds"]


def test_the_weight_is_shown_first() -> None:
    assert json.loads(written(lives.LIVES))["activeProfileIndex"] == 0
    assert json.loads(written(lives.LIVES, Selection(weight=ZOMBIE_SECONDS)))["activeProfileIndex"] == 1


@pytest.mark.parametrize("trace", [lives.LIVES, *map(lives.evil, lives.EVIL)])
def test_its_schema(trace: Trace) -> None:
    schema = consumers.npm_package("speedscope", VERSION) / "dist/release/file-format-schema.json"
    document = json.loads(written(trace))
    jsonschema.validate(document, json.loads(schema.read_text()))
    assert all(
        len(frame["name"]) < 700 and frame["name"].isprintable() for frame in document["shared"]["frames"]
    )


@pytest.mark.parametrize("trace", [lives.LIVES, lives.evil(lives.EVIL[0])], ids=["plain", "script"])
def test_it_opens(trace: Trace, tmp_path: Path) -> None:
    page = consumers.npm_package("speedscope", VERSION) / "dist/release/index.html"
    content = base64.b64encode(written(trace, Selection(weight=ZOMBIE_SECONDS)).encode()).decode()
    local = tmp_path / "profile.js"  # as speedscope's own command hands a profile to its page
    local.write_text(f"speedscope.loadFileFromBase64('x.speedscope.json', '{content}')")
    webgl = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    shown = consumers.dom(f"{page.as_uri()}#localProfilePath={local}", tmp_path / "browser", *webgl)
    assert "<title>forktrace: orphaned, zombie - speedscope</title>" in shown
    assert re.search(r"zombie-seconds <span[^>]*>\(2/2\)", shown)
    assert "<script>alert" not in shown
