"""The user for a server that refuses to run as root, and a check that this user can reach the server's files."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.errors import StackError
from cli.local_stack.process import RunAs

#: The right to read any file and enter any directory, without writing (linux/capability.h).
CAP_DAC_READ_SEARCH = 2
#: The same with writing. Containers keep this one by default, but not the other.
CAP_DAC_OVERRIDE = 1
_USERS = ("nobody", "postgres", "daemon")


def unprivileged_user(paths: Sequence[Path]) -> RunAs | None:
    """The user for a server that refuses to run as root; None if this process does not run as root.

    That user may have no access to the files (a checkout or virtual environment under /root, mode 700). The server
    then keeps one capability, to enter directories, which is far less than the rights of its parent.

    Args:
        paths: files that the server has to reach.
    Raises: StackError: there is no such user, or it cannot reach the files even with a capability.
    """
    if os.geteuid() != 0:
        return None
    account = _account()
    unreachable = [path for path in paths if not reachable(path, account.pw_uid, account.pw_gid)]
    if not unreachable:
        return RunAs(account.pw_uid, account.pw_gid)
    permitted = _permitted_capabilities()
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if permitted & (1 << capability):
            return RunAs(account.pw_uid, account.pw_gid, capability)
    raise StackError(
        f"Postgres refuses to run as root, and user {account.pw_name} cannot reach {unreachable[0]}: run alignez as a "
        "normal user, or move it (and --data-dir) out of directories only root may enter, or set ALIGNEZ_DATABASE_URL "
        "to your own server"
    )


def reachable(path: Path, uid: int, gid: int) -> bool:
    """True when the mode bits let a user enter every parent of `path` and read `path` itself."""
    path = path.resolve()
    return all(_allows(parent, uid, gid, 0o1) for parent in path.parents) and _allows(path, uid, gid, 0o4)


def _allows(path: Path, uid: int, gid: int, bit: int) -> bool:
    status = path.stat()
    if status.st_uid == uid:
        return bool(status.st_mode & (bit << 6))
    if status.st_gid == gid:
        return bool(status.st_mode & (bit << 3))
    return bool(status.st_mode & bit)


def _account() -> pwd.struct_passwd:
    for name in _USERS:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        if account.pw_uid > 0:  # the id of nobody is -2 on macOS: the next user is taken there
            return account
    raise StackError(
        f"Postgres refuses to run as root and none of the users {', '.join(_USERS)} exists: run alignez as a normal "
        "user, or set ALIGNEZ_DATABASE_URL to your own server"
    )


def _permitted_capabilities() -> int:
    if not sys.platform.startswith("linux"):
        return 0
    for line in Path("/proc/self/status").read_text().splitlines():
        # The bounding set too: a capability outside it is lost at the exec.
        if line.startswith("CapBnd:"):
            bounding = int(line.split()[1], 16)
        elif line.startswith("CapPrm:"):
            permitted = int(line.split()[1], 16)
    return bounding & permitted
