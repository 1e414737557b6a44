"""The moments of --snapshot-on, and the names of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.trigger import Trigger


@pytest.mark.parametrize(
    ("text", "trigger", "name"),
    [
        ("eagain", Trigger(), "leak.eagain.forktrace"),
        ("zombies=50", Trigger(50), "leak.zombies-50.forktrace"),
    ],
)
def test_moments(text: str, trigger: Trigger, name: str) -> None:
    assert Trigger.parse(text) == trigger
    assert str(trigger) == text
    assert trigger.file("/tmp/leak.forktrace") == Path("/tmp") / name
    assert trigger.file(None) == Path(name.replace("leak", "forktrace"))


def test_a_capture_without_a_suffix() -> None:
    assert Trigger().file("leak") == Path("leak.eagain")


@pytest.mark.parametrize(
    "text", ["", "EAGAIN", "eagain=1", "zombies", "zombies=", "zombies=0", "zombies=-1", "zombies=²"]
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="neither eagain nor zombies=N"):
        Trigger.parse(text)


def test_when_they_come() -> None:
    assert [Trigger().has_come(9, failed) for failed in (False, True)] == [False, True]
    assert [Trigger(3).has_come(zombies, True) for zombies in (0, 2, 3, 4)] == [False, False, True, True]
