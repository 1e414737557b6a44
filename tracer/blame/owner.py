"""Whose a piece of code is, as each resolver of ``blame`` answers, and which names of a target's files are believed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from tracer.trace import Library

_NAME = re.compile(r"@?[\w.~+-]{1,120}(?:/[\w.~+-]{1,120})?", re.ASCII)
_VERSION = re.compile(r"[0-9A-Za-z_.+!~:-]{1,80}")
_UPSTREAM = re.compile(r"(?:\d+:)?(?:[^-]*\+really)?(\d+(?:\.\d+)+)")


@dataclass(frozen=True, slots=True)
class Owner:
    """standard: it comes with the language (its standard library, a default gem)."""

    library: Library
    standard: bool = False


class Resolver(Protocol):
    """One way to package code, in one root."""

    def owner(self, path: str) -> Owner | None:
        """Of a file, by its absolute path as the target sees it; None when nothing of this kind owns it."""


def owned(kind: str, name: str | None, version: str | None, standard: bool = False) -> Owner | None:
    """An owner by name and version as the target's files have them; None when that is no name."""
    if name is None or not _NAME.fullmatch(name):
        return None
    return Owner(Library(kind, name, version if version and _VERSION.fullmatch(version) else None), standard)


def standard_library(language: str, version: str | None = None) -> Owner:
    return Owner(Library("stdlib", language, version), standard=True)


def upstream_version(package_version: str | None) -> str | None:
    """The software's own version in a package's: "3.11.2" of "3.11.2-6+deb12u5", of "3.11.4+really3.11.2-1" too."""
    found = _UPSTREAM.match(package_version or "")
    return found[1] if found else None
