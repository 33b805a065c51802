"""The fake engine keeps the contract, and shows what tests need to see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from alignez_core.engines.fake.engine import FakeEngine
from alignez_core.errors import EngineClosed, EngineOverloaded, OutOfMemory
from tests.core.engines.contract import EngineContract, greedy, plan_for, wait_until


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine(step_s=0.0005)
    yield fake
    fake.close()


class TestContract(EngineContract):
    pass


def test_the_answer_names_the_plan_that_was_applied(engine: FakeEngine) -> None:
    plan = plan_for(engine)
    assert engine.generate([greedy(edit=plan)])[0].text.startswith(f" edit={plan.sha256}")
    assert engine.generate([greedy()])[0].text.startswith(" plain")


def test_an_abandoned_stream_is_counted_and_stops_running() -> None:
    fake = FakeEngine(step_s=0.01)
    for _ in fake.stream(greedy(max_tokens=200, ignore_eos=True)):
        break
    wait_until(lambda: fake.running == 0)
    assert fake.cancelled == 1


def test_too_many_streams_are_refused() -> None:
    fake = FakeEngine(step_s=0.05, max_waiting=1)
    running = fake.stream(greedy())
    with pytest.raises(EngineOverloaded):
        fake.stream(greedy())
    running.close()


def test_a_given_error_comes_after_the_given_number_of_tokens() -> None:
    stream = iter(FakeEngine(error=OutOfMemory("planned"), fail_after=2).stream(greedy()))
    assert next(stream).text
    assert next(stream).text
    with pytest.raises(OutOfMemory):
        next(stream)


def test_a_given_reply_is_the_whole_answer() -> None:
    fake = FakeEngine(reply=lambda request: f"You said {len(str(request.prompt))} characters.")
    assert fake.generate([greedy("abc")])[0].text == "You said 3 characters."


def test_closing_ends_streams() -> None:
    fake = FakeEngine(step_s=0.01)
    stream = fake.stream(greedy(max_tokens=200, ignore_eos=True))
    fake.close()
    with pytest.raises(EngineClosed):
        list(stream)
    with pytest.raises(EngineClosed):
        fake.generate([greedy()])
