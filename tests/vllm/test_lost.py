"""When vLLM's engine core is gone, every caller gets an error, the owner is told, and `close` returns."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from alignez_core.editing import EditPlan
from alignez_core.engines.base import Engine, GenerationRequest
from alignez_core.errors import EngineClosed
from tests.core.engines.contract import greedy, plan_for, wait_until
from tests.vllm.conftest import Start
from tests.worker.processes import children, command_line

pytestmark = pytest.mark.vllm


def long(edit: EditPlan | None = None) -> GenerationRequest:
    """A request that runs for 80 tokens."""
    return greedy(max_tokens=80, ignore_eos=True, edit=edit)


@pytest.fixture
def lost() -> list[str]:
    return []


@pytest.fixture
def engine(start: Start, lost: list[str]) -> Iterator[Any]:
    with start(max_running=2, on_lost=lost.append) as loaded:
        yield loaded


class Call:
    """A call that blocks, in a thread of its own."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self.error = error

    def error_within(self, seconds: float) -> BaseException | None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "it waits still"
        return self.error


def test_callers_of_a_core_that_is_killed_get_an_error_also_while_a_plan_is_under_way(
    engine: Any, lost: list[str]
) -> None:
    cores = [child for child in children(os.getpid()) if "resource_tracker" not in command_line(child)]
    engine.generate([greedy(edit=plan_for(engine))])
    for core in cores:  # what is asked now is not answered any more
        os.kill(core.pid, signal.SIGSTOP)
    calls = [
        Call(lambda: list(engine.stream(long(edit=plan_for(engine, seed=1))))),
        Call(lambda: engine.generate([long()] * 4)),
        Call(lambda: engine.represent(["one text"])),
        Call(lambda: engine.score([])),
    ]
    wait_until(lambda: engine.load_now.running + engine.load_now.waiting == 5)
    for core in cores:
        os.kill(core.pid, signal.SIGKILL)
    assert all(isinstance(call.error_within(30.0), EngineClosed) for call in calls[:3])
    assert calls[3].error_within(1.0) is None  # nothing was asked
    for seed in range(4):  # more than may run at once
        with pytest.raises(EngineClosed):
            list(engine.stream(greedy(edit=plan_for(engine, seed=seed))))
    assert lost == ["vLLM's engine core has ended"]
    assert Call(engine.close).error_within(30.0) is None
    assert len(lost) == 1


def test_whole_answers_that_closing_cuts_off_say_that_the_engine_was_closed(engine: Any, lost: list[str]) -> None:
    call = Call(lambda: generate_many(engine))
    wait_until(lambda: engine.load_now.running == 2)
    engine.close()
    assert isinstance(call.error_within(10.0), EngineClosed)
    assert lost == []


def generate_many(engine: Engine) -> None:
    engine.generate([long(edit=plan_for(engine))] * 50)
