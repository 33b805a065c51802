"""Becomes another program after tying its life to the parent's and dropping root.

Run as a script (`python -I -S exec_guard.py PARENT SIGNAL UID GID CAPABILITY -- program args`), standard library only:
it replaces itself by the program, so the process id the parent knows is the program's own.

Why a script and not `Popen(preexec_fn=...)`: code between fork and exec may deadlock in a parent with threads, and
the order matters here. Linux clears the death signal when the user changes, so it is
set last, by the thread that execs.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3 = 0x20080522


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapWords(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def die_with_parent(signal_number: int, parent: int | None = None) -> None:
    """Ask Linux to send `signal_number` to this process when the parent's starting thread dies; elsewhere do nothing.

    Args:
        signal_number: the signal.
        parent: the expected parent; when it is already gone this process exits at once (the race of a parent that
            dies between fork and this call).
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        os._exit(0)


def become(uid: int, gid: int, capability: int = -1) -> None:
    """Give up root for `uid`, keeping at most one capability (-1: none) across the coming exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    if capability >= 0 and libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_KEEPCAPS)")
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if capability < 0:
        return
    bit = 1 << capability
    words = (_CapWords * 2)(_CapWords(bit, bit, bit), _CapWords(0, 0, 0))
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    if libc.capset(ctypes.byref(header), ctypes.byref(words)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    # Ambient, because a plain exec of a file without file capabilities drops everything else.
    if libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_CAP_AMBIENT_RAISE)")


def main(arguments: list[str]) -> None:
    """Parse the five numbers, drop root, arm the death signal, and become the program."""
    parent, death_signal, uid, gid, capability = (int(value) for value in arguments[:5])
    program = arguments[6:]
    try:
        if uid >= 0:
            become(uid, gid, capability)
        if death_signal > 0:
            die_with_parent(death_signal, parent)
        os.execv(program[0], program)
    except OSError as error:
        print(f"cannot start {program[0]}: {error}", file=sys.stderr, flush=True)
        os._exit(126)


if __name__ == "__main__":
    main(sys.argv[1:])
