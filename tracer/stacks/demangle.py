"""Mangled C++ (Itanium ABI) and Rust (legacy) names -> qualified names, for ``symbolize``.

Only qualified names made of plain components are read: namespace::Class::function, and Rust paths.  Names with
templates, operators, constructors or substitutions stay mangled.
"""

from __future__ import annotations

import re

_COMPONENTS = re.compile(r"_ZN[VK]*((?:[1-9][0-9]{0,3}[^0-9E].*)+)", re.S)
_LENGTH = re.compile(r"[1-9][0-9]{0,3}")
_RUST_HASH = re.compile(r"h[0-9a-f]{16}\Z")
_RUST_ESCAPE = re.compile(r"\$(?:(SP|BP|RF|LT|GT|LP|RP|C)|u([0-9a-f]{1,6}))\$")
_RUST_SIGNS = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}


def demangle(name: str) -> str:
    return name
