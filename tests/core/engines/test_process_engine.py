"""An engine in a process of its own keeps the contract, counts who waits, and says it when the process is lost."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignez_core.editing import EditPlan
from alignez_core.engines.base import GenerationRequest, SamplingDefaults
from alignez_core.engines.process.channel import ReceivedPlans, SentPlans
from alignez_core.engines.process.engine import ProcessEngine
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import (
    AlignezError,
    ContextTooLong,
    EngineClosed,
    EngineOverloaded,
    InvalidInput,
    ModelMismatch,
    ModelNotFound,
    RequestTooLarge,
)
from tests.core.engines.contract import EngineContract, greedy, plan_for, wait_until
from tests.core.engines.tiny_models import byte_tokenizer, prompts, tiny_model

LONG: dict[str, Any] = {"max_tokens": 85, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    model = tiny_model("llama")
    model.generation_config.update(temperature=0.7, top_k=9, do_sample=True)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def start(model: Path, **arguments: object) -> ProcessEngine:
    return ProcessEngine.load(model, threads=1, **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[ProcessEngine]:
    with start(model) as shared:
        yield shared


class TestContract(EngineContract):
    pass


def test_answers_are_those_of_the_engine_in_this_process(engine: ProcessEngine, model: Path) -> None:
    requests = [
        GenerationRequest(prompt, 12, 0.0 if i % 2 else 0.9, seed=i, edit=None if i % 3 else plan_for(engine, i))
        for i, prompt in enumerate(prompts(24))
    ]
    with TransformersEngine.load(model) as here:
        expected = here.generate(requests)
        assert here.info == engine.info
        assert engine.info.sampling_defaults == SamplingDefaults(0.7, 1.0, 9)
    streams = [engine.stream(request) for request in requests]
    assert [tuple(token for chunk in stream for token in chunk.token_ids) for stream in streams] == [
        completion.token_ids for completion in expected
    ]
    assert engine.generate(requests) == expected


def test_more_plans_than_are_remembered_are_each_applied(engine: ProcessEngine) -> None:
    plans = [plan_for(engine, seed) for seed in range(8)]
    room = 3 * plans[0].nbytes
    sent, received = SentPlans(room), ReceivedPlans(room)
    for i in [0, 1, 2, 0, 3, 4, 0, 1, 5, 6, 7, 7, 0]:
        wire = pickle.loads(pickle.dumps(sent.wire(plans[i])))
        found = received.plan(wire)
        assert found == plans[i]
    wire = sent.wire(plans[7])
    assert wire is not None
    assert wire.content is None


def test_a_plan_above_the_bound_is_sent_each_time_and_drops_none(engine: ProcessEngine) -> None:
    plan = plan_for(engine, 0)
    wide = EditPlan.low_rank(plan.layers, plan.U.repeat(1, 2, 1), plan.V.repeat(1, 2, 1), plan.c.repeat(1, 2))
    assert wide.nbytes > plan.nbytes
    sent, received = SentPlans(plan.nbytes), ReceivedPlans(plan.nbytes)
    for expected, whole in [(plan, True), (wide, True), (wide, True), (plan, False)]:
        wire = pickle.loads(pickle.dumps(sent.wire(expected)))
        assert (wire.content is not None) is whole
        assert received.plan(wire) == expected


@pytest.mark.slow  # starts a process of its own
def test_a_full_queue_refuses_but_not_a_group_that_has_none_waiting(model: Path) -> None:
    with start(model, max_slots=1, max_waiting=1) as engine:
        streams = [engine.stream(greedy(**LONG, group="many")) for _ in range(2)]
        with pytest.raises(EngineOverloaded):
            engine.stream(greedy(**LONG, group="many"))
        streams.append(engine.stream(greedy(max_tokens=2, group="few")))
        for stream in streams:
            assert list(stream)[-1].finish_reason
        wait_until(lambda: (engine.load_now.running, engine.load_now.waiting) == (0, 0))
        assert list(engine.stream(greedy(max_tokens=2, group="many")))


@pytest.mark.slow  # starts a process of its own
def test_the_wait_in_the_queue_comes_across(model: Path) -> None:
    with start(model, max_slots=1) as engine:
        streams = [engine.stream(greedy(**LONG)), engine.stream(greedy(max_tokens=3))]
        at_once, waited = [[chunk.queued_s for chunk in stream] for stream in streams]
    assert set(at_once[1:]) == set(waited[1:]) == {None}
    assert at_once[0] is not None
    assert waited[0] is not None
    assert 0 <= at_once[0] < waited[0]


@pytest.mark.slow  # starts a process of its own
def test_closed_and_dropped_streams_make_room(model: Path) -> None:
    with start(model, max_slots=1, max_waiting=0) as engine:
        for _ in range(5):
            stream = engine.stream(greedy(**LONG))
            next(iter(stream))
            del stream
        closed = engine.stream(greedy(**LONG))
        closed.close()
        assert list(engine.stream(greedy(max_tokens=3)))
        assert engine.load_now.running == 0


@pytest.mark.slow  # starts a process of its own
def test_what_can_never_fit_is_refused_here(model: Path) -> None:
    with start(model, max_cache_tokens=60) as engine:
        with pytest.raises(RequestTooLarge):
            engine.stream(greedy(max_tokens=55))
        assert engine.generate([greedy(max_tokens=5)])


@pytest.mark.slow  # starts a process of its own
def test_a_lost_process_fails_what_ran_and_is_reported_once(model: Path) -> None:
    lines: list[str] = []
    reported = threading.Event()

    def lost(line: str) -> None:
        lines.append(line)
        reported.set()

    with start(model, on_lost=lost) as engine:
        stream = iter(engine.stream(greedy(**LONG)))
        next(stream)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineClosed, match="signal 9"):
            list(stream)
        assert reported.wait(5)
        with pytest.raises(EngineClosed, match="signal 9"):
            engine.stream(greedy())
        with pytest.raises(EngineClosed):
            engine.generate([greedy()])
    assert len(lines) == 1


@pytest.mark.slow  # starts a process of its own
def test_closing_ends_what_runs_and_leaves_no_process(model: Path) -> None:
    lines: list[str] = []
    engine = start(model, on_lost=lines.append)
    stream = iter(engine.stream(greedy(**LONG)))
    next(stream)

    def generate() -> None:
        with pytest.raises(EngineClosed):
            engine.generate([greedy(**LONG)] * 500)
        ended.set()

    ended = threading.Event()
    threading.Thread(target=generate, daemon=True).start()
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed):
        list(stream)
    assert ended.wait(5)
    assert not lines
    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)
    with pytest.raises(EngineClosed):
        engine.stream(greedy())


def test_what_a_row_made_before_it_failed_is_still_read(engine: ProcessEngine) -> None:
    stream = engine.stream(greedy(**LONG))
    (number,) = engine._streams
    os.kill(engine.pid, signal.SIGSTOP)  # so that the one block is all that comes
    try:
        engine._take(
            [("chunk", number, "hello", (1,), None, None, 1), ("failed", number, EngineClosed("the engine was closed"))]
        )
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    chunks = iter(stream)
    texts = [next(chunks).text]
    with pytest.raises(EngineClosed):
        texts += [chunk.text for chunk in chunks]
    assert texts[-1] == "hello"


@pytest.mark.slow  # starts a process of its own
def test_the_process_ends_when_its_parent_is_killed(model: Path) -> None:
    code = (
        "import sys, time\n"
        "from alignez_core.engines.process.engine import ProcessEngine\n"
        f"engine = ProcessEngine.load({str(model)!r}, threads=1)\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_signals_of_the_process_group_are_left_to_the_parent(engine: ProcessEngine) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(engine.pid, number)
    assert engine.generate([greedy()])[0].token_ids


def test_a_model_that_cannot_be_loaded_is_said_as_in_this_process(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        start(tmp_path)


@pytest.mark.slow  # starts a process of its own
def test_settings_out_of_range_are_refused(model: Path) -> None:
    with pytest.raises(InvalidInput, match="max_slots"):
        start(model, max_slots=0)
    with pytest.raises(InvalidInput, match="max_waiting"):
        start(model, max_waiting=-1)


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("prompt", "has no tokens"),
        ContextTooLong(1, 2, 3),
        RequestTooLarge(1, 2, 3),
        ModelMismatch("width", 1, 2),
        EngineOverloaded(4, 5),
        EngineClosed("closed"),
    ],
)
def test_errors_cross_processes_whole(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.slow  # starts a process of its own
def test_the_child_is_prepared_before_it_loads(model: Path, tmp_path: Path) -> None:
    with start(model, prepare=(tmp_path / "prepared").touch):
        assert (tmp_path / "prepared").exists()


@pytest.mark.slow  # starts a process of its own
def test_a_child_that_cannot_be_prepared_says_why(model: Path, tmp_path: Path) -> None:
    with pytest.raises(AlignezError, match="FileNotFoundError"):
        start(model, prepare=(tmp_path / "missing" / "prepared").touch)
