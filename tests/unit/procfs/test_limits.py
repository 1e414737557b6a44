"""Limits on tasks: cgroup trees of all shapes from made-up files, the rest from real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracer import limits as limits_module
from tracer.limits import Limit, limits

V2 = "42 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
V1 = "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup c rw,pids\n40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup c rw,cpu\n"


def of_cgroups(
    monkeypatch: pytest.MonkeyPatch, cgroup: str, mountinfo: str, files: dict[str, str]
) -> list[Limit]:
    texts = {"/proc/7/cgroup": cgroup, "/proc/self/mountinfo": mountinfo, **files}
    monkeypatch.setattr(limits_module, "_text", lambda path: texts.get(os.fspath(path), ""))
    return list(limits_module._of_cgroups(7))


def test_every_ancestor_of_a_unified_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    base = "/sys/fs/cgroup/system.slice"
    files = {
        f"{base}/app.service/worker/pids.max": "max\n",
        f"{base}/app.service/worker/pids.current": "3\n",
        f"{base}/app.service/pids.max": "4096\n",
        f"{base}/app.service/pids.current": "812\n",
        f"{base}/pids.max": "9000\n",
    }
    assert of_cgroups(monkeypatch, "0::/system.slice/app.service/worker\n", V2, files) == [
        Limit("pids.max", "/system.slice/app.service", 4096, 812),
        Limit("pids.max", "/system.slice", 9000, None),
    ]


def test_the_pids_hierarchy_of_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/sys/fs/cgroup/pids/docker/ab/pids.max": "50\n",
        "/sys/fs/cgroup/pids/docker/ab/pids.current": "50\n",
    }
    cgroup = "9:pids:/docker/ab\n8:cpu,cpuacct:/docker/ab\n0::/\n"
    found = of_cgroups(monkeypatch, cgroup, V1 + V2, files)
    assert found == [Limit("pids.max", "/docker/ab", 50, 50)]


def test_a_mount_of_a_part_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = "42 31 0:38 /kube/pod /cg\\040roup rw - cgroup2 cgroup2 rw\n"
    files = {"/cg roup/c1/pids.max": "5\n", "/cg roup/pids.max": "6\n", "/pids.max": "7\n"}
    assert of_cgroups(monkeypatch, "0::/kube/pod/c1\n", mount, files) == [
        Limit("pids.max", "/kube/pod/c1", 5, None),
        Limit("pids.max", "/kube/pod", 6, None),
    ]
    assert of_cgroups(monkeypatch, "0::/kube/podium\n", mount, files) == []
    assert of_cgroups(monkeypatch, "0::/../other\n", V2, files) == []
    assert of_cgroups(monkeypatch, "", "", files) == []


def test_the_limit_of_a_users_processes() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    uid = 54321
    source = """
import os, resource, sys, threading
resource.setrlimit(resource.RLIMIT_NPROC, (123, 200))
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
threading.Thread(target=sys.stdin.read).start()
if not os.fork():
    os._exit(0)
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", source, str(uid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            found = limits(process.pid)
            assert Limit("RLIMIT_NPROC", f"uid {uid}", 123, 3) in found  # two threads and a zombie
            shares = [(limit.current or 0) / limit.value for limit in found]
            assert shares == sorted(shares, reverse=True)
            assert "RLIMIT_NPROC" not in {
                limit.name for limit in limits(os.getpid())
            }  # root is not held to it
        finally:
            process.kill()


def test_the_host() -> None:
    found = {limit.name: limit for limit in limits(os.getpid())}
    for name in ("threads-max", "pid_max"):
        assert found[name].value == int(Path(f"/proc/sys/kernel/{name}").read_text())
    current = found["threads-max"].current
    assert current is not None
    by_ps = len(subprocess.check_output(["ps", "-eLo", "lwp="]).split())
    assert abs(current - by_ps) < 200


def test_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    assert limits(process.pid) == ()
