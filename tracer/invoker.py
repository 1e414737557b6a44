"""Who called sudo: the command that ``run`` starts is his, and so are the files that are written for him."""

from __future__ import annotations

import os
import pwd

MAX_ID = (1 << 32) - 2


def invoking_user() -> tuple[int, int] | None:
    """(uid, gid) of the user behind sudo; None where root acts for itself, or nobody is root."""
    ids = [os.environ.get(name, "") for name in ("SUDO_UID", "SUDO_GID")]
    if os.geteuid() != 0 or not all(each.isascii() and each.isdigit() and len(each) < 11 for each in ids):
        return None
    uid, gid = map(int, ids)
    return (uid, gid) if 0 < uid <= MAX_ID and gid <= MAX_ID else None


def give_to_invoking_user(descriptor: int) -> None:
    """A file that was just made.  He will read it, not root."""
    user = invoking_user()
    if user is not None:
        os.fchown(descriptor, *user)


def become_invoking_user() -> None:
    """For good, with his groups, and his home in the environment.  Without a sudo nothing changes.  Raises OSError."""
    user = invoking_user()
    if user is None:
        return
    uid, gid = user
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # from a directory service that does not answer: no groups beyond his own
        os.setgroups([gid])
        os.environ.pop("HOME", None)
    else:
        os.initgroups(entry.pw_name, gid)
        os.environ.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
