"""Package databases: the machine's own against dpkg, made-up ones against what is known of them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tracer.blame import databases as kept
from tracer.blame import dpkg
from tracer.blame.listing import Package

from .roots import make_database, make_files, root_at, stanza

SONAME = "/usr/lib/x86_64-linux-gnu/libc.so.6"


def test_against_dpkg_itself() -> None:
    assert shutil.which("dpkg-query"), "this test needs a Debian system"
    form = "${binary:Package} ${Package} ${Version} ${db:Status-Status}\n"
    table = subprocess.check_output(["dpkg-query", "-W", "-f", form], text=True)
    packages = {
        row[0]: Package(row[1], row[2]) for row in map(str.split, table.splitlines()) if row[3] == "installed"
    }
    rng = random.Random(20)
    some = rng.sample(sorted(packages), min(150, len(packages)))
    paths = {
        p
        for p in subprocess.check_output(["dpkg", "-L", *some], text=True).splitlines()
        if "/share/" not in p
    }
    files = sorted(
        p for p in paths if p.startswith(("/usr/bin", "/usr/lib", "/usr/sbin")) and Path(p).is_file()
    )
    found = subprocess.check_output(
        ["dpkg", "-S", *rng.sample(files, min(150, len(files)))], text=True
    ).splitlines()
    databases, root = dpkg.databases(), root_at(Path("/"))
    checked = 0
    for owners, path in (line.split(": ") for line in found if not line.startswith("diversion by")):
        if ", " not in owners:  # a diverted file's: test_diversions
            assert databases.owner(root, path) == packages.get(owners), path
            checked += 1
    assert checked >= 100


def test_mapped_files_of_this_process_against_dpkg() -> None:
    """Real paths, as the kernel shows them: dpkg may know them without /usr."""
    databases, root = dpkg.databases(), root_at(Path("/"))
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(None, 5)[5] for line in lines if "/" in line and " r-xp " in line}
    owners = {path: databases.owner(root, path) for path in mapped}
    libc = next(path for path in mapped if path.endswith("/libc.so.6"))
    assert owners[libc] is not None
    names = [name for path in mapped for name in (path, path.removeprefix("/usr"))]
    found = subprocess.run(
        ["dpkg", "-S", *names], check=False, capture_output=True, text=True
    ).stdout.splitlines()
    by_dpkg = {
        path.removeprefix("/usr"): owner.split(":")[0] for owner, path in (line.split(": ") for line in found)
    }
    for path, package in owners.items():
        assert by_dpkg.get(path.removeprefix("/usr")) == (package.name if package else None), path


def test_multiarch_list_names(tmp_path: Path) -> None:
    make_database(
        tmp_path,
        [
            stanza("libc6", "2.36-9", multi_arch="same"),
            stanza("libc6", "2.35-1", "i386", multi_arch="same"),
            stanza("nginx", "1:1.22.1-9+deb12u1~x"),
            stanza("foreign", "3", multi_arch="foreign"),
        ],
        {
            "libc6:amd64": [SONAME],
            "libc6:i386": ["/usr/lib/i386-linux-gnu/libc.so.6"],
            "nginx": ["/usr/sbin/nginx"],
            "foreign": ["/usr/bin/foreign"],
        },
    )
    databases, root = dpkg.databases(), root_at(tmp_path)
    assert databases.owner(root, SONAME) == Package("libc6", "2.36-9")
    assert databases.owner(root, "/usr/lib/i386-linux-gnu/libc.so.6") == Package("libc6", "2.35-1")
    assert databases.owner(root, "/usr/sbin/nginx") == Package("nginx", "1:1.22.1-9+deb12u1~x")
    assert databases.owner(root, "/usr/bin/foreign") == Package("foreign", "3")
    for path in (
        "/usr/sbin/ngin",
        "/sbin/ngin",
        "usr/sbin/nginx",
        "/srv/app/server",
        "",
        "/",
        "/usr/sbin/nginx\n",
    ):
        assert databases.owner(root, path) is None


@pytest.mark.parametrize(
    ("listed", "mapped"),
    [
        ("/lib/x86_64-linux-gnu/libc.so.6", SONAME),
        (SONAME, "/lib/x86_64-linux-gnu/libc.so.6"),
        ("/bin/dash", "/usr/bin/dash"),
        ("/sbin/init", "/usr/sbin/init"),
        ("/lib64/ld.so", "/usr/lib64/ld.so"),
    ],
)
def test_merged_usr(tmp_path: Path, listed: str, mapped: str) -> None:
    for directory in ("bin", "sbin", "lib", "lib64"):
        (tmp_path / "usr" / directory).mkdir(parents=True)
        (tmp_path / directory).symlink_to(f"usr/{directory}")
    make_files(tmp_path, listed)
    make_database(tmp_path, [stanza("it", "1")], {"it": [listed]})
    assert dpkg.databases().owner(root_at(tmp_path), mapped) == Package("it", "1")


def test_two_files_in_a_root_that_is_not_merged(tmp_path: Path) -> None:
    make_files(tmp_path, "/lib/libx.so.1", "/usr/lib/libx.so.1")
    make_database(tmp_path, [stanza("it", "1")], {"it": ["/lib/libx.so.1"]})
    databases, root = dpkg.databases(), root_at(tmp_path)
    assert databases.owner(root, "/lib/libx.so.1") == Package("it", "1")
    assert databases.owner(root, "/usr/lib/libx.so.1") is None


def test_diversions(tmp_path: Path) -> None:
    make_database(
        tmp_path,
        [stanza("common", "2"), stanza("libpq", "15"), stanza("other", "1")],
        {"common": ["/usr/bin/pg"], "libpq": ["/usr/bin/pg"], "other": ["/usr/bin/tool"]},
    )
    diversions = ["/usr/bin/pg", "/usr/bin/pg.libpq", "common", "/usr/bin/tool", "/usr/bin/tool.real", ":"]
    (tmp_path / "var/lib/dpkg/diversions").write_text("".join(f"{line}\n" for line in diversions))
    databases, root = dpkg.databases(), root_at(tmp_path)
    assert databases.owner(root, "/usr/bin/pg") == Package("common", "2")
    assert databases.owner(root, "/usr/bin/pg.libpq") == Package("libpq", "15")
    assert databases.owner(root, "/usr/bin/tool") is None  # the administrator's own
    assert databases.owner(root, "/usr/bin/tool.real") == Package("other", "1")


def test_packages_without_files(tmp_path: Path) -> None:
    make_database(
        tmp_path,
        [
            stanza("removed", "1", state="config-files"),
            stanza("never", "1", state="not-installed"),
            stanza("half", "1", state="half-configured"),
        ],
        {"removed": ["/usr/bin/r"], "never": ["/usr/bin/n"], "half": ["/usr/bin/h"]},
    )
    databases, root = dpkg.databases(), root_at(tmp_path)
    assert databases.owner(root, "/usr/bin/r") is None
    assert databases.owner(root, "/usr/bin/n") is None
    assert databases.owner(root, "/usr/bin/h") == Package("half", "1")


def test_an_upgrade_during_the_trace(tmp_path: Path) -> None:
    make_database(tmp_path, [stanza("it", "1")], {"it": ["/usr/bin/it"]})
    databases, root = dpkg.databases(), root_at(tmp_path)
    assert databases.owner(root, "/usr/bin/it") == Package("it", "1")
    status = tmp_path / "var/lib/dpkg/status"
    (tmp_path / "status-new").write_text(stanza("it", "2"))
    (tmp_path / "status-new").rename(status)
    assert databases.owner(root, "/usr/bin/it") == Package("it", "2")
    status.unlink()
    assert databases.owner(root, "/usr/bin/it") is None


def test_a_root_without_dpkg(tmp_path: Path) -> None:
    assert dpkg.databases().owner(root_at(tmp_path), SONAME) is None


def test_only_so_many_roots_are_kept(tmp_path: Path) -> None:
    databases = dpkg.databases()
    roots = []
    for n in range(kept.MAX_ROOTS + 2):
        make_database(tmp_path / str(n), [stanza("it", str(n))], {"it": ["/usr/bin/it"]})
        roots.append(root_at(tmp_path / str(n)))
    for _ in range(2):
        for n, root in enumerate(roots):
            assert databases.owner(root, "/usr/bin/it") == Package("it", str(n))
    assert len(databases._kept) == kept.MAX_ROOTS


class TestHostileDatabase:
    """A container writes its own database.  The rest of it stays of use."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        directory = tmp_path / "root"
        make_database(
            directory,
            [stanza("good", "1"), stanza("evil", "6")],
            {"good": ["/usr/bin/good"], "evil": ["/usr/bin/evil"]},
        )
        return directory

    def check(self, directory: Path) -> None:
        databases, root = dpkg.databases(), root_at(directory)
        assert databases.owner(root, "/usr/bin/good") == Package("good", "1")
        assert databases.owner(root, "/usr/bin/evil") is None

    def test_fifo(self, directory: Path) -> None:
        (evil := directory / "var/lib/dpkg/info/evil.list").unlink()
        os.mkfifo(evil)
        self.check(directory)

    def test_link_out_of_the_root(self, directory: Path) -> None:
        (evil := directory / "var/lib/dpkg/info/evil.list").rename(outside := directory.parent / "outside")
        evil.symlink_to(outside)
        self.check(directory)
        evil.unlink()
        evil.symlink_to("../" * 40 + str(outside).lstrip("/"))
        self.check(directory)

    def test_huge_list(self, directory: Path) -> None:
        with (directory / "var/lib/dpkg/info/evil.list").open("ab") as file:
            file.truncate(1 << 40)
        self.check(directory)

    def test_many_large_lists(self, directory: Path) -> None:
        names = [f"e{n}" for n in range(6)]
        with (directory / "var/lib/dpkg/status").open("a") as file:
            file.write("\n" + "\n".join(stanza(name, "1") for name in names))
        (directory / "var/lib/dpkg/info/evil.list").unlink()
        for name in names:
            with (directory / f"var/lib/dpkg/info/{name}.list").open("wb") as file:
                file.truncate(dpkg.MAX_LIST)  # a hole, full of NUL
        self.check(directory)

    def test_binary(self, directory: Path) -> None:
        noise = random.Random(1).randbytes(1 << 20)
        (directory / "var/lib/dpkg/info/evil.list").write_bytes(noise)
        (directory / "var/lib/dpkg/diversions").write_bytes(noise)
        with (directory / "var/lib/dpkg/status").open("ab") as file:
            file.write(b"\n" + noise + b"\n\nPackage: \xff\nVersion: \xff\n")
        self.check(directory)

    def test_names_that_are_none(self, directory: Path) -> None:
        with (directory / "var/lib/dpkg/status").open("a") as file:
            file.write(
                "\n"
                + stanza("../../../../tmp/evil", "1")
                + "\n"
                + stanza("worse", "1\x1b[2J", "../x", "same")
            )
        make_database(directory / "x", [], {"worse": ["/usr/bin/worse"]})
        (directory / "x/var/lib/dpkg/info/worse.list").rename(directory / "var/lib/dpkg/info/worse.list")
        (directory / "var/lib/dpkg/info/evil.list").unlink()
        self.check(directory)
        assert dpkg.databases().owner(root_at(directory), "/usr/bin/worse") == Package("worse", None)

    def test_a_status_that_is_a_fifo(self, directory: Path) -> None:
        (status := directory / "var/lib/dpkg/status").unlink()
        os.mkfifo(status)
        assert dpkg.databases().owner(root_at(directory), "/usr/bin/good") is None


def test_speed_on_thousands_of_packages(tmp_path: Path) -> None:
    names = [f"package{n}" for n in range(3000)]
    make_database(
        tmp_path,
        [stanza(name, "1") for name in names],
        {name: [f"/usr/lib/{name}/file{n}.so" for n in range(100)] for name in names},
    )
    databases, root = dpkg.databases(), root_at(tmp_path)
    start = time.process_time()
    assert databases.owner(root, "/usr/lib/package2999/file99.so") == Package("package2999", "1")
    loaded = time.process_time()
    for n in range(50):
        assert databases.owner(root, f"/usr/lib/package{n}/file{n}.so") == Package(f"package{n}", "1")
    assert loaded - start < 2.0  # about 0.2 s
    assert time.process_time() - loaded < 2.0
