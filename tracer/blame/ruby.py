"""A Ruby file -> its gem, or the standard library.

One of the resolvers behind ``languages``.  Layouts: RubyGems' gems/NAME-VERSION[-PLATFORM] with its specification
beside it; Bundler's git checkouts, bundler/gems/NAME-REVISION; the default gems, whose files lie among those of the
standard library (specifications/default lists them); Debian's vendor_ruby, specified in rubygems-integration.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.blame.owner import Owner, owned, standard_library, upstream_version
from tracer.blame.tree import Tree

if TYPE_CHECKING:
    from tracer.blame.packages import Packages

MAX_GEMSPECS = 2000  # of a directory
MAX_GEMSPEC = 1 << 20

_GEM = re.compile(r"(?P<home>.*)/(?:gems|extensions/[^/]+/[^/]+)/(?P<full>[\w.-]+-\d[\w.-]*)/.+", re.DOTALL)
_FULL_NAME = re.compile(
    r"(?P<name>[\w.-]+?)-(?P<version>\d+(?:\.[0-9A-Za-z]+)*)(?:-(?P<platform>[A-Za-z][\w.-]*))?"
)
_CHECKOUT = re.compile(
    r"(?P<top>.*/bundler/gems/(?P<name>[\w.-]+)-(?P<revision>[0-9a-f]{7,40}))/.+", re.DOTALL
)
_STANDARD = re.compile(
    r"(?P<home>.*/ruby)/(?:(?P<kind>vendor_ruby|site_ruby)/)?(?P<abi>\d+\.\d+\.\d+)/(?P<rest>.+)", re.DOTALL
)
_VENDOR = re.compile(r".*/ruby/vendor_ruby/(?:\d+\.\d+\.\d+/)?(?P<rest>.+)", re.DOTALL)
_INTERNAL = re.compile(r"<internal:(?P<inner>.+)>", re.DOTALL)
_RUBYGEMS = re.compile(r"(?:rubygems|rubygems\.rb|bundled_gems\.rb)(?:/.*)?", re.DOTALL)
_FIELD = re.compile(
    r"""^[ \t]*\w+\.(name|version)[ \t]*=[ \t]*(?:Gem::Version\.new\()?["']([^"'\n]+)["']""", re.MULTILINE
)
_FILES = re.compile(r"^[ \t]*\w+\.files[ \t]*=[ \t]*\[([^\]\n]*)\]", re.MULTILINE)
_QUOTED = re.compile(r"""["'](?:lib/)?([^"'\n]+)["']""")
_SPECIFICATION = re.compile(rb"/[^\n]*/specifications/[^/\n]+\.gemspec")
_CONFIG = re.compile(r"""^[ \t]*CONFIG\["(MAJOR|MINOR|TEENY)"\][ \t]*=[ \t]*"(\d+)\"""", re.MULTILINE)
_ARCHITECTURE = re.compile(r"^\w+-[\w-]+/(?=.+\.so$)")
_NATIVE = re.compile(r".*/(?:gems|extensions)/.*\.(?:so|bundle)", re.DOTALL)


class Ruby:
    """The gems of one root.  State: the specifications read so far."""

    def __init__(self, tree: Tree, packages: Packages) -> None:
        self._tree = tree
        self._packages = packages
        self._default: dict[str, dict[str, Owner]] = {}
        self._gems: dict[str, Owner | None] = {}
        self._standard: dict[str, Owner] = {}

    def owner(self, path: str) -> Owner | None:
        if internal := _INTERNAL.fullmatch(path):
            # RubyGems replaces require and calls its own file internal
            found = self.owner(internal["inner"])
            return found if found and found.standard else standard_library("ruby")
        if not path.startswith("/"):
            return None
        return self._checkout(path) or self._gem(path) or self._vendored(path) or self._standard_library(path)

    def owner_of_native(self, path: str) -> Owner | None:
        """Of a C extension."""
        return self._checkout(path) or self._gem(path) if _NATIVE.fullmatch(path) else None

    def _gem(self, path: str) -> Owner | None:
        match = _GEM.fullmatch(path)
        if not match:
            return None
        specification = f"{match['home']}/specifications/{match['full']}.gemspec"
        if specification not in self._gems:
            name = _FULL_NAME.fullmatch(match["full"])
            guess = owned("gem", name["name"], name["version"]) if name else None
            self._gems[specification] = self._specified(specification) or guess
        return self._gems[specification]

    def _checkout(self, path: str) -> Owner | None:
        """The revision says more than a version that stays the same from one commit to the next."""
        match = _CHECKOUT.fullmatch(path)
        if not match:
            return None
        directory = path.rpartition("/")[0]
        while len(directory) >= len(match["top"]):  # a checkout may hold several gems, each in its directory
            specs = [name for name in self._tree.names(directory) if name.endswith(".gemspec")]
            if len(specs) == 1:
                return owned("gem", specs[0].removesuffix(".gemspec"), match["revision"])
            directory = directory.rpartition("/")[0]
        return owned("gem", match["name"], match["revision"])

    def _vendored(self, path: str) -> Owner | None:
        """Debian: the package that has the file has its specification too."""
        match = _VENDOR.fullmatch(path)
        if not match:
            return None
        rest = match["rest"]
        if _RUBYGEMS.fullmatch(rest):
            return self._language("")
        owners = []
        for specification in self._packages.beside(self._tree.root, path, _SPECIFICATION):
            text = self._tree.text(specification, MAX_GEMSPEC)
            if owner := _specified(text):
                if rest in _files(text):
                    return owner
                owners.append(owner)
        return owners[0] if len(owners) == 1 else _longest(owners, rest)

    def _standard_library(self, path: str) -> Owner | None:
        match = _STANDARD.fullmatch(path)
        if not match or match["kind"]:
            return None
        home, abi, rest = match["home"], match["abi"], match["rest"]
        # Debian has the extensions in /usr/lib/ARCHITECTURE/ruby, everybody else below the same directory
        for base in (home, re.sub(r"/[^/]+(?=/ruby$)", "", home)):
            defaults = self._defaults(f"{base}/gems/{abi}/specifications/default")
            if owner := defaults.get(rest) or defaults.get(_ARCHITECTURE.sub("", rest)):
                return owner
        return self._language(f"{home}/{abi}", path, abi)

    def _defaults(self, directory: str) -> dict[str, Owner]:
        """Files, relative to the library's directory, to the default gem."""
        known = self._default.get(directory)
        if known is None:
            known = self._default[directory] = {}
            for name in sorted(self._tree.names(directory))[:MAX_GEMSPECS]:
                text = self._tree.text(f"{directory}/{name}", MAX_GEMSPEC)
                if owner := _specified(text, standard=True):
                    known.update((file, owner) for file in _files(text))
        return known

    def _language(self, directory: str, path: str = "", abi: str = "") -> Owner:
        known = self._standard.get(directory)
        if known is None:
            version = self._exact_version(directory, path) or abi.removesuffix(".0") or None
            known = self._standard[directory] = standard_library("ruby", version)
        return known

    def _exact_version(self, directory: str, path: str) -> str | None:
        """By rbconfig.rb in the architecture's directory, or the package."""
        if not directory:
            return None
        for name in ["", *sorted(n for n in self._tree.names(directory) if "-" in n)]:
            config = dict(_CONFIG.findall(self._tree.text(f"{directory}/{name}/rbconfig.rb")))
            if len(config) == 3:
                return ".".join(config[part] for part in ("MAJOR", "MINOR", "TEENY"))
        package = self._packages.owner(self._tree.root, path)
        return upstream_version(package.version if package else None)

    def _specified(self, path: str) -> Owner | None:
        return _specified(self._tree.text(path, MAX_GEMSPEC))


def is_default_gem(path: str) -> bool:
    """Whether a gem's file lies among the standard library's."""
    match = _STANDARD.fullmatch(path)
    return match is not None and not match["kind"] and not _GEM.fullmatch(path)


def _specified(gemspec: str, standard: bool = False) -> Owner | None:
    """By a specification as RubyGems writes it when it installs a gem: literals alone."""
    fields = dict(reversed(_FIELD.findall(gemspec)))
    return owned("gem", fields.get("name"), fields.get("version"), standard)


def _files(gemspec: str) -> list[str]:
    """Relative to the gem's lib/."""
    found = _FILES.search(gemspec)
    return _QUOTED.findall(found[1]) if found else []


def _longest(owners: list[Owner], path: str) -> Owner | None:
    """rack-protection before rack for rack/protection/base.rb."""
    stem = path.removesuffix(".rb").replace("-", "/").replace("_", "/") + "/"
    named = [o for o in owners if stem.startswith(o.library.name.replace("-", "/").replace("_", "/") + "/")]
    return max(named, key=lambda owner: len(owner.library.name), default=None)
