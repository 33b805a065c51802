"""vLLM's engine core as a process that ends with the one that started it, however that ends.

vLLM tells its core to stop when the front end closes. A front end that is killed cannot, and its core would hold the
GPU's memory for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

from vllm.v1.engine.core import EngineCoreProc

_run_engine_core = EngineCoreProc.run_engine_core


def install() -> None:
    """Has the cores that this process starts begin with `run`. Safe to call twice."""
    EngineCoreProc.run_engine_core = staticmethod(run)


def run(*args: Any, **kwargs: Any) -> None:
    """The main function of vLLM's core, with a watch on the parent."""
    # Ctrl-C goes to the whole group of a terminal; the front end, which may have requests to end, closes its core.
    os.setpgrp()
    threading.Thread(target=_end_with_parent, name="alignez-parent", daemon=True).start()
    _run_engine_core(*args, **kwargs)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the parent is gone; workers on other GPUs see the core's end as this sees its parent's
