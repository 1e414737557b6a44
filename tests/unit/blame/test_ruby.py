"""Ruby files to gems: layouts as RubyGems, Bundler and Debian leave them, and the machine's own against RubyGems."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tracer.blame.owner import Owner
from tracer.blame.packages import Packages
from tracer.blame.ruby import Ruby
from tracer.blame.tree import Tree
from tracer.trace import Library

from .roots import make_database, make_texts, root_at, stanza

HOME = "/usr/local/bundle/ruby/3.3.0"
CHECKOUT = "/app/vendor/bundle/ruby/3.1.0/bundler/gems"


def ruby_in(directory: Path) -> Ruby:
    return Ruby(Tree(root_at(directory)), Packages())


def gemspec(name: str, version: str, *files: str) -> str:
    """As RubyGems writes it when it installs a gem."""
    listed = ", ".join(f'"{file}".freeze' for file in files)
    return (
        f"# -*- encoding: utf-8 -*-\n# stub: {name} {version} ruby lib\n\nGem::Specification.new do |s|\n"
        f'  s.name = "{name}".freeze\n  s.version = "{version}"\n\n  s.files = [{listed}]\n'
        f'  s.rubygems_version = "3.3.7".freeze\n  s.add_dependency("rack".freeze, [">= 2"])\nend\n'
    )


def gem(name: str, version: str) -> Owner:
    return Owner(Library("gem", name, version))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{HOME}/gems/rack-streaming-proxy-1.0.3/lib/rack/x.rb", gem("rack-streaming-proxy", "1.0.3")),
        (f"{HOME}/gems/nokogiri-1.15.0-x86_64-linux/lib/nokogiri.rb", gem("nokogiri", "1.15.0")),
        (f"{HOME}/gems/protobuf-3.25.1-x86_64-linux-gnu/lib/p.rb", gem("protobuf", "3.25.1")),
        (f"{HOME}/gems/net-http2-0.18.2/lib/x.rb", gem("net-http2", "0.18.2")),
        (f"{HOME}/gems/foo-2-1.0.pre.1/lib/x.rb", gem("foo-2", "1.0.pre.1")),
        (f"{HOME}/gems/strange-9/lib/x.rb", gem("really", "9.0.1")),  # the specification knows better
        (f"{CHECKOUT}/my-gem-0a1b2c3d4e5f/lib/my/gem.rb", gem("my-gem", "0a1b2c3d4e5f")),
        (f"{CHECKOUT}/rails-0a1b2c3d4e5f/activesupport/lib/a/b.rb", gem("activesupport", "0a1b2c3d4e5f")),
        (f"{CHECKOUT}/repo-0a1b2c3d4e5f/lib/x.rb", gem("real-name", "0a1b2c3d4e5f")),
        ("/srv/gems/lib/x.rb", None),
        ("/srv/gems/x-1/", None),
        ("/srv/app/lib/rack.rb", None),
        ("lib/rack.rb", None),
        ("-e", None),
        ("(eval)", None),
        ("", None),
    ],
)
def test_gems_by_their_directories(tmp_path: Path, path: str, expected: Owner | None) -> None:
    make_texts(
        tmp_path,
        {f"{HOME}/specifications/strange-9.gemspec": gemspec("really", "9.0.1")},
        {f"{CHECKOUT}/rails-0a1b2c3d4e5f/rails.gemspec": ""},
        {f"{CHECKOUT}/rails-0a1b2c3d4e5f/activesupport/activesupport.gemspec": ""},
        {f"{CHECKOUT}/repo-0a1b2c3d4e5f/real-name.gemspec": ""},
    )
    assert ruby_in(tmp_path).owner(path) == expected


@pytest.mark.parametrize("base", ["/usr/local/lib/ruby", "/home/u/.rbenv/versions/3.3.1/lib/ruby"])
def test_the_standard_library_and_its_gems(tmp_path: Path, base: str) -> None:
    config = 'CONFIG = {}\n  CONFIG["MAJOR"] = "3"\n  CONFIG["MINOR"] = "3"\n  CONFIG["TEENY"] = "1"\n'
    specifications = f"{base}/gems/3.3.0/specifications"
    make_texts(
        tmp_path,
        {f"{base}/3.3.0/x86_64-linux/rbconfig.rb": config},
        {
            f"{specifications}/default/open3-0.2.1.gemspec": gemspec(
                "open3", "0.2.1", "lib/open3.rb", "lib/open3/v.rb"
            )
        },
        {f"{specifications}/default/etc-1.4.gemspec": gemspec("etc", "1.4", "etc.so", "ext/etc/extconf.rb")},
        {f"{specifications}/rake-13.1.0.gemspec": gemspec("rake", "13.1.0")},
    )
    ruby = ruby_in(tmp_path)
    stdlib = Owner(Library("stdlib", "ruby", "3.3.1"), standard=True)
    assert ruby.owner(f"{base}/3.3.0/open3.rb") == Owner(Library("gem", "open3", "0.2.1"), standard=True)
    assert ruby.owner(f"{base}/3.3.0/open3/v.rb") == Owner(Library("gem", "open3", "0.2.1"), standard=True)
    etc = Owner(Library("gem", "etc", "1.4"), standard=True)
    assert ruby.owner(f"{base}/3.3.0/x86_64-linux/etc.so") == etc
    assert ruby.owner(f"{base}/3.3.0/monitor.rb") == stdlib
    assert ruby.owner(f"{base}/3.3.0/x86_64-linux/socket.so") == stdlib
    assert ruby.owner(f"{base}/gems/3.3.0/gems/rake-13.1.0/lib/rake.rb") == gem("rake", "13.1.0")
    assert ruby.owner("<internal:kernel>") == Owner(Library("stdlib", "ruby"), standard=True)
    inner = f"<internal:{base}/3.3.0/rubygems/core_ext/kernel_require.rb>"
    assert ruby.owner(inner) == stdlib


def test_debian_s_layout(tmp_path: Path) -> None:
    vendored = "/usr/lib/ruby/vendor_ruby"
    specified = "/usr/share/rubygems-integration/all/specifications"
    make_database(
        tmp_path,
        [
            stanza("ruby-open4", "1.3.4-2"),
            stanza("ruby-many", "1-1"),
            stanza("libruby3.1", "3.1.7+really3.1.2-0+d"),
        ],
        {
            "ruby-open4": [f"{vendored}/open4.rb", f"{specified}/open4-1.3.4.gemspec"],
            "ruby-many": [
                f"{vendored}/many/a.rb",
                f"{vendored}/many/part/b.rb",
                f"{vendored}/many/listed.rb",
                f"{specified}/many-1.gemspec",
                f"{specified}/many-part-2.gemspec",
            ],
            "libruby3.1": ["/usr/lib/ruby/3.1.0/monitor.rb"],
        },
    )
    make_texts(
        tmp_path,
        {f"{specified}/open4-1.3.4.gemspec": gemspec("open4", "1.3.4", "lib/open4.rb")},
        {f"{specified}/many-1.gemspec": gemspec("many", "1")},
        {f"{specified}/many-part-2.gemspec": gemspec("many-part", "2", "lib/many/listed.rb")},
    )
    ruby = ruby_in(tmp_path)
    assert ruby.owner(f"{vendored}/open4.rb") == gem("open4", "1.3.4")
    assert ruby.owner(f"{vendored}/many/part/b.rb") == gem("many-part", "2")
    assert ruby.owner(f"{vendored}/many/a.rb") == gem("many", "1")
    assert ruby.owner(f"{vendored}/many/listed.rb") == gem("many-part", "2")
    assert ruby.owner(f"{vendored}/local.rb") is None
    rubygems = ruby.owner(f"{vendored}/rubygems/core_ext/kernel_require.rb")
    assert rubygems == Owner(Library("stdlib", "ruby"), standard=True)
    assert ruby.owner("/usr/lib/ruby/3.1.0/monitor.rb") == Owner(
        Library("stdlib", "ruby", "3.1.2"), standard=True
    )


def test_c_extensions(tmp_path: Path) -> None:
    ruby = ruby_in(tmp_path)
    built = f"{HOME}/extensions/x86_64-linux/3.3.0/posix-spawn-0.3.15/posix_spawn_ext.so"
    assert ruby.owner_of_native(built) == gem("posix-spawn", "0.3.15")
    assert ruby.owner_of_native(f"{HOME}/gems/ffi-1.16.3/lib/ffi_c.so") == gem("ffi", "1.16.3")
    assert ruby.owner_of_native("/usr/lib/x86_64-linux-gnu/ruby/3.1.0/socket.so") is None


def test_against_rubygems() -> None:
    """What RubyGems itself says of the files of every gem that it knows, default ones too."""
    program = shutil.which("ruby")
    assert program, "this test needs Ruby"
    script = (
        "require 'json'\n"
        "puts JSON.generate(Gem::Specification.flat_map { |s|\n"
        "  base = s.default_gem? ? [RbConfig::CONFIG['rubylibdir']] : s.full_require_paths\n"
        "  base.flat_map { |b| s.files.map { |f| File.join(b, f.sub(/\\Alib\\//, '')) } }\n"
        "    .select { |f| f.end_with?('.rb') && File.file?(f) }.first(20)\n"
        "    .map { |f| [File.realpath(f), s.name, s.version.to_s] } })\n"
    )
    files = json.loads(subprocess.check_output([program, "-e", script], text=True))
    ruby = ruby_in(Path("/"))
    owners: dict[str, set[tuple[str, str]]] = {}
    for path, name, version in files:
        owners.setdefault(path, set()).add((name, version))
    for path, claims in owners.items():
        owner = ruby.owner(path)
        assert owner is not None, path
        if "/vendor_ruby/rubygems" in path:  # RubyGems is a gem too, but comes with the language
            assert owner.standard
            continue
        assert owner.library.kind == "gem", path
        assert (owner.library.name, owner.library.version) in claims, path
    assert len(owners) > 100


def test_hostile_specifications(tmp_path: Path) -> None:
    make_texts(
        tmp_path,
        {f"{HOME}/specifications/a-1.gemspec": 's.name = "../../\x1b[2J"\ns.version = "1"\n'},
        {f"{HOME}/specifications/b-1.gemspec": "\n" * 500_000 + 's.version = "2"'},
        {f"{HOME}/specifications/c-1.gemspec": 's.name = "c"\ns.version = "' + "1" * 200 + '"\n'},
    )
    (tmp_path / HOME[1:] / "specifications" / "d-1.gemspec").symlink_to("/etc/passwd")
    ruby = ruby_in(tmp_path)
    for name in "abd":
        assert ruby.owner(f"{HOME}/gems/{name}-1/lib/x.rb") == gem(name, "1")
    assert ruby.owner(f"{HOME}/gems/c-1/lib/x.rb") == Owner(Library("gem", "c", None))
