"""What part a piece of code plays in a fork, by the patterns of rules.json: data, so that adding a wrapper is no code.

``attribute`` asks it to pass over those who fork because they were asked to.  A user's file of the same shape adds to
what is shipped, and can say whose files are (docs/rules.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from fnmatch import translate
from importlib.resources import files
from pathlib import Path
from typing import Any

from tracer.blame.jar import class_of
from tracer.blame.owner import Owner
from tracer.errors import ForktraceError
from tracer.trace import Frame, Library

MAX_RULES = 4 << 20
KINDS = ("gem", "python", "npm", "jar", "deb", "apk", "rpm", "elf", "stdlib", "app", "unknown")
HELP = "docs/rules.md shows the shape of a rules file"

_LISTS = ("files", "packages")
_MAPS = ("libraries", "standard", "scripts")


class Role(Enum):
    """runtime: libc and the like.  interpreter: runs somebody else's code.  wrapper: spawns for its caller.

    standard: the language's own library, which is not in the data: what is found there plays this part.
    """

    RUNTIME = "runtime"
    INTERPRETER = "interpreter"
    WRAPPER = "wrapper"
    STANDARD = "standard"
    OTHER = "other"


IN_DATA = (Role.RUNTIME, Role.INTERPRETER, Role.WRAPPER)


class BadRules(ForktraceError):
    """A rules file that says nothing sensible."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}", HELP)


class Rules:
    """Read-only after the start."""

    def __init__(self, data: Mapping[str, Any], name: str = "rules.json") -> None:
        """name: of the file, for messages.  Raises BadRules for data of another shape."""
        _check(data, name)
        self._data = data
        parts = {role: data.get(role.value, {}) for role in IN_DATA}
        self._files = [
            (role, _any_of(p for p in patterns if "/" not in p), _any_of(p for p in patterns if "/" in p))
            for role, patterns in ((role, part.get("files", ())) for role, part in parts.items())
        ]
        self._libraries: dict[tuple[str, str], Role] = {}
        self._scripts: list[tuple[Role, str, re.Pattern[str]]] = []
        self._standard: list[tuple[Role, str, re.Pattern[str]]] = []
        for role, part in parts.items():
            for package in part.get("packages", ()):
                self._libraries.setdefault(("package", package), role)
            for kind, libraries in part.get("libraries", {}).items():
                for library in libraries:
                    self._libraries.setdefault(_key(kind, library), role)
            for patterns, found in (("scripts", self._scripts), ("standard", self._standard)):
                for language, globs in part.get(patterns, {}).items():
                    found.append((role, language, _any_of(globs)))
        self._owners = [
            (re.compile(translate(pattern)), Owner(Library(**owner), standard=owner["kind"] == "stdlib"))
            for pattern, owner in data.get("owners", {}).items()
        ]

    @classmethod
    def shipped(cls) -> Rules:
        return cls(json.loads(files("tracer.blame").joinpath("rules.json").read_text("utf-8")))

    @classmethod
    def with_file(cls, path: str) -> Rules:
        """The shipped rules and a user's.  Raises BadRules, which says what is wrong with the file."""
        data = _load(path)
        _check(data, path)
        return cls(_merged(cls.shipped()._data, data), path)

    def renamed(self, path: str | None) -> Owner | None:
        """The owner that a user's file gives to a path."""
        return next((owner for pattern, owner in self._owners if path and pattern.fullmatch(path)), None)

    def role(self, frame: Frame, owner: Owner) -> Role:
        """The part of a frame's code, whose owner is known."""
        library = owner.library
        kind = "package" if library.kind in ("deb", "apk", "rpm") else library.kind
        if role := self._libraries.get(_key(kind, library.name)):
            return role
        if frame.language == "native":
            return self.role_of_file(frame.module) if frame.module is not None else Role.OTHER
        place = frame.file or class_of(frame.function) or ""
        patterns = self._standard if owner.standard else self._scripts
        for role, language, pattern in patterns:
            if language == frame.language and pattern.fullmatch(place):
                return role
        return Role.STANDARD if owner.standard else Role.OTHER

    def role_of_file(self, path: str) -> Role:
        """Of a native file, by its path alone."""
        name = path.rpartition("/")[2]
        for role, names, paths in self._files:
            if names.fullmatch(name) or paths.fullmatch(path):
                return role
        return Role.OTHER


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)) or r"(?!)")


def _key(kind: str, name: str) -> tuple[str, str]:
    """Python distributions have several spellings."""
    return kind, re.sub(r"[-_.]+", "-", name).lower() if kind == "python" else name


def _load(path: str) -> Any:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_RULES + 1)
    except OSError as error:
        raise BadRules(path, f"cannot be read: {error.strerror}") from None
    if len(content) > MAX_RULES:
        raise BadRules(path, f"has more than {MAX_RULES} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRules(path, f"is no JSON: {error}") from None


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Lists are joined, mappings merged; the other one's entry goes before."""
    merged = dict(other)
    for key, value in one.items():
        if key not in other:
            merged[key] = value
        elif isinstance(value, Mapping):
            merged[key] = _merged(value, other[key])
        elif isinstance(value, list):
            merged[key] = [*other[key], *value]
    return merged


def _check(data: Any, name: str) -> None:
    """Raises BadRules."""
    roles = [role.value for role in IN_DATA]
    _mapping(data, name, "the file", [*roles, "owners"])
    for role in roles:
        part = data.get(role, {})
        _mapping(part, name, role, [*_LISTS, *_MAPS])
        for key in _LISTS:
            _strings(part.get(key, []), name, f"{role}.{key}")
        for key in _MAPS:
            _mapping(part.get(key, {}), name, f"{role}.{key}", KINDS if key == "libraries" else None)
            for inner, value in part.get(key, {}).items():
                _strings(value, name, f"{role}.{key}.{inner}")
    _mapping(data.get("owners", {}), name, "owners", None)
    for pattern, owner in data.get("owners", {}).items():
        where = f"owners[{pattern!r}]"
        _mapping(owner, name, where, ["kind", "name", "version"])
        if owner.get("kind") not in KINDS:
            raise BadRules(name, f"{where} needs a kind: one of {', '.join(KINDS)}")
        if not isinstance(owner.get("name"), str) or not owner["name"]:
            raise BadRules(name, f"{where} needs a name")
        if not isinstance(owner.get("version"), (str, type(None))):
            raise BadRules(name, f"the version of {where} is no string")


def _mapping(value: Any, name: str, where: str, keys: Iterable[str] | None) -> None:
    if not isinstance(value, dict):
        raise BadRules(name, f"{where} is no JSON object")
    unknown = [key for key in value if keys is not None and key not in keys and key != "//"]
    if unknown:
        raise BadRules(name, f"{where} has {unknown[0]!r}, which is none of {', '.join(keys or ())}")


def _strings(value: Any, name: str, where: str) -> None:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise BadRules(name, f"{where} is no list of strings")
