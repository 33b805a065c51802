"""A long prompt that is read in pieces gives the tokens of the whole, and holds nobody up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from alignez_core.engines.base import GenerationRequest
from alignez_core.engines.slots.engine import TransformersEngine
from alignez_core.errors import AlignezError, EngineClosed, InvalidInput
from tests.core.engines.contract import wait_until
from tests.core.engines.slots.watched import Watched, watched_engine
from tests.core.engines.test_parity import EDITS
from tests.core.engines.tiny_models import ARCHITECTURES, plan, prompts, slot_runner, tiny_engine, tiny_model

LONG_PROMPT = [3 + (37 * i * i + 11 * i) % 256 for i in range(120)]


def long_request(length: int = 90, new: int = 6, **fields: object) -> GenerationRequest:
    return GenerationRequest(LONG_PROMPT[:length], new, 0, ignore_eos=True, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_tokens_are_those_of_the_whole_prompt(kind: str) -> None:
    """Pieces of 7 beside sliding windows of 8: windows reach over the seams. Every kind of edit, ragged lengths."""
    requests = [
        GenerationRequest(prompt, 8, 0, ignore_eos=True, edit=edit)
        for prompt, edit in zip(prompts(len(EDITS), seed=3, longest=60), EDITS, strict=True)
    ]
    with tiny_engine(kind) as whole, tiny_engine(kind, prefill_piece=7) as pieces:
        expected = whole.generate(requests)
        assert pieces.generate(requests) == expected
        assert [pieces.generate([request])[0] for request in requests] == expected


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt_neo"])
@pytest.mark.parametrize("length", [21, 22, 23])  # the last piece: whole, one token, two
def test_logits_are_those_of_the_whole_prompt(kind: str, length: int) -> None:
    model = tiny_model(kind)
    runner = slot_runner(model, kind, 4)
    prompt = LONG_PROMPT[:length]
    for edit in (None, plan("alignez", 1), plan("transport", 2, steps=1), plan("additive", 3, positions="all")):
        whole = [runner.prefill([prompt], [edit]), *(runner.decode([token]) for token in (5, 6, 7))]
        runner.reset()
        runner.prefill([[3, 4, 5], [6, 7]], [plan("additive", 8), None])  # other rows, with their own edits
        made = [runner.prefill_piece(prompt, edit, 7) for _ in range(-(-length // 7))]
        assert all(piece is None for piece in made[:-1])
        assert runner.rows == 3
        steps = [runner.decode([1, 2, token])[2:] for token in (5, 6, 7)]
        for got, expected in zip([made[-1], *steps], whole, strict=True):
            torch.testing.assert_close(got, expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-4)
        runner.reset()


class Trace:
    """What the engine's thread does, in order: "piece", or how many rows a step or a prefill had."""

    def __init__(self, watched: Watched) -> None:
        self.events: list[tuple[str, int]] = []
        self.gate = threading.Semaphore(0)
        self.free = False
        for name in ("prefill", "prefill_piece", "decode"):
            watched.on[name] = partial(self._traced, name)

    def _traced(self, name: str, real: Callable[..., Any], given: list[int], *rest: object) -> Any:
        if not self.free:
            assert self.gate.acquire(timeout=20)
        self.events.append((name, 1 if name == "prefill_piece" else len(given)))
        return real(given, *rest)

    def let(self, calls: int) -> None:
        """Lets so many calls of the model happen, and waits for them to have begun."""
        wanted = len(self.events) + calls
        for _ in range(calls):
            self.gate.release()
        wait_until(lambda: len(self.events) == wanted)

    def let_all(self) -> None:
        self.free = True
        self.gate.release(1000)


def test_running_streams_get_a_token_between_any_two_pieces() -> None:
    with watched_engine(max_slots=4, prefill_piece=20) as (engine, watched):
        expected = [engine.generate([r])[0].text for r in (long_request(5, new=40), long_request(90))]
        trace = Trace(watched)
        running = engine.stream(long_request(5, new=40))
        trace.let(2)
        long = engine.stream(long_request(90))
        trace.let_all()
        texts = ["".join(chunk.text for chunk in stream) for stream in (running, long)]
    assert texts == expected
    names = [name for name, _ in trace.events]
    first = names.index("prefill_piece")
    assert names[first : first + 10] == ["prefill_piece", "decode"] * 5
    assert names.count("prefill_piece") == 5
    # The long row takes part in the step after its last piece.
    assert [count for name, count in trace.events if name == "decode"][:2] == [1, 1]
    assert trace.events[first + 7 : first + 10] == [("decode", 1), ("prefill_piece", 1), ("decode", 2)]


def test_short_requests_pass_a_long_one_by_and_a_second_long_one_waits() -> None:
    with watched_engine(max_slots=8, prefill_piece=20) as (engine, watched):
        requests = [long_request(80), long_request(70), long_request(10), long_request(12)]
        expected = engine.generate(requests)
        trace = Trace(watched)
        first = engine.stream(replace(requests[0], group="a"))
        wait_until(lambda: engine.load_now.running == 1)  # held in its first piece
        second = engine.stream(replace(requests[1], group="b"))
        short = [engine.stream(replace(request, group="c")) for request in requests[2:]]
        trace.let_all()
        texts = ["".join(chunk.text for chunk in stream) for stream in (first, second, *short)]
        assert engine.load_now.running == engine.load_now.waiting == 0
    assert texts == [completion.text for completion in expected]
    names = [name for name, _ in trace.events]
    assert trace.events[:3] == [("prefill_piece", 1), ("prefill", 2), ("prefill_piece", 1)]
    assert names.count("prefill_piece") == 4 + 4


def test_a_long_request_is_cancelled_between_pieces() -> None:
    with watched_engine(max_slots=1, prefill_piece=20) as (engine, watched):
        expected = engine.generate([long_request(85)])
        trace = Trace(watched)
        gone = engine.stream(long_request(90))
        trace.let(2)
        gone.close()
        after = threading.Thread(target=lambda: done.extend(engine.generate([long_request(85)])))
        done: list[object] = []
        after.start()
        trace.let_all()
        after.join(20)
        assert done == expected
        assert engine.load_now.running == 0
    pieces = [name for name, _ in trace.events].count("prefill_piece")
    assert pieces <= 3 + 5  # a third one may have begun before the stream was closed
    assert ("decode", 1) in trace.events


@pytest.mark.parametrize("piece", [1, 3, 5])
def test_a_failing_piece_loses_its_own_request_only(piece: int) -> None:
    with watched_engine(max_slots=2, prefill_piece=20) as (engine, watched):
        alone = engine.generate([long_request(5, new=60), long_request(90)])
        running = iter(engine.stream(long_request(5, new=60)))
        first = next(running)
        calls = 0

        def fail(real: Callable[..., Any], *args: object) -> Any:
            nonlocal calls
            calls += 1
            if calls == piece:
                raise RuntimeError("planned")
            return real(*args)

        watched.on["prefill_piece"] = fail
        with pytest.raises(AlignezError, match="planned"):
            engine.generate([long_request(90)])
        assert first.text + "".join(chunk.text for chunk in running) == alone[0].text
        assert engine.load_now.running == 0
        assert engine.generate([long_request(90)]) == alone[1:]


def is_closed(engine: TransformersEngine) -> bool:
    try:
        engine.stream(long_request(5)).close()
    except EngineClosed:
        return True
    return False


def test_a_failing_step_and_a_close_end_the_long_request_too() -> None:
    with watched_engine(prefill_piece=20) as (engine, watched):
        expected = engine.generate([long_request(90)])
        trace = Trace(watched)
        running = engine.stream(long_request(5, new=60))
        trace.let(1)
        long = engine.stream(long_request(90))
        trace.let(1)
        wait_until(lambda: engine.load_now.running == 2)  # held before the long prompt's first piece
        watched.fail_once("decode", RuntimeError("planned"))
        trace.let_all()
        for stream in (running, long):
            with pytest.raises(AlignezError, match="planned"):
                list(stream)
        assert engine.load_now.running == 0
        assert engine.generate([long_request(90)]) == expected

        trace.free = False
        while trace.gate.acquire(blocking=False):
            pass
        closed = engine.stream(long_request(90))
        trace.let(1)
        closing = threading.Thread(target=engine.close)
        closing.start()
        wait_until(lambda: is_closed(engine))
        trace.let_all()
        closing.join(20)
        with pytest.raises(EngineClosed):
            list(closed)
    with pytest.raises(InvalidInput, match="prefill_piece"):
        TransformersEngine.load("nowhere", prefill_piece=0)


def test_a_long_request_counts_in_the_memory_while_it_is_read() -> None:
    with watched_engine(max_slots=4, prefill_piece=20, max_cache_tokens=100) as (engine, watched):
        trace = Trace(watched)
        long = engine.stream(long_request(80, new=10, group="a"))
        wait_until(lambda: engine.load_now.running == 1)
        fits, waits = engine.stream(long_request(4, new=6, group="b")), engine.stream(long_request(4, new=6, group="c"))
        trace.let(3)
        assert trace.events == [("prefill_piece", 1), ("prefill", 1), ("prefill_piece", 1)]
        trace.let_all()
        for stream in (long, fits, waits):
            assert list(stream)[-1].finish_reason == "length"
