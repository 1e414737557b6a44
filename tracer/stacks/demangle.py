"""Linker names of C++ and Rust -> the qualified names that people wrote, for ``symbolize``.

Read are names made of plain components, constructors and destructors (Itanium C++ ABI, section 5.1), and Rust's
legacy scheme, without parameters.  Names with templates, operators or substitutions, and Rust's v0 scheme, stay
mangled: the one decoder on PyPI compares and prints substitutions as trees, so that a symbol of a hundred bytes can
keep it busy for ever.  The work here is linear in the name's length.
"""

from __future__ import annotations

import re

MAX_LENGTH = 4096  # characters; longer names stay mangled

_NESTED = re.compile(r"_ZN[rVK]*[RO]?(St)?")
_LENGTH = re.compile(r"[1-9][0-9]{0,3}")
_SPECIAL = re.compile(r"[CD][0-3]")  # constructors and destructors
_RUST_HASH = re.compile(r"h[0-9a-f]{16}")
_RUST_ESCAPE = re.compile(r"\$([A-Z]{1,2}|u[0-9a-f]{1,6})\$|\.\.")
_RUST_SIGNS = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}
_CLONE = re.compile(r"(?:\.[A-Za-z_][A-Za-z_0-9]*|\.[0-9]+)*\Z")


def demangle(name: str) -> str:
    """The qualified name, or the name as it is."""
    if len(name) > MAX_LENGTH or not name.startswith("_Z"):
        return name
    nested = _NESTED.match(name)
    if nested is None:
        return _unscoped(name)
    parts, at = _components(name, nested.end())
    if not parts or name[at : at + 1] != "E":
        return name
    if _RUST_HASH.fullmatch(parts[-1]) and len(parts) > 1:
        return "::".join(map(_rust, parts[:-1]))
    if any("$" in part for part in parts):
        return name
    return "::".join(["std"] * bool(nested[1]) + parts) + _clone(name, at)


def _unscoped(name: str) -> str:
    """_Z, length, name: a function in the global namespace.  What follows must be parameters, not a template."""
    parts, at = _components(name, 2, limit=1)
    return parts[0] + _clone(name, at) if parts and name[at : at + 1] not in {"I", "B", ""} else name


def _components(name: str, at: int, limit: int = 256) -> tuple[list[str], int]:
    """Plain components from a position on, and where they end."""
    parts: list[str] = []
    while len(parts) < limit:
        length = _LENGTH.match(name, at)
        special = _SPECIAL.match(name, at)
        if length is not None:
            start = length.end()
            at = start + int(length[0])
            if at > len(name):
                return [], at
            part = name[start:at]
            parts.append("(anonymous namespace)" if part.startswith("_GLOBAL__N") else part)
        elif special is not None and parts:
            parts.append(f"~{parts[-1]}" if special[0][0] == "D" else parts[-1])
            at = special.end()
        else:
            break
    return parts, at


def _clone(name: str, at: int) -> str:
    """What the compiler made of the function, such as " [clone .cold]"."""
    dot = name.find(".", at)
    return f" [clone {name[dot:]}]" if dot >= 0 and _CLONE.match(name, dot) else ""


def _rust(part: str) -> str:
    def sign(match: re.Match[str]) -> str:
        escape = match[1]
        if escape is None:
            return "::"
        if escape in _RUST_SIGNS:
            return _RUST_SIGNS[escape]
        code = int(escape[1:], 16) if escape[0] == "u" else 0
        return chr(code) if 0x20 <= code < 0x7F else match[0]

    return _RUST_ESCAPE.sub(sign, part[1:] if part.startswith("_$") else part)
