"""What part a piece of code plays in a fork, by the patterns of rules.json: data, so that adding a wrapper is no code.

``attribute`` asks it to pass over those who fork because they were asked to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from fnmatch import translate
from importlib.resources import files
from typing import Any

from tracer.trace import Library


class Role(Enum):
    """runtime: libc and the like.  interpreter: runs somebody else's code.  wrapper: spawns for its caller."""

    RUNTIME = "runtime"
    INTERPRETER = "interpreter"
    WRAPPER = "wrapper"
    OTHER = "other"


class Rules:
    """Read-only after the start.  Raises KeyError or re.error for data of another shape."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        roles = [role for role in Role if role is not Role.OTHER]
        self._files = [
            (role, _any_of(p for p in patterns if "/" not in p), _any_of(p for p in patterns if "/" in p))
            for role, patterns in ((role, data[role.value]["files"]) for role in roles)
        ]
        self._packages = {name: role for role in reversed(roles) for name in data[role.value]["packages"]}

    @classmethod
    def shipped(cls) -> Rules:
        return cls(json.loads(files("tracer.blame").joinpath("rules.json").read_text("utf-8")))

    def role(self, module: str | None, library: Library | None) -> Role:
        """module: path of the code's file; library: whose it is, where that is known."""
        if library is not None and library.kind == "deb" and library.name in self._packages:
            return self._packages[library.name]
        if module is not None:
            name = module.rpartition("/")[2]
            for role, names, paths in self._files:
                if names.fullmatch(name) or paths.fullmatch(module):
                    return role
        return Role.OTHER


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)) or r"(?!)")
