"""Starts a program whose life is tied to its parent's, without root's rights.

Run as a script, standard library only:

    python -I -S exec_guard.py PARENT SIGNAL UID GID CAPABILITY -- program args
    python -I -S exec_guard.py watch PARENT CHILD SIGNAL

The first form replaces itself with the program, so the parent knows the program's own process id. The second form
replaces Linux's death signal on systems without one (macOS).

Why a script and not `Popen(preexec_fn=...)`: code between fork and exec may deadlock in a parent with threads, and
the order matters here. Linux clears the death signal when the user changes, so the thread that calls exec sets it last.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
_POLL_S = 0.5


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapWords(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def die_with_parent(signal_number: int, parent: int | None = None) -> None:
    """Asks Linux to send `signal_number` to this process when the parent's starting thread dies; elsewhere a no-op.

    Args:
        signal_number: the signal.
        parent: process id of the parent. If it is already gone, this process exits at once, because a parent may die
            between fork and this call.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        os._exit(0)


def become(uid: int, gid: int, capability: int = -1) -> None:
    """Changes from root to `uid` and keeps at most one capability (-1: none) across the coming exec."""
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
    # Ambient, because a plain exec of a file without file capabilities drops all others.
    if libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_CAP_AMBIENT_RAISE)")


def alive(pid: int) -> bool:
    """True when a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def watch(parent: int, child: int, signal_number: int) -> None:
    """Waits until the parent or the child has ended; if the parent ended first, sends the signal to the child."""
    # This process is a child of `parent` too: a new parent id means that `parent` died.
    while os.getppid() == parent:
        if not alive(child):
            return
        time.sleep(_POLL_S)
    if alive(child):
        os.kill(child, signal_number)


def main(arguments: list[str]) -> None:
    """Runs one of the two forms of the command line."""
    if arguments[0] == "watch":
        watch(*(int(value) for value in arguments[1:]))
        return
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
