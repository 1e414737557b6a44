"""The cache of compiled programs keeps all that one kernel needs: what falls out is compiled again at each start."""

from __future__ import annotations

from pathlib import Path

from tracer.probe import build
from tracer.probe.programs import Compiled
from tracer.records import Language


def test_every_walker_with_and_without_light_stays_cached(tmp_path: Path) -> None:
    walkers = [language for language in Language if language is not Language.NONE]
    keys = [f"{unit!r}-{light}" for unit in ("lifecycle", *walkers) for light in (False, True)]
    for key in keys:
        build._write_cache(tmp_path / "cache", key, Compiled({}, {}))
    assert {file.stem for file in (tmp_path / "cache").iterdir()} == set(keys)
