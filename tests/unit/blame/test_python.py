"""Python files to distributions: layouts as installers leave them, and the machine's own against importlib.metadata."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tracer.blame import distribution
from tracer.blame.owner import Owner
from tracer.blame.packages import Packages
from tracer.blame.python import Python
from tracer.blame.tree import Tree
from tracer.trace import Library

from .roots import make_database, make_texts, root_at, stanza

SITE = "/venv/lib/python3.12/site-packages"


def python_in(directory: Path) -> Python:
    return Python(Tree(root_at(directory)), Packages())


def distribution_files(name: str, version: str, *files: str, site: str = SITE) -> dict[str, str]:
    """A wheel as pip installs it: its files, empty, and its metadata."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    record = "".join(f"{file},sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n" for file in files)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: not this\n"
    return {
        **{f"{site}/{file}": "" for file in files},
        f"{site}/{info}/METADATA": metadata,
        f"{site}/{info}/RECORD": f"{record}{info}/METADATA,,\n{info}/RECORD,,\n",
    }


def library(owner: Owner | None) -> tuple[str, str, str | None] | None:
    return (owner.library.kind, owner.library.name, owner.library.version) if owner else None


def test_wheels(tmp_path: Path) -> None:
    make_texts(
        tmp_path,
        distribution_files(
            "requests", "2.31.0", "requests/__init__.py", "requests/api.py", "../../../bin/req"
        ),
        distribution_files("PyYAML", "6.0", "yaml/__init__.py", "_yaml.cpython-312-x86_64-linux-gnu.so"),
        distribution_files("ruamel.yaml", "0.18.1", "ruamel/yaml/main.py"),
        distribution_files("ruamel.yaml.clib", "0.2.8", "_ruamel_yaml.py"),
        distribution_files("google-cloud-storage", "2.1", "google/cloud/storage/blob.py"),
        distribution_files("google-cloud-core", "2.4", "google/cloud/_helpers.py"),
        distribution_files("six", "1.16.0", "six.py"),
        {f"{SITE}/pkg,a.dist-info": "", "/venv/bin/req": "", "/venv/bin/other": ""},
    )
    python = python_in(tmp_path)
    for path, expected in {
        f"{SITE}/requests/api.py": ("requests", "2.31.0"),
        f"{SITE}/requests/made_later.py": ("requests", "2.31.0"),
        "/venv/bin/req": ("requests", "2.31.0"),
        f"{SITE}/yaml/__init__.py": ("PyYAML", "6.0"),
        f"{SITE}/ruamel/yaml/main.py": ("ruamel.yaml", "0.18.1"),
        f"{SITE}/google/cloud/storage/blob.py": ("google-cloud-storage", "2.1"),
        f"{SITE}/google/cloud/_helpers.py": ("google-cloud-core", "2.4"),
        f"{SITE}/google/cloud/storage/_new.py": ("google-cloud-storage", "2.1"),
        f"{SITE}/six.py": ("six", "1.16.0"),
        f"{SITE}/copied/by/hand.py": ("copied", None),
        f"{SITE}/copied.py": ("copied", None),
    }.items():
        assert library(python.owner(path)) == ("python", *expected), path
    for path in ("/venv/bin/other", "/venv/lib/other.py", "/srv/requests/api.py", "requests/api.py", "", "/"):
        assert python.owner(path) is None
    native = python.owner_of_native(f"{SITE}/_yaml.cpython-312-x86_64-linux-gnu.so")
    assert library(native) == ("python", "PyYAML", "6.0")
    assert python.owner_of_native("/usr/lib/libyaml.so.0") is None


def test_paths_with_commas_and_quotes(tmp_path: Path) -> None:
    files = distribution_files("odd", "1")
    info = f"{SITE}/odd-1.dist-info"
    files[f"{info}/RECORD"] = '"ns/a,b,""c"".py",sha256=x,1\nns/plain.py,sha256=x,1\r\n"broken\n'
    make_texts(tmp_path, files, distribution_files("even", "2", "ns/else.py"))
    python = python_in(tmp_path)
    assert library(python.owner(f'{SITE}/ns/a,b,"c".py')) == ("python", "odd", "1")
    assert library(python.owner(f"{SITE}/ns/plain.py")) == ("python", "odd", "1")
    assert library(python.owner(f"{SITE}/ns/else.py")) == ("python", "even", "2")


def test_eggs(tmp_path: Path) -> None:
    egg = tmp_path / SITE[1:] / "zipped_thing-1.4-py3.8.egg"
    egg.parent.mkdir(parents=True)
    with zipfile.ZipFile(egg, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zipped/core.py", "")
        archive.writestr("EGG-INFO/PKG-INFO", "Name: zipped-thing\nVersion: 1.4.post1\n" + "\n" * 5000)
    folder = f"{SITE}/plain-2.0-py3.8-linux-x86_64.egg"
    make_texts(
        tmp_path,
        {f"{folder}/EGG-INFO/PKG-INFO": "Metadata-Version: 1.1\nName: plain\nVersion: 2.0\n"},
        {f"{SITE}/old-0.1-py3.6.egg-info/PKG-INFO": "Name: old\nVersion: 0.1\n"},
        {
            f"{SITE}/old-0.1-py3.6.egg-info/installed-files.txt": "../shared_name/a.py\n../olds/b.py\nPKG-INFO\n"
        },
        {f"{SITE}/new-0.2-py3.6.egg-info/PKG-INFO": "Name: new\nVersion: 0.2\n"},
        {f"{SITE}/new-0.2-py3.6.egg-info/top_level.txt": "shared_name\nnewest\n"},
    )
    python = python_in(tmp_path)
    for path, expected in {
        f"{SITE}/{egg.name}/zipped/core.py": ("zipped-thing", "1.4.post1"),
        f"{folder}/plain/x.py": ("plain", "2.0"),
        f"{SITE}/nowhere-3.1-py3.9.egg/nowhere.py": ("nowhere", "3.1"),
        "/srv/app.pex/.deps/attrs-23.1.0-py3-none-any.whl/attr/_make.py": ("attrs", "23.1.0"),
        f"{SITE}/shared_name/a.py": ("old", "0.1"),
        f"{SITE}/newest/a.py": ("new", "0.2"),
    }.items():
        assert library(python.owner(path)) == ("python", *expected), path


def test_an_egg_that_is_no_archive(tmp_path: Path) -> None:
    make_texts(tmp_path, {f"{SITE}/bad-1.0-py3.8.egg": "PK\5\6" + "x" * 30})
    assert library(python_in(tmp_path).owner(f"{SITE}/bad-1.0-py3.8.egg/bad.py")) == ("python", "bad", "1.0")


def test_editable_installs_are_known_once_the_environment_was_seen(tmp_path: Path) -> None:
    url = {"url": "file:///home/u/my%20proj", "dir_info": {"editable": True}}
    finder = "MAPPING: dict[str, str] = {'finder': '/project/finder/src/finder'}\nNAMESPACES = {}\n"
    make_texts(
        tmp_path,
        distribution_files("proj", "0.1.dev1"),
        {f"{SITE}/proj-0.1.dev1.dist-info/direct_url.json": json.dumps(url)},
        distribution_files("copied", "1"),
        {f"{SITE}/copied-1.dist-info/direct_url.json": json.dumps({"url": "file:///src", "dir_info": {}})},
        {f"{SITE}/linked-thing.egg-link": "/src/linked\n."},
        {"/src/linked/linked_thing.egg-info/PKG-INFO": "Name: linked-thing\nVersion: 7\n"},
        {f"{SITE}/__editable__.by_path-3.1.pth": "/project/by_path/src\n"},
        {f"{SITE}/__editable___finder_4_0_finder.py": finder},
        {"/srv/own/.venv/lib/python3.11/site-packages/own-5.dist-info/METADATA": "Name: own\nVersion: 5\n"},
        {
            "/srv/own/.venv/lib/python3.11/site-packages/own-5.dist-info/direct_url.json": json.dumps(
                {"url": "file:///srv/own", "dir_info": {"editable": True}}
            )
        },
    )
    python = python_in(tmp_path)
    assert python.owner("/home/u/my proj/src/proj/x.py") is None
    assert python.notice(f"{SITE}/any/file.py")
    assert not python.notice(f"{SITE}/any/file.py")
    for path, expected in {
        "/home/u/my proj/src/proj/x.py": ("proj", "0.1.dev1"),
        "/src/linked/linked/y.py": ("linked-thing", "7"),
        "/project/by_path/src/m.py": ("by_path", "3.1"),
        "/project/finder/src/finder/m.py": ("finder", "4.0"),
        "/srv/own/own/main.py": ("own", "5"),  # its environment lies beside it
    }.items():
        assert library(python.owner(path)) == ("python", *expected), path
    assert python.owner("/src/copied.py") is None


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", "null", "{", '{"dir_info": 1}', '{"dir_info": {"editable": true}, "url": 3}', "[" * 100_000]
    + [
        f'{{"dir_info": {{"editable": true}}, "url": "{url}"}}'
        for url in ("file:///", "x:///a", "http://[", "")
    ],
)
def test_a_direct_url_that_says_nothing(text: str) -> None:
    assert distribution._project_of(text) == ()


def test_code_that_is_installed_beside_its_metadata(tmp_path: Path) -> None:
    make_texts(
        tmp_path,
        distribution_files("requests", "2.31.0", "requests/api.py", site="/var/task"),
        {"/home/u/proj/src/proj.egg-info/PKG-INFO": "Name: proj\nVersion: 1.0\n"},
        {"/home/u/proj/src/proj.egg-info/top_level.txt": "proj\n"},
    )
    python = python_in(tmp_path)
    assert library(python.owner("/var/task/requests/api.py")) == ("python", "requests", "2.31.0")
    assert python.owner("/var/task/handler.py") is None
    assert library(python.owner("/home/u/proj/src/proj/deep/er/x.py")) == ("python", "proj", "1.0")


def test_debian_s_names_differ(tmp_path: Path) -> None:
    """python3-apt has python_apt.egg-info, which says nothing of its modules."""
    packages = "/usr/lib/python3/dist-packages"
    make_database(
        tmp_path,
        [stanza("python3-apt", "2.6.0")],
        {"python3-apt": [f"{packages}/apt/cache.py", f"{packages}/python_apt-2.6.0.egg-info"]},
    )
    make_texts(tmp_path, {f"{packages}/python_apt-2.6.0.egg-info": "Name: python-apt\nVersion: 2.6.0\n"})
    owner = python_in(tmp_path).owner(f"{packages}/apt/cache.py")
    assert library(owner) == ("python", "python-apt", "2.6.0")


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/usr/lib/python3.11/subprocess.py", "3.11.2"),  # by the package
        ("/opt/py/lib/python3.12/multiprocessing/popen_fork.py", "3.12.1"),  # by the header file
        ("/usr/lib64/python3.9/os.py", "3.9"),
        ("/usr/local/lib/python311.zip/subprocess.py", "3.11"),
        ("/opt/free/lib/python3.13t/os.py", "3.13"),
        ("<frozen importlib._bootstrap>", None),
    ],
)
def test_the_standard_library(tmp_path: Path, path: str, version: str | None) -> None:
    make_database(
        tmp_path,
        [stanza("libpython3.11-stdlib", "3.11.2-6+deb12u5")],
        {"libpython3.11-stdlib": ["/usr/lib/python3.11/subprocess.py"]},
    )
    make_texts(
        tmp_path,
        {"/usr/lib/python3.11/os.py": "", "/opt/py/lib/python3.12/os.py": ""},
        {"/opt/py/include/python3.12/patchlevel.h": '#define PY_VERSION  \t"3.12.1"\n'},
        {"/srv/app/lib/python3.9/mine.py": ""},
    )
    python = python_in(tmp_path)
    assert python.owner(path) == Owner(Library("stdlib", "python", version), standard=True)
    assert python.owner("/srv/app/lib/python3.9/mine.py") is None


def test_against_importlib_metadata() -> None:
    """Every file that a distribution of this environment lists."""
    python = python_in(Path("/"))
    site = Path(sysconfig.get_path("purelib")).resolve()
    checked = 0
    for found in importlib.metadata.distributions(path=[str(site)]):
        for file in (found.files or [])[::7]:
            path = str(Path(str(site), file))
            if file.suffix == ".py" and ".." not in file.parts:
                assert library(python.owner(path)) == ("python", found.metadata["Name"], found.version), path
                checked += 1
    assert checked > 100
    assert library(python.owner(subprocess.__file__)) == (
        "stdlib",
        "python",
        ".".join(map(str, sys.version_info[:3])),
    )


def test_debian_s_distributions_against_its_python() -> None:
    """What Debian's own Python says of the top-level modules in dist-packages."""
    program = shutil.which("python3", path="/usr/bin")
    assert program, "this test needs a Debian system with its Python"
    script = (
        "import importlib.metadata as m, json, pathlib\n"
        "site = '/usr/lib/python3/dist-packages'\n"
        "tops = {}\n"
        "for d in m.distributions(path=[site]):\n"
        "    for top in (d.read_text('top_level.txt') or '').split():\n"
        "        tops.setdefault(top, set()).add((d.metadata['Name'], d.version))\n"
        "print(json.dumps({t: sorted(v) for t, v in tops.items()}))\n"
    )
    tops = json.loads(subprocess.check_output([program, "-I", "-c", script], text=True))
    python = python_in(Path("/"))
    for top, claims in tops.items():
        if len(claims) == 1:
            owner = python.owner(f"/usr/lib/python3/dist-packages/{top}/module.py")
            assert library(owner) == ("python", *claims[0]), top


def test_hostile_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "MAX_RECORDS", 1000)  # the list is not kept
    make_texts(
        tmp_path,
        distribution_files("big", "1", "big/a.py", *(f"big/{n}.py" for n in range(100))),
        {f"{SITE}/spaces-1.dist-info/METADATA": "Name: \x1b[31mred\nVersion: " + "9" * 500 + "\n"},
        {f"{SITE}/loop.dist-info/METADATA": ""},
    )
    (tmp_path / SITE[1:] / "out-1.dist-info").symlink_to("/../../../../../etc")
    python = python_in(tmp_path)
    assert library(python.owner(f"{SITE}/big/a.py")) == ("python", "big", "1")  # by its first part alone
    assert python.owner(f"{SITE}/spaces/a.py") == Owner(Library("python", "spaces", None))
    assert library(python.owner(f"{SITE}/out/a.py")) == ("python", "out", "1")
