"""Ends a process when another one is gone: the death signal for systems without one (macOS).

Run as a script: `python -I -S parent_watch.py PARENT CHILD SIGNAL`, standard library only.
"""

from __future__ import annotations

import os
import sys
import time

_POLL_S = 0.5


def alive(pid: int) -> bool:
    """True when a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(arguments: list[str]) -> None:
    """Wait for the parent or the child to go; in the first case signal the child."""
    parent, child, signal_number = (int(value) for value in arguments)
    # The watcher is a child of `parent` too: being adopted by another process is the sign that it died.
    while os.getppid() == parent:
        if not alive(child):
            return
        time.sleep(_POLL_S)
    if alive(child):
        os.kill(child, signal_number)


if __name__ == "__main__":
    main(sys.argv[1:])
